"""Writes `half_precision.json`: how far transformers' own logits in bf16 and f16 are from its f32 ones, for every scene of `families/`.

What 16 bits cost is a matter of the checkpoint: the tiny ones have random weights, which round worse than trained ones, and each family
otherwise. An implementation that rounds as often as transformers does is about as far off. Distances are those of all logits of a
scene, relative to their length.
"""

import json
from pathlib import Path

import torch
from golden_io import HERE, write_json
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

LIMIT = 1e-5
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def load(family: Path, dtype: torch.dtype) -> PreTrainedModel:
    seeing = any((family / "golden").glob("*.png"))
    kind = AutoModelForImageTextToText if seeing else AutoModelForCausalLM
    return kind.from_pretrained(family, dtype=dtype, attn_implementation="eager").eval()


@torch.no_grad()
def distance(model: PreTrainedModel, inputs: dict[str, torch.Tensor], expected: torch.Tensor) -> float:
    given = {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    logits = model(**given).logits.double().reshape(-1)
    return ((logits - expected).norm() / expected.norm()).item()


def scene(family: Path, name: str) -> dict[str, float]:
    golden = family / "golden"
    inputs = load_file(golden / f"{name}.inputs.safetensors")
    expected = load_file(golden / f"{name}.expected.safetensors")["logits"].double().reshape(-1)
    config = AutoConfig.from_pretrained(family)
    if "image_grid_thw" in inputs or "video_grid_thw" in inputs:
        # Which the processor gives as well, and without which the pictures' tokens get positions of text.
        ids = inputs["input_ids"]
        inputs["mm_token_type_ids"] = (ids == config.image_token_id).long() + 2 * (ids == config.video_token_id).long()
    off = {dtype: distance(load(family, kind), inputs, expected) for dtype, kind in DTYPES.items()}
    # Else this script runs another model than the golden was made with.
    if off["f32"] > LIMIT:
        raise SystemExit(f"{family.name} {name}: f32 is off by {off['f32']:.1e}, expected at most {LIMIT}")
    print(family.name, name, *(f"{dtype} {value:.1e}" for dtype, value in off.items()), flush=True)
    return {dtype: float(f"{off[dtype]:.2e}") for dtype in ("bf16", "f16")}


def main() -> None:
    families = sorted(path.parent.parent for path in (HERE / "families").glob("*/golden/forward.json"))
    found = {
        family.name: {
            name: scene(family, name) for name in json.loads((family / "golden/forward.json").read_text())["scenes"]
        }
        for family in families
    }
    write_json(HERE / "half_precision.json", found)


main()
