"""Makes the text-only families in `families/`: checkpoint, fresh save, forward goldens and rendered templates."""

import argparse
import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from decoders import NeoXModel, open_text_model
from golden_io import HERE, check_sensitive, max_diff, sha256, write_json, write_tensors
from reference import MASK, ROPE, BoundedDecoder, CacheParams, wrong_heads
from safetensors.torch import load_file, save_file
from text_families import FAMILIES, SYSTEM, TURNS, Family
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5RMSNorm

TOLERANCE, NEW_TOKENS, SMALLEST_MARGIN, LARGEST_ROUNDING = 1e-4, 32, 1e-3, 3e-5
LEAST_DISTINCT = 8  # tokens of a greedy answer that does not end
FULL = CacheParams("full", budget=0, slack=0, prefix=0)
CONVERSATIONS = [
    [{"role": "system", "content": SYSTEM}, TURNS[0]],
    [{"role": "system", "content": SYSTEM}, *TURNS],
    TURNS[:1],
    TURNS,
    TURNS[:2],
    [{"role": "user", "content": "  Is the door\n\nopen?  "}],
]
THOUGHTS = [
    [TURNS[0], {"role": "assistant", "content": "<think>\nred, then blue\n</think>\n\nA red box."}, TURNS[2]],
    [TURNS[0], {"role": "assistant", "content": "<think>\nred, then blue\n</think>\n\nA red box."}],
]


class UnfitSeed(Exception):
    """Weights whose greedy choice or numbers are too close to what rounding could change, or whose answer says nothing."""


def randomise(model: torch.nn.Module, tied: bool, seed: int) -> None:
    """Weights large enough that attention is peaked, every bias and norm counts, and logits deviate by about 3."""
    generator = torch.Generator().manual_seed(seed)

    def normal(parameter: torch.Tensor, std: float, mean: float = 0.0) -> None:
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std + mean)

    for name, parameter in model.named_parameters():
        width = math.sqrt(parameter[0].numel())
        if "norm" in name:
            less = isinstance(model.get_submodule(name.rpartition(".")[0]), Qwen3_5RMSNorm)  # stored less one
            mean = 0.0 if name.endswith("bias") else 1.6 if "q_norm" in name else 1.0
            normal(parameter, 0.2, mean=mean - less)
        elif name.endswith("bias"):
            normal(parameter, 0.4)
        elif "embed" in name:
            normal(parameter, 3.0 / width if tied else 1.0)
        elif "lm_head" in name:
            normal(parameter, 3.0 / width)
        else:
            peaked = any(p in name for p in ("q_proj", "k_proj", "query_key_value"))
            normal(parameter, (1.6 if peaked else 1.0) / width)


def hub_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n")


def write_checkpoint(family: Family, out: Path, seed: int) -> None:
    hub_json(out / "config.json", family.config)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(out))
    randomise(model, family.config["tie_word_embeddings"], seed)
    tensors = {}
    for name, tensor in model.state_dict().items():
        for today, hub in family.hub_names.items():
            name = hub + name.removeprefix(today) if name.startswith(today) else name
        if not (family.config["tie_word_embeddings"] and name == "lm_head.weight"):
            tensors[name] = tensor.contiguous()
    save_file(tensors | family.buffers(family.config), out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)


def write_tokenizer(family: Family, out: Path) -> None:
    tokenizer = family.tokenizer()
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    added = {
        str(i): {
            "content": token.content,
            "lstrip": token.lstrip,
            "normalized": token.normalized,
            "rstrip": token.rstrip,
            "single_word": token.single_word,
            "special": token.special,
        }
        for i, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }
    config = {"added_tokens_decoder": added, "clean_up_tokenization_spaces": False, **family.tokenizer_config}
    config["model_max_length"] = family.config["max_position_embeddings"]
    if family.template:
        config["chat_template"] = family.template
    hub_json(out / "tokenizer_config.json", config)
    named = ("bos_token", "eos_token", "pad_token", "unk_token", "additional_special_tokens")
    hub_json(out / "special_tokens_map.json", {n: config[n] for n in named if config.get(n)})
    hub_json(out / "generation_config.json", {"_from_model_config": True, **family.generation})


def load_tokenizer(out: Path) -> PreTrainedTokenizerFast:
    """What tokenizer.json says, which today's class for the family may replace by something of its own."""
    config = json.loads((out / "tokenizer_config.json").read_text())
    named = {n: config[n] for n in ("bos_token", "eos_token", "unk_token") if config.get(n)}
    return PreTrainedTokenizerFast(
        tokenizer_file=str(out / "tokenizer.json"), chat_template=config.get("chat_template"), **named
    )


