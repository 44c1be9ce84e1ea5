"""A GPU that fails in mid-stream: never a silent wrong answer."""

from pathlib import Path

import pytest
from stand_in_runs import BAG, Run, replay

QUESTIONS = BAG / "instructions.yaml"
LAUNCH_FAILED, ILLEGAL_ADDRESS, OUT_OF_MEMORY = 719, 700, 2


def number_of(ran: Run, name: str) -> int:
    return sum(event["calls"].get(name, [0])[0] for event in ran.events)


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("cuGraphLaunch", LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED"),
        ("cuMemcpyHtoDAsync_v2", ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS"),
    ],
    ids=["in an answer", "in a frame"],
)
def test_a_gpu_that_is_lost_ends_a_replay_with_an_error_that_says_so(
    tmp_path: Path, name: str, code: int, said: str
) -> None:
    whole, answers = replay(tmp_path, QUESTIONS)
    assert whole.code == 0, whole.errors
    calls = number_of(whole, name)
    # The last call: what failed there would fail without anything after it that fails, too.
    ran, fewer = replay(tmp_path, QUESTIONS, STAND_IN_FAIL=f"{name}:{calls}:{code}")
    assert ran.code == 1, ran.errors
    assert "cuda:0 is lost for this process" in ran.errors and said in ran.errors, ran.errors
    assert len(fewer) <= len(answers)


def test_memory_that_lacks_for_a_moment_costs_one_answer(tmp_path: Path) -> None:
    whole, _ = replay(tmp_path, QUESTIONS)
    # The last ones are of a token of the last answers; a few are of the turn that enters the archive behind one.
    allocations = number_of(whole, "cuMemAllocAsync")
    ran, answers = replay(tmp_path, QUESTIONS, STAND_IN_FAIL=f"cuMemAllocAsync:{allocations - 200}:{OUT_OF_MEMORY}")
    assert ran.code == 0, ran.errors
    errors = [answer["error"] for answer in answers if answer.get("error")]
    assert len(errors) == 1 and "the GPU is out of memory" in errors[0], errors
