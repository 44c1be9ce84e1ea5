"""Draws the input pictures of the goldens: coloured shapes with hard edges and a little noise, the same every time."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLORS = [(200, 40, 30), (30, 80, 210), (240, 200, 40), (40, 160, 70), (150, 60, 170)]


def draw(path: Path, width: int, height: int, seed: int, noise: int) -> None:
    """Writes a PNG: floor and wall, a box and a ball, uniform noise of up to `noise` grey levels per channel."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (width, height), (170, 175, 180))
    pen = ImageDraw.Draw(image)
    horizon = int(height * rng.uniform(0.4, 0.6))
    pen.rectangle([0, horizon, width, height], fill=(110, 95, 80))
    box, ball = rng.choice(len(COLORS), size=2, replace=False)
    side = int(min(width, height) * rng.uniform(0.25, 0.4))
    left = int(rng.uniform(0.05, 0.3) * width)
    pen.rectangle([left, horizon - side // 2, left + side, horizon + side // 2], fill=COLORS[box])
    left = int(rng.uniform(0.5, 0.65) * width)
    pen.ellipse([left, horizon - side // 3, left + side, horizon + side - side // 3], fill=COLORS[ball])
    pixels = np.asarray(image).astype(np.int16)
    pixels = pixels + rng.integers(-noise, noise + 1, pixels.shape, dtype=np.int16)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, optimize=True)
