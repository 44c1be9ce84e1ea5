"""Writes `families/<family>/cache/`: a stream through the bounded cache of every decoder, with images where it sees."""

import argparse
import json
from pathlib import Path

import torch
from decoders import open_text_model
from family_hub import FAMILIES, weights_sha256
from golden_io import check_sensitive, max_diff, write_json, write_tensors
from reference import BIAS, MASK, POSITIONS, ROPE, STATE, BoundedDecoder, CacheParams, wrong_heads
from safetensors.torch import load_file
from stream_golden import CaseOptions, NearTie, Stream, chunk_ends, make_case, random_chunks
from transformers import AutoConfig

TEXT = ["llama", "llama3", "mistral", "qwen2", "qwen3", "gpt_neox", "lfm2", "qwen3_5_text"]
SEEING = ["llava", "llava_next", "llava_onevision", "idefics3", "internvl", "internvl3_5", "lfm2_vl", "lfm2_5_vl"]
TOLERANCE, CLOSE = 1e-3, 1e-4
PREFIX, BUDGET, SLACK = 5, 64, 20
TEXT_TOKENS, LAST_CHUNKS, LAST_ROWS = 150, [29, 16], 4
CASES = {
    "inf_mllm": CacheParams(
        "inf_mllm", BUDGET, SLACK, PREFIX, n_recent=18, query_window=8, bias=0.01, bias_form="slope", scope="layer"
    ),
    "streaming_llm": CacheParams("streaming_llm", BUDGET, SLACK, prefix=2, sinks=4),
}
SEEDS = range(1, 60)


def check_reference(model_dir: Path) -> float:
    """Largest difference of the reference's logits from those of transformers, over the family's scenes."""
    text, config = open_text_model(model_dir), AutoConfig.from_pretrained(model_dir)
    marks = torch.tensor([getattr(config, f"{kind}_token_id", None) or -1 for kind in ("image", "video")])
    largest = 0.0
    for path in sorted((model_dir / "golden").glob("*.expected.safetensors")):
        inputs = load_file(str(path).replace(".expected.", ".inputs."))
        expected, ids = load_file(path), inputs["input_ids"][0]
        shown = torch.isin(ids, marks)
        embeds = text.embed(ids.masked_fill(shown, 0))
        if shown.any():
            embeds[shown] = expected["image_features"]
        full = CacheParams("full", budget=0, slack=0, prefix=0)
        largest = max(largest, max_diff(BoundedDecoder(text, full).append(embeds, 0), expected["logits"][0]))
    return largest


def images(model_dir: Path) -> tuple[list[torch.Tensor], int | None]:
    """Features [tokens, hidden] of each image of the family's first scene with two, and the image token."""
    token = getattr(AutoConfig.from_pretrained(model_dir), "image_token_id", None)
    if token is None:
        return [], None
    scenes = json.loads((model_dir / "golden/forward.json").read_text())["scenes"]
    name, counts = next((n, s["tokens_per_image"]) for n, s in scenes.items() if len(s["images"]) == 2)
    features = load_file(model_dir / f"golden/{name}.expected.safetensors")["image_features"]
    return list(features.split(counts)), token


def make_stream(model_dir: Path) -> dict[str, torch.Tensor]:
    """Random text tokens; with the scene's images, in turn, after every 40 of them."""
    text, (features, token) = open_text_model(model_dir), images(model_dir)
    vocab = len(text.get(text.EMBEDDING))
    ids = torch.randint(3, vocab, (TEXT_TOKENS,), generator=torch.Generator().manual_seed(1))
    ids[ids == token] = 3
    parts, embeds = [], []
    for i, part in enumerate(ids.split(40)):
        shown = features[i % len(features)] if features and i < 3 else text.embed(part[:0])
        parts += [part, torch.full((len(shown),), token or 0)]
        embeds += [text.embed(part), shown]
    return {"input_ids": torch.cat(parts), "embeds": torch.cat(embeds)}


def make(family: str) -> None:
    model_dir = FAMILIES / family
    if (off := check_reference(model_dir)) > CLOSE:
        raise SystemExit(f"{family}: the reference is {off:.1e} from transformers")
    out = model_dir / "cache"
    out.mkdir(exist_ok=True)
    tensors = make_stream(model_dir)
    write_tensors(out / "stream.safetensors", tensors)
    config = open_text_model(model_dir).config
    order, states = wrong_heads(config), (STATE,) if config.recurrent else ()
    options = CaseOptions(perturbations=(MASK, POSITIONS, order, BIAS, ROPE, *states))
    embeds = tensors["embeds"]
    for seed in SEEDS:
        chunks = random_chunks(len(embeds) - sum(LAST_CHUNKS), [1, 7, 13], seed) + LAST_CHUNKS
        rows = sorted({*chunk_ends(chunks), *range(len(embeds) - LAST_ROWS, len(embeds))})
        stream = Stream(embeds, chunks, rows)
        try:
            cases = {n: make_case(model_dir, stream, p, out / f"{n}.safetensors", options) for n, p in CASES.items()}
        except NearTie:
            continue
        break
    else:
        raise SystemExit(f"{family}: every chunking of seeds {SEEDS} has a near tie in its ranking")
    for name, case in cases.items():
        check_sensitive(case["perturbed"], (MASK, POSITIONS, order, ROPE, *states), TOLERANCE, f"{family}/{name}")
        print(family, name, {k: case[k] for k in ("smallest_margin", "deviation_from_f64", "compactions", "perturbed")})
    digest = weights_sha256(model_dir)
    write_json(out / "cases.json", {"tolerance": TOLERANCE, "model_sha256": digest, "chunks": chunks, "cases": cases})


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=TEXT + SEEING, help="families to make")
    for name in parser.parse_args().names:
        make(name)


if __name__ == "__main__":
    main()
