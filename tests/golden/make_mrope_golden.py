"""Writes `cache/` of the families with M-RoPE: a stream with images through their bounded cache.

And `cache_videos/` of Qwen2.5-VL, where they are the parts of two videos.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from decoders import TextModel, open_text_model
from family_hub import weights_sha256
from golden_io import check_sensitive, max_diff, write_json, write_tensors
from mrope_reference import (
    APART,
    EXTENT_OF_ONE,
    NO_DEEPSTACK,
    OTHER_LAYOUT,
    SLOTS,
    SURVIVING_EXTENT,
    SWAPPED,
    TEXT,
    MropeDecoder,
    Sections,
    StreamLayout,
)
from qwen_checkpoint import FAMILIES
from reference import BIAS, GROUPS, MASK, POSITIONS, STATE, CacheParams, run_stream
from safetensors.torch import load_file
from stream_golden import CaseOptions, NearTie, Stream, chunk_ends, make_case, random_chunks
from transformers import AutoModelForImageTextToText

NAMES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "cosmos3_omni", "cosmos3_edge")
WITH_VIDEOS = "qwen2_5_vl"
# The images of the two videos, and how much later each is than the one before.
VIDEOS = ((("two", 0), 0), (("two", 0), 2), (("two", 0), 9)), ((("one", 0), 0), (("one", 0), 1), (("one", 0), 14))
TOLERANCE, CLOSE = 1e-3, 1e-4
PREFIX, BUDGET, SLACK = 5, 72, 28
TEXT_TOKENS, EVERY, LAST_CHUNKS, LAST_ROWS = 150, 30, [29, 16], 4
SEEDS = range(1, 80)
SELDOM_TIED = {"h2o": 1e-4}  # its sums over all history lie closer together
KEEPS_ENDS = {("qwen3_5", "h2o")}  # whatever the chunks, what reaches farthest of an image has much attention there
CASES = {
    "inf_mllm": CacheParams(
        "inf_mllm", BUDGET, SLACK, PREFIX, n_recent=18, query_window=8, bias=0.01, bias_form="slope", scope="layer"
    ),
    "streaming_llm": CacheParams("streaming_llm", BUDGET, SLACK, prefix=2, sinks=4),
    "h2o": CacheParams("h2o", BUDGET, SLACK, PREFIX),
}


def image(model: torch.nn.Module, directory: Path, scene: str, which: int) -> dict[str, torch.Tensor]:
    """One image of a scene: its features, the grid after merging, and what DeepStack adds, from the forward golden."""
    inputs = load_file(directory / f"golden/{scene}.inputs.safetensors")
    expected = load_file(directory / f"golden/{scene}.expected.safetensors")
    side = model.config.vision_config.spatial_merge_size
    grids = inputs["image_grid_thw"] // torch.tensor([1, side, side])
    counts = grids.prod(-1).tolist()
    names = ["image_features", *sorted(name for name in expected if name.startswith("deepstack."))]
    features = {name: expected[name].split(counts)[which] for name in names}
    return features | {"grid": grids[which]}


def make_stream(model: torch.nn.Module, text: TextModel, directory: Path) -> dict[str, torch.Tensor]:
    """Random text tokens, one of four images after every `EVERY` of them."""
    shown = [image(model, directory, *which) for which in (("two", 0), ("two", 1), ("one", 0), ("two", 0))]
    deep = sorted(name for name in shown[0] if name.startswith("deepstack."))
    token = model.config.image_token_id
    ids = torch.randint(0, token, (TEXT_TOKENS,), generator=torch.Generator().manual_seed(1))
    hidden = text.get(text.EMBEDDING).shape[1]
    parts: dict[str, list[torch.Tensor]] = {n: [] for n in ("input_ids", "embeds", "frames", "offsets", "extents")}
    added: list[torch.Tensor] = []

    def put(**tensors: torch.Tensor) -> None:
        for name, tensor in tensors.items():
            parts[name].append(tensor)

    for number, words in enumerate(ids.split(EVERY)):
        n, zero = len(words), torch.zeros_like(words)
        put(input_ids=words, embeds=text.embed(words), frames=zero + TEXT)
        put(offsets=zero[:, None].expand(-1, 3), extents=zero + 1)
        added.append(torch.zeros(len(deep), n, hidden))
        if number < len(shown):
            features, (t, h, w) = shown[number]["image_features"], shown[number]["grid"].tolist()
            n, zero = len(features), torch.zeros(len(features), dtype=torch.long)
            place = torch.cartesian_prod(torch.arange(t), torch.arange(h), torch.arange(w))
            put(input_ids=zero + token, embeds=features, frames=zero + number)
            put(offsets=place, extents=zero + max(t, h, w))
            added.append(torch.stack([shown[number][name] for name in deep]) if deep else torch.zeros(0, n, hidden))
    stream = {name: torch.cat(tensors) for name, tensors in parts.items()}
    return stream | ({"deepstack": torch.cat(added, dim=1)} if deep else {})


def make_videos(model: torch.nn.Module, text: TextModel, directory: Path) -> dict[str, torch.Tensor]:
    """The same with the parts of a video in the place of an image, all text in three stretches."""
    ids = torch.randint(0, model.config.image_token_id, (TEXT_TOKENS,), generator=torch.Generator().manual_seed(2))
    names = ("input_ids", "embeds", "frames", "offsets", "extents", "videos", "steps")
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    frame = 0
    for number, words in enumerate(ids.split(TEXT_TOKENS // 3)):
        zero = torch.zeros_like(words)
        rows = [(words, text.embed(words), zero + TEXT, zero[:, None].expand(-1, 3), zero + 1, zero, zero)]
        for which, step in VIDEOS[number] if number < len(VIDEOS) else ():
            shown = image(model, directory, *which)
            features, (t, h, w) = shown["image_features"], shown["grid"].tolist()
            zero = torch.zeros(len(features), dtype=torch.long)
            place = torch.cartesian_prod(torch.arange(t), torch.arange(h), torch.arange(w))
            pads, extent = zero + model.config.image_token_id, zero + max(t, h, w)
            rows.append((pads, features, zero + frame, place, extent, zero + number + 1, zero + step))
            frame += 1
        for row in rows:
            for name, tensor in zip(names, row, strict=True):
                parts[name].append(tensor)
    return {name: torch.cat(tensors) for name, tensors in parts.items()}


def chunks_of(size: int, total: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]


def by_transformers(model: torch.nn.Module, stream: dict[str, torch.Tensor], positions: torch.Tensor) -> torch.Tensor:
    """Logits [tokens, vocab] of the stream under full attention."""
    deep = {}
    if "deepstack" in stream:
        seen = stream["frames"] != TEXT
        deep = {"visual_pos_masks": seen[None], "deepstack_visual_embeds": list(stream["deepstack"][:, seen])}
    out = model.model.language_model(inputs_embeds=stream["embeds"][None], position_ids=positions[:, None], **deep)
    return model.lm_head(out.last_hidden_state)[0]


def own_positions(model: torch.nn.Module, stream: dict[str, torch.Tensor], directory: Path) -> torch.Tensor:
    """Positions [3, tokens] as transformers gives them to the whole stream."""
    grids = [load_file(directory / f"golden/{scene}.inputs.safetensors")["image_grid_thw"] for scene in ("two", "one")]
    (first, second), (third,) = grids
    ids, seen = stream["input_ids"][None], (stream["frames"] != TEXT).int()[None]
    shown = torch.stack([first, second, third, first])
    return model.model.get_rope_index(ids, mm_token_type_ids=seen, image_grid_thw=shown)[0][:, 0]


def check(model: torch.nn.Module, text: TextModel, stream: dict, make_decoder: partial, directory: Path) -> float:
    """The reference without eviction against transformers' full attention; the largest difference of the logits."""
    layout = make_decoder.keywords["layout"]
    # Steps of videos are not equal here: their positions are held against transformers in make_video_pairs.py
    videos = "videos" in stream
    whole = layout.positions(torch.arange(len(stream["frames"])))
    positions = whole if videos else own_positions(model, stream, directory)
    if not torch.equal(layout.positions(torch.arange(len(positions[0]))), positions):
        raise SystemExit(f"{directory.name}: the positions are not those of transformers")
    expected, largest = by_transformers(model, stream, positions), 0.0
    roomy = CacheParams("inf_mllm", 400, SLACK, PREFIX, n_recent=18, query_window=8)
    for params, chunks in ((CacheParams("full", 0, 0, 0), [len(positions[0])]), (roomy, chunks_of(11, len(whole[0])))):
        logits, _ = run_stream(text, params, stream["embeds"], chunks, make_decoder=make_decoder)
        largest = max(largest, max_diff(logits, expected))
    if largest > CLOSE:
        raise SystemExit(f"{directory.name}: the reference is {largest:.1e} from transformers")
    return largest


