"""Writes camera/: JPEGs as cameras and tools write them, for the tests of what is taken from a camera.

- cmyk.jpg: one that no camera sends but that a user may, as ink colours
- baseline.jpg, restart.jpg, progressive.jpg, progressive_restart.jpg, grey.jpg: the ways to code a picture
- turned.jpg: one whose EXIF orientation (6) says that it is to be turned by 90 degrees clockwise
"""

from pathlib import Path

import numpy as np
from PIL import Image

FOLDER = Path(__file__).parent / "camera"
SIZE = (64, 48)
LEFT, RIGHT = (200, 30, 30), (30, 60, 200)
DETAILED = (120, 88)
EXIF_ORIENTATION = 0x0112


def halves() -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", SIZE, LEFT)
    image.paste(RIGHT, (SIZE[0] // 2, 0, *SIZE))
    return image


def detailed() -> Image.Image:
    """Slopes of colour under noise, so that every block has something in it, to the last."""
    width, height = DETAILED
    y, x = np.mgrid[0:height, 0:width]
    slopes = np.stack([x * 2, y * 2, x + y], axis=-1)
    noise = np.random.default_rng(0).integers(-40, 40, slopes.shape)
    return Image.fromarray(np.clip(slopes + noise, 0, 255).astype(np.uint8))


def main() -> None:
    halves().convert("CMYK").save(FOLDER / "cmyk.jpg", quality=90)
    picture = detailed()
    picture.save(FOLDER / "baseline.jpg", quality=80)
    picture.save(FOLDER / "restart.jpg", quality=80, restart_marker_rows=1)
    picture.save(FOLDER / "progressive.jpg", quality=80, progressive=True)
    picture.save(FOLDER / "progressive_restart.jpg", quality=80, progressive=True, restart_marker_rows=1)
    picture.convert("L").save(FOLDER / "grey.jpg", quality=80)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    halves().save(FOLDER / "turned.jpg", quality=90, exif=exif)


if __name__ == "__main__":
    main()
