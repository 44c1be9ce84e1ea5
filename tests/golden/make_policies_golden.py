"""Writes `policies_g1/`, `policies_g3/`, `policies_g9/` and `plus_g3/`: the policies on 1, 3 and 9 query heads per KV head."""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from golden_io import (
    HERE,
    check_sensitive,
    image_features,
    load_model,
    max_diff,
    merged_embeds,
    sha256,
    write_json,
    write_tensors,
)
from policies import Annotations, CacheParams
from reference import BIAS, GROUPS, MASK, POSITIONS, REVERSED, BoundedDecoder, TextModel, run_stream
from safetensors.torch import load_file
from stream_golden import (
    SMALLEST_MARGIN,
    CaseOptions,
    NearTie,
    Stream,
    chunk_ends,
    make_case,
    random_chunks,
    run_checked,
    same_kept,
)

MODELS = {
    "policies_g1": HERE / "tiny_llama_g1",
    "policies_g3": HERE / "tiny_smolvlm",
    "policies_g9": HERE / "tiny_llama_g9",
    "plus_g3": HERE / "tiny_smolvlm",
}
TOLERANCE = 1e-4
TOKENS, PREFIX = 240, 5
IMAGE_AT = (11, 60, 97, 150, 163, 203)  # policies_g3: where random tokens give way to an image's
INSTRUCTIONS = [(33, 46), (104, 119), (178, 183)]  # the last one is shorter than the query window
BOUNDARIES = [19, 32, 33, 45, 46, 74, 90, 103, 118, 119, 131, 149, 177, 182, 183, 190, 216]
ROWS, STORED = 12, 5
STREAM_SEEDS, CHUNK_SEEDS = range(1, 60), range(1, 60)
# h2o decides hundreds of times and its sums are as exact; one query of tova spreads its candidates over many sizes
SMALLER_MARGIN = {"h2o": 1e-4, "tova": 1e-4}
STANDING = (7, 11)  # tokens of the standing instruction, seed of its ids

TURNS = {"prefix": PREFIX, "budget": 64, "slack": 20, "n_recent": 18, "query_window": 8, "bias": 0.01}
H2O = CacheParams("h2o", budget=40, slack=1, prefix=PREFIX)
TOVA = CacheParams("tova", budget=96, slack=12, prefix=PREFIX)
SNAPKV = CacheParams("snapkv", budget=60, slack=15, prefix=PREFIX)
# so small that the stream is longer than its mean remembers


def with_scope(
    name: str, policy: str = "inf_mllm", scopes: tuple[str, ...] = ("layer", "kv_head"), **changes
) -> dict[str, CacheParams]:
    return {f"{name}_{s}": CacheParams(policy, **TURNS, scope=s, **changes) for s in scopes}


def plus(name: str, *scopes: str, **changes) -> dict[str, CacheParams]:
    """For `scopes`; layer and kv_head, if none are given."""
    return with_scope(name, "inf_mllm_plus", scopes or ("layer", "kv_head"), **changes)


ALL = {
    "pool": 3,
    "value_norms": True,
    "standing": True,
    "standing_weight": 0.3,
    "units": True,
    "novelty_weight": 0.5,
    "protect_boundaries": 5,
    "position_gap": 0.125,
}


