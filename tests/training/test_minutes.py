"""The committed five-minute drive: every answer follows from what was in view when, and none from the last frames."""

from collections import Counter, defaultdict
from pathlib import Path

import pytest
from check_video import BANDS, CLOSED, NAMES, Truth, load, problem, problems, seen_in_last

MINUTES = Path(__file__).parents[2] / "bags" / "minutes"
WRONG = {"past_seen": ["yes", "no"], "past_side": ["left", "center", "right"], "so_far": ["1", "2", "3", "4"]}


@pytest.fixture(scope="module")
def drive() -> tuple[list[dict], Truth]:
    return load(MINUTES)


def past(entries: list[dict]) -> list[dict]:
    return [entry for entry in entries if entry["memory"] == "past"]


def test_every_answer_follows_from_what_was_in_view() -> None:
    assert problems(MINUTES) == []


def test_another_answer_would_not_pass(drive: tuple[list[dict], Truth]) -> None:
    entries, truth = drive
    others = {**WRONG, "past_color": ["red", "blue"], "past_before": NAMES, "when": ["59:59"]}
    for entry in past(entries):
        for answer in others[entry["type"]]:
            if answer != entry["answer"]:
                assert problem({**entry, "answer": answer}, truth), (entry["id"], answer)


def test_another_frame_would_not_pass_as_the_one_that_shows_the_answer(drive: tuple[list[dict], Truth]) -> None:
    entries, truth = drive
    empty = float(truth["times"][(truth["state"] == -1).all(1)][0])
    for entry in past(entries):
        assert problem({**entry, "shown": [empty]}, truth), entry["id"]


def test_the_distances_that_fit_are_asked_about_equally_often_with_every_type(drive: tuple[list[dict], Truth]) -> None:
    cells: dict[str, Counter[str]] = defaultdict(Counter)
    for entry in past(drive[0]):
        cells[entry["cell"]][entry["type"]] += 1
    types = [set(cells[cell]) for cell in BANDS if cell in cells]
    assert list(cells.keys() & BANDS.keys()) and len(types) == 3 and types[0] == types[1] == types[2]
    assert all(20 <= cells[cell].total() for cell in BANDS if cell in cells)


def test_closed_answers_are_balanced(drive: tuple[list[dict], Truth]) -> None:
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for entry in past(drive[0]):
        answers[entry["type"]][entry["answer"]] += 1
    for kind in ("past_seen", "past_side"):
        assert len(answers[kind]) == CLOSED[kind]
        assert max(answers[kind].values()) - min(answers[kind].values()) <= 1, answers[kind]


def test_the_last_frames_show_no_answer(drive: tuple[list[dict], Truth]) -> None:
    entries, truth = drive
    assert not any(seen_in_last(entry, truth, 4) for entry in past(entries))
    assert not any(seen_in_last(entry, truth, 24) for entry in past(entries) if entry["cell"] in ("30s", "2min"))


def test_it_is_small_enough_to_be_committed() -> None:
    assert sum(file.stat().st_size for file in MINUTES.iterdir()) <= 3_000_000
