"""Compressed images: what image_transport writes is taken, what cannot be decoded is refused, and nothing takes much memory."""

import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pictures
import pytest
from client import Client
from conftest import ROOT, Start
from inf_mllm.msg import Reasoning
from node_process import NodeProcess
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, Image

CAMERA = ROOT / "tests" / "golden" / "camera"
BOMB_BYTES = 400_000_000
"""What a bomb inflates to."""
ALLOWED_BYTES = 200_000_000
"""Growth of the node's peak memory that a bomb may cause: less than half of it."""

JPEG_SOI, JPEG_SOF0, JPEG_SOS, JPEG_DQT, JPEG_EOI = b"\xff\xd8", b"\xff\xc0", b"\xff\xda", b"\xff\xdb", b"\xff\xd9"


def compressed(client_format: str, data: bytes, sec: int = 1) -> CompressedImage:
    return pictures.stamped(CompressedImage(format=client_format, data=data), sec)


def jpeg_bytes() -> bytes:
    return bytes(pictures.jpeg().data)


def with_precision(bits: int) -> bytes:
    """A JPEG whose frame header claims samples of so many bits."""
    data = bytearray(jpeg_bytes())
    at = data.index(JPEG_SOF0)
    data[at + 4] = bits
    return bytes(data)


def without_tables() -> bytes:
    """A JPEG as a USB camera sends it: nothing but the tables of quantisation, frame and scan."""
    data, kept, at = jpeg_bytes(), [JPEG_SOI], 2
    while True:
        marker, length = data[at : at + 2], 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in (JPEG_DQT, JPEG_SOF0, JPEG_SOS):
            kept.append(data[at : at + length])
        at += length
        if marker == JPEG_SOS:
            return b"".join([*kept, data[at:]])


def png(width: int, height: int, *chunks: tuple[bytes, bytes], bits: int = 8, colour: int = 2) -> bytes:
    """A PNG, of 8-bit RGB if not said otherwise, with these chunks between header and end."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunk(*c) for c in chunks) + chunk(b"IEND", b"")


def inflating(size: int) -> bytes:
    """A zlib stream of so many zeros."""
    packer, block = zlib.compressobj(1), bytes(1_000_000)
    return b"".join(packer.compress(block) for _ in range(size // len(block))) + packer.flush()


def peak_memory(process: NodeProcess) -> int:
    """Bytes of memory that the node has held at most."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def check_alive(client: Client, sec: int) -> None:
    """The next good frame and instruction work."""
    used = client.fresh_stats().frames_used
    client.show(pictures.jpeg(sec=sec))
    assert client.fresh_stats().frames_used == used + 1
    assert client.ask("What is in view?").finish_reason == Reasoning.FINISH_STOP


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("jpeg", jpeg_bytes),
        ("", jpeg_bytes),
        ("bgr8; jpeg compressed bgr8", jpeg_bytes),
        ("rgb8; jpeg compressed bgr8", jpeg_bytes),
        ("bgr8; png compressed bgr8", lambda: bytes(pictures.png().data)),
        ("png", jpeg_bytes),
    ],
)
def test_the_data_decides_whatever_the_format_says(start: Start, text: str, data: Callable[[], bytes]) -> None:
    _, client = start({"image_transport": "compressed"}, compressed=True)
    client.show(compressed(text, data()))
    assert client.fresh_stats().frames_used == 1


def test_a_jpeg_in_ink_colours_is_a_picture(start: Start) -> None:
    _, client = start({"image_transport": "compressed"}, compressed=True)
    client.show(compressed("jpeg", (CAMERA / "cmyk.jpg").read_bytes()))
    assert client.fresh_stats().frames_used == 1


@pytest.mark.parametrize(
    "make",
    [
        without_tables,
        lambda: jpeg_bytes().removesuffix(JPEG_EOI),
        lambda: jpeg_bytes() + bytes(4096),
        lambda: jpeg_bytes().removesuffix(JPEG_EOI) + bytes(4096),
        lambda: (CAMERA / "progressive_restart.jpg").read_bytes(),
        lambda: (CAMERA / "turned.jpg").read_bytes(),
    ],
    ids=["no_huffman_tables", "no_end_marker", "padded", "padded_without_end_marker", "progressive", "exif"],
)
def test_what_drivers_make_of_a_jpeg_is_a_picture(start: Start, make: Callable[[], bytes]) -> None:
    _, client = start({"image_transport": "compressed"}, compressed=True)
    client.show(compressed("jpeg", make()))
    stats = client.fresh_stats()
    assert (stats.frames_used, stats.frames_rejected) == (1, 0)