SHARED = {
    "h2o": H2O,
    "tova": TOVA,
    "snapkv": SNAPKV,
    **with_scope("inf_mllm_slope"),
}
CASES = {
    "policies_g1": {
        **SHARED,
        "streaming_llm": CacheParams("streaming_llm", budget=64, slack=20, prefix=2),
        **with_scope("inf_mllm_instruction", query_source="instruction"),
    },
    "policies_g3": {
        **SHARED,
        "h2o_decay": CacheParams("h2o", budget=40, slack=1, prefix=PREFIX, h2o_decay=0.95),
        "h2o_slack": CacheParams("h2o", budget=61, slack=10, prefix=PREFIX),
        "snapkv_32": CacheParams("snapkv", budget=96, slack=12, prefix=PREFIX),
        **with_scope("inf_mllm_instruction", query_source="instruction"),
        **with_scope("inf_mllm_boundaries", protect_boundaries=5),
    },
    "policies_g9": {
        **SHARED,
        "h2o": CacheParams("h2o", budget=41, slack=1, prefix=PREFIX),
        "window": CacheParams("window", budget=64, slack=20, prefix=PREFIX),
        **with_scope("inf_mllm_boundaries", protect_boundaries=5),
    },
    "plus_g3": {
        **plus("pool", pool=5),
        **plus("value_norms", "layer", "kv_head", "model", value_norms=True),
        **plus("standing", standing=True, standing_bias=0.003),
        **plus("units", units=True),
        **plus("boundaries", protect_boundaries=5),
        **plus("novelty", novelty_weight=1.0, novelty_bias=0.002),
        **plus("novelty_units", "layer", "kv_head", "model", novelty_weight=0.6, units=True),
        **plus("position_gap", "layer", "model", position_gap=0.3),
        **plus("all", "layer", "kv_head", "model", **ALL),
        **with_scope("inf_mllm", scopes=("model",)),
    },
}
# an ingredient switched off, by the name under which a case notes what that changes
OFF = {
    "query_source": ("stream_queries", "stream"),
    "protect_boundaries": ("no_boundaries", 0),
    "h2o_decay": ("no_decay", 1.0),
    "pool": ("no_pool", 1),
    "value_norms": ("no_value_norms", False),
    "standing": ("no_standing", False),
    "units": ("no_units", False),
    "novelty_weight": ("no_novelty", 0.0),
    "position_gap": ("no_position_gap", 0.0),
}


def variants(params: CacheParams) -> dict[str, dict]:
    """Every ingredient that `params` has on, switched off by itself; layers that choose together, each for itself."""
    changes = {name: {key: off} for key, (name, off) in OFF.items() if getattr(params, key) != off}
    return changes | ({"layer_scope": {"scope": "layer"}} if params.scope == "model" else {})


def text_stream(model_dir: Path, seed: int) -> dict[str, torch.Tensor]:
    """Random tokens."""
    model = TextModel(model_dir)
    vocab = len(model.get("embed_tokens"))
    ids = torch.randint(3, vocab, (TOKENS,), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "embeds": model.embed(ids)}


