"""Runs the bounded-cache reference over one stream for several policies and writes what it expects."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import torch
from decoders import open_text_model
from golden_io import max_diff, write_tensors
from policies import Annotations
from reference import (
    BIAS,
    MASK,
    POSITIONS,
    ROPE,
    BoundedDecoder,
    CacheParams,
    Compaction,
    run_stream,
    wrong_heads,
)

SMALLEST_MARGIN = 2e-4


class NearTie(Exception):
    """A kept and a dropped key rank so close that rounding could exchange them."""


@dataclass(frozen=True)
class Stream:
    """Embeddings [tokens, hidden] fed in chunks, and the rows of the logits that a golden keeps."""

    embeds: torch.Tensor
    chunks: list[int]
    rows: list[int]
    notes: Annotations = field(default_factory=Annotations)
    make_decoder: Callable[..., BoundedDecoder] = BoundedDecoder


@dataclass(frozen=True)
class CaseOptions:
    """What a case stores and refuses; `variants` are changes of its parameters whose effect on the logits it notes."""

    smallest_margin: float = SMALLEST_MARGIN
    stored: int | None = None  # compactions whose sets and scores are stored; None: all
    perturbations: tuple[str, ...] | None = None  # None: those of attention
    variants: dict[str, dict] | None = None


def random_chunks(total: int, sizes: list[int], seed: int) -> list[int]:
    """Chunk sizes drawn from `sizes` that add up to `total`."""
    generator = torch.Generator().manual_seed(seed)
    chunks: list[int] = []
    while (rest := total - sum(chunks)) > 0:
        chunks.append(min(rest, sizes[int(torch.randint(len(sizes), (1,), generator=generator))]))
    return chunks


def chunk_ends(chunks: list[int]) -> list[int]:
    """Index of the last token of each chunk."""
    ends = torch.tensor(chunks).cumsum(0) - 1
    return ends.tolist()


def same_kept(a: list[Compaction], b: list[Compaction]) -> bool:
    return len(a) == len(b) and all(torch.equal(x.kept, y.kept) for x, y in zip(a, b, strict=True))


def score_deviation(a: list[Compaction], b: list[Compaction]) -> float | None:
    """Largest difference of scores, as multiples of the mean over a set's candidates."""
    if a[0].scores is None:
        return None

    def shares(compaction: Compaction) -> torch.Tensor:
        return compaction.scores / compaction.scores.mean(-1, keepdim=True)

    return max(max_diff(shares(x), shares(y)) for x, y in zip(a, b, strict=True))


def recorded(params: CacheParams) -> dict:
    """Parameters as a case records them: what the policy fixes as it is fixed, newer fields where not the default."""
    values = asdict(params) | {"n_recent": params.recent, "query_window": params.window}
    if params.per_kv_head:
        values["scope"] = "kv_head"
    names = [f.name for f in fields(params)]
    for f in fields(params)[names.index("query_source") :]:
        if values[f.name] == f.default:
            del values[f.name]
    return {**values, "keep": params.keep, "protected": params.protected}


def spread(count: int, stored: int | None) -> list[int]:
    """Up to `stored` of `count` compactions, evenly, with the first and the last."""
    if stored is None or count <= stored:
        return list(range(count))
    return sorted({round(i * (count - 1) / (stored - 1)) for i in range(stored)})


def run_checked(
    model_dir: Path, stream: Stream, params: CacheParams, name: str, smallest_margin: float = SMALLEST_MARGIN
) -> tuple[torch.Tensor, list[Compaction], torch.Tensor, list[Compaction]]:
    """Logits and compactions in f32 and in f64; NearTie if rounding could change what is kept."""
    about = {"params": params, "embeds": stream.embeds, "chunks": stream.chunks}
    about |= {"notes": stream.notes, "make_decoder": stream.make_decoder}
    logits, compactions = run_stream(open_text_model(model_dir), **about)
    margin = min(c.margin for c in compactions)
    if len(compactions) < 3:
        raise SystemExit(f"{name}: {len(compactions)} compactions, expected at least 3")
    if margin < smallest_margin:
        raise NearTie(f"{name}: ranking margin {margin:.1e}, expected at least {smallest_margin:.0e}")
    exact, exact_compactions = run_stream(open_text_model(model_dir, torch.float64), **about)
    if not same_kept(compactions, exact_compactions):
        raise NearTie(f"{name}: f64 keeps other keys than f32")
    return logits, compactions, exact, exact_compactions


def make_case(
    model_dir: Path, stream: Stream, params: CacheParams, path: Path, options: CaseOptions | None = None
) -> dict:
    """Writes one case's tensors to `path`; returns its description. Refuses a case whose ranking is a near tie."""
    model, noted = open_text_model(model_dir), options is not None
    options = options or CaseOptions()
    logits, compactions, exact, exact_compactions = run_checked(
        model_dir, stream, params, path.name, options.smallest_margin
    )
    full = stream.make_decoder(model, CacheParams("full", budget=0, slack=0, prefix=0)).append(stream.embeds, 0)
    rows = torch.tensor(stream.rows)
    tensors = {"rows": rows, "logits": logits[rows]}
    stored = spread(len(compactions), options.stored)
    for i in stored:
        compaction = compactions[i]
        tensors[f"kept.{i}"] = compaction.kept if params.per_kv_head else compaction.kept[:, :1]
        if compaction.scores is not None:
            tensors[f"scores.{i}"] = compaction.scores
    write_tensors(path, tensors)

    def change(params: CacheParams, perturb: frozenset[str] = frozenset()) -> float:
        wrong, _ = run_stream(model, params, stream.embeds, stream.chunks, perturb, stream.notes, stream.make_decoder)
        return max_diff(wrong[rows], logits[rows])

    perturbations = options.perturbations or (MASK, POSITIONS, wrong_heads(model.config), BIAS, ROPE)
    names = [n for n in perturbations if n != BIAS or params.bias != 0.0]
    margin = min(c.margin for c in compactions)
    case = {
        "file": path.name,
        "params": recorded(params),
        "tokens_seen": [compactions[i].tokens_seen for i in stored],
        "oldest_kept": [int(compactions[i].kept[..., params.protected :].min()) for i in stored],
        "smallest_margin": margin if margin != float("inf") else None,
        "deviation_from_f64": max_diff(logits, exact),
        "eviction_effect": max_diff(full[rows], logits[rows]),
        "perturbed": {name: change(params, frozenset([name])) for name in names},
    }
    if noted:
        case["compactions"], case["compaction"] = len(compactions), stored
        case["score_deviation_from_f64"] = score_deviation(compactions, exact_compactions)
        variants = options.variants or {}
        case["variants"] = {name: change(replace(params, **changes)) for name, changes in variants.items()}
    return case
