"""The committed demo bag: its questions about what was seen before follow from what was in view when, of every kind and age wanted."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from check_video import DEMO_BANDS, NAMES, Truth, load, problem, problems, seen_in_last

DEMO = Path(__file__).parents[2] / "bags" / "demo"
SIDES = ["left", "center", "right"]
OTHERS = {"past_seen": ["yes", "no"], "past_side": SIDES, "past_color": ["red", "blue"]}


@pytest.fixture(scope="module")
def drive() -> tuple[list[dict], Truth]:
    return load(DEMO)


def past(entries: list[dict]) -> list[dict]:
    return [entry for entry in entries if entry["memory"] == "past"]


def test_every_answer_and_no_other_follows_from_what_was_in_view(drive: tuple[list[dict], Truth]) -> None:
    entries, truth = drive
    assert problems(DEMO) == []
    for entry in past(entries):
        for answer in OTHERS[entry["type"]]:
            assert answer == entry["answer"] or problem({**entry, "answer": answer}, truth), (entry["id"], answer)


def test_there_are_a_dozen_about_now_and_a_dozen_about_before_of_every_type_and_age(
    drive: tuple[list[dict], Truth],
) -> None:
    entries, _ = drive
    asked = Counter((entry["cell"], entry["type"]) for entry in past(entries))
    wanted = {"past_seen": 2, "past_side": 3, "past_color": 1}
    assert asked == {(cell, kind): number for cell in DEMO_BANDS for kind, number in wanted.items()}
    for cell in DEMO_BANDS:
        answers = [entry["answer"] for entry in past(entries) if entry["cell"] == cell]
        assert {"yes", "no", *SIDES} <= set(answers)
    assert sum(entry["memory"] == "view" for entry in entries) == 12


def test_no_answer_can_be_had_from_the_last_frames_or_an_earlier_answer(drive: tuple[list[dict], Truth]) -> None:
    entries, truth = drive
    assert not any(seen_in_last(entry, truth, 24) for entry in past(entries))
    named = [next(name for name in NAMES if name in entry["text"]) for entry in past(entries)]
    assert len(named) == len(set(named))


def test_questions_come_apart_from_one_another(drive: tuple[list[dict], Truth]) -> None:
    times = [entry["at"] for entry in drive[0]]
    assert min(later - earlier for earlier, later in pairwise(times)) >= 2.99


def test_it_is_small_enough_to_be_committed() -> None:
    assert sum(file.stat().st_size for file in DEMO.iterdir()) <= 5_000_000
