"""Writes the goldens of the tiny checkpoint: `tiny_forward/` and `tiny_cache/`."""

import json

import torch
from golden_io import (
    HERE,
    check_sensitive,
    image_features,
    load_model,
    make_forward_golden,
    merged_embeds,
    sha256,
    write_json,
    write_tensors,
)
from pictures import draw
from reference import GROUPS, MASK, POSITIONS, ROPE, CacheParams
from safetensors.torch import load_file
from stream_golden import Stream, chunk_ends, make_case, random_chunks

MODEL = HERE / "tiny_smolvlm"
FORWARD, CACHE = HERE / "tiny_forward", HERE / "tiny_cache"
TOLERANCE = 1e-4
TOKENS, PREFIX, BUDGET, SLACK, SEED = 203, 5, 64, 20, 6
IMAGE_AT = (11, 60, 97, 150)  # where the stream's random tokens give way to an image's
INF_MLLM = {
    "policy": "inf_mllm",
    "budget": BUDGET,
    "slack": SLACK,
    "prefix": PREFIX,
    "n_recent": 18,
    "query_window": 8,
}
CASES = {
    "inf_mllm_range_layer": CacheParams(**INF_MLLM, bias=0.7, bias_form="range", scope="layer"),
    "inf_mllm_range_kv_head": CacheParams(**INF_MLLM, bias=0.7, bias_form="range", scope="kv_head"),
    "inf_mllm_slope_layer": CacheParams(**INF_MLLM, bias=0.01, bias_form="slope", scope="layer"),
    "inf_mllm_slope_kv_head": CacheParams(**INF_MLLM, bias=0.01, bias_form="slope", scope="kv_head"),
    "streaming_llm": CacheParams("streaming_llm", budget=BUDGET, slack=SLACK, prefix=2, sinks=4),
    "window": CacheParams("window", budget=BUDGET, slack=SLACK, prefix=PREFIX),
}


def make_forward() -> None:
    FORWARD.mkdir(exist_ok=True)
    draw(FORWARD / "image0.png", 70, 52, seed=0, noise=20)
    draw(FORWARD / "image1.png", 45, 64, seed=1, noise=20)
    make_forward_golden(MODEL, FORWARD, ["image0.png", "image1.png"], "What is in view?", TOLERANCE)
    perturbed = json.loads((FORWARD / "forward.json").read_text())["perturbed"]
    check_sensitive(perturbed, (MASK, GROUPS, ROPE, "transposed_patch_positions"), TOLERANCE, "tiny_forward")


def make_stream() -> Stream:
    """Random text tokens with four images (the two of `tiny_forward`, twice) among them."""
    model = load_model(MODEL)
    text_ids = model.config.image_token_id - 1
    ids = torch.randint(3, text_ids, (TOKENS,), generator=torch.Generator().manual_seed(SEED))
    features = image_features(model, load_file(FORWARD / "inputs.safetensors")["pixel_values"])
    for start in IMAGE_AT:
        ids[start : start + features.shape[1]] = model.config.image_token_id
    features = features.repeat(len(IMAGE_AT) // len(features), 1, 1)
    embeds = merged_embeds(model, ids, features)
    chunks = random_chunks(TOKENS - 29 - 16, [1, 7, 13], SEED) + [29, 16]
    write_tensors(CACHE / "stream.safetensors", {"input_ids": ids, "image_features": features, "embeds": embeds})
    last = chunk_ends(chunks)
    rows = sorted(set(last) | set(range(TOKENS - chunks[-1], TOKENS)))
    return Stream(embeds, chunks, rows)


@torch.no_grad()
def main() -> None:
    make_forward()
    CACHE.mkdir(exist_ok=True)
    stream = make_stream()
    cases = {}
    for name, params in CASES.items():
        cases[name] = make_case(MODEL, stream, params, CACHE / f"{name}.safetensors")
        check_sensitive(cases[name]["perturbed"], (MASK, POSITIONS, GROUPS), TOLERANCE, name)
    write_json(
        CACHE / "cases.json",
        {
            "tolerance": TOLERANCE,
            "model_sha256": sha256(MODEL / "model.safetensors"),
            "chunks": stream.chunks,
            "cases": cases,
        },
    )


if __name__ == "__main__":
    main()