def add_positions(path: Path, layout: StreamLayout) -> int:
    """Writes the positions of every kept set into a case's file; the largest of them."""
    tensors = load_file(path)
    kept = {name: tensor for name, tensor in tensors.items() if name.startswith("kept.")}
    for name, sets in kept.items():
        places = torch.stack([layout.positions(index) for index in sets.flatten(0, 1)])
        tensors[name.replace("kept", "positions")] = places.view(*sets.shape[:2], *places.shape[1:])
    write_tensors(path, tensors)
    return max(int(tensor.max()) for name, tensor in tensors.items() if name.startswith("positions."))


def make_cases(directory: Path, tensors: dict, make_decoder: partial) -> tuple[list[int], dict]:
    """Chunks and cases of the first chunking in which no ranking is a near tie."""
    embeds, out = tensors["embeds"], directory / ("cache_videos" if "videos" in tensors else "cache")
    mistakes = [MASK, POSITIONS, GROUPS, BIAS, EXTENT_OF_ONE, SURVIVING_EXTENT, SLOTS, SWAPPED, OTHER_LAYOUT]
    mistakes += [NO_DEEPSTACK] * ("deepstack" in tensors)
    mistakes += [APART] * ("videos" in tensors)
    mistakes += [STATE] * bool(open_text_model(directory).config.recurrent)
    for seed in SEEDS:
        chunks = random_chunks(len(embeds) - sum(LAST_CHUNKS), [1, 9, 17], seed) + LAST_CHUNKS
        rows = sorted({*chunk_ends(chunks), *range(len(embeds) - LAST_ROWS, len(embeds))})
        stream, cases = Stream(embeds, chunks, rows, make_decoder=make_decoder), {}
        try:
            for name, params in CASES.items():
                options = CaseOptions(perturbations=tuple(mistakes))
                if params.policy in SELDOM_TIED:
                    options = CaseOptions(SELDOM_TIED[params.policy], perturbations=tuple(mistakes))
                cases[name] = make_case(directory, stream, params, out / f"{name}.safetensors", options)
        except NearTie:
            continue
        if "videos" not in tensors and cases["inf_mllm"]["perturbed"][SURVIVING_EXTENT] < 100 * TOLERANCE:
            continue  # of every image that is left, what reaches farthest is left too
        for name, case in cases.items():
            blind = {BIAS}
            # of an image streaming_llm always keeps the last token, which has the largest offsets; videos reach farthest in time
            if (directory.name, name) in KEEPS_ENDS or name == "streaming_llm" or "videos" in tensors:
                blind |= {SURVIVING_EXTENT}
            wrong = tuple(mistake for mistake in mistakes if mistake not in blind)
            check_sensitive(case["perturbed"], wrong, TOLERANCE, f"{directory.name}/{name}")
        return chunks, cases
    raise SystemExit(
        f"{directory.name}: every chunking of seeds {SEEDS} has a near tie in its ranking, or shows no extents"
    )


