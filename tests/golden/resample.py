"""Resizing of bytes as the torchvision image processors do it on a CPU, to the bit; written out in whole numbers."""

import numpy as np

SUPPORT = {"bilinear": 1.0, "bicubic": 2.0, "lanczos": 3.0}


def resize(pixels: np.ndarray, height: int, width: int, kind: str) -> np.ndarray:
    """uint8 [..., h, w] to [..., height, width]: columns first, then rows, bytes in between; an equal length is left."""
    for axis, length in ((pixels.ndim - 1, width), (pixels.ndim - 2, height)):
        if pixels.shape[axis] != length:
            pixels = resize_axis(pixels, axis, length, kind)
    return pixels


def resize_axis(pixels: np.ndarray, axis: int, length: int, kind: str) -> np.ndarray:
    rows = np.moveaxis(pixels, axis, 0).astype(np.int64)
    weights = axis_weights(len(rows), length, kind)
    bits = precision(max(row.max() for _, row in weights))
    out = np.empty((length, *rows.shape[1:]), np.uint8)
    for index, (start, row) in enumerate(weights):
        whole = np.trunc(row * (1 << bits) + np.where(row < 0, -0.5, 0.5)).astype(np.int64)
        total = np.tensordot(whole, rows[start : start + len(row)], 1) + (1 << (bits - 1))
        out[index] = (total >> bits).clip(0, 255)
    return np.moveaxis(out, 0, axis)


def axis_weights(old: int, new: int, kind: str) -> list[tuple[int, np.ndarray]]:
    """For each new sample its first old one and the weights from there on, which add up to 1."""
    scale = old / new
    stretch = max(scale, 1.0)  # shrinking widens the filter; enlarging does not narrow it
    reach = SUPPORT[kind] * stretch
    weights = []
    for index in range(new):
        center = (index + 0.5) * scale
        start, end = max(int(center - reach + 0.5), 0), min(int(center + reach + 0.5), old)
        row = kernel((np.arange(start, end) - center + 0.5) / stretch, kind)
        weights.append((start, row / row.sum()))
    return weights


def kernel(x: np.ndarray, kind: str) -> np.ndarray:
    if kind == "bilinear":
        return np.maximum(1 - np.abs(x), 0)
    if kind == "lanczos":
        return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)
    a, x = -0.5, np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def precision(largest: float) -> int:
    """Fraction bits with which the largest weight of an axis still fits into 16 bits with a sign, at most 22."""
    bits = 0
    while bits < 22 and int(0.5 + largest * (1 << (bits + 1))) < 1 << 15:
        bits += 1
    return bits
