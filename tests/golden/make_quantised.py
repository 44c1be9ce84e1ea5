"""Writes quantised/<name>/: a small Llama with its matrices in every form that a `quantization_config` names and that is read.

The logits are those of transformers for the numbers that the stored ones stand for. Where transformers reads a form without a GPU
(compressed-tensors, FP8), it also opens the directory itself. `packed_weights.py` says where the other layouts were read.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import packed_weights
import torch
from golden_io import HERE, check_sensitive, max_diff, sha256, write_json, write_tensors
from packed_weights import Groups, quantise
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

OUT = HERE / "quantised"
TOLERANCE, TOKENS, SEED = 1e-4, 24, 20
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 48,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "float16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FP8_MOST = 448.0

Parts = dict[str, torch.Tensor]


@dataclass
class Form:
    """How a matrix is stored: its tensors by ending, and the numbers that they stand for."""

    config: dict
    store: Callable[[np.ndarray], tuple[Parts, np.ndarray]]
    mistakes: Callable[[np.ndarray], dict[str, np.ndarray]] = lambda _: {}
    opened: bool = False
    """transformers opens it on the CPU."""


def tensors(parts: dict[str, np.ndarray], scale: torch.dtype | None = None) -> Parts:
    stored = {name: torch.from_numpy(np.ascontiguousarray(part)) for name, part in parts.items()}
    if scale:
        stored["weight_scale"] = stored["weight_scale"].to(scale)
    return stored


def same_groups(groups: Groups) -> dict[str, np.ndarray]:
    """What comes of an order of columns that is not heeded."""
    size = len(groups.group_of) // groups.scales.shape[1]
    return {"plain_order": replace(groups, group_of=np.arange(len(groups.group_of)) // size).numbers()}


def zeros_off(groups: Groups) -> dict[str, np.ndarray]:
    return {"zeros_one_less": replace(groups, zeros=groups.zeros - 1).numbers()}


def awq(size: int) -> Form:
    def made(matrix: np.ndarray) -> Groups:
        return quantise(matrix, 4, matrix.shape[1] if size == -1 else size, symmetric=False)

    def not_interleaved(matrix: np.ndarray) -> dict[str, np.ndarray]:
        groups = made(matrix)
        order = np.argsort(packed_weights.AWQ_ORDER)
        rows = np.arange(len(groups.q)).reshape(-1, 8)[:, order].reshape(-1)
        return {"rows_not_interleaved": groups.numbers()[rows]} | zeros_off(groups)

    return Form(
        {
            "quant_method": "awq",
            "bits": 4,
            "group_size": size,
            "version": "gemm",
            "zero_point": True,
            "modules_to_not_convert": None,
        },
        lambda matrix: (tensors(packed_weights.awq(made(matrix))), made(matrix).numbers()),
        not_interleaved,
    )


def gptq(bits: int, size: int, symmetric: bool, ordered: bool = False, v2: bool = False) -> Form:
    def made(matrix: np.ndarray) -> Groups:
        return quantise(matrix, bits, matrix.shape[1] if size == -1 else size, symmetric, ordered)

    config = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": size,
        "desc_act": ordered,
        "sym": symmetric,
        "damp_percent": 0.01,
        "true_sequential": True,
    }
    return Form(
        config | ({"checkpoint_format": "gptq_v2"} if v2 else {}),
        lambda matrix: (tensors(packed_weights.gptq(made(matrix), one_less=not v2)), made(matrix).numbers()),
        lambda matrix: zeros_off(made(matrix)) | (same_groups(made(matrix)) if ordered else {}),
    )


def compressed(weights: dict, activations: dict | None, layout: str) -> dict:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def packed(bits: int, size: int | None, symmetric: bool, ordered: bool = False) -> Form:
    def made(matrix: np.ndarray) -> Groups:
        return quantise(matrix, bits, size or matrix.shape[1], symmetric, ordered, half="bf16")

    def store(matrix: np.ndarray) -> tuple[Parts, np.ndarray]:
        parts = packed_weights.packed(made(matrix), symmetric, ordered)
        return tensors(parts, torch.bfloat16), made(matrix).numbers()

    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "dynamic": False}
    weights |= {"strategy": "group", "group_size": size} if size else {"strategy": "channel", "group_size": None}
    return Form(
        compressed(weights | ({"actorder": "group"} if ordered else {}), None, "pack-quantized"),
        store,
        lambda matrix: zeros_off(made(matrix)) | (same_groups(made(matrix)) if ordered else {}),
        # The order of columns was taken out of compressed-tensors.
        opened=not ordered,
    )


def bytes8() -> Form:
    """Signed bytes with a scale for each row, of a model whose inputs are quantised too where it came from."""

    def store(matrix: np.ndarray) -> tuple[Parts, np.ndarray]:
        groups = quantise(matrix, 8, matrix.shape[1], symmetric=True, half="bf16")
        parts = {"weight": (groups.q - 128).astype(np.int8), "weight_scale": groups.scales}
        return tensors(parts, torch.bfloat16), groups.numbers()

    weights = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": False, "strategy": "channel"}
    inputs = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": True, "strategy": "token"}
    return Form(compressed(weights, inputs, "int-quantized"), store, opened=True)


def floats8(matrix: np.ndarray, rows: int, columns: int, scale: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """E4M3 [rows, columns] and a scale for each block, the last ones of which may be smaller."""
    down, across = -(-matrix.shape[0] // rows), -(-matrix.shape[1] // columns)
    numbers = torch.from_numpy(matrix)
    scales = torch.zeros(down, across)
    for i in range(down):
        for j in range(across):
            most = numbers[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns].abs().max()
            scales[i, j] = (most / FP8_MOST).to(scale).float()
    spread = spread_out(scales, rows, columns, numbers.shape)
    stored = (numbers / spread).clamp(-FP8_MOST, FP8_MOST).to(torch.float8_e4m3fn)
    return stored, scales.to(scale)


def spread_out(scales: torch.Tensor, rows: int, columns: int, shape: torch.Size) -> torch.Tensor:
    wide = scales.float().repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    return wide[: shape[0], : shape[1]]


def fp8(config: dict, block: tuple[int, int] | None, ending: str, scale: torch.dtype, opened: bool = True) -> Form:
    """`block` None: one scale; 0 columns: a scale for each row."""

    def sides(matrix: np.ndarray) -> tuple[int, int]:
        rows, columns = block or matrix.shape
        return rows, columns or matrix.shape[1]

    def store(matrix: np.ndarray) -> tuple[Parts, np.ndarray]:
        stored, scales = floats8(matrix, *sides(matrix), scale)
        numbers = stored.float() * spread_out(scales, *sides(matrix), stored.shape)
        parts = {"weight": stored, ending: scales.reshape(()) if block is None else scales}
        if block is None:
            parts["input_scale"] = torch.tensor(0.02)
        return parts, numbers.numpy()

    def mistakes(matrix: np.ndarray) -> dict[str, np.ndarray]:
        stored, scales = floats8(matrix, *sides(matrix), scale)
        spread = spread_out(scales, *sides(matrix), stored.shape)
        wrong = {"no_scales": stored.float().numpy()}
        if scales.numel() > 1:
            wrong["one_scale"] = (stored.float() * spread.mean()).numpy()
        return wrong

    return Form(config, store, mistakes, opened)


def fp8_compressed(strategy: str, block: tuple[int, int] | None, opened: bool = True) -> Form:
    weights = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False, "strategy": strategy}
    if strategy == "block":
        weights["block_structure"] = list(block)
    inputs = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": True, "strategy": "token"}
    config = compressed(weights, inputs, "float-quantized")
    return fp8(config, block, "weight_scale", torch.bfloat16, opened)


def fp8_blocks(rows: int, columns: int, scale: torch.dtype, opened: bool) -> Form:
    config = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [rows, columns],
        "modules_to_not_convert": ["lm_head"],
    }
    return fp8(config, (rows, columns), "weight_scale_inv", scale, opened)


STATIC_FP8 = {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"], "producer": {"name": "modelopt"}}

FORMS = {
    "awq_32": awq(32),
    "awq_64": awq(64),
    "awq_rows": awq(-1),
    "gptq_4": gptq(4, 32, symmetric=True),
    "gptq_4_asymmetric": gptq(4, 32, symmetric=False),
    "gptq_4_ordered": gptq(4, 32, symmetric=True, ordered=True),
    "gptq_4_v2": gptq(4, 64, symmetric=False, v2=True),
    "gptq_8": gptq(8, -1, symmetric=True),
    "gptq_8_asymmetric": gptq(8, 32, symmetric=False, ordered=True),
    "packed_4": packed(4, 32, symmetric=True),
    "packed_4_asymmetric": packed(4, 32, symmetric=False),
    "packed_4_ordered": packed(4, 32, symmetric=True, ordered=True),
    "packed_8": packed(8, None, symmetric=True),
    "bytes_8": bytes8(),
    "fp8_blocks": fp8_blocks(32, 32, torch.bfloat16, opened=True),
    "fp8_uneven_blocks": fp8_blocks(48, 40, torch.float32, opened=False),
    "fp8_one_scale": fp8(STATIC_FP8, None, "weight_scale", torch.float32, opened=False),
    "fp8_modelopt": fp8(MODELOPT, None, "weight_scale", torch.float32, opened=False),
    "fp8_rows": fp8_compressed("channel", (1, 0)),
    "fp8_compressed_blocks": fp8_compressed("block", (32, 32)),
}


def model() -> LlamaForCausalLM:
    """Weights whose groups lie to one side of 0, so that zeros differ."""
    generator = torch.Generator().manual_seed(SEED)
    made = LlamaForCausalLM(LlamaConfig.from_dict(CONFIG)).eval()
    for name, parameter in made.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            parameter.data = 1 + 0.2 * noise
        elif "embed" in name:
            parameter.data = noise * 3 / 8
        else:
            side = torch.randn(parameter.shape[0], parameter.shape[1] // 32, generator=generator)
            peaked = 1.6 if "q_proj" in name or "k_proj" in name else 1.0
            parameter.data = (noise + side.repeat_interleave(32, 1)) * peaked / parameter.shape[1] ** 0.5
        parameter.data = parameter.data.half().float()
    return made


def logits_of(made: LlamaForCausalLM, changed: dict[str, np.ndarray], ids: torch.Tensor) -> torch.Tensor:
    state = {name: torch.from_numpy(numbers) for name, numbers in changed.items()}
    made.load_state_dict(made.state_dict() | state)
    return made(ids).logits


def opened_by_transformers(out: Path, ids: torch.Tensor) -> torch.Tensor:
    """The directory as transformers reads it, in f32: with scales of fewer bits it rounds the numbers to these too."""
    halves = (torch.float16, torch.bfloat16)
    stored = load_file(out / "model.safetensors").items()
    wide = {name: tensor.float() if tensor.dtype in halves else tensor for name, tensor in stored}
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"]["dequantize"] = True
    with tempfile.TemporaryDirectory() as folder:
        save_file(wide, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        (Path(folder) / "config.json").write_text(json.dumps(config))
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(ids).logits


def make(name: str, form: Form) -> None:
    out = OUT / name
    out.mkdir(parents=True, exist_ok=True)
    made = model()
    matrices = {n: p.numpy() for n, p in made.state_dict().items() if n.endswith("_proj.weight")}
    stored = {n: p.half() for n, p in made.state_dict().items() if n not in matrices and n != "lm_head.weight"}
    numbers, mistakes = {}, {}
    for matrix, values in matrices.items():
        parts, numbers[matrix] = form.store(values)
        stored |= {matrix.replace("weight", part): tensor.contiguous() for part, tensor in parts.items()}
        for mistake, wrong in form.mistakes(values).items():
            mistakes.setdefault(mistake, {})[matrix] = wrong
    save_file(stored, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)
    write_json(out / "config.json", CONFIG | {"quantization_config": form.config})
    ids = torch.randint(3, CONFIG["vocab_size"], (1, TOKENS), generator=torch.Generator().manual_seed(SEED))
    logits = logits_of(made, numbers, ids)
    perturbed = {wrong: max_diff(logits_of(made, mistakes[wrong], ids), logits) for wrong in mistakes}
    check_sensitive(perturbed, tuple(perturbed), TOLERANCE, name)
    about = {
        "tolerance": TOLERANCE,
        "model_sha256": sha256(out / "model.safetensors"),
        "logits_deviation": logits.std().item(),
        "perturbed": perturbed,
    }
    if form.opened:
        off = max_diff(opened_by_transformers(out, ids), logits)
        about["opened_by_transformers"] = off
        if off > TOLERANCE:
            raise SystemExit(f"{name}: transformers reads other numbers, logits differ by {off:.1e}")
    write_tensors(out / "expected.safetensors", {"input_ids": ids, "logits": logits})
    write_json(out / "about.json", about)
    print(name, json.dumps(about, indent=1))


@torch.no_grad()
def main() -> None:
    for name, form in FORMS.items():
        make(name, form)


if __name__ == "__main__":
    main()