def picture_stream(model_dir: Path, seed: int) -> dict[str, torch.Tensor]:
    """Random text tokens with the two images of `tiny_forward`, three times, among them."""
    model = load_model(model_dir)
    text_ids = model.config.image_token_id - 1
    ids = torch.randint(3, text_ids, (TOKENS,), generator=torch.Generator().manual_seed(seed))
    features = image_features(model, load_file(HERE / "tiny_forward" / "inputs.safetensors")["pixel_values"])
    for start in IMAGE_AT:
        ids[start : start + features.shape[1]] = model.config.image_token_id
    features = features.repeat(len(IMAGE_AT) // len(features), 1, 1)
    return {"input_ids": ids, "embeds": merged_embeds(model, ids, features)}


def unit_starts(seed: int) -> list[int]:
    """Images and instructions begin units; the text between them is cut into sentences of 3 to 11 tokens."""
    generator = torch.Generator().manual_seed(seed)
    starts = {0, PREFIX, *IMAGE_AT, *(i + 4 for i in IMAGE_AT), *(start for start, _ in INSTRUCTIONS)}
    fixed, at = sorted(starts), PREFIX
    while at < TOKENS:
        at += int(torch.randint(3, 12, (1,), generator=generator))
        following = next((start for start in fixed if start >= at), TOKENS)
        if following - at >= 3 and not any(i <= at < i + 4 for i in IMAGE_AT):
            starts.add(at)
    return sorted(start for start in starts if start < TOKENS)


def standing_keys(model_dir: Path, embeds: torch.Tensor) -> dict[str, torch.Tensor]:
    """Keys [layers, kv_heads, n, head_dim] of an instruction fed after the prefix alone, and the instruction's ids."""
    count, seed = STANDING
    model = TextModel(model_dir)
    ids = torch.randint(3, 300, (count,), generator=torch.Generator().manual_seed(seed))
    decoder = BoundedDecoder(model, CacheParams("full", budget=0, slack=0, prefix=0))
    decoder.append(torch.cat([embeds[:PREFIX], model.embed(ids)]), 0)
    keys = torch.stack([layer.keys[:, -count:] for layer in decoder.layers])
    return {"standing_ids": ids, "standing": keys}


def chunked(embeds: torch.Tensor, notes: Annotations, seed: int) -> Stream:
    """The stream in random chunks; rows are ends of chunks along it and its last four tokens."""
    chunks = random_chunks(TOKENS - 29 - 16, [1, 7, 13], seed) + [29, 16]
    ends, last = chunk_ends(chunks)[:-1], list(range(TOKENS - 4, TOKENS))
    along = [ends[len(ends) * (i + 1) // (ROWS - 4) - 1] for i in range(ROWS - 4)]
    return Stream(embeds, chunks, sorted({*along, *last}), notes)


def check_chunking(model_dir: Path, stream: Stream, params: CacheParams, name: str) -> None:
    """With a slack of 1 the compactions fall at the same tokens for every chunking, so what is kept is the same."""
    model = TextModel(model_dir)
    whole, compactions = run_stream(model, params, stream.embeds, stream.chunks, notes=stream.notes)
    single, one_by_one = run_stream(model, params, stream.embeds, [1] * TOKENS, notes=stream.notes)
    if not same_kept(compactions, one_by_one) or max_diff(whole, single) > TOLERANCE:
        raise SystemExit(f"{name}: fed token by token it keeps other keys")


def find_chunks(name: str, embeds: torch.Tensor, notes: Annotations, params: CacheParams, case: str) -> Stream:
    """The first chunking in which no ranking of the case is a near tie. h2o's do not depend on it."""
    margin = SMALLER_MARGIN.get(params.policy, SMALLEST_MARGIN)
    for seed in CHUNK_SEEDS if params.slack > 1 else CHUNK_SEEDS[:1]:
        stream = chunked(embeds, notes, seed)
        try:
            run_checked(MODELS[name], stream, params, case, margin)
        except NearTie:
            continue
        return stream
    raise NearTie(f"{name}/{case}: no chunking without a near tie")


def find_streams(name: str) -> tuple[dict[str, torch.Tensor], dict[str, Stream], int]:
    """Tensors of the first stream with which every case has a chunking, and the cases' streams."""
    for seed in STREAM_SEEDS:
        tensors = (picture_stream if "g3" in name else text_stream)(MODELS[name], seed)
        notes = Annotations(INSTRUCTIONS, BOUNDARIES)
        if name.startswith("plus"):
            tensors |= standing_keys(MODELS[name], tensors["embeds"])
            notes = replace(notes, unit_starts=unit_starts(seed), standing=tensors["standing"])
        try:
            streams = {c: find_chunks(name, tensors["embeds"], notes, p, c) for c, p in CASES[name].items()}
        except NearTie as tie:
            print(f"{name}: stream {seed}: {tie}", flush=True)
            continue
        return tensors, streams, seed
    raise SystemExit(f"{name}: every stream of seeds {STREAM_SEEDS} has a near tie in its ranking")


def make(name: str) -> None:
    out, model_dir = HERE / name, MODELS[name]
    out.mkdir(exist_ok=True)
    tensors, streams, seed = find_streams(name)
    write_tensors(out / "stream.safetensors", tensors)
    config = TextModel(model_dir).config
    groups = (REVERSED,) if config.heads == config.kv_heads else (GROUPS, REVERSED)
    mistakes, cases = (MASK, POSITIONS, *groups), {}
    for case, params in CASES[name].items():
        stream, label = streams[case], f"{name}/{case}"
        options = CaseOptions(
            smallest_margin=SMALLER_MARGIN.get(params.policy, SMALLEST_MARGIN),
            stored=STORED,
            perturbations=(*mistakes, BIAS),
            variants=variants(params),
        )
        described = make_case(model_dir, stream, params, out / f"{case}.safetensors", options)
        check_sensitive(described["perturbed"], mistakes, TOLERANCE, label)
        check_sensitive(described["variants"], tuple(described["variants"]), TOLERANCE, label)
        if params.slack == 1:
            check_chunking(model_dir, stream, params, label)
        cases[case] = {**described, "chunks": stream.chunks}
        print(f"{label}: margin {described['smallest_margin']}, {described['compactions']} compactions", flush=True)
    notes = next(iter(streams.values())).notes
    about = {"instruction": notes.instructions, "boundaries": notes.boundaries}
    if notes.unit_starts:
        about |= {"unit_starts": notes.unit_starts}
    if notes.standing is not None:
        about |= {"standing_after": PREFIX}
    write_json(
        out / "cases.json",
        {
            "tolerance": TOLERANCE,
            "model": model_dir.name,
            "model_sha256": sha256(model_dir / "model.safetensors"),
            "stream_seed": seed,
            **about,
            "cases": cases,
        },
    )


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(MODELS), help="folders to make")
    for name in parser.parse_args().names:
        make(name)


if __name__ == "__main__":
    main()
