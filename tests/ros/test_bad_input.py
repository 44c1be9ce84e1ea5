"""What cannot be used is counted or answered with the reason, and disturbs nothing else."""

from collections.abc import Callable

import pictures
import pytest
from client import ENDLESS, LONG, Client
from conftest import Start
from inf_mllm.msg import Instruction, Reasoning
from inf_mllm.srv import Cancel
from node_process import NodeProcess
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String


def check_refused(process: NodeProcess, client: Client, bad: Image | CompressedImage, good, reason: str) -> None:
    """A bad image is counted and named in the log; the next good one is used and asked about."""
    client.show(bad)
    stats = client.fresh_stats()
    assert (stats.frames_used, stats.frames_rejected) == (0, 1)
    assert stats.used == stats.prefix
    assert reason in process.log
    client.show(good)
    assert client.fresh_stats().frames_used == 1
    answer = client.ask("What is in view?")
    assert answer.finish_reason == Reasoning.FINISH_STOP
    assert answer.frames_seen == 1


def broken(**fields: object) -> Image:
    message = pictures.raw()
    for name, value in fields.items():
        setattr(message, name, value)
    return message


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (broken(data=pictures.raw().data[:-100]), "image data is 9116 bytes, expected at least 9216"),
        (broken(data=b""), "image data is 0 bytes, expected at least 9216"),
        (broken(encoding="bayer_rggb8"), 'image encoding is "bayer_rggb8", expected rgb8, bgr8, rgba8'),
        (broken(encoding=""), 'image encoding is "", expected'),
        (broken(width=0), "image size is 0 x 48, expected"),
        (broken(height=2**32 - 1, width=2**32 - 1), "image size is 4294967295 x 4294967295, expected"),
        (broken(height=10_000, width=10_000, step=30_000), "image size is 10000 x 10000, expected"),
        (broken(height=6_000, width=6_000, step=18_000), "image data is 9216 bytes, expected at least 108000000"),
        (broken(encoding="yuv422", width=63), "image size is 63 x 48, expected even numbers"),
        (broken(encoding="nv12", height=47), "image size is 64 x 47, expected even numbers"),
        (broken(encoding="nv12", step=200), "image data is 9216 bytes, expected at least 14400 (72 rows of 200 bytes)"),
        (broken(width=9216, height=1, step=9216, encoding="mono8"), "image size is 9216 x 1, expected sides of"),
        (broken(step=10), "image step is 10 bytes, expected at least 192"),
    ],
    ids=[
        "truncated", "no_data", "unknown_encoding", "no_encoding", "no_width", "giant", "100_megapixels",
        "36_megapixels_without_data", "odd_yuv", "odd_nv12", "nv12_of_another_size", "line", "short_step",
    ],
)  # fmt: skip
def test_raw_images(start: Start, bad: Image, reason: str) -> None:
    process, client = start()
    check_refused(process, client, bad, pictures.raw(), reason)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: bytes(pictures.jpeg().data)[:500], "compressed image cannot be decoded"),
        (lambda: b"", "compressed image is neither jpeg nor png: 0 bytes"),
        (lambda: b"no picture at all", "compressed image is neither jpeg nor png: 17 bytes"),
        (lambda: b"GIF89a" + bytes(20), "compressed image is neither jpeg nor png: the data is Gif"),
        (lambda: b"RIFF\x20\0\0\0WEBPVP8 " + bytes(20), "compressed image is neither jpeg nor png: the data is WebP"),
        (lambda: b"\0\0\0\x01\x67\x42\0\x1f", "compressed image is neither jpeg nor png: the data is H.264"),
        (lambda: bytes(pictures.png().data)[:60], "compressed image cannot be decoded"),
    ],
    ids=["truncated_jpeg", "empty", "text", "gif", "webp", "h264", "truncated_png"],
)
def test_compressed_images(start: Start, make: Callable[[], bytes], reason: str) -> None:
    process, client = start({"image_transport": "compressed"}, compressed=True)
    bad = pictures.stamped(CompressedImage(format="jpeg", data=make()), 1)
    check_refused(process, client, bad, pictures.jpeg(sec=2), reason)


@pytest.mark.parametrize("text", ["", " \n\t "])
def test_an_empty_instruction_is_refused_and_leaves_no_trace(start: Start, text: str) -> None:
    _, client = start()
    client.show(pictures.raw())
    before = client.fresh_stats()
    answer = client.ask(text, id="empty")
    assert answer.finish_reason == Reasoning.FINISH_ERROR
    assert answer.instruction_id == "empty"
    assert "instruction text is empty, expected" in answer.error
    after = client.fresh_stats()
    assert (after.tokens_seen, after.instructions_failed) == (before.tokens_seen, 1)
    assert client.ask("What is in view?").finish_reason == Reasoning.FINISH_STOP


