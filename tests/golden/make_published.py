"""Writes published/<name>.json: what a published checkpoint's files say of it, without a single weight.

The tensors are those of transformers' model for the published configuration, built without memory for its weights, under the
names that the published files have.
"""

import copy
import json
import math
import re
from itertools import groupby

import published_cosmos3
import published_internvl
import published_lfm2
import published_llava
import published_quantised
import published_qwen
import published_smolvlm
import published_text
import torch
from checkpoint_files import substituted
from golden_io import HERE
from published_models import Published
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

OUT = HERE / "published"
MODELS = (
    published_text.MODELS
    | published_smolvlm.MODELS
    | published_llava.MODELS
    | published_internvl.MODELS
    | published_lfm2.MODELS
    | published_qwen.MODELS
    | published_cosmos3.MODELS
    | published_quantised.MODELS
)
MATRIX = re.compile(r"model\.(language_model\.)?layers\..*_proj\.weight")
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def tensors(model: Published) -> dict[str, list[int]]:
    """Shapes of the parameters by their published names."""
    # transformers writes into what it is given
    config = copy.deepcopy(model.config)
    config.pop("quantization_config", None)
    config = CONFIG_MAPPING[config["model_type"]].from_dict(config)
    if model.own_head:
        config.tie_word_embeddings = False
    factory = AutoModelForCausalLM if model.preprocessor is None else AutoModelForImageTextToText
    with torch.device("meta"):
        built = factory.from_config(config)
    shapes = {renamed(name, model): list(parameter.shape) for name, parameter in built.named_parameters()}
    return shapes | {double: shapes[original] for double, original in model.duplicates.items()}


def renamed(name: str, model: Published) -> str:
    for new, published in model.renamed:
        if name.startswith(new):
            return published + name.removeprefix(new)
    return substituted(name, list(model.patterns))


def compact(shapes: dict[str, list[int]]) -> dict[str, list[int]]:
    """Runs of layers as one line: their number replaced by `{first..last}`."""

    def family(name: str) -> tuple[str, list[int]]:
        return NUMBER.sub("#", name, count=1), shapes[name]

    lines = {}
    for (pattern, shape), group in groupby(sorted(shapes, key=lambda name: (*family(name), number(name))), key=family):
        names = list(group)
        numbers = [number(name) for name in names]
        if len(names) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1)):
            lines[pattern.replace("#", f"{{{numbers[0]}..{numbers[-1]}}}")] = shape
        else:
            lines |= dict.fromkeys(names, shape)
    return lines


def number(name: str) -> int:
    found = NUMBER.search(name)
    return int(found.group()) if found else -1


def described(model: Published) -> dict:
    shapes = tensors(model)
    parameters = sum(math.prod(shape) for shape in shapes.values())
    packed = packed_matrices(model, shapes)
    video = {"video_preprocessor_config": model.video_preprocessor} if model.video_preprocessor else {}
    return {
        "hub": model.hub,
        "family": model.family,
        "source": model.read,
        "config": model.config,
        "preprocessor_config": model.preprocessor,
        **video,
        "dtype": model.dtype,
        **({"dtypes": model.dtypes} if model.dtypes else {}),
        "shards": model.shards,
        **({"folders": model.folders} if model.folders else {}),
        **({"bare": True} if model.bare else {}),
        "file_bytes": model.file_bytes,
        "parameters": parameters,
        "tensors": compact(shapes),
        "copies": model.duplicates,
        "buffers": {pattern: {"dtype": dtype, "shape": shape} for pattern, (dtype, shape) in model.buffers.items()},
    } | ({"packed": packed} if packed else {})


def packed_matrices(model: Published, shapes: dict[str, list[int]]) -> dict[str, dict]:
    """Takes the decoder's matrices out of `shapes`: the tensors that stand for them, runs of layers as one line."""
    if model.packed is None:
        return {}
    stored, about = {}, {}
    for name in [name for name in shapes if MATRIX.fullmatch(name)]:
        sides = shapes.pop(name)
        for ending, (dtype, shape) in model.packed(*sides).items():
            part = name.removesuffix("weight") + ending
            stored[part] = shape
            about[NUMBER.sub("#", part, count=1)] = (dtype, sides)
    lines = {}
    for pattern, shape in compact(stored).items():
        dtype, sides = about[re.sub(r"\{.*?\}", "#", pattern)]
        lines[pattern] = {"dtype": dtype, "shape": shape} | ({"values": sides} if dtype == "I64" else {})
    return lines


def one_line_lists(text: str) -> str:
    """Lists of numbers, and lists of these, each on one line."""
    text = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda found: "[" + re.sub(r"\s+", " ", found.group(1)) + "]", text)
    return re.sub(r"\[\s+((?:\[[^\[\]]*\],?\s*)+)\]", lambda found: "[" + " ".join(found.group(1).split()) + "]", text)


def main() -> None:
    OUT.mkdir(exist_ok=True)
    for name, model in MODELS.items():
        value = described(model)
        (OUT / f"{name}.json").write_text(one_line_lists(json.dumps(value, indent=1)) + "\n")
        print(f"{name:34} {value['parameters']:>14,}   {model.read['parameters']}")


if __name__ == "__main__":
    main()