def write_fresh(family: Family, out: Path) -> None:
    """Today's save of the same model and tokenizer, without what is the same, and the names of its tensors."""
    (out / "fresh").mkdir(exist_ok=True)
    published = load_file(out / "model.safetensors")
    with tempfile.TemporaryDirectory() as saved:
        AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).save_pretrained(saved)
        if family.tokenizer:
            AutoTokenizer.from_pretrained(out).save_pretrained(saved)
        fresh = load_file(Path(saved) / "model.safetensors")
        for file in sorted(Path(saved).iterdir()):
            if file.name not in ("model.safetensors", "tokenizer.json"):
                (out / "fresh" / file.name).write_bytes(file.read_bytes())
    names = {
        hub: next((n for n, t in fresh.items() if t.shape == tensor.shape and torch.equal(t, tensor)), None)
        for hub, tensor in sorted(published.items())
    }
    if set(names.values()) - {None} != set(fresh):
        raise SystemExit(f"{out.name}: the fresh save holds {sorted(set(fresh) - set(names.values()))} besides")
    write_json(out / "fresh" / "names.json", names)


def write_templates(out: Path) -> None:
    rendered, tokenizer = [], load_tokenizer(out)
    if tokenizer.chat_template:
        thoughts = THOUGHTS if "think" in tokenizer.chat_template else []
        for messages in CONVERSATIONS + thoughts:
            for prompt in (True, False):
                text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
                rendered.append({"messages": messages, "add_generation_prompt": prompt, "text": text})
        if thoughts:
            text = tokenizer.apply_chat_template(
                TURNS, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
            rendered.append({"messages": TURNS, "add_generation_prompt": True, "enable_thinking": False, "text": text})
    write_json(out / "golden" / "templates.json", rendered)


def greedy(model: torch.nn.Module, ids: torch.Tensor, ends: list[int]) -> tuple[torch.Tensor, float]:
    """The likeliest tokens, whatever generation_config.json says of sampling, and the smallest margin of a choice."""
    new, margins = [], []
    while len(new) < NEW_TOKENS and not (new and new[-1] in ends):
        best = model(torch.cat([ids, torch.tensor([new], dtype=torch.long)], dim=1)).logits[0, -1].topk(2)
        margins.append((best.values[0] - best.values[1]).item())
        new.append(best.indices[0].item())
    return torch.tensor(new), min(margins)


def changed_by_mistakes(out: Path, ids: torch.Tensor) -> dict[str, float]:
    """Largest change of the prompt's logits for each mistake that the family's arithmetic allows."""
    text = open_text_model(out)
    config = text.config
    embeds = text.embed(ids)

    def run(perturb: tuple[str, ...] = (), **changes) -> torch.Tensor:
        text.config = replace(config, **changes)
        return BoundedDecoder(text, FULL, frozenset(perturb)).append(embeds, 0)

    base = run()
    wrong = {n: run((n,)) for n in (MASK, ROPE, wrong_heads(config))}
    wrong["other_norm_eps"] = run(norm_eps=1e-5)
    wrong["other_rope_theta"] = run(rope_theta=10000.0 if config.rope_theta != 10000.0 else 500000.0)
    layer = "layers.0.self_attn"
    if config.rope_scaling:
        wrong["no_rope_scaling"] = run(rope_scaling=None)
    if text.has(f"{layer}.q_proj.bias"):
        wrong["no_projection_biases"] = run(ignored=frozenset(f"{p}_proj" for p in "qkv"))
    if text.has(f"{layer}.q_norm.weight"):
        wrong["no_head_norms"] = run(ignored=frozenset(["q_norm"]))
    if isinstance(text, NeoXModel):
        wrong["whole_head_rotated"] = run(rotary_dim=config.head_dim)
        wrong["other_residual"] = run(parallel_residual=not config.parallel_residual)
        wrong["tanh_gelu"] = run(exact_gelu=False)
        for name, tensor in text.weights.items():
            if ".query_key_value." in name:
                by_head = tensor.view(config.heads, 3, config.head_dim, *tensor.shape[1:])
                text.weights[name] = by_head.transpose(0, 1).reshape(tensor.shape)
        wrong["queries_then_keys_then_values"] = run()
    return {name: max_diff(base, logits) for name, logits in wrong.items()}


def slid(out: Path, ids: torch.Tensor) -> torch.Tensor:
    """Logits with the sliding window that the config names and does not use."""
    published = json.loads((out / "config.json").read_text())
    config = type(AutoConfig.from_pretrained(out)).from_dict(published | {"use_sliding_window": True})
    return AutoModelForCausalLM.from_pretrained(out, config=config, dtype=torch.float32)(ids[None]).logits[0]


def prompt_ids(family: Family, out: Path) -> tuple[torch.Tensor, dict]:
    """Ids [1, tokens] of the family's scene, and what forward.json says about their text."""
    if not family.tokenizer:
        return torch.tensor([family.prompt]), {}
    tokenizer = load_tokenizer(out)
    if isinstance(family.prompt, str):
        text, about = family.prompt, {"text": family.prompt}
    else:
        text = tokenizer.apply_chat_template(family.prompt, tokenize=False, add_generation_prompt=True)
        about = {"messages": family.prompt, "template_text": text}
    ids = tokenizer(text, add_special_tokens=isinstance(family.prompt, str)).input_ids
    return torch.tensor([ids]), {"images": [], **about, "tokens_per_image": []}


def write_forward(family: Family, out: Path) -> dict:
    ids, about = prompt_ids(family, out)
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, attn_implementation="eager").eval()
    logits = model(ids).logits
    sdpa = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, attn_implementation="sdpa").eval()
    ends = family.generation.get("eos_token_id", family.config["eos_token_id"])
    new, margin = greedy(model, ids, ends if isinstance(ends, list) else [ends])
    text, exact = open_text_model(out), open_text_model(out, torch.float64)
    reference = BoundedDecoder(text, FULL).append(text.embed(ids[0]), 0)
    perturbed = changed_by_mistakes(out, ids[0])
    if family.config.get("sliding_window"):
        perturbed["sliding_window"] = max_diff(slid(out, ids[0]), logits[0])
    if family.tokenizer:
        about["generated_text"] = load_tokenizer(out).decode(new, skip_special_tokens=True)
    scene = {
        **about,
        "logits_deviation": logits.std().item(),
        "smallest_greedy_margin": margin,
        "sdpa_against_eager": max_diff(sdpa(ids).logits, logits),
        "reference_against_transformers": max_diff(reference, logits[0]),
        "transformers_against_f64": max_diff(BoundedDecoder(exact, FULL).append(exact.embed(ids[0]), 0), logits[0]),
        "perturbed": perturbed,
    }
    rounding = max(scene["sdpa_against_eager"], scene["transformers_against_f64"])
    repeats = len(new) == NEW_TOKENS and len(set(new.tolist())) < LEAST_DISTINCT
    if margin < SMALLEST_MARGIN or rounding > LARGEST_ROUNDING or repeats:
        raise UnfitSeed(f"margin {margin:.1e}, rounding {rounding:.1e}{', repeats itself' if repeats else ''}")
    if scene["reference_against_transformers"] > TOLERANCE:
        raise SystemExit(f"{out.name}: the reference is off by {scene['reference_against_transformers']:.1e}")
    golden = out / "golden"
    write_tensors(golden / "one.inputs.safetensors", {"input_ids": ids})
    write_tensors(golden / "one.expected.safetensors", {"logits": logits, "generated_ids": new})
    digest = sha256(out / "model.safetensors")
    write_json(golden / "forward.json", {"tolerance": TOLERANCE, "model_sha256": digest, "scenes": {"one": scene}})
    return scene


