"""Pictures inside an instruction: shown in front of the question, gone with it, refused with the reason where they cannot be shown."""

import pictures
import pytest
from client import Client
from conftest import Start
from inf_mllm.msg import Reasoning
from sensor_msgs.msg import CompressedImage

ANSWERED = (Reasoning.FINISH_STOP, Reasoning.FINISH_LENGTH)


def ask(client: Client, text: str, *images: CompressedImage, **fields: object) -> Reasoning:
    return client.ask(text, images=list(images), **fields)


def answered(client: Client, text: str, *images: CompressedImage, **fields: object) -> Reasoning:
    answer = ask(client, text, *images, **fields)
    assert answer.finish_reason in ANSWERED, answer.error
    return answer


def test_a_picture_is_shown_for_its_question_alone(start: Start) -> None:
    _, client = start()
    shown, sent = pictures.jpeg(index=10), pictures.jpeg(index=700)
    # The client's own camera sends raw images: the demo's pictures come with the instructions.
    client.show(pictures.now())
    before = client.fresh_stats()
    first = answered(client, "What is in view?", shown, ephemeral=True)
    other = answered(client, "What is in view?", sent, ephemeral=True)
    again = answered(client, "What is in view?", shown, ephemeral=True)
    alone = answered(client, "What is in view?", ephemeral=True)
    assert (first.text, first.mean_logprob) == (again.text, again.mean_logprob)
    assert len({round(answer.mean_logprob, 6) for answer in (first, other, alone)}) == 3
    assert first.prompt_tokens > alone.prompt_tokens
    both = answered(client, "What is in view?", shown, sent, ephemeral=True)
    assert both.prompt_tokens > first.prompt_tokens
    after = client.fresh_stats()
    assert (after.tokens_seen, after.used, after.frames_used) == (before.tokens_seen, before.used, before.frames_used)
    # Of a turn that stays, question and answer stay, and the picture does not.
    answered(client, "What is in view?")
    plain = client.fresh_stats().tokens_seen
    kept = answered(client, "What is in view?", shown)
    picture_tokens = first.prompt_tokens - alone.prompt_tokens
    grown = client.fresh_stats().tokens_seen - plain
    assert kept.prompt_tokens - picture_tokens < grown < kept.prompt_tokens + kept.output_tokens


def test_an_instruction_with_a_picture_needs_no_camera(start: Start) -> None:
    _, client = start()
    assert "no frame has been seen yet" in ask(client, "What is in view?").error
    answer = answered(client, "What is in view?", pictures.jpeg(index=10))
    assert answer.text
    assert (answer.frames_seen, answer.header.stamp.sec, answer.header.frame_id) == (0, 0, "")


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ([CompressedImage(format="jpeg", data=b"\xff\xd8\xff\xe0 no picture")], "picture 1 of 1 of the instruction"),
        ([CompressedImage(format="webp", data=b"RIFF\x10\x00\x00\x00WEBPVP8 ")], "picture 1 of 1 of the instruction"),
        ([CompressedImage()], "picture 1 of 1 of the instruction cannot be shown: "),
        ([pictures.png()] * 5, "instruction has 5 pictures, expected at most 4 (instruction_images_limit)"),
        ([pictures.png()] * 65, "instruction has 65 pictures, expected at most 64"),
        ([pictures.png(), CompressedImage(format="png", data=b"\x89PNG")], "picture 2 of 2 of the instruction"),
    ],
    ids=["corrupt", "format", "empty", "too many", "far too many", "one of two"],
)
def test_a_picture_that_cannot_be_shown_is_refused_with_the_reason(
    start: Start, images: list[CompressedImage], expected: str
) -> None:
    _, client = start()
    client.show(pictures.now())
    before = client.fresh_stats()
    answer = ask(client, "Is this the cup?", *images)
    assert (answer.finish_reason, answer.text) == (Reasoning.FINISH_ERROR, "")
    assert expected in answer.error, answer.error
    after = client.fresh_stats()
    assert (after.tokens_seen, after.instructions_failed) == (before.tokens_seen, before.instructions_failed + 1)
    answered(client, "Is this the cup?", pictures.png())


def test_pictures_that_are_too_much_for_a_turn_are_refused_with_the_numbers(start: Start) -> None:
    _, client = start({"instruction_images_limit": 64})
    error = ask(client, "Is this the cup?", *[pictures.png()] * 60).error
    assert error.startswith("the instruction's pictures are "), error
    assert " together (what the cache can hold of one turn)" in error
