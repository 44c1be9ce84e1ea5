"""Writes `video_pairs/`: videos of the tiny Qwen-VL checkpoints by transformers, whose processors take two frames at a time.

The video is SIZE pixels of the picture `small.png` of each family at SCALE times its size, moved to the right by SHIFT pixels from frame to
frame (what leaves comes in again on the left), two frames a second, an odd number of them: the last is taken twice. transformers 5.23, which this
was made with, leaves the vision tokens of the whole video around those of Qwen3-VL's frames (and of Cosmos 3's); the checkpoints were not trained so (5.5 did not
write them), and they are taken out again here.
"""

import numpy as np
import torch
from golden_io import HERE, write_json, write_tensors
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

OUT = HERE / "video_pairs"
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "cosmos3_omni")
FRAMES, SCALE, SHIFT, RATE = 5, 2, 4, 2.0
# Width and height: between the fewest and the most pixels of images as of videos.
SIZE = (40, 32)
QUESTION = "What is in view?"
NEW_TOKENS = 12
KEPT = 6


def frames(family: str) -> list[np.ndarray]:
    picture = np.asarray(Image.open(HERE / "families" / family / "golden/small.png").convert("RGB"))
    picture = picture.repeat(SCALE, axis=0).repeat(SCALE, axis=1)[: SIZE[1], : SIZE[0]]
    return [np.roll(picture, SHIFT * number, axis=1) for number in range(FRAMES)]


def inputs(family: str) -> dict[str, torch.Tensor]:
    processor = AutoProcessor.from_pretrained(HERE / "families" / family)
    content = [{"type": "video"}, {"type": "text", "text": QUESTION}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    metadata = {"fps": RATE, "total_num_frames": FRAMES, "frames_indices": list(range(FRAMES))}
    batch = processor(
        text=[prompt],
        videos=[np.stack(frames(family))],
        video_metadata=[metadata],
        do_sample_frames=False,
        return_tensors="pt",
    )
    if not family.startswith("qwen2"):
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
    }
    for family in FAMILIES:
        directory = HERE / "families" / family
        model = AutoModelForImageTextToText.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        batch = inputs(family)
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
    write_json(OUT / "about.json", about)


main()
