"""Writes `gguf/`: tiny decoders as GGUF files in many quantisations, with the logits and token ids to expect."""

import argparse
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter
from gguf_files import (
    Vocabulary,
    add_decoder,
    add_vocabulary,
    gguf_name,
    halved_rows,
    paired_rows,
    stored,
    widened,
    write_gguf,
)
from golden_io import HERE, check_sensitive, max_diff, sha256, write_json, write_tensors
from make_text_families import load_tokenizer, randomise
from text_families import FAMILIES
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

OUT = HERE / "gguf"
TOLERANCE = 1e-4
MIXED = (Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.F16, Type.F32)
K_MIXED = (Type.Q4_K, Type.Q5_K, Type.Q6_K)
TEXTS = [
    "Hello, world!",
    "  two leading spaces,  two inside, three at the end   ",
    "tabs\tand\nnewlines\n\n\n  indented\r\nwindows",
    "In 2024, 1234567 + 89 = 1234656; 3.14159e-10 and 007.",
    "I'm you're he'll they've WE'RE 'tis don't",
    "Grüße aus Köln; ¿qué tal? Привет, мир! 你好，世界。",
    "🤖👍🏽 non\u00a0breaking, zero\u200bwidth, \u2028separator",
    "e\u0301 is not \u00e9 before it is normalised",
    "½ ² Ⅷ ٣٤ ५",
    "snake_case camelCase HTTPServer::get(); // ~!@#$%^&*()_+{}|:\"<>?`-=[]\\;',./",
    "the kitchen, The robot",
    "",
    " ",
    "\n",
]


@dataclass(frozen=True)
class File:
    """One GGUF file: the family whose tokenizer it has, sizes, the types its matrices take in turn, and `pre`."""

    family: str
    pre: str
    config: dict
    types: tuple[Type, ...]
    embedding: Type
    head: Type | None  # None: tied
    seed: int


def sizes(model_type: str, **changes) -> dict:
    same = {
        "model_type": model_type,
        "hidden_size": 64,
        "intermediate_size": 96,
        "max_position_embeddings": 512,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-3,
    }
    return same | changes


LLAMA3_ROPE = FAMILIES["llama3"].config["rope_scaling"]
FILES = {
    "llama": File(
        "llama",
        "",
        sizes("llama", rope_theta=3000.0, rope_scaling={"rope_type": "linear", "factor": 4.0}),
        MIXED,
        Type.Q8_0,
        Type.Q5_1,
        seed=1,
    ),
    "llama3_k": File(
        "llama3",
        "llama-bpe",
        sizes(
            "llama",
            hidden_size=256,
            intermediate_size=256,
            num_attention_heads=8,
            num_hidden_layers=1,
            rope_theta=200.0,
            rope_scaling=LLAMA3_ROPE,
        ),
        K_MIXED,
        Type.Q6_K,
        None,
        seed=2,
    ),
    "qwen2": File("qwen2", "qwen2", sizes("qwen2", rope_theta=1500.0), MIXED[1:], Type.Q4_0, None, seed=3),
    "qwen3": File(
        "qwen3", "qwen2", sizes("qwen3", rope_theta=5000.0, head_dim=32), MIXED[::-1], Type.F16, Type.Q8_0, seed=4
    ),
}


def model_of(config: PretrainedConfig, weights: dict[str, torch.Tensor] | None = None) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    if weights is not None:
        missing = model.load_state_dict(weights, strict=False)
        if missing.unexpected_keys or set(missing.missing_keys) - {"lm_head.weight"}:
            raise SystemExit(f"weights do not fit: {missing}")
        model.tie_weights()
    return model


