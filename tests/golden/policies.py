"""What each policy keeps: its parameters, and the choice among candidates once their values are known.

Values are compared on one scale: 1 is the mean of a set's candidates, so that a margin means the same everywhere.
"""

from dataclasses import dataclass, field

import torch

POLICIES = ("full", "window", "streaming_llm", "h2o", "tova", "snapkv", "inf_mllm", "inf_mllm_plus")
PER_KV_HEAD = ("h2o", "snapkv")  # tova has one kept set per layer, inf_mllm and inf_mllm_plus what `scope` says
RANKED = ("h2o", "tova", "snapkv", "inf_mllm", "inf_mllm_plus")
SNAPKV_WINDOW, SNAPKV_POOL = 32, 5
INFINITE = float("inf")


@dataclass(frozen=True)
class CacheParams:
    """Policy and sizes of the cache, in tokens; `prefix` is the system prompt's length, before sinks are counted."""

    policy: str
    budget: int
    slack: int
    prefix: int
    sinks: int = 4
    n_recent: int = 0  # inf_mllm, inf_mllm_plus; see `recent`
    query_window: int = 0  # inf_mllm, inf_mllm_plus; see `window`
    bias: float = 0.0
    bias_form: str = "slope"
    scope: str = "layer"  # or kv_head, or model: one kept set for all layers
    query_source: str = "stream"  # or instruction
    protect_boundaries: int = 0  # newest boundary tokens among the candidates that are kept whatever their value
    h2o_decay: float = 1.0
    pool: int = 1  # inf_mllm_plus, as the rest: neighbours whose mean a score becomes, odd
    value_norms: bool = False
    standing: bool = False  # the standing instruction's keys vote too
    standing_weight: float = 0.5
    standing_bias: float = 0.0002  # age bias of their share
    units: bool = False  # whole units instead of single tokens
    novelty_weight: float = 0.0  # share of novelty in what the standing instruction leaves
    novelty_bias: float = 0.0  # age bias of that share
    position_gap: float = 0.0  # positions left out before the recent tokens, share of the model's longest input

    @property
    def keep(self) -> int:
        return self.budget - self.slack

    @property
    def protected(self) -> int:
        """Tokens at the start of the stream that are never evicted."""
        return max(self.prefix, self.sinks) if self.policy == "streaming_llm" else self.prefix

    @property
    def recent(self) -> int:
        """Newest tokens that a compaction always keeps."""
        half = (self.keep - self.prefix) // 2
        by_policy = {"h2o": max(half, 1), "tova": 1, "snapkv": min(SNAPKV_WINDOW, half)}
        return by_policy.get(self.policy, self.n_recent)

    @property
    def window(self) -> int:
        """Queries that score the keys."""
        by_policy = {"h2o": 0, "tova": 1, "snapkv": self.recent}
        return by_policy.get(self.policy, self.query_window)

    @property
    def relevant(self) -> int:
        return self.keep - self.prefix - self.recent

    @property
    def per_kv_head(self) -> bool:
        """Whether each KV head has a kept set of its own."""
        return self.policy in PER_KV_HEAD or (self.policy.startswith("inf_mllm") and self.scope == "kv_head")

    @property
    def standing_share(self) -> float:
        return self.standing_weight if self.standing else 0.0

    @property
    def age_bias(self) -> float:
        """Slope of D: the mean of the parts' biases, each by its share of R."""
        rest = (1 - self.novelty_weight) * self.bias + self.novelty_weight * self.novelty_bias
        return (1 - self.standing_share) * rest + self.standing_share * self.standing_bias


@dataclass(frozen=True)
class Annotations:
    """What is known about the tokens of a stream besides their embeddings."""

    instructions: list[tuple[int, int]] = field(default_factory=list)  # [start, end) in stream indices, in time order
    boundaries: list[int] = field(default_factory=list)  # stream indices
    unit_starts: list[int] = field(default_factory=list)  # stream index of each unit's first token, in time order
    standing: torch.Tensor | None = None  # keys before rotation [layers, kv_heads, n, head_dim]

    def units(self, index: torch.Tensor) -> torch.Tensor:
        """Which unit each of the stream indices belongs to."""
        return torch.searchsorted(torch.tensor(self.unit_starts), index.contiguous(), right=True)


