"""Writes `video_pairs/`: videos of the tiny Qwen-VL checkpoints by transformers, whose processors take two frames at a time.

The video is SIZE pixels of the picture `small.png` of each family at SCALE times its size, moved to the right by SHIFT pixels from frame to
frame (what leaves comes in again on the left), two frames a second, an odd number of them: the last is taken twice. transformers 5.23, which this
was made with, leaves the vision tokens of the whole video around those of Qwen3-VL's frames (and of Qwen3.5's and Cosmos 3's); the checkpoints were not trained so (5.5 did not
write them), and they are taken out again here.

Of the families whose video is one span of the prompt a longer and slower one is put through them too, by which the axis of time reaches farther
than rows and columns. What follows a video stands behind it on every axis, as in the families' own code and in transformers up to 4.57;
5.23 counts rows and columns alone, so that the positions of that prompt are worked out here.
"""

import numpy as np
import torch
from golden_io import HERE, write_json, write_tensors
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

OUT = HERE / "video_pairs"
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "cosmos3_omni", "cosmos3_edge")
FRAMES, SCALE, SHIFT, RATE = 5, 2, 4, 2.0
LONG_FRAMES, LONG_RATE = 17, 0.5
ONE_SPAN = ("qwen2_vl", "qwen2_5_vl")
# Width and height: between the fewest and the most pixels of images as of videos.
SIZE = (40, 32)
QUESTION = "What is in view?"
NEW_TOKENS = 12
KEPT = 6


def frames(family: str, count: int) -> list[np.ndarray]:
    picture = np.asarray(Image.open(HERE / "families" / family / "golden/small.png").convert("RGB"))
    picture = picture.repeat(SCALE, axis=0).repeat(SCALE, axis=1)[: SIZE[1], : SIZE[0]]
    return [np.roll(picture, SHIFT * number, axis=1) for number in range(count)]


def inputs(family: str, count: int, rate: float) -> dict[str, torch.Tensor]:
    processor = AutoProcessor.from_pretrained(HERE / "families" / family)
    content = [{"type": "video"}, {"type": "text", "text": QUESTION}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    metadata = {"fps": rate, "total_num_frames": count, "frames_indices": list(range(count))}
    batch = processor(
        text=[prompt],
        videos=[np.stack(frames(family, count))],
        video_metadata=[metadata],
        do_sample_frames=False,
        return_mm_token_type_ids=True,
        return_tensors="pt",
    )
    if family in ("qwen3_vl", "qwen3_5", "cosmos3_omni"):
        batch = without_outer_pair(batch, processor.tokenizer)
    return dict(batch)


def without_outer_pair(batch: dict[str, torch.Tensor], tokenizer) -> dict[str, torch.Tensor]:
    start, end = tokenizer.convert_tokens_to_ids(["<|vision_start|>", "<|vision_end|>"])
    ids = batch["input_ids"][0]
    outer = [(ids == start).nonzero()[0].item(), (ids == end).nonzero()[-1].item()]
    if (ids == start).sum() != (FRAMES + 1) // 2 + 1:
        raise SystemExit(f"expected an outer pair of vision tokens in {tokenizer.decode(ids)}")
    kept = torch.ones_like(ids, dtype=torch.bool)
    kept[outer] = False
    sequences = ("input_ids", "attention_mask", "mm_token_type_ids")
    return {name: tensor[:, kept] if name in sequences else tensor for name, tensor in batch.items()}


def positions(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Positions [3, tokens] of a prompt with one video."""
    vision = model.config.vision_config
    (parts, height, width) = (
        batch["video_grid_thw"][0] // torch.tensor([1, *[vision.spatial_merge_size] * 2])
    ).tolist()
    step = 1.0
    if "second_per_grid_ts" in batch:
        step = vision.tokens_per_second * float(batch["second_per_grid_ts"][0])
    shown = batch["input_ids"][0] == model.config.video_token_id
    first, count = int(shown.nonzero()[0]), int(shown.sum())
    time = (torch.arange(parts) * step).long()
    video = torch.cartesian_prod(time, torch.arange(height), torch.arange(width)).T + first
    behind = torch.arange(len(shown) - first - count) + video.max() + 1
    return torch.cat([torch.arange(first).expand(3, -1), video, behind.expand(3, -1)], dim=1)


def say(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, list[int]]:
    """Logits of the prompt's last tokens, and what follows it greedily, with the positions above."""
    said, logits, batch = [], None, dict(batch)
    while len(said) < NEW_TOKENS:
        out = model(**batch, position_ids=positions(model, batch)[:, None], use_cache=False).logits[0]
        logits = out[-KEPT:] if logits is None else logits
        said.append(int(out[-1].argmax()))
        if said[-1] in ends(model):
            break
        batch["input_ids"] = torch.cat([batch["input_ids"], torch.tensor([[said[-1]]])], dim=1)
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        batch["mm_token_type_ids"] = torch.nn.functional.pad(batch["mm_token_type_ids"], (0, 1))
    return logits, said


def ends(model: torch.nn.Module) -> list[int]:
    found = model.generation_config.eos_token_id
    return found if isinstance(found, list) else [found]


def make_long(family: str, model: torch.nn.Module) -> dict:
    batch = inputs(family, LONG_FRAMES, LONG_RATE)
    (parts, height, width) = (batch["video_grid_thw"][0] // torch.tensor([1, 2, 2])).tolist()
    if parts <= max(height, width):
        raise SystemExit(f"{family}: {parts} parts do not reach farther than {height} x {width}")
    logits, said = say(model, batch)
    write_tensors(OUT / f"{family}_long.safetensors", {"input_ids": batch["input_ids"], "logits": logits})
    return {"generated_ids": said}


def main() -> None:
    OUT.mkdir(exist_ok=True)
    about = {
        "frames": FRAMES,
        "scale": SCALE,
        "size": SIZE,
        "shift": SHIFT,
        "rate": RATE,
        "question": QUESTION,
        "tolerance": 1e-4,
        "families": {},
        "long": {"frames": LONG_FRAMES, "rate": LONG_RATE, "families": {}},
    }
    for family in FAMILIES:
        directory = HERE / "families" / family
        model = AutoModelForImageTextToText.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        batch = inputs(family, FRAMES, RATE)
        with torch.no_grad():
            features = model.get_video_features(batch["pixel_values_videos"], batch["video_grid_thw"])
            logits = model(**batch).logits[0, -KEPT:]
            plain = {"do_sample": False, "temperature": None, "repetition_penalty": 1.0}
            said = model.generate(**batch, **plain, max_new_tokens=NEW_TOKENS)[0, batch["input_ids"].shape[1] :]
        pooled = features.pooler_output if hasattr(features, "pooler_output") else features
        tensors = {
            "input_ids": batch["input_ids"],
            "pixel_values_videos": batch["pixel_values_videos"],
            "video_grid_thw": batch["video_grid_thw"],
            "video_features": torch.cat([*pooled]),
            "logits": logits,
        }
        write_tensors(OUT / f"{family}.safetensors", tensors)
        about["families"][family] = {"generated_ids": said.tolist()}
        if family in ONE_SPAN:
            with torch.no_grad():
                logits_here, said_here = say(model, batch)
                about["long"]["families"][family] = make_long(family, model)
            # Where rows and columns reach as far as time, both count alike.
            if (logits_here - logits).abs().max() > 1e-5 or said_here != said.tolist():
                raise SystemExit(f"{family}: the positions are not those of transformers")
    write_json(OUT / "about.json", about)


main()
