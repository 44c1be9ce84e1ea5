"""What one decoded token asks of the driver, counted by libraries that stand in for it. A launch or a copy costs microseconds each."""

from collections import Counter
from pathlib import Path

import pytest
from stand_in_runs import FAMILIES, Counts, Run, generate, random_checkpoint, run

TOKEN = Counts(launches=1, uploads=0, allocations=0, downloads=0, calls=6)
"""A token: one launch of a graph, an event and the wait for it."""

LAYERS = {
    "idefics3": 3,
    "llava": 3,
    "llava_next": 3,
    "llava_onevision": 3,
    "qwen2_vl": 3,
    "qwen2_5_vl": 3,
    "qwen3_vl": 3,
}
"""Of the families' checkpoints, which have kernels for a step."""


@pytest.mark.parametrize("quantization", ["q8_0", "q4_k"])
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_a_token_with_quantised_weights_costs_what_one_with_floats_does(
    tmp_path: Path, dtype: str, quantization: str
) -> None:
    model = random_checkpoint("SmolVLM-500M-Instruct")
    more = ["--policy", "inf_mllm", "--budget", "512", "--dtype", dtype, "--quantization", quantization]
    ran = run(tmp_path / "log", *generate(model, "--device", "cuda", *more))
    assert ran.code == 0, ran.errors
    steps = list(ran.steps("graph"))[1:]
    assert len(steps) > 3, ran.said
    assert all(step.uploads == step.allocations == step.downloads == 0 for step in steps), steps
    assert Counter(steps).most_common(1)[0][0] == TOKEN, steps
    assert ran.captured() == 5 * 32 + 3


def test_one_row_of_logits_comes_to_the_host(tmp_path: Path) -> None:
    """Of a prompt of many tokens the logits of the last one are enough, and not the storage that holds them all."""
    ran = run(tmp_path / "log", *generate(FAMILIES / "idefics3", "--device", "cuda"))
    assert ran.code == 0, ran.errors
    downloads = ran.downloads()[-8:]
    assert len(set(downloads)) == 1, downloads


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("family", LAYERS)
def test_a_token_is_one_launch_of_a_graph(tmp_path: Path, family: str, dtype: str) -> None:
    more = ["--device", "cuda", "--policy", "inf_mllm", "--budget", "512", "--dtype", dtype]
    ran = run(tmp_path / "log", *generate(FAMILIES / family, *more))
    assert ran.code == 0, ran.errors
    steps = list(ran.steps("graph"))[1:]
    assert len(steps) > 3, ran.said
    assert all(step.launches == 1 for step in steps), steps
    assert all(step.uploads == step.allocations == step.downloads == 0 for step in steps), steps
    assert max(step.calls for step in steps) <= 20, steps
    # Of a layer: norm and products, attention, output, gated unit, down; before and behind them embedding, logits and choice.
    assert ran.captured() == 5 * LAYERS[family] + 3


def bench(log: Path, *args: str, shape: str = "SmolVLM-500M") -> Run:
    """A full cache is not what this is about: the tokens fill it."""
    more = ["--shape", shape, "--weights", "bf16", "--fill", "64"]
    ran = run(log, "bench", "decode", "--device", "cuda", "--json", *more, *args)
    assert ran.code == 0, ran.errors
    return ran


def test_steps_of_a_real_shape_stay_as_cheap_for_ten_thousand_tokens(tmp_path: Path) -> None:
    ran = bench(tmp_path / "log", "--budget", "2048", "--tokens", "10000")
    steps = list(ran.steps("graph"))[1:]
    assert len(steps) > 9_000
    assert Counter(steps).most_common(1)[0][0] == TOKEN
    # After a compaction, which comes every 300 tokens or more, the numbers of the cache are uploaded anew.
    dear = [step for step in steps if step.calls > 20]
    assert 0 < len(dear) <= 10_000 // 300, Counter(steps)
    assert all(step.uploads == step.allocations == step.downloads == 0 for step in steps if step.calls <= 20)
    assert ran.captured() == 5 * 32 + 3


@pytest.mark.parametrize("policy", ["inf_mllm", "inf_mllm_plus", "h2o"])
@pytest.mark.parametrize(
    "shapes",
    [
        # 32 layers of 5 KV heads, 24 of 32.
        ("SmolVLM-500M", "SmolVLM2-2.2B"),
        # Positions on three axes: 28 layers of 8 KV heads, 36 of 2.
        ("Qwen3-VL-2B", "Qwen2.5-VL-3B"),
    ],
)
def test_a_compaction_asks_for_as_much_however_many_layers_and_heads_there_are(
    tmp_path: Path, shapes: tuple[str, str], policy: str
) -> None:
    asked = []
    for shape in shapes:
        more = ["--budget", "512", "--tokens", "700", "--policy", policy]
        ran = bench(tmp_path / f"log-{shape}", *more, shape=shape)
        dear = [step for step in ran.steps("graph") if step.launches > 1]
        # The first one is that behind the prompt.
        asked.append(Counter(dear[1:]).most_common(1)[0][0])
    assert asked[0] == asked[1]
    assert asked[0].launches <= 10 and asked[0].uploads <= 10 and asked[0].calls <= 60, asked
