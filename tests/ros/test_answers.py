"""Every instruction gets exactly one answer, streamed and whole, that says what it rests on."""

import math
import time

import pictures
from builtin_interfaces.msg import Time
from client import ENDLESS, LONG, Client
from conftest import Start
from inf_mllm.msg import Reasoning, ReasoningDelta
from inf_mllm.srv import Cancel
from std_msgs.msg import Header

VOCABULARY = 696
"""Tokens of the demo model."""


def deltas_of(client: Client, answer: Reasoning) -> list[ReasoningDelta]:
    return [delta for delta in client.deltas if delta.instruction_id == answer.instruction_id]


def test_an_answer_names_its_newest_frame_and_is_the_sum_of_its_pieces(start: Start) -> None:
    _, client = start()
    now = int(time.time())
    client.show(pictures.raw(sec=now - 3))
    client.show(pictures.raw(sec=now - 2, nanosec=123_456_789))
    answer = client.ask("What is in view?", id="first")
    client.wait(lambda: client.texts and client.deltas and client.deltas[-1].done, "the pieces and the text")
    stats = client.fresh_stats()

    assert [a.instruction_id for a in client.answers] == ["first"]
    assert answer.finish_reason in (Reasoning.FINISH_STOP, Reasoning.FINISH_LENGTH)
    assert answer.error == ""
    assert (answer.header.stamp.sec, answer.header.stamp.nanosec) == (now - 2, 123_456_789)
    assert answer.header.frame_id == pictures.FRAME_ID
    assert answer.oldest_frame_stamp.sec == now - 3
    assert answer.frames_seen == 2
    assert answer.prompt_tokens > 0
    assert answer.output_tokens > 0
    # The demo model makes 9 tokens of a frame, and both frames are whole.
    assert answer.vision_tokens == 2 * 9
    # Far better than chance, and not certain either.
    assert math.log(1 / VOCABULARY) / 2 < answer.mean_logprob < 0
    latency = answer.latency.sec + answer.latency.nanosec * 1e-9
    first = answer.time_to_first_token.sec + answer.time_to_first_token.nanosec * 1e-9
    assert 0 < first <= latency < 10
    assert 1.5 < answer.newest_frame_age.sec + answer.newest_frame_age.nanosec * 1e-9 < 30

    assert client.texts == [answer.text]
    pieces = deltas_of(client, answer)
    assert [piece.index for piece in pieces] == list(range(len(pieces)))
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert "".join(piece.text for piece in pieces) == answer.text
    assert (stats.instructions_received, stats.instructions_answered, stats.instructions_failed) == (1, 1, 0)


def test_plain_text_is_an_instruction_and_empty_ids_get_different_ones(start: Start) -> None:
    _, client = start()
    client.show(pictures.raw())
    plain = client.next_answer(lambda: client.instruct_text("What is in view?"))
    unnamed = client.ask("What is in view?")
    assert plain.finish_reason == unnamed.finish_reason == Reasoning.FINISH_STOP
    assert plain.instruction_id
    assert unnamed.instruction_id
    assert plain.instruction_id != unnamed.instruction_id
    # Topics are not ordered among each other: the last pieces may come after the answer.
    client.wait(lambda: deltas_of(client, plain) and deltas_of(client, unnamed), "pieces of both answers")


def test_an_answer_that_fills_the_memory_up_is_cut_off_there(start: Start) -> None:
    # At this temperature the end of an answer is as improbable as any other token.
    _, client = start({"policy": "full", "budget": 96, "temperature": 100.0, "max_new_tokens": 200})
    client.show(pictures.raw())
    answer = client.ask("What is in view?")
    assert answer.finish_reason == Reasoning.FINISH_ERROR
    assert "policy full never evicts" in answer.error
    assert answer.output_tokens > 10
    assert answer.text
    client.wait(lambda: client.texts == [f"cut off: {answer.text} ({answer.error})"], "the answer as text")
    client.wait(lambda: "".join(delta.text for delta in deltas_of(client, answer)) == answer.text, "its pieces")


