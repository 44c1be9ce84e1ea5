"""What a compaction knows of the cached keys besides attention, and what inf_mllm_plus makes of it."""

from dataclasses import dataclass, fields

import torch
from policies import CacheParams, mean_pooled

LIKENESS = 0.05  # temperature of the likeness to a standing instruction
HORIZON = 16  # budgets whose keys the mean of a stream stands for at most


def directions(x: torch.Tensor) -> torch.Tensor:
    """Vectors [..., head_dim] at length 1."""
    return x / (x.norm(dim=-1, keepdim=True) + 1e-12)


def standing_likeness(standing: torch.Tensor, keys: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
    """T [kv_heads, slots]: how near the instruction's keys [kv_heads, n, head_dim] find their best match in each slot's unit.

    Of keys [kv_heads, slots, head_dim] and the units [kv_heads, slots] they belong to.
    """
    cosine = torch.nn.functional.cosine_similarity(standing[:, :, None], keys[:, None], dim=-1)
    together = units[:, :, None] == units[:, None, :]
    in_unit = torch.where(together[:, None], cosine[:, :, None, :], -2.0).amax(-1)
    return ((in_unit - cosine.amax(-1, keepdim=True)) / LIKENESS).exp().mean(1)


@dataclass
class StreamMean:
    """Running mean of the directions of every key that a layer has had, per KV head."""

    mean: torch.Tensor  # [kv_heads, head_dim]
    seen: int = 0  # keys taken in
    count: int = 0  # keys that the mean counts as when the next are added

    def add(self, keys: torch.Tensor, budget: int) -> None:
        """Takes in keys before rotation [kv_heads, new, head_dim]."""
        new = keys.shape[1]
        self.mean = (self.mean * self.count + directions(keys).sum(1)) / (self.count + new)
        self.seen += new
        self.count = min(self.count + new, HORIZON * budget)

    def novelty(self, keys: torch.Tensor) -> torch.Tensor:
        """N [kv_heads, slots]: how unlike the mean each of the keys [kv_heads, slots, head_dim] is."""
        return 1 - (directions(keys) @ directions(self.mean)[:, :, None]).squeeze(-1)


@dataclass
class Evidence:
    """What a policy asks for, by slot [sets, slots]; None where it does not."""

    scores: torch.Tensor  # S, or h2o's sums
    standing: torch.Tensor | None = None  # T
    novelty: torch.Tensor | None = None  # N
    norms: torch.Tensor | None = None  # of the value vectors

    @classmethod
    def mean(cls, layers: list["Evidence"]) -> "Evidence":
        """Mean over layers whose slots hold the same tokens."""
        by_name = {f.name: [getattr(layer, f.name) for layer in layers] for f in fields(cls)}
        return cls(**{name: None if x[0] is None else torch.stack(x).mean(0) for name, x in by_name.items()})

    def of(self, slots: slice, sets: slice = slice(None)) -> "Evidence":
        """That of some slots, of some sets."""
        by_name = {f.name: getattr(self, f.name) for f in fields(self)}
        return Evidence(**{name: None if x is None else x[sets, slots] for name, x in by_name.items()})


def share(params: CacheParams, scores: torch.Tensor, norms: torch.Tensor | None) -> torch.Tensor:
    """Scores [sets, candidates] times value norms, pooled, as multiples of their mean."""
    return relative(mean_pooled(scores if norms is None else scores * norms, params.pool))


def relative(scores: torch.Tensor) -> torch.Tensor:
    """Scores [sets, candidates] as multiples of their mean."""
    return scores / scores.mean(-1, keepdim=True)


def relevance(params: CacheParams, evidence: Evidence) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention's and likeness's, and novelty's part of R [sets, candidates], whose sum has mean 1; evidence of the candidates."""
    standing, new = params.standing_share, params.novelty_weight
    attention = (1 - standing) * (1 - new) * share(params, evidence.scores, evidence.norms)
    if evidence.standing is not None:
        attention = attention + standing * relative(evidence.standing)
    if evidence.novelty is None:
        return attention, torch.zeros_like(attention)
    return attention, (1 - standing) * new * relative(evidence.novelty)
