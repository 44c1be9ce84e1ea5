"""Writes `golden/` of the Qwen-VL families: two scenes through transformers, and what their chat templates render."""

import argparse
from contextlib import ExitStack
from pathlib import Path

import torch
from family_hub import weights_sha256
from golden_io import NEW_TOKENS, max_diff, write_json, write_tensors
from pictures import draw
from PIL import Image
from qwen_checkpoint import FAMILIES
from qwen_mistakes import MISTAKES
from tokenizers import Tokenizer
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor
from transformers.models.cosmos3_edge import image_processing_cosmos3_edge as edge
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

TOLERANCE = 1e-4
LOUD = 10 * TOLERANCE  # what every mistake must change the logits by
IMAGE = {"type": "image"}
# sizes (width, height): one rounds at a half and stays within the limits, one is too large, one too small
PICTURES = {
    "qwen2_vl": {"wide.png": (32, 27), "tall.png": (50, 84), "small.png": (22, 17)},
    "qwen2_5_vl": {"wide.png": (32, 27), "tall.png": (50, 84), "small.png": (22, 17)},
    "qwen3_vl": {"wide.png": (42, 36), "tall.png": (44, 78), "small.png": (29, 20)},
    "qwen3_5": {"wide.png": (42, 36), "tall.png": (44, 78), "small.png": (29, 20)},
    "cosmos3_omni": {"wide.png": (42, 36), "tall.png": (44, 78), "small.png": (29, 20)},
    "cosmos3_edge": {"wide.png": (42, 36), "tall.png": (44, 78), "small.png": (29, 20)},
}
# height, width of further images, resized: halves round to even, limits, one side shorter than a merged patch
SIZES = [(27, 32), (36, 42), (3, 40), (33, 33), (36, 52), (100, 9), (31, 199), (1080, 1920), (1, 1), (45, 21)]


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def scenes(family: str) -> dict[str, tuple[list[str], list[dict]]]:
    """Pictures and messages of each scene; `one` has a system prompt, `two` what the template does without."""
    two = [text("Compare "), IMAGE, text(" with "), IMAGE, text(": which shows the ball?")]
    one = [IMAGE, text("What is in view?")]
    system = {"role": "system", "content": "You are a robot."}
    return {
        "two": (["wide.png", "tall.png"], [{"role": "user", "content": two}]),
        "one": (["small.png"], [system, {"role": "user", "content": one}]),
    }


def conversations() -> list[dict]:
    """Messages to render, each with and without the generation prompt where that matters."""
    user, answer = {"role": "user", "content": [text("Hello robot.")]}, {"role": "assistant", "content": [text("Yes?")]}
    system = {"role": "system", "content": [text("You are a mobile robot.")]}
    images = {"role": "user", "content": [IMAGE, IMAGE, text("Which one is red?")]}
    later = {"role": "user", "content": [text("And here: "), IMAGE]}
    plain = {"role": "user", "content": "Stop at the box, it's 3 m away."}
    listed = [
        ([user], True),
        ([user], False),
        ([system, images], True),
        ([images, answer, later], True),
        ([system, user, answer, later, answer, plain], True),
        ([user, answer], False),
        ([plain], True),
        ([{"role": "system", "content": "Answer briefly."}, plain], True),
        ([later], True),
    ]
    return [{"messages": messages, "add_generation_prompt": prompt} for messages, prompt in listed]