def age_term(params: CacheParams, index: torch.Tensor, newest: int, bias: float, dtype: torch.dtype) -> torch.Tensor:
    """D of candidates given by their stream indices, oldest first; `newest` is the stream's newest token."""
    count = len(index)
    if params.bias_form == "range":
        rank = torch.arange(count - 1, -1, -1, dtype=dtype) / max(count - 1, 1)
        return -bias * rank
    return -bias * (newest - index).to(dtype)


def max_pooled(scores: torch.Tensor, width: int) -> torch.Tensor:
    """Largest of the `width` candidates around each of scores [sets, candidates], cut off at the ends."""
    padded = torch.nn.functional.pad(scores, (width // 2, width // 2), value=-INFINITE)
    return padded.unfold(-1, width, 1).max(-1).values


def mean_pooled(scores: torch.Tensor, width: int) -> torch.Tensor:
    """Mean of the `width` candidates around each of scores [sets, candidates], of fewer at the ends."""
    padded = torch.nn.functional.pad(torch.stack([scores, torch.ones_like(scores)]), (width // 2, width // 2))
    total, count = padded.unfold(-1, width, 1).sum(-1)
    return total / count


def best(values: list[float], count: int) -> tuple[list[int], float]:
    """Places of the `count` largest values, of equals the newer, best first; the margin of that choice.

    The margin is the gap between the last that is in and the first that is out. Values that are equal to the bit come
    from one source (max pooling) and stay equal, so if they lie across the border, the gaps around them count.
    """
    order = sorted(range(len(values)), key=lambda j: (-values[j], -j))
    if count == 0 or count == len(values):
        return order[:count], INFINITE
    last_in, first_out = values[order[count - 1]], values[order[count]]
    if last_in > first_out:
        return order[:count], last_in - first_out
    gaps = [abs(v - last_in) for v in values if v != last_in]
    return order[:count], min(gaps, default=INFINITE)


def newest_boundaries(params: CacheParams, index: torch.Tensor, notes: Annotations) -> list[int]:
    """Places of the protected boundary tokens among candidates given by their stream indices, oldest first."""
    flagged = set(notes.boundaries)
    places = [j for j, i in enumerate(index.tolist()) if i in flagged]
    count = min(params.protect_boundaries, params.relevant)
    return places[len(places) - min(count, len(places)) :]


def choose_tokens(
    params: CacheParams, ranking: torch.Tensor, index: torch.Tensor, notes: Annotations
) -> tuple[list[int], float]:
    """Places of the candidates to keep, in time order, and the margin; ranking and stream indices [candidates]."""
    values = ranking.tolist()
    for j in newest_boundaries(params, index, notes):
        values[j] = INFINITE
    chosen, margin = best(values, params.relevant)
    return sorted(chosen), margin


def choose_units(
    params: CacheParams,
    attention: torch.Tensor,
    novelty: torch.Tensor,
    age: torch.Tensor,
    index: torch.Tensor,
    notes: Annotations,
) -> tuple[list[int], float]:
    """As `choose_tokens`, but whole units as far as they fit; both parts of R and the age term D [candidates].

    Protected boundary tokens are kept whatever becomes of their unit: they count for its value, not for its length. The
    units that fit are kept from the best down; what is left goes to the newest tokens of the best that do not.

    The margin is the smallest gap between neighbours in the ranking, from the last unit before the first that does not
    fit (the order of those before it does not matter) to the first after the last of which a token is kept.
    """
    chosen = newest_boundaries(params, index, notes)
    left = params.relevant - len(chosen)
    members: dict[int, list[int]] = {}
    for j, unit in enumerate(notes.units(index).tolist()):
        members.setdefault(unit, []).append(j)
    units, values = [], []
    for places in members.values():
        if free := [j for j in places if j not in chosen]:
            units.append(free)
            values.append(attention[places].max().item() + novelty[places].mean().item() + age[places[-1]].item())
    order, _ = best(values, len(units))
    kept, skipped = [], []  # ranks
    for rank, u in enumerate(order):
        fits = len(units[u]) <= left
        (kept if fits else skipped).append(rank)
        if fits:
            chosen = chosen + units[u]
            left -= len(units[u])
    if not skipped:
        return sorted(chosen), INFINITE
    if left > 0:  # less than any that was skipped needs, so the best of them takes all of it
        chosen = chosen + units[order[skipped[0]]][-left:]
        kept.append(skipped[0])
    ranks = range(max(skipped[0] - 1, 0), min(max(kept, default=-1) + 1, len(order) - 1))
    return sorted(chosen), min((values[order[r]] - values[order[r + 1]] for r in ranks), default=INFINITE)