def write_model(file: File, config: PretrainedConfig, path: Path) -> tuple[dict, dict]:
    """Writes the file; the weights that it holds, in the checkpoint's order of rows and in the file's."""
    model = model_of(config)
    randomise(model, file.head is None, file.seed)
    family = FAMILIES[file.family]
    ends = family.config["eos_token_id"]
    writer = GGUFWriter(path, config.model_type)
    writer.add_name(f"tiny {path.stem}")
    add_decoder(writer, config)
    add_vocabulary(
        writer,
        Vocabulary(
            tokenizer_json=HERE / "families" / file.family / "tokenizer.json",
            pre=file.pre,
            template=family.template,
            size=config.vocab_size,
            begin=family.config["bos_token_id"],
            end=ends[-1] if isinstance(ends, list) else ends,
            unknown=None if file.pre else 0,
        ),
    )
    writer.add_quantization_version(2)
    if config.rope_parameters["rope_type"] == "llama3":
        plain = 1.0 / config.rope_parameters["rope_theta"] ** (torch.arange(0, 32, 2).float() / 32)
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
        writer.add_tensor("rope_freqs.weight", (plain / scaled).numpy())
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    weights, in_file, turn = {}, {}, 0
    for number, (name, parameter) in enumerate(model.named_parameters()):
        weight, paired = parameter.detach(), heads.get(name.split(".")[-2]) if config.model_type == "llama" else None
        kind = Type.F32
        if name == "model.embed_tokens.weight":
            kind = file.embedding
        elif name == "lm_head.weight":
            kind = file.head
        elif weight.dim() == 2:
            kind, turn = file.types[turn % len(file.types)], turn + 1
        data = stored(paired_rows(weight, paired) if paired else weight, kind, file.seed * 1000 + number)
        writer.add_tensor(gguf_name(name), data, raw_dtype=kind)
        in_file[name] = widened(data, kind)
        weights[name] = halved_rows(in_file[name], paired) if paired else in_file[name]
    write_gguf(writer)
    return weights, in_file


def make(name: str) -> None:
    file, path = FILES[name], OUT / f"{name}.gguf"
    published = FAMILIES[file.family].config
    changes = {k: v for k, v in file.config.items() if k != "model_type"}
    config = AutoConfig.for_model(
        file.config["model_type"],
        **changes,
        vocab_size=published["vocab_size"],
        tie_word_embeddings=file.head is None,
    )
    weights, in_file = write_model(file, config, path)
    path.chmod(0o644)
    family = HERE / "families" / file.family
    tokenizer = Tokenizer.from_file(str(family / "tokenizer.json"))
    ids = torch.tensor([load_tokenizer(family)("What is in view? The robot should turn left.").input_ids])
    logits = model_of(config, weights)(ids).logits
    perturbed = {}
    if config.model_type == "llama":
        perturbed["rows_as_in_the_file"] = max_diff(model_of(config, in_file)(ids).logits, logits)
    if config.rope_parameters["rope_type"] != "default":
        unscaled = deepcopy(config)
        unscaled.rope_parameters = {"rope_type": "default", "rope_theta": file.config["rope_theta"]}
        perturbed["no_rope_scaling"] = max_diff(model_of(unscaled, weights)(ids).logits, logits)
    check_sensitive(perturbed, tuple(perturbed), TOLERANCE, name)
    exact = model_of(config, weights).double()(ids).logits
    write_tensors(OUT / f"{name}.expected.safetensors", {"input_ids": ids, "logits": logits})
    about = {
        "tolerance": TOLERANCE,
        "model_sha256": sha256(path),
        "texts": [{"text": t, "ids": tokenizer.encode(t, add_special_tokens=False).ids} for t in TEXTS],
        "logits_deviation": logits.std().item(),
        "deviation_from_f64": max_diff(exact, logits),
        "perturbed": perturbed,
    }
    write_json(OUT / f"{name}.json", about)
    print(name, path.stat().st_size, {k: about[k] for k in ("logits_deviation", "deviation_from_f64", "perturbed")})


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(FILES), help="files to make")
    OUT.mkdir(exist_ok=True)
    for name in parser.parse_args().names:
        make(name)


if __name__ == "__main__":
    main()