def test_an_instruction_before_any_frame_is_refused(start: Start) -> None:
    _, client = start()
    answer = client.ask("What is in view?", id="blind")
    assert (answer.finish_reason, answer.instruction_id) == (Reasoning.FINISH_ERROR, "blind")
    reason = "no frame has been seen yet, expected at least one before an instruction: no image has come"
    assert answer.error.startswith(reason)
    client.wait(lambda: client.texts == [f"not answered: {answer.error}"], "the reason as text")
    assert (answer.header.stamp.sec, answer.header.stamp.nanosec, answer.header.frame_id) == (0, 0, "")
    assert (answer.newest_frame_age.sec, answer.newest_frame_age.nanosec) == (0, 0)
    assert (answer.frames_seen, answer.vision_tokens, answer.output_tokens) == (0, 0, 0)
    client.show(pictures.raw())
    assert client.ask("What is in view?").finish_reason == Reasoning.FINISH_STOP


def test_an_answer_echoes_the_stamp_of_its_instruction(start: Start) -> None:
    _, client = start()
    client.show(pictures.raw())
    answer = client.ask("What is in view?", header=Header(stamp=Time(sec=12, nanosec=34)))
    assert (answer.instruction_stamp.sec, answer.instruction_stamp.nanosec) == (12, 34)
    refused = client.ask("", header=Header(stamp=Time(sec=56)))
    assert (refused.finish_reason, refused.instruction_stamp.sec) == (Reasoning.FINISH_ERROR, 56)
    now = time.time()
    plain = client.next_answer(lambda: client.instruct_text("What is in view?"))
    assert now - 0.1 < plain.instruction_stamp.sec + plain.instruction_stamp.nanosec * 1e-9 < now + 10


def test_the_longest_answer_is_the_instructions_or_the_nodes(start: Start) -> None:
    # At this temperature the model writes anything, and seldom ends.
    _, client = start({"temperature": 100.0, "max_new_tokens": 3})
    client.show(pictures.raw())
    assert client.ask("What is in view?").output_tokens <= 3
    one = client.ask("What is in view?", max_new_tokens=1)
    assert one.output_tokens == 1
    answers = [client.ask("What is in view?", max_new_tokens=20) for _ in range(5)]
    assert max(answer.output_tokens for answer in answers) > 3
    for answer in answers:
        reason = Reasoning.FINISH_LENGTH if answer.output_tokens == 20 else Reasoning.FINISH_STOP
        assert answer.finish_reason == reason


def test_a_full_queue_refuses_with_an_answer(start: Start) -> None:
    _, client = start({"queue_size": 1, "max_new_tokens_limit": 60_000})
    client.show(pictures.raw())
    client.instruct("What is in view?", id="runs", max_new_tokens=60_000, **ENDLESS)
    client.wait(lambda: bool(client.deltas), "the first piece of an answer")
    ids = [f"i{index}" for index in range(30)]
    for name in ids:
        client.instruct("What is in view?", id=name)
    client.wait(lambda: len(client.answers) == len(ids) - 1, "the refusals")
    refused = list(client.answers)
    assert all(answer.finish_reason == Reasoning.FINISH_ERROR for answer in refused)
    assert all("queue is full" in answer.error and "expected at most 1" in answer.error for answer in refused)
    assert client.call(Cancel, "/inf_mllm/cancel", Cancel.Request(id="runs")).success
    client.wait(lambda: len(client.answers) == len(ids) + 1, "the other answers")
    assert sorted(answer.instruction_id for answer in client.answers) == sorted([*ids, "runs"])
    assert client.answers[-1].finish_reason == Reasoning.FINISH_STOP
    stats = client.fresh_stats()
    assert (stats.instructions_received, stats.instructions_answered) == (31, 1)
    assert stats.instructions_failed == len(refused) + 1, "what was cancelled is not answered"


