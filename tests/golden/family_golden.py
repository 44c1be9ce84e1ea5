"""What the scripts of the multimodal families share: their scenes run through transformers, and checks."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from family_hub import weights_sha256, write_fresh
from golden_io import max_diff, write_json, write_tensors
from pictures import draw
from PIL import Image
from tokenizers import Tokenizer
from transformers import PreTrainedModel, ProcessorMixin
from transformers.utils import logging

logging.disable_progress_bar()
TOLERANCE = 1e-4
NEW_TOKENS = 32
SDPA_LIMIT, MARGIN_LIMIT, MISTAKE_LIMIT = 3e-5, 1e-3, 3e-4


@dataclass
class Scene:
    """One conversation with pictures: sizes are width x height."""

    sizes: list[tuple[int, int]]
    messages: list[dict]
    seed: int
    images_kwargs: dict = field(default_factory=dict)
    video: bool = False
    skip: tuple[str, ...] = ()
    """Mistakes that cannot show in this scene."""
    about: Callable[[list[int]], dict] = lambda _: {}
    """What forward.json says of this scene beside the usual, from the number of rows per picture."""


@dataclass
class Family:
    """A checkpoint with all that its scenes need."""

    directory: Path
    model_class: type[PreTrainedModel]
    processor: ProcessorMixin
    connector: str
    """Module whose input is `vision_features`."""
    placeholders: list[str]
    mistakes: dict[str, Callable[[PreTrainedModel], None]]
    masks: tuple[str, ...] = ()
    """Masks of the processor that the model must have, as they leave something out."""

    def load(self, attention: str = "eager", dtype: torch.dtype | str = torch.float32) -> PreTrainedModel:
        """The checkpoint, in f32 whatever precision it is stored in; an error if a tensor is missing or left over."""
        model, info = self.model_class.from_pretrained(
            self.directory, dtype=dtype, attn_implementation=attention, output_loading_info=True
        )
        odd = {kind: names for kind, names in info.items() if names}
        if odd:
            raise SystemExit(f"{self.directory.name}: {odd}")
        return model.eval()

    def image_tokens(self, ids: torch.Tensor) -> torch.Tensor:
        """Which of the ids [tokens] stand for rows of a picture."""
        tokenizer = self.processor.tokenizer
        return torch.isin(ids, torch.tensor([tokenizer.convert_tokens_to_ids(token) for token in self.placeholders]))


def turn(role: str, *content: str) -> dict:
    """A message: `<image>` and `<video>` stand for pictures, everything else is text."""
    kinds = {"<image>": {"type": "image"}, "<video>": {"type": "video"}}
    return {"role": role, "content": [kinds.get(part) or {"type": "text", "text": part} for part in content]}


def user(*content: str) -> dict:
    return turn("user", *content)


def make_golden(family: Family, scenes: dict[str, Scene], conversations: list[list[dict]]) -> None:
    """Writes golden/ and fresh/ of a checkpoint whose other files are there."""
    golden = family.directory / "golden"
    golden.mkdir()
    entries = {name: run_scene(family, name, scene) for name, scene in scenes.items()}
    write_json(
        golden / "forward.json",
        {"tolerance": TOLERANCE, "model_sha256": weights_sha256(family.directory), "scenes": entries},
    )
    write_json(golden / "templates.json", [case for messages in conversations for case in rendered(family, messages)])
    write_fresh(family.directory, family.load(dtype="auto"), family.processor)


def rendered(family: Family, messages: list[dict]) -> list[dict]:
    return [
        {
            "messages": messages,
            "add_generation_prompt": prompt,
            "text": family.processor.apply_chat_template(messages, add_generation_prompt=prompt),
        }
        for prompt in (False, True)
    ]


@torch.no_grad()
def run_scene(family: Family, name: str, scene: Scene) -> dict:
    """Writes a scene's pictures, inputs and expected tensors; its entry for forward.json."""
    golden = family.directory / "golden"
    files = [f"{name}{index}.png" for index in range(len(scene.sizes))]
    for index, (file, (width, height)) in enumerate(zip(files, scene.sizes, strict=True)):
        draw(golden / file, width, height, seed=scene.seed + index, noise=20)
    pictures = [Image.open(golden / file).convert("RGB") for file in files]
    text = family.processor.apply_chat_template(scene.messages, add_generation_prompt=True)
    inputs = process(family, text, pictures, scene)
    images = family.image_tokens(inputs["input_ids"][0])
    model = family.load()
    tower, rows = [], []
    model.get_submodule(family.connector).register_forward_pre_hook(lambda _, args: tower.append(args[0]))
    model.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(kwargs["inputs_embeds"][0]), with_kwargs=True
    )
    logits = model(**inputs).logits
    vision = torch.cat([part.reshape(-1, part.shape[-1]) for part in tower])
    features = rows[0][images]
    new_ids, margin = greedy(family.load(), inputs)
    write_tensors(golden / f"{name}.inputs.safetensors", inputs)
    write_tensors(
        golden / f"{name}.expected.safetensors",
        {"vision_features": vision, "image_features": features, "logits": logits, "generated_ids": new_ids},
    )
    counts = runs(images)
    entry = {
        "images": files,
        "messages": scene.messages,
        "template_text": text,
        "tokens_per_image": counts,
        **scene.about(counts),
        "generated_text": family.processor.tokenizer.decode(new_ids, skip_special_tokens=True),
        "logits_deviation": logits.std().item(),
        "smallest_greedy_margin": margin,
        "sdpa_against_eager": max_diff(family.load("sdpa")(**inputs).logits, logits),
        "perturbed": perturbed(family, inputs, logits, scene.skip),
    }
    check(f"{family.directory.name} {name}", entry, len(images), len(new_ids))
    return entry


