"""Runs the bounded-cache reference over one stream for several policies and writes what it expects."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from golden_io import max_diff, write_tensors
from reference import PERTURBATIONS, BoundedDecoder, CacheParams, Compaction, TextModel, run_stream

SMALLEST_MARGIN = 2e-4


class NearTie(Exception):
    """A kept and a dropped key rank so close that rounding could exchange them."""


@dataclass(frozen=True)
class Stream:
    """Embeddings [tokens, hidden] fed in chunks, and the rows of the logits that a golden keeps."""

    embeds: torch.Tensor
    chunks: list[int]
    rows: list[int]


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


def make_case(model_dir: Path, stream: Stream, params: CacheParams, path: Path) -> dict:
    """Writes one case's tensors to `path`; returns its description. Refuses a case whose ranking is a near tie."""
    model = TextModel(model_dir)
    logits, compactions = run_stream(model, params, stream.embeds, stream.chunks)
    margin = min(c.margin for c in compactions)
    if len(compactions) < 3:
        raise SystemExit(f"{path.name}: {len(compactions)} compactions, expected at least 3")
    if margin < SMALLEST_MARGIN:
        raise NearTie(f"{path.name}: ranking margin {margin:.1e}, expected at least {SMALLEST_MARGIN:.0e}")
    exact, exact_compactions = run_stream(TextModel(model_dir, torch.float64), params, stream.embeds, stream.chunks)
    if not same_kept(compactions, exact_compactions):
        raise NearTie(f"{path.name}: f64 keeps other keys than f32")
    full = BoundedDecoder(model, CacheParams("full", budget=0, slack=0, prefix=0)).append(stream.embeds, 0)
    rows = torch.tensor(stream.rows)
    tensors = {"rows": rows, "logits": logits[rows]}
    for i, compaction in enumerate(compactions):
        sets = slice(0, 1) if params.scope == "layer" else slice(None)
        tensors[f"kept.{i}"] = compaction.kept[:, sets]
        if compaction.scores is not None:
            tensors[f"scores.{i}"] = compaction.scores
    write_tensors(path, tensors)
    perturbed = {}
    for name in PERTURBATIONS:
        wrong, _ = run_stream(model, params, stream.embeds, stream.chunks, frozenset([name]))
        perturbed[name] = max_diff(wrong[rows], logits[rows])
    if params.bias == 0.0:
        del perturbed["no_bias"]
    oldest = [int(c.kept[..., params.protected :].min()) for c in compactions]
    return {
        "file": path.name,
        "params": {**asdict(params), "keep": params.keep, "protected": params.protected},
        "tokens_seen": [c.tokens_seen for c in compactions],
        "oldest_kept": oldest,
        "smallest_margin": margin if margin != float("inf") else None,
        "deviation_from_f64": max_diff(logits, exact),
        "eviction_effect": max_diff(full[rows], logits[rows]),
        "perturbed": perturbed,
    }
