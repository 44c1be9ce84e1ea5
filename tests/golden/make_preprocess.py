"""Makes `preprocess/`: what the image processors of the published checkpoints do at their real sizes, in samples."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import transformers
from family_hub import CLIP_MEAN, CLIP_STD
from golden_io import HERE, write_json, write_tensors
from pictures import COLORS
from PIL import Image, ImageDraw
from resample import resize
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional
from transformers import (
    BaseImageProcessor,
    BaseVideoProcessor,
    CLIPImageProcessor,
    GotOcr2ImageProcessor,
    Idefics3ImageProcessor,
    InternVLVideoProcessor,
    LlavaNextImageProcessor,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionVideoProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLVideoProcessor,
)

OUT = HERE / "preprocess"
SAMPLES = 5000
SEED = 7
PICTURES = {"scene.png": (640, 480), "strip.png": (301, 83)}
SHARED = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "rescale_factor": 1 / 255,
}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
CLIP = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD}
IDEFICS3 = {
    **SHARED,
    **HALF,
    "do_image_splitting": True,
    "do_pad": True,
    "image_processor_type": "Idefics3ImageProcessor",
    "max_image_size": {"longest_edge": 512},
    "resample": 1,
    "size": {"longest_edge": 2048},
}
CLIP_336 = {
    **SHARED,
    **CLIP,
    "crop_size": {"height": 336, "width": 336},
    "do_center_crop": True,
    "image_processor_type": "CLIPImageProcessor",
    "resample": 3,
    "size": {"shortest_edge": 336},
}
LLAVA_NEXT = {
    **CLIP_336,
    "aspect_ratio_setting": "anyres",
    "do_pad": True,
    "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    "image_processor_type": "LlavaNextImageProcessor",
}
ONEVISION_VIDEO = {
    **SHARED,
    **HALF,
    "image_processor_type": "LlavaOnevisionVideoProcessor",
    "resample": 3,
    "size": {"height": 384, "width": 384},
}
ONEVISION = {
    **ONEVISION_VIDEO,
    "do_pad": True,
    "image_grid_pinpoints": [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)],
    "image_processor_type": "LlavaOnevisionImageProcessor",
}
INTERNVL_VIDEO = {
    **SHARED,
    "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "InternVLVideoProcessor",
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "size": {"height": 448, "width": 448},
}
INTERNVL = {
    **INTERNVL_VIDEO,
    "crop_to_patches": False,
    "image_processor_type": "GotOcr2ImageProcessor",
    "max_patches": 12,
    "min_patches": 1,
}
QWEN2_VL = {
    **CLIP,
    "image_processor_type": "Qwen2VLImageProcessor",
    "max_pixels": 12845056,
    "merge_size": 2,
    "min_pixels": 3136,
    "patch_size": 14,
    "temporal_patch_size": 2,
}
QWEN2_VL_VIDEO = {**QWEN2_VL, "image_processor_type": "Qwen2VLVideoProcessor"}
QWEN3_VL_VIDEO = {
    **HALF,
    "image_processor_type": "Qwen3VLVideoProcessor",
    "merge_size": 2,
    "patch_size": 16,
    "size": {"longest_edge": 25165824, "shortest_edge": 4096},
    "temporal_patch_size": 2,
}
EACH = [["scene.png"], ["strip.png"]]


@dataclass
class Case:
    """A configuration as preprocessor_config.json has it, and the turns (names of their pictures) put through it."""

    processor: type[BaseImageProcessor]
    config: dict
    turns: list[list[str]]
    call: dict = field(default_factory=dict)


CASES = {
    "idefics3_split": Case(Idefics3ImageProcessor, IDEFICS3, EACH),
    "idefics3_whole": Case(Idefics3ImageProcessor, IDEFICS3, EACH, {"do_image_splitting": False}),
    "clip_336": Case(CLIPImageProcessor, CLIP_336, EACH),
    "llava_next": Case(LlavaNextImageProcessor, LLAVA_NEXT, EACH),
    "onevision": Case(LlavaOnevisionImageProcessor, ONEVISION, [*EACH, ["scene.png", "strip.png"]]),
    "onevision_video": Case(LlavaOnevisionVideoProcessor, ONEVISION_VIDEO, EACH),
    # InternVLProcessor says crop_to_patches in its call
    "internvl": Case(GotOcr2ImageProcessor, INTERNVL, EACH, {"crop_to_patches": True}),
    "internvl_video": Case(InternVLVideoProcessor, INTERNVL_VIDEO, EACH),
    "qwen2_vl": Case(Qwen2VLImageProcessor, QWEN2_VL, EACH),
    "qwen2_vl_capped": Case(Qwen2VLImageProcessor, QWEN2_VL | {"max_pixels": 100352}, [["scene.png"]]),
    "qwen2_vl_raised": Case(Qwen2VLImageProcessor, QWEN2_VL | {"min_pixels": 50176}, [["strip.png"]]),
    "qwen2_vl_video": Case(Qwen2VLVideoProcessor, QWEN2_VL_VIDEO, EACH),
    "qwen2_vl_video_capped": Case(Qwen2VLVideoProcessor, QWEN2_VL_VIDEO | {"max_pixels": 100352}, [["scene.png"]]),
    "qwen3_vl_video": Case(Qwen3VLVideoProcessor, QWEN3_VL_VIDEO, EACH),
    # of both frames together
    "qwen3_vl_video_capped": Case(
        Qwen3VLVideoProcessor,
        QWEN3_VL_VIDEO | {"size": {"longest_edge": 200704, "shortest_edge": 4096}},
        [["scene.png"]],
    ),
    "qwen3_vl_video_raised": Case(
        Qwen3VLVideoProcessor,
        QWEN3_VL_VIDEO | {"size": {"longest_edge": 401408, "shortest_edge": 100352}},
        [["strip.png"]],
    ),
}


def draw_picture(path: Path, width: int, height: int) -> None:
    """Slow shading, hard and soft edges, stripes finer and finer, and a corner of noise: what resampling shows on."""
    y, x = np.mgrid[0:height, 0:width]
    shade = np.stack([60 + 140 * x // width, 200 - 120 * y // height, 90 + 100 * (x + y) // (width + height)], axis=2)
    image = Image.fromarray(shade.astype(np.uint8))
    pen = ImageDraw.Draw(image)
    unit = min(width, height) // 10
    pen.rectangle([unit, 2 * unit, 5 * unit, 6 * unit], fill=COLORS[0])
    pen.ellipse([width // 2, unit, width // 2 + 5 * unit, 6 * unit], fill=COLORS[1], outline=COLORS[2], width=2)
    pen.polygon([(width - unit, unit), (width - 5 * unit, 5 * unit), (width - unit, 7 * unit)], fill=COLORS[3])
    left = 0
    for step in range(width):
        right = left + max(1, unit // (step + 1))
        if step % 2 and left < width * 2 // 3:
            pen.rectangle([left, height - 3 * unit, right - 1, height - 1], fill=COLORS[4])
        left = right
    pixels = np.asarray(image).copy()
    corner = pixels[-3 * unit :, -4 * unit :]
    corner[:] = np.random.default_rng(SEED).integers(0, 256, corner.shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path, optimize=True)


def run(case: Case, processor: BaseImageProcessor, pictures: list[Image.Image]) -> tuple[torch.Tensor, dict]:
    """Pixel values, and what else the processor says."""
    if issubclass(case.processor, BaseVideoProcessor):
        # a picture is every frame of its group
        frames = pictures * case.config.get("temporal_patch_size", 1)
        output = dict(processor(videos=[frames], do_sample_frames=False, return_tensors="pt"))
        return output.pop("pixel_values_videos"), as_lists(output)
    info = {"return_row_col_info": True} if case.processor is Idefics3ImageProcessor else {}
    output = dict(processor(images=[pictures], return_tensors="pt", **case.call, **info))
    output.pop("pixel_attention_mask", None)
    return output.pop("pixel_values"), as_lists(output)


def as_lists(output: dict) -> dict:
    return {key: value.tolist() if torch.is_tensor(value) else value for key, value in output.items()}


def grey_levels(values: torch.Tensor, index: torch.Tensor, shape: torch.Size, config: dict) -> torch.Tensor:
    """The bytes that values at flat `index` into pixel_values were before they were rescaled and normalised."""
    if len(shape) == 2:
        channels = index // (config["temporal_patch_size"] * config["patch_size"] ** 2) % 3
    else:
        channels = index // (shape[-1] * shape[-2]) % 3
    mean, std = (torch.tensor(config[name], dtype=torch.float64)[channels] for name in ("image_mean", "image_std"))
    levels = (values.double() * std + mean) * 255
    if (levels - levels.round()).abs().max() > 1e-3:
        raise SystemExit("pixel values are not whole grey levels")
    return levels.round().to(torch.uint8)


def all_levels(pixels: torch.Tensor, config: dict) -> torch.Tensor:
    return grey_levels(pixels.flatten(), torch.arange(pixels.numel()), pixels.shape, config)


def compare(case: Case, pixels: torch.Tensor, pictures: list[Image.Image], make: Callable) -> dict:
    """Checks that resample.py gives the same bytes; how far transformers' PIL backend is from them."""
    right = all_levels(pixels, case.config)
    with patch.object(functional, "resize", by_hand):
        written_out, _ = run(case, make(case.processor), pictures)
    if (all_levels(written_out, case.config) != right).any():
        raise SystemExit("resample.py does not resize as torchvision does")
    if issubclass(case.processor, BaseVideoProcessor):
        return {}
    other, _ = run(case, make(getattr(transformers, f"{case.processor.__name__}Pil")), pictures)
    off = (all_levels(other, case.config).int() - right.int()).abs()
    return {"pil_largest_difference": off.max().item(), "pil_share_that_differs": (off > 0).double().mean().item()}


