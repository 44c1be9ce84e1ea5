"""Writes the goldens of the demo checkpoint in `models/demo`: `demo_forward/` and `demo_cache/`."""

import argparse
import json
from pathlib import Path

import torch
from golden_io import (
    HERE,
    check_sensitive,
    image_features,
    load_model,
    load_processor,
    make_forward_golden,
    merged_embeds,
    sha256,
    write_json,
    write_tensors,
)
from pictures import draw
from PIL import Image
from reference import MASK, POSITIONS, CacheParams, TextModel, wrong_heads
from stream_golden import NearTie, Stream, make_case, random_chunks

FORWARD, CACHE = HERE / "demo_forward", HERE / "demo_cache"
TOLERANCE = 1e-3
IMAGES = ["frame0.png", "frame1.png"]
QUESTION = "What is in view?"
SYSTEM_PROMPT = "You are a mobile robot. Answer briefly."
TURNS = [(4, "What is in view?", " a red box"), (3, "Should the robot stop?", " no")]
BUDGET, SLACK, N_RECENT, WINDOW = 96, 32, 24, 16
LAST_ROWS = 16
SEEDS = range(1, 60)


def stream_ids(processor, image_tokens: int) -> tuple[torch.Tensor, int]:
    """Ids of a conversation as the robot's stream writes it (prefix, frames, instructions, answers); prefix length."""
    frame = "<fake_token_around_image><global-img>" + "<image>" * image_tokens + "<fake_token_around_image>"
    # the newline after the system prompt is one run with the opening, so it is fed with that and not with the prefix
    prefix = f"<|im_start|>System: {SYSTEM_PROMPT}<end_of_utterance>"
    text, second = prefix, 0
    for frames, question, answer in TURNS:
        text += "\nUser:"
        for _ in range(frames):
            text += f"\nFrame from 00:{second:02d}:{frame}"
            second += 1
        text += f"\n\n{question}<end_of_utterance>\nAssistant:{answer}<end_of_utterance>"

    def encode(part: str) -> list[int]:
        return processor.tokenizer(part, add_special_tokens=False).input_ids

    return torch.tensor(encode(text)), len(encode(prefix))


def make_stream(model_dir: Path) -> tuple[torch.Tensor, int]:
    """Writes `stream.safetensors`; embeddings [tokens, hidden] and the prefix's length."""
    processor, model = load_processor(model_dir), load_model(model_dir)
    pictures = [Image.open(FORWARD / name).convert("RGB") for name in IMAGES]
    pixel_values = processor.image_processor([pictures], return_tensors="pt")["pixel_values"]
    features = image_features(model, pixel_values)
    frames = sum(frames for frames, _, _ in TURNS)
    ids, prefix = stream_ids(processor, features.shape[1])
    features = features[torch.arange(frames) % len(features)]
    embeds = merged_embeds(model, ids, features)
    write_tensors(CACHE / "stream.safetensors", {"input_ids": ids, "embeds": embeds})
    return embeds, prefix


def make_cases(model_dir: Path, embeds: torch.Tensor, prefix: int) -> dict:
    """Runs the cases with the first chunking in which no ranking is a near tie."""
    sizes = {"budget": BUDGET, "slack": SLACK, "prefix": prefix}
    ranked = {"n_recent": N_RECENT, "query_window": WINDOW, "bias": 0.005, "bias_form": "slope"}
    cases = {
        "inf_mllm_layer": CacheParams("inf_mllm", **sizes, **ranked, scope="layer"),
        "inf_mllm_kv_head": CacheParams("inf_mllm", **sizes, **ranked, scope="kv_head"),
        "streaming_llm": CacheParams("streaming_llm", **sizes),
    }
    rows = list(range(len(embeds) - LAST_ROWS, len(embeds)))
    for seed in SEEDS:
        chunks = random_chunks(len(embeds) - 11, [1, 7, 13, 17], seed) + [11]
        stream = Stream(embeds, chunks, rows)
        try:
            made = {n: make_case(model_dir, stream, p, CACHE / f"{n}.safetensors") for n, p in cases.items()}
        except NearTie:
            continue
        return {"chunks": chunks, "cases": made}
    raise SystemExit(f"every chunking of seeds {SEEDS} has a near tie in its ranking: change N_RECENT or the bias")


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=HERE.parent.parent / "models" / "demo")
    model_dir = parser.parse_args().model
    FORWARD.mkdir(exist_ok=True)
    CACHE.mkdir(exist_ok=True)
    for seed, name in enumerate(IMAGES):
        draw(FORWARD / name, 256, 192, seed=10 + seed, noise=0)
    make_forward_golden(model_dir, FORWARD, IMAGES, QUESTION, TOLERANCE)
    made = make_cases(model_dir, *make_stream(model_dir))
    digest = sha256(model_dir / "model.safetensors")
    write_json(CACHE / "cases.json", {"tolerance": TOLERANCE, "model_sha256": digest, **made})
    heads = wrong_heads(TextModel(model_dir).config)
    perturbed = json.loads((FORWARD / "forward.json").read_text())["perturbed"]
    check_sensitive(perturbed, (MASK, heads, "no_positions"), TOLERANCE, "demo_forward")
    for name, case in made["cases"].items():
        check_sensitive(case["perturbed"], (MASK, POSITIONS, heads), TOLERANCE, name)


if __name__ == "__main__":
    main()