@pytest.mark.parametrize("name", ["baseline.jpg", "restart.jpg", "progressive.jpg", "grey.jpg"])
def test_jpegs_that_a_bad_link_cut_off_are_counted_and_never_used(start: Start, name: str) -> None:
    process, client = start({"image_transport": "compressed"}, compressed=True)
    whole = (CAMERA / name).read_bytes()
    for sec, percent in enumerate((30, 60, 95), start=1):
        client.show(compressed("jpeg", whole[: len(whole) * percent // 100], sec))
    stats = client.fresh_stats()
    assert (stats.frames_used, stats.frames_rejected) == (0, 3)
    assert dict(zip(stats.reject_reasons, stats.reject_counts, strict=True)) == {"corrupt": 3}
    assert "its data stops before the picture does" in process.log
    check_alive(client, 9)


def test_a_png_of_sixteen_bits_is_refused_as_such(start: Start) -> None:
    process, client = start({"image_transport": "compressed"}, compressed=True)
    rows = zlib.compress(bytes(24 * (1 + 2 * 32)))
    client.show(compressed("16UC1; png compressed ", png(32, 24, (b"IDAT", rows), bits=16, colour=0)))
    stats = client.fresh_stats()
    assert dict(zip(stats.reject_reasons, stats.reject_counts, strict=True)) == {"encoding": 1}
    assert "compressed image is a png of 16 bits a channel" in process.log
    check_alive(client, 2)


@pytest.mark.parametrize("bits", [12, 16])
def test_a_jpeg_of_more_bits_is_refused(start: Start, bits: int) -> None:
    process, client = start({"image_transport": "compressed"}, compressed=True)
    client.show(compressed("jpeg", with_precision(bits)))
    assert client.fresh_stats().frames_rejected == 1
    assert f"compressed image is a jpeg of {bits} bits a channel" in process.log
    check_alive(client, 2)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: png(30_000, 30_000, (b"IDAT", inflating(1_000_000))), "image size is 30000 x 30000, expected"),
        (lambda: png(5_000, 5_000, (b"IDAT", zlib.compress(bytes(1000)))), "compressed image cannot be decoded"),
        (lambda: png(15_000_000, 1, (b"IDAT", inflating(45_000_000))), "image size is 15000000 x 1, expected"),
        (lambda: png(8, 8, (b"IDAT", inflating(BOMB_BYTES))), None),
        (
            lambda: png(8, 8, (b"iCCP", b"x\0\0" + inflating(BOMB_BYTES)), (b"IDAT", zlib.compress(bytes(25 * 8)))),
            None,
        ),
        (
            lambda: png(8, 8, (b"zTXt", b"x\0\0" + inflating(BOMB_BYTES)), (b"IDAT", zlib.compress(bytes(25 * 8)))),
            None,
        ),
    ],
    ids=["900_megapixels", "25_megapixels_without_data", "line", "pixels", "colour_profile", "text"],
)
def test_a_png_bomb_takes_no_memory(start: Start, make: Callable[[], bytes], reason: str | None) -> None:
    process, client = start({"image_transport": "compressed"}, compressed=True)
    client.show(pictures.jpeg(sec=1))
    before = peak_memory(process)
    client.show(compressed("png", make(), sec=2))
    stats = client.fresh_stats()
    assert stats.frames_used + stats.frames_rejected == 2
    if reason is not None:
        assert stats.frames_rejected == 1
        assert reason in process.log
    assert peak_memory(process) - before < ALLOWED_BYTES
    check_alive(client, 3)


@pytest.mark.parametrize("kind", ["raw", "compressed"])
def test_messages_that_are_no_messages_disturb_nothing(start: Start, kind: str) -> None:
    """Bytes that do not follow the message's definition, as from a publisher with another version of it."""
    is_compressed = kind == "compressed"
    _, client = start({"image_transport": kind}, compressed=is_compressed)
    good = pictures.jpeg(sec=1) if is_compressed else pictures.raw(sec=1)
    whole = serialize_message(good)
    noise = np.random.default_rng(0).integers(0, 256, 4096, np.uint8).tobytes()
    for broken in (whole[:30], whole[: len(whole) // 2], whole[:4] + noise, whole[:4], b""):
        client.publish(broken)
        client.spin(0.05)
    client.show(good)
    assert client.fresh_stats().frames_used == 1
    assert client.ask("What is in view?").finish_reason == Reasoning.FINISH_STOP


def test_a_thousand_malformed_images_in_a_second(start: Start) -> None:
    process, client = start()
    bad: Image = pictures.raw()
    bad.encoding = "bayer_rggb8"
    serialized = serialize_message(bad)
    begun = time.monotonic()
    sent = 0
    # What gets lost on its way, as images may, is sent again.
    while client.stats[-1].frames_rejected < 1000:
        client.publish(serialized)
        sent += 1
        assert sent < 10_000, client.stats[-1]
        if sent % 4 == 3:
            client.spin(0.004)
    stats = client.fresh_stats()
    assert stats.frames_rejected == stats.frames_received
    assert dict(zip(stats.reject_reasons, stats.reject_counts, strict=True)) == {"encoding": stats.frames_rejected}
    said = process.log.count("image refused: image encoding is")
    assert 1 <= said <= 1 + (time.monotonic() - begun) / 5, "once in five seconds"
    client.show(pictures.raw(sec=2))
    assert client.fresh_stats().frames_used == 1
    assert client.ask("What is in view?").finish_reason == Reasoning.FINISH_STOP


def test_a_thousand_refused_instructions_in_a_second(start: Start) -> None:
    process, client = start()
    client.show(pictures.raw())
    begun = time.monotonic()
    sent = 1000
    for i in range(sent):
        client.instruct("", id=f"empty-{i}")
        if i % 4 == 3:
            client.spin(0.004)
    client.wait(lambda: len(client.answers) == sent, "an answer for each")
    assert {answer.instruction_id for answer in client.answers} == {f"empty-{i}" for i in range(sent)}
    assert all(answer.finish_reason == Reasoning.FINISH_ERROR for answer in client.answers)
    said = process.log.count("not answered:")
    assert 1 <= said <= 1 + (time.monotonic() - begun) / 5, "once in five seconds"
    assert client.ask("What is in view?").finish_reason == Reasoning.FINISH_STOP
