"""Frames and turns that have left the memory are recalled for an instruction, and what was recalled is told."""

import pictures
from builtin_interfaces.msg import Time
from client import Client
from conftest import Start
from inf_mllm.msg import Instruction, Reasoning

SMALL = {"budget": 256, "nothing_new": 1.0}
"""Room for a dozen frames."""
FRAMES = 20


def show_many(client: Client) -> None:
    for sec in range(1, FRAMES + 1):
        client.show(pictures.raw(sec=sec))


def seconds(answer: Reasoning) -> list[int]:
    return [stamp.sec for stamp in answer.recalled_stamps]


def test_what_has_left_the_memory_is_recalled_named_and_out_again(start: Start) -> None:
    _, client = start({**SMALL, "recall_share": 0.0, "recall_units": 2})
    show_many(client)
    before = client.fresh_stats()
    assert before.archive_units == FRAMES
    assert before.archive_oldest_stamp.sec == 1
    assert 0 < before.archive_bytes <= 64 << 20
    answer = client.ask("Where did you last see the red ball?", recall=Instruction.RECALL_ALWAYS, ephemeral=True)
    assert answer.error == ""
    assert 0 < len(answer.recalled_stamps) == len(answer.recalled_scores) <= 2
    assert seconds(answer) == sorted(seconds(answer))
    # Every picture was another one.
    assert answer.recalled_seen_stamps == answer.recalled_stamps
    assert all(0 <= score <= 1 for score in answer.recalled_scores)
    # Two frames and the newest once more, 19 tokens each.
    assert answer.recalled_tokens == 19 * (len(answer.recalled_stamps) + 1)
    assert answer.recall_time.sec + answer.recall_time.nanosec > 0
    # Nothing that is still there is brought twice.
    assert all(stamp.sec < before.oldest_frame_stamp.sec for stamp in answer.recalled_stamps)
    after = client.fresh_stats()
    assert (after.tokens_seen, after.used, after.compactions) == (before.tokens_seen, before.used, before.compactions)
    assert after.used <= after.budget
    never = client.ask("Where did you last see the red ball?", recall=Instruction.RECALL_NEVER)
    assert (never.recalled_stamps, never.recalled_tokens) == ([], 0)


def test_a_planner_may_ask_about_a_time(start: Start) -> None:
    _, client = start({**SMALL, "recall": "never"})
    show_many(client)
    asked = {"recall_from": Time(sec=2), "recall_to": Time(sec=3)}
    assert seconds(client.ask("What was in view?", **asked, ephemeral=True)) == [2, 3]
    # An open end; there is room for fewer than the four that were seen until then.
    until = seconds(client.ask("What was in view?", recall_to=Time(sec=4), ephemeral=True))
    assert 0 < len(until) < 4
    assert set(until) < {1, 2, 3, 4}
    assert seconds(client.ask("What was in view?", ephemeral=True)) == []


def test_recall_that_cannot_be_is_refused_and_the_node_goes_on(start: Start) -> None:
    _, client = start(SMALL)
    show_many(client)
    for fields, said in (
        ({"recall": 7}, "recall is 7, expected 0 (default), 1 (auto), 2 (always) or 3 (never)"),
        (
            {"recall_from": Time(sec=5), "recall_to": Time(sec=4)},
            "from 5.000 s to 4.000 s: the range ends before it begins",
        ),
        (
            {"recall_from": Time(sec=900)},
            "nothing is archived from 900.000 s to now, expected a range that meets what is: from 1.000 s to 20.000 s",
        ),
        ({"recall": Instruction.RECALL_NEVER, "recall_to": Time(sec=4)}, "recall is never, but a time range"),
    ):
        answer = client.ask("What was in view?", **fields)
        assert answer.finish_reason == Reasoning.FINISH_ERROR
        assert said in answer.error
    assert client.ask("What is in view?").error == ""
    stats = client.fresh_stats()
    assert (stats.instructions_answered, stats.instructions_failed) == (1, 4)


def test_a_policy_without_a_memory_has_nothing_to_recall(start: Start) -> None:
    _, client = start({"policy": "last_frames"})
    client.show(pictures.raw())
    refused = client.ask("What was in view?", recall=Instruction.RECALL_ALWAYS)
    assert "policy last_frames has no memory" in refused.error
    assert client.ask("What is in view?").error == ""
    assert client.fresh_stats().archive_units == 0


def test_what_was_said_is_recalled_when_it_has_left_the_memory(start: Start) -> None:
    _, client = start({**SMALL, "recall_units": 1})
    client.show(pictures.raw(sec=1))
    told = client.ask("Did you see the red ball?")
    aside = client.ask("Did you see the green lamp?", ephemeral=True)
    assert (told.error, aside.error) == ("", "")
    assert client.fresh_stats().archive_turns == 1
    for sec in range(2, FRAMES + 1):
        client.show(pictures.raw(sec=sec))
    before = client.fresh_stats()
    assert (before.archive_units, before.archive_turns) == (FRAMES + 1, 1)
    answer = client.ask("Did you see the red ball?", recall=Instruction.RECALL_ALWAYS, ephemeral=True)
    assert answer.error == ""
    assert list(answer.recalled_kinds) == [Reasoning.RECALLED_TURN]
    assert answer.recalled_stamps == [told.header.stamp]
    assert 0 < answer.recalled_scores[0] <= 1
    # The turn, and the newest frame once more, of 19 tokens and what begins its turn.
    assert answer.recalled_tokens > told.prompt_tokens
    after = client.fresh_stats()
    assert (after.tokens_seen, after.used, after.archive_turns) == (before.tokens_seen, before.used, 1)
    # A range of times takes what was said in it, beside frames.
    asked = {"recall_from": told.header.stamp, "recall_to": told.header.stamp}
    assert list(client.ask("What was in view?", **asked, ephemeral=True).recalled_kinds) == [Reasoning.RECALLED_TURN]
    assert client.reset().success
    assert client.fresh_stats().archive_turns == 0


def test_a_reset_empties_the_archive_and_diagnostics_show_it(start: Start) -> None:
    _, client = start(SMALL)
    client.show(pictures.raw(sec=1))
    client.show(pictures.raw(sec=2))

    def archived() -> list[str]:
        statuses = [status for status in client.diagnostics[-1].status if status.name.endswith(": memory")]
        return [value.value for status in statuses for value in status.values if value.key == "archive_units"]

    client.wait(lambda: client.diagnostics and archived() == ["2"], "the archive in /diagnostics")
    assert client.reset().success
    assert client.fresh_stats().archive_units == 0
