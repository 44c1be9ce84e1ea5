"""Writes camera/cmyk.jpg: a JPEG that no camera sends but that a user may, red on the left, blue on the right, as ink colours."""

from pathlib import Path

from PIL import Image

SIZE = (64, 48)
LEFT, RIGHT = (200, 30, 30), (30, 60, 200)


def main() -> None:
    image = Image.new("RGB", SIZE, LEFT)
    image.paste(RIGHT, (SIZE[0] // 2, 0, *SIZE))
    image.convert("CMYK").save(Path(__file__).parent / "camera" / "cmyk.jpg", quality=90)


if __name__ == "__main__":
    main()