def process(family: Family, text: str, pictures: list[Image.Image], scene: Scene) -> dict[str, torch.Tensor]:
    """The processor's tensors; its ids must be those of tokenizer.json alone, all that a loader outside Python has."""
    media = {"videos": [pictures]} if scene.video else {"images": [pictures]}
    batch = family.processor(text=[text], **media, **scene.images_kwargs, return_tensors="pt")
    masks = {key for key in batch if "attention_mask" in key} - set(family.masks)
    inputs = {key: value for key, value in batch.items() if key not in masks | {"mm_token_type_ids"}}
    if any((batch[mask] == 0).any() for mask in masks):
        raise SystemExit(f"{family.directory.name}: a mask leaves something out")
    tokenizer = Tokenizer.from_file(str(family.directory / "tokenizer.json"))
    for given in (text, *(part for message in scene.messages for part in texts(message))):
        if family.processor.tokenizer(given)["input_ids"] != tokenizer.encode(given).ids:
            raise SystemExit(f"{family.directory.name}: tokenizer.json reads {given!r} otherwise than the processor")
    return inputs


def texts(message: dict) -> list[str]:
    return [part["text"] for part in message["content"] if part["type"] == "text"]


def greedy(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, float]:
    """New ids, and the smallest gap between the best two logits."""
    generated = model.generate(
        **inputs, do_sample=False, max_new_tokens=NEW_TOKENS, output_scores=True, return_dict_in_generate=True
    )
    top2 = torch.stack(generated.scores)[:, 0].topk(2).values
    new_ids = generated.sequences[0, inputs["input_ids"].shape[1] :]
    return new_ids, (top2[:, 0] - top2[:, 1]).min().item()


def perturbed(
    family: Family, inputs: dict[str, torch.Tensor], logits: torch.Tensor, skip: tuple[str, ...]
) -> dict[str, float]:
    """Largest change of the prompt's logits for each mistake."""
    changes = {}
    for mistake, edit in family.mistakes.items():
        if mistake not in skip:
            wrong = family.load()
            edit(wrong)
            changes[mistake] = max_diff(wrong(**inputs).logits, logits)
    return changes


def runs(mask: torch.Tensor) -> list[int]:
    """Lengths of the stretches of True."""
    lengths, length = [], 0
    for value in [*mask.tolist(), False]:
        if value:
            length += 1
        elif length:
            lengths.append(length)
            length = 0
    return lengths


def check(what: str, entry: dict, tokens: int, new: int) -> None:
    """A golden is of use only where rounding cannot flip it and a mistake can."""
    print(
        f"{what}: {tokens} tokens, {entry['tokens_per_image']} of images, {new} new,"
        f" logits {entry['logits_deviation']:.1f}, margin {entry['smallest_greedy_margin']:.1e},"
        f" sdpa {entry['sdpa_against_eager']:.1e}, "
        + ", ".join(f"{mistake} {change:.1e}" for mistake, change in entry["perturbed"].items())
    )
    if entry["sdpa_against_eager"] > SDPA_LIMIT or entry["smallest_greedy_margin"] < MARGIN_LIMIT:
        raise SystemExit(f"{what}: rounding comes too close to what it could change; take another seed")
    weak = [mistake for mistake, change in entry["perturbed"].items() if change < MISTAKE_LIMIT]
    if weak:
        raise SystemExit(f"{what}: insensitive to {weak}")
