"""Matrices as quantised checkpoints store them, written down from the formats' descriptions with numpy alone.

A matrix `[rows, columns]` becomes integers `q` with a scale and a zero for each group of a row: `(q - zero) * scale`.

- AWQ: AutoAWQ's `gemm` version, https://github.com/casper-hansen/AutoAWQ
- GPTQ: https://github.com/ModelCloud/GPTQModel, its formats `gptq` (zeros stored less one) and `gptq_v2`
- packed: compressed-tensors' `pack-quantized`, https://github.com/vllm-project/compressed-tensors
"""

from dataclasses import dataclass

import numpy as np

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight neighbouring rows has the lowest four bits of a word, the next four, and so on."""


@dataclass
class Groups:
    """Integers [rows, columns], their scales f32 and zeros [rows, groups], and the group of each column."""

    q: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    group_of: np.ndarray
    bits: int

    def numbers(self) -> np.ndarray:
        """What they stand for, f32."""
        scales, zeros = self.scales[:, self.group_of], self.zeros[:, self.group_of]
        return (self.q.astype(np.float32) - zeros.astype(np.float32)) * scales


def quantise(
    matrix: np.ndarray, bits: int, size: int, symmetric: bool, ordered: bool = False, half: type = np.float16
) -> Groups:
    """The nearest integers, in groups of `size` columns; `ordered`: the columns with the largest numbers first."""
    rows, columns = matrix.shape
    group_of = np.arange(columns) // size
    if ordered:
        rank = np.argsort(np.argsort(-np.square(matrix).sum(axis=0), kind="stable"), kind="stable")
        group_of = rank // size
    most, groups = 2**bits - 1, columns // size
    scales, zeros = np.zeros((rows, groups), np.float32), np.zeros((rows, groups), np.int64)
    for group in range(groups):
        part = matrix[:, group_of == group]
        low, high = np.minimum(part.min(axis=1), 0), np.maximum(part.max(axis=1), 0)
        if symmetric:
            scales[:, group] = 2 * np.maximum(-low, high) / most
            zeros[:, group] = 2 ** (bits - 1)
        else:
            scales[:, group] = (high - low) / most
            zeros[:, group] = np.clip(np.rint(-low / scales[:, group]), 0, most)
    scales = rounded(scales, half)
    q = np.rint(matrix / scales[:, group_of]) + zeros[:, group_of]
    return Groups(np.clip(q, 0, most).astype(np.int64), scales, zeros, group_of, bits)


def rounded(numbers: np.ndarray, half: type | str) -> np.ndarray:
    """To f16, or to the f32 that have zeros in the lower half ("bf16")."""
    if half == "bf16":
        bits = numbers.astype(np.float32).view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    return numbers.astype(half).astype(np.float32)


def words(fields: np.ndarray, bits: int) -> np.ndarray:
    """i32 of fields [..., fields of a word], the first one in the lowest bits."""
    shifts = np.arange(fields.shape[-1], dtype=np.uint32) * bits
    return np.bitwise_or.reduce(fields.astype(np.uint32) << shifts, axis=-1).view(np.int32)


def in_words(fields: np.ndarray, bits: int, axis: int) -> np.ndarray:
    """Neighbours along `axis` in words; the last word may have fewer."""
    per_word = 32 // bits
    fields = np.moveaxis(fields, axis, -1)
    missing = -fields.shape[-1] % per_word
    fields = np.pad(fields, [(0, 0)] * (fields.ndim - 1) + [(0, missing)])
    packed = words(fields.reshape(*fields.shape[:-1], -1, per_word), bits)
    return np.ascontiguousarray(np.moveaxis(packed, -1, axis))


def awq(groups: Groups) -> dict[str, np.ndarray]:
    def interleaved(fields: np.ndarray) -> np.ndarray:
        by_eight = fields.reshape(fields.shape[0], -1, 8)
        return words(by_eight[..., list(AWQ_ORDER)], 4)

    return {
        "qweight": interleaved(groups.q.T),
        "qzeros": interleaved(groups.zeros.T),
        "scales": np.ascontiguousarray(groups.scales.T.astype(np.float16)),
    }


def gptq(groups: Groups, one_less: bool) -> dict[str, np.ndarray]:
    zeros = in_words(groups.zeros.T, groups.bits, axis=1)
    if one_less:
        ones = words(np.ones(32 // groups.bits, np.uint32), groups.bits)
        zeros = (zeros.view(np.uint32) - ones.view(np.uint32)).view(np.int32)
    return {
        "qweight": in_words(groups.q.T, groups.bits, axis=0),
        "qzeros": zeros,
        "scales": np.ascontiguousarray(groups.scales.T.astype(np.float16)),
        "g_idx": groups.group_of.astype(np.int32),
    }


def packed(groups: Groups, symmetric: bool, ordered: bool) -> dict[str, np.ndarray]:
    """`weight_scale` is f32, to be stored as the checkpoint has it."""
    parts = {
        "weight_packed": in_words(groups.q, groups.bits, axis=1),
        "weight_scale": groups.scales,
        "weight_shape": np.array(groups.q.shape, np.int64),
    }
    if not symmetric:
        parts["weight_zero_point"] = in_words(groups.zeros, groups.bits, axis=0)
    if ordered:
        parts["weight_g_idx"] = groups.group_of.astype(np.int32)
    return parts
