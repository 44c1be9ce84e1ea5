"""Image messages for the tests, and the frames of the demo bag, as bags too."""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from conftest import ROOT
from recording import IMAGE_TYPE, BagMessage, Recording
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from sensor_msgs.msg import CompressedImage, Image

STORE = get_typestore(Stores.ROS2_JAZZY)
DEMO_BAG = ROOT / "bags" / "demo"
FRAME_ID = "camera_optical_frame"
WIDTH, HEIGHT = 64, 48
SHAPES = ["box", "ball", "cone", "pillar"]
COLORS = ["red", "green", "blue", "yellow", "purple", "black"]
"""Of the demo's objects, in the order of truth.npz: all colors of a shape, then the next shape."""


def picture(seed: int = 0) -> np.ndarray:
    """A colourful picture, [HEIGHT, WIDTH, 3] of u8 in RGB."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    planes = [x * 4, y * 5, (x + y + 37 * seed) * 3]
    return np.stack(planes, axis=-1).astype(np.uint8)


def stamped(message: Image | CompressedImage, sec: int, nanosec: int = 0) -> Image | CompressedImage:
    message.header.stamp.sec, message.header.stamp.nanosec = sec, nanosec
    message.header.frame_id = FRAME_ID
    return message


def raw(encoding: str = "rgb8", sec: int = 1, nanosec: int = 0, padding: int = 0, seed: int | None = None) -> Image:
    """The picture as an Image with `padding` bytes after each row; a seed of its own second unless given."""
    pixels = picture(sec if seed is None else seed)
    rows = LAYOUTS[encoding](pixels)
    data = np.pad(rows, ((0, 0), (0, padding))).tobytes()
    message = Image(height=HEIGHT, width=WIDTH, encoding=encoding, step=rows.shape[1] + padding, data=data)
    return stamped(message, sec, nanosec)


def now(seed: int = 0, ahead: float = 0.0) -> Image:
    """The picture as an Image of this moment, or of one `ahead` seconds later."""
    sec, rest = moment(ahead)
    return raw(sec=sec, nanosec=rest, seed=seed)


def moment(ahead: float) -> tuple[int, int]:
    """The time `ahead` seconds from now, seconds and nanoseconds."""
    return divmod(time.time_ns() + round(ahead * 1e9), 1_000_000_000)


def with_alpha(pixels: np.ndarray) -> np.ndarray:
    return np.concatenate([pixels, np.full_like(pixels[..., :1], 7)], axis=-1)


def luma(pixels: np.ndarray) -> np.ndarray:
    """Y of a grey picture, video levels."""
    return (16 + pixels.mean(-1) * 219 / 255).astype(np.uint8)


def interleaved(pixels: np.ndarray, luma_first: bool) -> np.ndarray:
    """Rows of Y and a neutral U or V for each pixel."""
    grey = luma(pixels)
    pair = (grey, np.full_like(grey, 128))
    return np.stack(pair if luma_first else pair[::-1], axis=-1).reshape(len(pixels), -1)


def planes(pixels: np.ndarray) -> np.ndarray:
    """Rows of Y, and below them neutral ones of U and V."""
    return np.concatenate([luma(pixels), np.full((len(pixels) // 2, pixels.shape[1]), 128, np.uint8)])


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "rgb8": lambda pixels: pixels.reshape(len(pixels), -1),
    "bgr8": lambda pixels: pixels[:, :, ::-1].reshape(len(pixels), -1),
    "rgba8": lambda pixels: with_alpha(pixels).reshape(len(pixels), -1),
    "bgra8": lambda pixels: with_alpha(pixels[:, :, ::-1]).reshape(len(pixels), -1),
    "mono8": lambda pixels: pixels[:, :, 0],
    "yuv422": lambda pixels: interleaved(pixels, luma_first=False),
    "yuv422_yuy2": lambda pixels: interleaved(pixels, luma_first=True),
    "nv12": lambda pixels: planes(pixels),
    "nv21": lambda pixels: planes(pixels),
    "8UC1": lambda pixels: pixels[:, :, 0],
    "8UC3": lambda pixels: pixels[:, :, ::-1].reshape(len(pixels), -1),
}
"""From a picture [height, width, 3] to the rows of an encoding."""


def png(sec: int = 1) -> CompressedImage:
    """The picture as PNG."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = np.pad(picture(sec).reshape(HEIGHT, -1), ((0, 0), (1, 0))).tobytes()
    size = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return stamped(CompressedImage(format="png", data=data), sec)


@cache
def demo_frames() -> list[BagMessage]:
    """The camera images of the demo bag."""
    events = Recording(DEMO_BAG, DEMO_BAG / "instructions.yaml").events()
    return [event.what for event in events if isinstance(event.what, BagMessage) and event.what.type == IMAGE_TYPE]


def write_bag(
    folder: Path,
    frames: list[BagMessage],
    storage: StoragePlugin = StoragePlugin.MCAP,
    mode: CompressionMode = CompressionMode.NONE,
) -> None:
    """Writes camera images as a new bag, compressed with zstd as `mode` says."""
    writer = Writer(folder, version=9, storage_plugin=storage)
    writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        connection = writer.add_connection("/camera/image/compressed", IMAGE_TYPE, typestore=STORE)
        for frame in frames:
            writer.write(connection, frame.stamp_ns, frame.data)


def jpeg(sec: int = 1, index: int = 0, nanosec: int = 0) -> CompressedImage:
    """A frame of the demo bag."""
    message = STORE.deserialize_cdr(demo_frames()[index].data, IMAGE_TYPE)
    return stamped(CompressedImage(format=message.format, data=message.data.tobytes()), sec, nanosec)


def jpeg_now(index: int, ahead: float = 0.0) -> CompressedImage:
    """A frame of the demo bag as one of this moment, or of one `ahead` seconds later."""
    sec, rest = moment(ahead)
    return jpeg(sec, index, rest)


def frames_with(name: str) -> list[int]:
    """The frames of the demo bag that show one kind of object well and no other."""
    kind = [f"{color} {shape}" for shape in SHAPES for color in COLORS].index(name)
    with np.load(DEMO_BAG / "truth.npz") as truth:
        alone = (truth["state"][:, kind] == 1) & ((truth["state"] >= 0).sum(1) == 1)
        return np.flatnonzero(alone).tolist()