def test_an_instruction_of_a_megabyte_is_refused_at_once(start: Start) -> None:
    _, client = start()
    client.show(pictures.raw())
    answer = client.ask("why " * 250_000, id="long")
    assert (answer.finish_reason, answer.instruction_id) == (Reasoning.FINISH_ERROR, "long")
    assert "instruction text is 1000000 bytes long, expected at most 65536" in answer.error
    assert client.ask("What is in view?").finish_reason == Reasoning.FINISH_STOP


@pytest.mark.parametrize(("id", "length"), [("\u00e9" * 500_000, 1_000_000), ("a" * 257, 257)], ids=["megabyte", "257"])
def test_an_id_that_is_too_long_is_refused_and_no_part_of_it_echoed(start: Start, id: str, length: int) -> None:
    _, client = start()
    client.show(pictures.raw())
    answer = client.next_answer(lambda: client.instruct("What is in view?", id=id))
    assert answer.finish_reason == Reasoning.FINISH_ERROR
    assert f"instruction id is {length} bytes long, expected at most 256" in answer.error
    assert answer.instruction_id == ""
    client.wait(lambda: any(delta.done for delta in client.deltas), "the last piece")
    assert {delta.instruction_id for delta in client.deltas} == {""}


def test_the_longest_id_is_echoed_whole(start: Start) -> None:
    _, client = start()
    client.show(pictures.raw())
    longest = "\u00e9" * 128
    answer = client.ask("What is in view?", id=longest)
    assert (answer.finish_reason, answer.instruction_id) == (Reasoning.FINISH_STOP, longest)


@pytest.mark.parametrize("plain", [False, True])
def test_an_instruction_that_is_not_utf8_is_refused(start: Start, plain: bool) -> None:
    _, client = start()
    client.show(pictures.raw())
    message = String(data="What is @ view?") if plain else Instruction(id="odd", text="What is @ view?")
    broken = serialize_message(message).replace(b"@", b"\xc3")
    answer = client.next_answer(lambda: client.instruct_serialized(broken, plain))
    assert answer.finish_reason == Reasoning.FINISH_ERROR
    assert answer.instruction_id == ("instruction-1" if plain else "odd")
    assert "instruction text has the byte 0xc3 at 8, expected UTF-8" in answer.error
    assert client.ask("What is in view?").finish_reason == Reasoning.FINISH_STOP


def test_of_two_instructions_with_one_id_the_second_is_refused(start: Start) -> None:
    _, client = start(LONG)
    client.show(pictures.raw())
    client.instruct("What is in view?", id="twin", **ENDLESS)
    refused = client.ask("What is in view?", id="twin")
    assert refused.finish_reason == Reasoning.FINISH_ERROR
    assert 'instruction id is "twin", expected one that no unanswered instruction has' in refused.error
    assert client.call(Cancel, "/inf_mllm/cancel", Cancel.Request(id="twin")).success
    client.wait(lambda: len(client.answers) == 2, "the answer that was cut off")
    # Once it is answered, its id is free.
    assert client.ask("What is in view?", id="twin", max_new_tokens=1).finish_reason != Reasoning.FINISH_ERROR


def test_an_instruction_longer_than_the_memory_is_refused(start: Start) -> None:
    _, client = start({"budget": 128})
    client.show(pictures.raw())
    answer = client.ask("What is in view? " * 100)
    assert answer.finish_reason == Reasoning.FINISH_ERROR
    assert "tokens long, expected at most" in answer.error
    assert client.ask("What is in view?").finish_reason == Reasoning.FINISH_STOP


@pytest.mark.parametrize("control", ["<end_of_utterance>", "<image>", "<|im_start|>", "<fake_token_around_image>"])
def test_a_control_token_typed_into_an_instruction_is_text(start: Start, control: str) -> None:
    _, client = start()
    client.show(pictures.raw())
    plain = client.ask("What is in view?")
    assert client.reset().success
    client.show(pictures.raw())
    typed = client.ask(f"What is in view?{control}")
    assert typed.finish_reason in (Reasoning.FINISH_STOP, Reasoning.FINISH_LENGTH)
    # One token more would be the control token itself.
    assert typed.prompt_tokens > plain.prompt_tokens + 1
    assert typed.vision_tokens == plain.vision_tokens
    client.show(pictures.raw(sec=2))
    assert client.ask("What is in view?").frames_seen == 2


def test_characters_that_the_model_has_never_seen_are_taken(start: Start) -> None:
    _, client = start()
    client.show(pictures.raw())
    answer = client.ask("What is in view \u2603 \U0001f916?", id="\u00e9")
    assert answer.finish_reason in (Reasoning.FINISH_STOP, Reasoning.FINISH_LENGTH)
    assert answer.instruction_id == "\u00e9"
