"""What one decoded token asks of the driver, counted by libraries that stand in for it. A launch or a copy costs microseconds each."""

from pathlib import Path

import pytest
from stand_in_runs import FAMILIES, Counts, generate, random_checkpoint, run

EXPECTED = {
    ("idefics3", "bf16", "none"): Counts(91, 23, 105, 1, 580),
    ("idefics3", "f32", "none"): Counts(84, 23, 98, 1, 538),
    ("llava", "bf16", "none"): Counts(91, 23, 105, 1, 580),
    ("qwen2_5_vl", "bf16", "none"): Counts(112, 29, 126, 1, 718),
    ("qwen3_vl", "bf16", "none"): Counts(109, 29, 123, 1, 700),
    ("SmolVLM-500M-Instruct", "bf16", "none"): Counts(932, 226, 1062, 1, 5858),
    ("SmolVLM-500M-Instruct", "bf16", "q8_0"): Counts(1158, 225, 1062, 1, 6084),
    ("SmolVLM-500M-Instruct", "f32", "q8_0"): Counts(1092, 225, 996, 1, 5688),
}
"""Launches, uploads, allocations, downloads and all calls, by model, type of the arithmetic and quantization."""


def token(log: Path, model: Path, *args: str) -> Counts:
    """What a token in the middle of an answer asks for."""
    ran = run(log, *generate(model, "--device", "cuda", "--policy", "inf_mllm", "--budget", "512", *args))
    assert ran.code == 0, ran.errors
    steps = list(ran.steps())[-4:]
    assert len(steps) == 4 and len(set(steps)) == 1, f"one token is not like another: {steps}"
    return steps[0]


def folder(name: str) -> Path:
    return FAMILIES / name if (FAMILIES / name).exists() else random_checkpoint(name)


@pytest.mark.parametrize("case", EXPECTED, ids="-".join)
def test_a_token_costs_what_it_is_known_to_cost(tmp_path: Path, case: tuple[str, str, str]) -> None:
    name, dtype, quantization = case
    got = token(tmp_path / "log", folder(name), "--dtype", dtype, "--quantization", quantization)
    assert got == EXPECTED[case]


def test_one_row_of_logits_comes_to_the_host(tmp_path: Path) -> None:
    """Of a prompt of many tokens the logits of the last one are enough, and not the storage that holds them all."""
    ran = run(tmp_path / "log", *generate(FAMILIES / "idefics3", "--device", "cuda"))
    assert ran.code == 0, ran.errors
    downloads = ran.downloads()[-8:]
    assert len(set(downloads)) == 1, downloads
