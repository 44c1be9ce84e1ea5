"""What is wrong at the start ends the node at once, with the name, the value and what was expected on stderr."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT
from node_process import PARAMETER_FILE, NodeProcess

MODEL = ROOT / "models" / "demo"
START_SECONDS = 10.0


def refusal(
    parameters: dict[str, object], arguments: tuple[str, ...] = (), parameter_file: Path | None = PARAMETER_FILE
) -> str:
    """Starts a node that is to refuse; what it wrote to stderr."""
    process = NodeProcess({"model": str(MODEL), **parameters}, arguments, parameter_file)
    status = process.wait_end(START_SECONDS)
    assert status not in (0, None)
    # A negative status would be a signal: a crash.
    assert status > 0, process.log
    assert "panicked" not in process.log, process.log
    return process.log


@pytest.mark.usefixtures("domain")
@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("budget", 0, "an integer, 1 to"),
        ("budget", -5, "an integer, 1 to"),
        ("budget", 100_000, "at most"),
        ("budget", 10, "at least"),
        ("sinks", -1, "an integer, 0 to"),
        ("query_window", 0, "an integer, 1 to"),
        ("bias", -0.5, "a number, 0 to"),
        ("max_new_tokens", 0, "an integer, 1 to"),
        ("temperature", -1.5, "a number, 0 to"),
        ("queue_size", 0, "an integer, 1 to"),
        ("stats_period", 0.0, "a number, 0.01 to"),
        ("frame_rate", -1.5, "a number, 0 to"),
        ("min_change", 1.5, "a number, 0 to 1"),
        ("time_jump_threshold", 0.05, "a number, 0.1 to"),
        ("policy", "h2o", "one of: full, window, streaming_llm, inf_mllm"),
        ("image_transport", "theora", "one of: raw, compressed"),
        ("device", "tpu", "one of: auto, cpu, cuda"),
        ("bias_form", "curve", "one of: slope, range"),
        ("scope", "head", "one of: layer, kv_head"),
    ],
)
def test_a_parameter_out_of_range(name: str, value: object, expected: str) -> None:
    log = refusal({name: value})
    assert name in log
    assert str(value) in log
    assert expected in log


@pytest.mark.usefixtures("domain")
@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("budget", "many", "an integer, 1 to"),
        ("budget", 3.5, "an integer, 1 to"),
        ("system_prompt", 3, "a string"),
        ("use_sim_time", "always", "true or false"),
    ],
)
def test_a_parameter_of_another_type(name: str, value: object, expected: str) -> None:
    # Without a parameter file: where two sources disagree about the type, rcl keeps the first type it knows.
    log = refusal({name: value}, parameter_file=None)
    assert f"parameter {name} is " in log
    assert expected in log


@pytest.mark.usefixtures("domain")
def test_an_unknown_parameter() -> None:
    log = refusal({"bugdet": 256})
    assert "unknown parameter bugdet, expected one of: " in log
    assert "budget" in log


@pytest.mark.usefixtures("domain")
def test_an_unknown_argument() -> None:
    log = refusal({}, ("--", "--modle"))
    assert "--modle" in log
    assert "expected" in log


@pytest.mark.usefixtures("domain")
def test_a_missing_model_folder(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    log = refusal({"model": str(missing)})
    assert "parameter model is" in log
    assert str(missing) in log
    assert "an existing folder" in log


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def halve(name: str) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return cut


@pytest.mark.usefixtures("domain")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"])
@pytest.mark.parametrize("damage", [remove, halve])
def test_a_half_copied_model(tmp_path: Path, name: str, damage: Callable[[str], Callable[[Path], None]]) -> None:
    folder = shutil.copytree(MODEL, tmp_path / "model")
    damage(name)(folder)
    log = refusal({"model": str(folder)})
    assert name in log
    assert str(folder) in log


@pytest.mark.usefixtures("domain")
def test_an_empty_model_folder(tmp_path: Path) -> None:
    log = refusal({"model": str(tmp_path)})
    assert str(tmp_path) in log
    assert "config.json" in log