@torch.no_grad()
def make(family: str, videos: bool = False) -> None:
    directory = FAMILIES / family
    out = directory / ("cache_videos" if videos else "cache")
    out.mkdir(exist_ok=True)
    model = AutoModelForImageTextToText.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    text = open_text_model(directory)
    tensors = (make_videos if videos else make_stream)(model, text, directory)
    names = ("deepstack", "videos", "steps")
    layout = StreamLayout(
        *(tensors[name] for name in ("frames", "offsets", "extents")), **{name: tensors.get(name) for name in names}
    )
    make_decoder = partial(MropeDecoder, layout=layout, sections=Sections.read(directory))
    off = check(model, text, tensors, make_decoder, directory)
    write_tensors(out / "stream.safetensors", tensors)
    chunks, cases = make_cases(directory, tensors, make_decoder)
    for name, case in cases.items():
        case["largest_position"] = add_positions(out / case["file"], layout)
        print(family, name, {k: case[k] for k in ("smallest_margin", "deviation_from_f64", "compactions", "perturbed")})
    write_json(
        out / "cases.json",
        {
            "tolerance": TOLERANCE,
            "model_sha256": weights_sha256(directory),
            "reference_against_transformers": off,
            "chunks": chunks,
            "cases": cases,
        },
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=NAMES, help="families to make")
    for name in parser.parse_args().names:
        make(name)
    make(WITH_VIDEOS, videos=True)