def make(name: str, family: Family) -> None:
    out = HERE / "families" / name
    (out / "golden").mkdir(parents=True, exist_ok=True)
    if family.tokenizer:
        write_tokenizer(family, out)
        write_templates(out)
    for seed in range(family.seed, family.seed + 50):
        write_checkpoint(family, out, seed)
        try:
            scene = write_forward(family, out)
        except UnfitSeed as unfit:
            print(f"{name}: seed {seed}: {unfit}")
            continue
        break
    else:
        raise SystemExit(f"{name}: no seed fits")
    small = {n for n in scene["perturbed"] if n.endswith(("_eps", "_gelu"))}
    check_sensitive(scene["perturbed"], tuple(sorted(set(scene["perturbed"]) - small)), TOLERANCE, name)
    if family.tokenizer:
        write_fresh(family, out)
        today = AutoTokenizer.from_pretrained(out)
        text = scene.get("template_text") or scene["text"]
        same = (
            today(text, add_special_tokens=False).input_ids
            == load_tokenizer(out)(text, add_special_tokens=False).input_ids
        )
        print(f"{name}: {type(today).__name__} of today {'agrees' if same else 'does NOT agree'} with tokenizer.json")
    print(name, seed, json.dumps({k: v for k, v in scene.items() if k != "messages"}, indent=1))


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(FAMILIES), help="families to make")
    for name in parser.parse_args().names:
        make(name, FAMILIES[name])


if __name__ == "__main__":
    main()
