"""Writes `repetition.json`: greedy answers under penalties of repetition, by transformers' `generate`.

The scene `one` of the tiny Qwen2.5-VL, whose `generation_config.json` has a penalty (1.05), which is in force where none is asked for. Ends
with an error if a penalty changes no token, or if a token is so close to the next best that rounding could change it.
"""

import torch
from golden_io import HERE, write_json
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

FAMILY = "qwen2_5_vl"
PENALTIES = {"none": 1.0, "published": None, "strong": 1.5, "reward": 0.8}
NEW_TOKENS = 24
LEAST_MARGIN = 1e-3


def answer(model: torch.nn.Module, inputs: dict[str, torch.Tensor], penalty: float | None) -> list[int]:
    asked = {} if penalty is None else {"repetition_penalty": penalty}
    result = model.generate(
        **inputs,
        **asked,
        do_sample=False,
        temperature=None,
        max_new_tokens=NEW_TOKENS,
        output_scores=True,
        return_dict_in_generate=True,
    )
    best = torch.stack(result.scores)[:, 0].topk(2).values
    margin = (best[:, 0] - best[:, 1]).min().item()
    if margin < LEAST_MARGIN:
        raise SystemExit(f"penalty {penalty}: two tokens are {margin:.2e} apart, expected at least {LEAST_MARGIN}")
    return result.sequences[0, inputs["input_ids"].shape[1] :].tolist()


def main() -> None:
    directory = HERE / "families" / FAMILY
    model = AutoModelForImageTextToText.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    inputs = load_file(directory / "golden/one.inputs.safetensors")
    # Which the processor gives as well, and without which the image's tokens get positions of text.
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == model.config.image_token_id).long()
    answers = {name: answer(model, inputs, penalty) for name, penalty in PENALTIES.items()}
    if len({tuple(ids) for ids in answers.values()}) < len(answers):
        raise SystemExit(f"two penalties give one answer: {answers}")
    cases = [{"penalty": PENALTIES[name], "generated_ids": ids} for name, ids in answers.items()]
    write_json(HERE / "repetition.json", {"family": FAMILY, "new_tokens": NEW_TOKENS, "cases": cases})


main()