def by_hand(image: torch.Tensor, size: list[int], interpolation: InterpolationMode, antialias: bool) -> torch.Tensor:
    return torch.from_numpy(resize(image.numpy(), *size, interpolation.value).copy())


def write_case(name: str, case: Case, turn: list[str]) -> dict:
    def make(processor: type[BaseImageProcessor]) -> BaseImageProcessor:
        return processor(**{key: value for key, value in case.config.items() if key != "image_processor_type"})

    pictures = [Image.open(OUT / picture).convert("RGB") for picture in turn]
    pixels, about = run(case, make(case.processor), pictures)
    index = torch.randperm(pixels.numel(), generator=torch.Generator().manual_seed(SEED))[:SAMPLES].sort().values
    levels = grey_levels(pixels.flatten()[index], index, pixels.shape, case.config)
    tensors = {"index": index.int(), "levels": levels}
    if pixels.dim() > 2:
        whole = all_levels(pixels, case.config).view(-1, 3, pixels.shape[-2] * pixels.shape[-1])
        tensors["means"] = whole.double().mean(-1).float()
    write_tensors(OUT / f"{name}.safetensors", tensors)
    return {
        "images": turn,
        "preprocessor_config": case.config,
        **case.call,
        "shape": list(pixels.shape),
        **about,
        **compare(case, pixels, pictures, make),
    }


def main() -> None:
    OUT.mkdir(exist_ok=True)
    for name, size in PICTURES.items():
        draw_picture(OUT / name, *size)
    cases = {}
    for name, case in CASES.items():
        for turn in case.turns:
            label = "_".join([name, *(Path(picture).stem for picture in turn)])
            cases[label] = write_case(label, case, turn)
            print(label, {key: value for key, value in cases[label].items() if key != "preprocessor_config"})
    write_json(OUT / "cases.json", cases)


if __name__ == "__main__":
    main()