def test_a_reset_leaves_the_prefix_only(start: Start) -> None:
    _, client = start({"budget": 128})
    empty = client.fresh_stats()
    assert empty.used == empty.prefix > 0
    for sec in range(1, 9):
        client.show(pictures.raw(sec=sec))
    client.ask("What is in view?")
    assert client.fresh_stats().tokens_evicted > 0

    response = client.reset()
    assert response.success, response.message
    stats = client.fresh_stats()
    assert (stats.used, stats.prefix, stats.tokens_seen) == (empty.used, empty.prefix, empty.tokens_seen)
    assert (stats.tokens_evicted, stats.compactions) == (0, 0)
    assert (stats.oldest_frame_stamp.sec, stats.oldest_frame_stamp.nanosec) == (0, 0)
    assert stats.frames_used == 8
    assert "no frame has been seen yet" in client.ask("What is in view?").error
    client.show(pictures.raw(sec=99))
    assert client.ask("What is in view?").header.stamp.sec == 99


def test_a_reset_cuts_a_running_answer_off(start: Start) -> None:
    _, client = start(LONG)
    client.show(pictures.raw())
    for index in range(20):
        client.instruct("What is in view?", id=f"i{index}", **ENDLESS)
    client.wait(lambda: any(delta.text for delta in client.deltas), "the first piece of an answer")
    # The queue holds 8: what does not fit in has been refused.
    assert client.reset().success
    client.wait(lambda: len(client.answers) >= 20, "all answers")
    cut = [answer for answer in client.answers if answer.finish_reason == Reasoning.FINISH_CANCELLED]
    assert cut
    assert any(answer.output_tokens > 0 for answer in cut)
    assert client.fresh_stats().used == client.fresh_stats().prefix


def test_a_frame_that_waits_behind_an_answer_does_not_outlive_a_reset(start: Start) -> None:
    _, client = start({**LONG, "frames_during_answers": 0})
    client.show(pictures.raw(sec=1))
    for index in range(8):
        client.instruct("What is in view?", id=f"i{index}", **ENDLESS)
    client.wait(lambda: bool(client.deltas), "the first piece of an answer")
    client.publish(pictures.raw(sec=2))
    client.wait(lambda: client.stats[-1].frames_received == 2, "the frame that waits")
    assert client.reset().success
    client.wait(lambda: len(client.answers) >= 8, "all answers")
    stats = client.fresh_stats()
    assert (stats.frames_used, stats.frames_superseded) == (1, 1)
    assert "no frame has been seen yet" in client.ask("What is in view?").error
    client.show(pictures.raw(sec=3))
    assert client.ask("What is in view?").frames_seen == 1


def test_an_answer_longer_than_the_limit_is_refused_with_both_numbers(start: Start) -> None:
    _, client = start({"max_new_tokens_limit": 40})
    client.show(pictures.raw())
    refused = client.ask("What is in view?", max_new_tokens=41)
    assert refused.finish_reason == Reasoning.FINISH_ERROR
    assert "41" in refused.error
    assert "at most 40" in refused.error
    assert client.ask("What is in view?", max_new_tokens=40).finish_reason != Reasoning.FINISH_ERROR


def test_an_ephemeral_instruction_leaves_no_trace(start: Start) -> None:
    _, client = start()
    client.show(pictures.raw())
    before = client.fresh_stats()
    answer = client.ask("What is in view?", ephemeral=True)
    after = client.fresh_stats()
    assert answer.finish_reason == Reasoning.FINISH_STOP
    assert answer.output_tokens > 0
    assert (after.tokens_seen, after.used) == (before.tokens_seen, before.used)
    assert (after.tokens_evicted, after.compactions) == (before.tokens_evicted, before.compactions)
    again = client.ask("What is in view?")
    assert (again.text, again.prompt_tokens) == (answer.text, answer.prompt_tokens)
    assert again.mean_logprob == answer.mean_logprob
    tokens = client.fresh_stats().tokens_seen - before.tokens_seen
    assert tokens >= again.prompt_tokens + again.output_tokens - 1
