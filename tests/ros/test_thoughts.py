"""Models that think before they answer, through the real node: fine-tunes as they are published, over tiny checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fine_tunes
import pictures
import pytest
import safetensors_files
from action_msgs.msg import GoalStatus
from builtin_interfaces.msg import Duration
from client import Client
from conftest import Start
from inf_mllm.action import Ask
from inf_mllm.msg import Instruction, Reasoning, ReasoningDelta
from inf_mllm.srv import Cancel
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from test_action import Goal

OPENED = "qwen3_vl_thinking"
"""Its template opens the thought."""
PARAMETERS = {"system_prompt": "", "max_new_tokens": 40, "budget": 640, "frames_per_group": 1, "dtype": "f32"}
QUESTION = "What is in view?"
ANSWER = "You are the bob"
LONG = {"max_new_tokens": 60_000, "max_new_tokens_limit": 60_000}


@pytest.fixture
def thinks(start: Start, tmp_path: Path) -> Any:
    """Starts the node with a fine-tune, and shows it two frames."""

    def begin(name: str = OPENED, endless: bool = False, **parameters: Any) -> Client:
        folder = fine_tunes.fine_tune(name, tmp_path)
        if endless:
            never_end(folder)
        own = {"model": str(folder)} | PARAMETERS
        if name in ("qwen3_vl_thinking", "cosmos_reason2"):
            own["frame_max_pixels"] = 1920
        if fine_tunes.about(name)["opened"]:
            own["thinking"] = "always"
        _, client = start(own | parameters)
        for sec in (1, 2):
            client.show(pictures.raw(sec=sec))
        return client

    return begin


def never_end(folder: Path) -> None:
    """Has the thought of a checkpoint begin again where it would end."""
    weights = folder / "model.safetensors"
    tensors = safetensors_files.read(weights)
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    end = next(token["id"] for token in added if token["content"] == "</think>")
    first = fine_tunes.about(OPENED)["generated_ids"][0]
    head = tensors["lm_head.weight"].copy()
    head[first] += head[end]
    head[end] = 0.0
    safetensors_files.write(weights, tensors | {"lm_head.weight": head})


def joined(client: Client, answer: Reasoning, thought: bool) -> str:
    """The pieces of the thought or of the text, which come in their order."""

    def pieces_of() -> list[ReasoningDelta]:
        return [piece for piece in client.deltas if piece.instruction_id == answer.instruction_id]

    client.wait(lambda: any(piece.done for piece in pieces_of()), "the last piece")
    pieces = pieces_of()
    assert [piece.index for piece in pieces] == list(range(len(pieces)))
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert not pieces[-1].thought
    return "".join(piece.text for piece in pieces if piece.thought == thought)


@pytest.mark.parametrize("name", fine_tunes.NAMES)
def test_the_node_runs_every_fine_tune_with_the_thought_apart(name: str, thinks: Any) -> None:
    client = thinks(name)
    answer = client.ask(QUESTION, id="a")
    assert answer.finish_reason in (Reasoning.FINISH_STOP, Reasoning.FINISH_LENGTH), answer.error
    assert joined(client, answer, thought=True) == answer.thought
    assert joined(client, answer, thought=False) == answer.text
    if name == "cosmos_reason1":
        # Of chance: it thinks of nothing.
        assert (answer.thought_end, answer.thought_tokens) == (Reasoning.THOUGHT_NONE, 0)
        return
    said = fine_tunes.about(name)["generated_text"]
    thought, text = said.removeprefix("<think>").split("</think>")
    assert (answer.thought, answer.text) == (thought.strip(), text.strip())
    assert answer.thought_end == Reasoning.THOUGHT_ENDED
    assert 0 < answer.thought_tokens < answer.output_tokens
    client.wait(lambda: client.texts[-1:] == [answer.text], "the answer as text, without the thought")


def test_a_goal_hears_of_the_thought_in_its_feedback_and_result(thinks: Any) -> None:
    client = thinks(endless=True, **LONG)
    goal = Goal(client, client.action(Ask, "/inf_mllm/ask"), text=QUESTION)
    client.wait(lambda: len(goal.pieces) > 4, "some of the thought")
    goal.cancel()
    status, reasoning = goal.result()
    assert status == GoalStatus.STATUS_CANCELED
    assert (reasoning.text, reasoning.thought_end) == ("", Reasoning.THOUGHT_CUT)
    # rclpy leaves out the feedback that it finds behind a result.
    assert reasoning.thought.startswith("".join(goal.pieces))
    whole = client.ask(QUESTION, max_new_tokens=4)
    assert reasoning.thought.startswith(whole.thought)


def test_the_memory_grows_by_the_answer_alone_unless_thoughts_are_to_be_remembered(thinks: Any) -> None:
    client = thinks()
    before = client.fresh_stats().tokens_seen
    answer = client.ask(QUESTION)
    grown = client.fresh_stats().tokens_seen - before
    # The question's markup opens a thought with two tokens; the line break behind the thought and the end are not kept.
    assert grown == (answer.prompt_tokens - 2) + (answer.output_tokens - answer.thought_tokens) - 2


def test_thoughts_are_remembered_where_they_are_to_be(thinks: Any) -> None:
    client = thinks(remember_thoughts=True)
    before = client.fresh_stats().tokens_seen
    answer = client.ask(QUESTION)
    grown = client.fresh_stats().tokens_seen - before
    assert grown == answer.prompt_tokens + answer.output_tokens - 1
    assert client.ask(QUESTION).text == ANSWER


def test_a_long_thought_is_closed_in_time_and_the_answer_begins(thinks: Any) -> None:
    client = thinks(max_thought_tokens=4)
    answer = client.ask(QUESTION)
    assert (answer.thought_end, answer.finish_reason) == (Reasoning.THOUGHT_LIMIT, Reasoning.FINISH_STOP)
    assert (answer.thought, answer.text) == ("Who? i", ANSWER)
    # An instruction may have a longest thought of its own.
    answer = client.ask(QUESTION, max_thought_tokens=30)
    assert (answer.thought_end, answer.thought) == (Reasoning.THOUGHT_ENDED, "Who? it which")


def test_what_ends_within_a_thought_says_that_no_answer_had_begun(thinks: Any) -> None:
    client = thinks()
    short = client.ask(QUESTION, max_new_tokens=4)
    assert (short.finish_reason, short.thought_end) == (Reasoning.FINISH_LENGTH, Reasoning.THOUGHT_CUT)
    assert short.text == "" and short.thought and "max_thought_tokens" in short.error
    client.wait(lambda: client.texts[-1:] == [f"not answered: {short.error}"], "the same as text")
    assert client.ask(QUESTION).text == ANSWER


def test_a_thought_without_end_is_cut_off_by_its_time_limit_and_by_its_user(thinks: Any) -> None:
    client = thinks(endless=True, **LONG)
    late = client.ask(QUESTION, time_limit=Duration(sec=1))
    assert (late.finish_reason, late.thought_end) == (Reasoning.FINISH_TIME_LIMIT, Reasoning.THOUGHT_CUT)
    assert late.text == "" and "time_limit" in late.error
    client.instruct(QUESTION, id="endless")
    client.wait(
        lambda: any(piece.thought and piece.instruction_id == "endless" for piece in client.deltas), "a thought"
    )
    cancelled = client.next_answer(
        lambda: client.call(Cancel, "/inf_mllm/cancel", Cancel.Request(id="endless")),
    )
    assert (cancelled.finish_reason, cancelled.thought_end) == (Reasoning.FINISH_CANCELLED, Reasoning.THOUGHT_CUT)
    assert cancelled.text == "" and cancelled.thought.startswith(fine_tunes.about(OPENED)["generated_text"][:4])


def test_choices_and_watches_know_no_thoughts_or_tell_them_whole(thinks: Any) -> None:
    client = thinks()
    chosen = client.ask(QUESTION, choices=["yes", ANSWER])
    assert (chosen.choice, chosen.thought_end, chosen.thought) == (1, Reasoning.THOUGHT_SKIPPED, "")
    watch = {"id": "watch", "mode": Instruction.MODE_WATCH, "watch_frames": 1000}
    # The first asking is at once, and there is no other.
    answer = client.ask(QUESTION, **watch)
    assert (answer.text, answer.thought, answer.watch) == (ANSWER, "Who? it which", True)
    assert joined(client, answer, thought=True) == answer.thought
    assert joined(client, answer, thought=False) == answer.text


def test_a_longest_thought_that_leaves_no_answer_is_refused(thinks: Any) -> None:
    client = thinks()
    value = ParameterValue(type=ParameterType.PARAMETER_INTEGER, integer_value=40)
    request = SetParameters.Request(parameters=[Parameter(name="max_thought_tokens", value=value)])
    [result] = client.call(SetParameters, f"{client.name}/set_parameters", request).results
    assert not result.successful and "max_new_tokens" in result.reason
