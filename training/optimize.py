"""Optimisation: Muon for the matrices, AdamW for the rest, gradients averaged over the processes."""

from collections import defaultdict

import torch
import torch.distributed as dist

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Muon's iteration (Jordan et al., 2024)


class Muon(torch.optim.Optimizer):
    """Muon with steps as large as AdamW's (arXiv 2502.16982). PyTorch's own one iterates in bfloat16, which takes most of a
    training step on a CPU without it; this one does on such in float32, on all matrices of a shape at once."""

    def __init__(self, groups: list[dict], momentum: float = 0.95, steps: int = 5):
        super().__init__(groups, {"lr": 1e-3, "weight_decay": 0.0, "momentum": momentum, "steps": steps})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            alike = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[p.shape].append(p)
            for shape, members in alike.items():
                for p in members:
                    if "momentum" not in self.state[p]:
                        self.state[p]["momentum"] = torch.zeros_like(p)
                grads, momenta = [p.grad for p in members], [self.state[p]["momentum"] for p in members]
                torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
                moved = torch.stack(torch._foreach_lerp(grads, momenta, group["momentum"]))
                updates = list(orthogonal(moved, group["steps"]).unbind())
                torch._foreach_mul_(members, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(members, updates, alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)


def orthogonal(matrices: torch.Tensor, steps: int) -> torch.Tensor:
    """The nearest matrices with orthogonal rows or columns, roughly [count, rows, columns]."""
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.transpose(1, 2)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    x = x.bfloat16() if x.is_cuda else x
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.transpose(1, 2)).to(matrices.dtype)


class Optimizers:
    """Several optimisers as one."""

    def __init__(self, *members: torch.optim.Optimizer):
        self.members = members

    @property
    def param_groups(self) -> list[dict]:
        return [group for member in self.members for group in member.param_groups]

    def zero_grad(self) -> None:
        for member in self.members:
            member.zero_grad()

    def step(self) -> None:
        for member in self.members:
            member.step()

    def state_dict(self) -> list[dict]:
        return [member.state_dict() for member in self.members]

    def load_state_dict(self, states: list[dict]) -> None:
        for member, state in zip(self.members, states, strict=True):
            member.load_state_dict(state)


def optimizer_for(tables: list[torch.nn.Parameter], parameters: list[torch.nn.Parameter]) -> Optimizers:
    """Optimisers over parameters: Muon for matrices but lookup tables, AdamW for the rest; weight decay on all but vectors."""
    known = {id(table) for table in tables}
    kinds = defaultdict(list)
    for p in parameters:
        kind = "vectors" if p.dim() == 1 else "matrices" if p.dim() == 2 and id(p) not in known else "tables"
        kinds[kind].append(p)
    muon = Muon([{"params": kinds["matrices"], "weight_decay": 0.05}])
    rest = [{"params": kinds[kind], "weight_decay": decay} for kind, decay in (("vectors", 0.0), ("tables", 0.05))]
    return Optimizers(muon, torch.optim.AdamW(rest, lr=1e-3, betas=(0.9, 0.98)))


def average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Replaces every gradient by its mean over the processes."""
    if not dist.is_initialized():
        return
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for parameter, grad in zip(parameters, flat.split([p.numel() for p in parameters])):
        if parameter.grad is not None:
            parameter.grad.copy_(grad.view_as(parameter))


def step(optimizer: Optimizers, loss: torch.Tensor, rate: float) -> None:
    """One optimiser step with clipped gradients."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    parameters = [p for g in optimizer.param_groups for p in g["params"]]
    average_gradients(parameters)
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