class Scene:
    """One scene of one family: its inputs and what transformers computes from them."""

    def __init__(self, directory: Path, pictures: list[str], messages: list[dict]):
        self.directory, self.pictures, self.messages = directory, pictures, messages
        self.processor = AutoProcessor.from_pretrained(directory)
        self.prompt = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        images = [Image.open(directory / "golden" / name).convert("RGB") for name in pictures]
        kinds = {
            "return_mm_token_type_ids": True
        }  # which that of Cosmos 3 Edge leaves out, though its model asks for them
        self.batch = self.processor(text=[self.prompt], images=images, return_tensors="pt", **kinds)
        pil = AutoImageProcessor.from_pretrained(directory, backend="pil")(images=images, return_tensors="pt")
        self.pil_difference = max_diff(pil["pixel_values"], self.batch["pixel_values"])
        self.length = self.batch["input_ids"].shape[1]

    def expanded(self) -> str:
        """The prompt with every image's placeholder repeated, once for each of its tokens."""
        first, *rest = self.prompt.split("<|image_pad|>")
        counts = (self.batch["image_grid_thw"].prod(-1) // self.processor.image_processor.merge_size**2).tolist()
        return first + "".join("<|image_pad|>" * n + words for n, words in zip(counts, rest, strict=True))

    def model(self, attention: str = "eager") -> torch.nn.Module:
        return AutoModelForImageTextToText.from_pretrained(
            self.directory, dtype=torch.float32, attn_implementation=attention
        ).eval()

    def logits(self, model: torch.nn.Module) -> torch.Tensor:
        return model(**self.batch).logits

    def generate(self, model: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        """Greedy ids and the logits they were chosen from, whatever generation_config.json says of sampling."""
        result = model.generate(
            **self.batch,
            do_sample=False,
            temperature=None,
            top_k=None,
            top_p=None,
            repetition_penalty=1.0,
            max_new_tokens=NEW_TOKENS,
            output_logits=True,
            return_dict_in_generate=True,
        )
        return result.sequences[0, self.length :], torch.cat(result.logits)

    def continued(self, model: torch.nn.Module, new_ids: torch.Tensor, first: int) -> torch.Tensor:
        """Logits of the generated positions in one pass without a cache, decode positions going on from `first`."""
        fed = new_ids[:-1]
        positions = torch.cat(
            [self.positions(model), (first + torch.arange(len(fed))).expand(3, 1, -1)],
            dim=-1,
        )
        ids = torch.cat([self.batch["input_ids"], fed[None]], dim=1)
        visual = {name: self.batch[name] for name in ("pixel_values", "image_grid_thw")}
        return model(input_ids=ids, position_ids=positions, **visual).logits[0, self.length - 1 :]

    def positions(self, model: torch.nn.Module) -> torch.Tensor:
        names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
        return model.model.get_rope_index(**{name: self.batch[name] for name in names})[0]

    def perturbed(self, family: str, logits: torch.Tensor) -> dict[str, float]:
        changes = {}
        for name, edit in MISTAKES[family].items():
            with ExitStack() as stack:
                model = self.model()
                edit(model, stack)
                changes[name] = max_diff(self.logits(model), logits)
        return changes


def check_ids(new_ids: torch.Tensor, scene: Scene, what: str) -> None:
    """Generated ids must be text, the end token apart: other markup would have to be fed back as if it were."""
    markup = set(scene.processor.tokenizer.all_special_ids) - {scene.processor.tokenizer.eos_token_id}
    strange = [i for i in new_ids.tolist() if i in markup or i >= len(scene.processor.tokenizer)]
    if strange:
        raise SystemExit(f"{what}: generates markup {strange}; choose another seed")


def require(holds: bool, message: str) -> None:
    if not holds:
        raise SystemExit(message)


@torch.no_grad()
def make_scene(family: str, name: str, pictures: list[str], messages: list[dict]) -> dict:
    directory = FAMILIES / family
    scene, what = Scene(directory, pictures, messages), f"{family} {name}"
    model = scene.model()
    logits, sdpa = scene.logits(model), scene.logits(scene.model("sdpa"))
    visual = model.get_image_features(scene.batch["pixel_values"], scene.batch["image_grid_thw"], return_dict=True)
    new_ids, step_logits = scene.generate(model)
    positions = scene.positions(model)[:, 0]
    first = int(positions.max()) + 1
    top2 = step_logits.topk(2).values
    margin = (top2[:, 0] - top2[:, 1]).min().item()
    without_cache = max_diff(scene.continued(model, new_ids, first), step_logits)
    without_delta = scene.continued(model, new_ids, scene.length)
    require(max_diff(sdpa, logits) < 3e-5, f"{what}: sdpa is {max_diff(sdpa, logits):.1e} from eager")
    require(margin > 1e-3, f"{what}: greedy margin {margin:.1e}; choose another seed")
    require(without_cache < 3e-5, f"{what}: decoding is {without_cache:.1e} from one pass with positions from {first}")
    check_ids(new_ids, scene, what)
    perturbed = scene.perturbed(family, logits) | {"no_rope_delta": max_diff(without_delta, step_logits)}
    if len(pictures) == 1:
        del perturbed["images_attend_to_each_other"]
    quiet = [name for name, change in perturbed.items() if change < LOUD]
    require(not quiet, f"{what}: insensitive to {quiet}")
    by_file = Tokenizer.from_file(str(directory / "tokenizer.json")).encode(scene.expanded(), add_special_tokens=False)
    require(by_file.ids == scene.batch["input_ids"][0].tolist(), f"{what}: tokenizer.json gives other ids")
    inputs = ("input_ids", "pixel_values", "image_grid_thw")
    write_tensors(directory / "golden" / f"{name}.inputs.safetensors", {key: scene.batch[key] for key in inputs})
    expected = {
        "vision_features": visual.last_hidden_state,
        "image_features": torch.cat(visual.pooler_output),
        "position_ids": positions,
        "logits": logits,
        "generated_ids": new_ids,
    }
    for i, features in enumerate(getattr(visual, "deepstack_features", None) or []):
        expected[f"deepstack.{i}"] = torch.cat(features)
    write_tensors(directory / "golden" / f"{name}.expected.safetensors", expected)
    return {
        "images": pictures,
        "messages": messages,
        "template_text": scene.prompt,
        "tokens_per_image": [len(features) for features in visual.pooler_output],
        "generated_text": scene.processor.tokenizer.decode(new_ids, skip_special_tokens=True),
        "rope_delta": first - scene.length,
        "first_decode_position": first,
        "decode_against_one_pass": without_cache,
        "logits_deviation": logits.std().item(),
        "smallest_greedy_margin": margin,
        "sdpa_against_eager": max_diff(sdpa, logits),
        "pil_against_torchvision": scene.pil_difference,
        "perturbed": perturbed,
    }


def make_templates(family: str) -> None:
    processor = AutoProcessor.from_pretrained(FAMILIES / family)
    rendered = [case | {"text": processor.apply_chat_template(**case_arguments(case))} for case in conversations()]
    write_json(FAMILIES / family / "golden" / "templates.json", rendered)


def case_arguments(case: dict) -> dict:
    return {"conversation": case["messages"], "add_generation_prompt": case["add_generation_prompt"]}


def resized(family: str) -> list[list[int]]:
    """Height and width, and what they become; sizes of which one side is over 200 times the other are left out."""
    processor = AutoImageProcessor.from_pretrained(FAMILIES / family)
    about = (
        processor.patch_size * processor.merge_size,
        processor.size["shortest_edge"],
        processor.size["longest_edge"],
    )
    if family == "cosmos3_edge":
        return [[*size, *edge.smart_resize(1, *size, 1, *about)] for size in SIZES]
    return [[*size, *smart_resize(*size, *about)] for size in SIZES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=PICTURES, help="families to make")
    for family in parser.parse_args().names:
        pictures = PICTURES[family]
        golden = FAMILIES / family / "golden"
        golden.mkdir(exist_ok=True)
        for seed, (name, (width, height)) in enumerate(pictures.items()):
            draw(golden / name, width, height, seed=seed, noise=20)
        made = {name: make_scene(family, name, *about) for name, about in scenes(family).items()}
        write_json(
            golden / "forward.json",
            {
                "tolerance": TOLERANCE,
                "model_sha256": weights_sha256(FAMILIES / family),
                "resized": resized(family),
                "scenes": made,
            },
        )
        make_templates(family)


if __name__ == "__main__":
    main()
