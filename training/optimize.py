"""Optimisation: Muon for the matrices, AdamW for the rest, gradients averaged over the processes."""

from collections import defaultdict

import torch
import torch.distributed as dist


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


def optimizer_for(tables: list[torch.nn.Parameter], *groups: tuple[list[torch.nn.Parameter], float]) -> Optimizers:
    """Optimisers over (parameters, factor on the learning rate): Muon for matrices but lookup tables, with steps as large as
    AdamW's, and AdamW for the rest; weight decay on all but vectors."""
    known = {id(table) for table in tables}
    chosen: dict[str, list[dict]] = defaultdict(list)
    for parameters, scale in groups:
        kinds = defaultdict(list)
        for p in parameters:
            kinds[
                "vectors" if p.dim() == 1 else "matrices" if p.dim() == 2 and id(p) not in known else "tables"
            ].append(p)
        for kind, members in kinds.items():
            decay = 0.0 if kind == "vectors" else 0.05
            chosen["muon" if kind == "matrices" else "adam"].append(
                {"params": members, "scale": scale, "weight_decay": decay}
            )
    muon = torch.optim.Muon(chosen["muon"], lr=1e-3, adjust_lr_fn="match_rms_adamw")
    return Optimizers(muon, torch.optim.AdamW(chosen["adam"], lr=1e-3, betas=(0.9, 0.98)))


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
        group["lr"] = rate * group["scale"]
    optimizer.zero_grad()
    loss.backward()
    parameters = [p for g in optimizer.param_groups for p in g["params"]]
    average_gradients(parameters)
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
