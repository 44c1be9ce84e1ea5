"""Published checkpoints whose decoder is quantised, from those of floats: each matrix of a layer in the tensors of its format.

`make_quantised.py` makes the same formats with numbers. The vision towers are not quantised in any of these.
"""

from dataclasses import replace

import published_qwen
from published_models import Published

GROUP, BLOCK = 128, 128

Packed = dict[str, tuple[str, list[int]]]


def awq(rows: int, columns: int) -> Packed:
    return {
        "qweight": ("I32", [columns, rows // 8]),
        "qzeros": ("I32", [columns // GROUP, rows // 8]),
        "scales": ("F16", [columns // GROUP, rows]),
    }


def packed(rows: int, columns: int) -> Packed:
    return {
        "weight_packed": ("I32", [rows, columns // 8]),
        "weight_scale": ("BF16", [rows, columns // GROUP]),
        "weight_shape": ("I64", [2]),
    }


def fp8(rows: int, columns: int) -> Packed:
    return {
        "weight": ("F8_E4M3", [rows, columns]),
        "weight_scale_inv": ("BF16", [-(-rows // BLOCK), -(-columns // BLOCK)]),
    }


def quantised(base: str, hub: str, dtype: str, config: dict, form: object, read: str) -> Published:
    model = published_qwen.MODELS[base]
    return replace(
        model,
        hub=hub,
        dtype=dtype,
        config=model.config | {"quantization_config": config},
        packed=form,
        file_bytes=None,
        read=model.read | {"quantised": read},
    )


AWQ = {
    "bits": 4,
    "group_size": GROUP,
    "modules_to_not_convert": ["visual"],
    "quant_method": "awq",
    "version": "gemm",
    "zero_point": True,
}
W4A16 = {
    "config_groups": {
        "group_0": {
            "input_activations": None,
            "output_activations": None,
            "targets": ["Linear"],
            "weights": {
                "actorder": "weight",
                "block_structure": None,
                "dynamic": False,
                "group_size": GROUP,
                "num_bits": 4,
                "observer": "minmax",
                "strategy": "group",
                "symmetric": True,
                "type": "int",
            },
        }
    },
    "format": "pack-quantized",
    "ignore": ["re:visual.*", "lm_head"],
    "kv_cache_scheme": None,
    "quant_method": "compressed-tensors",
    "quantization_status": "compressed",
}
FP8 = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "modules_to_not_convert": ["lm_head", "model.visual.merger.linear_fc1", "model.visual.merger.linear_fc2"],
    "quant_method": "fp8",
    "weight_block_size": [BLOCK, BLOCK],
}

MODELS = {
    "Qwen2.5-VL-3B-Instruct-AWQ": quantised(
        "Qwen2.5-VL-3B-Instruct",
        "Qwen/Qwen2.5-VL-3B-Instruct-AWQ",
        "F16",
        AWQ,
        awq,
        "names and shapes of AutoAWQ's gemm layers; whether other tensors are F16 is not known",
    ),
    "Qwen2.5-VL-3B-Instruct-quantized.w4a16": quantised(
        "Qwen2.5-VL-3B-Instruct",
        "RedHatAI/Qwen2.5-VL-3B-Instruct-quantized.w4a16",
        "BF16",
        W4A16,
        packed,
        "names and shapes of compressed-tensors' pack-quantized layers; scheme W4A16 as the model's card has it",
    ),
    "Qwen3-VL-2B-Instruct-FP8": quantised(
        "Qwen3-VL-2B-Instruct",
        "Qwen/Qwen3-VL-2B-Instruct-FP8",
        "BF16",
        FP8,
        fp8,
        "block size and weight_scale_inv as told in public repositories; modules_to_not_convert is longer there; whether scales are "
        "BF16 or F32 is not known",
    ),
}
