"""What is wrong at the start ends the node at once, with the name, the value and what was expected on stderr."""

import json
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import ROOT, START_SECONDS, Start
from node_process import EXECUTABLE, PARAMETER_FILE, NodeProcess
from rcl_interfaces.srv import GetParameters

MODEL = ROOT / "models" / "demo"


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


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_says_how_the_node_is_started(option: str) -> None:
    done = subprocess.run([EXECUTABLE, option], capture_output=True, text=True, timeout=START_SECONDS, check=True)
    for said in ("ros2 run inf_mllm inf_mllm_node --ros-args", "ros2 launch inf_mllm", "inf_mllm parameters"):
        assert said in done.stdout
    assert done.stderr == ""


def test_the_version_is_that_of_the_package() -> None:
    done = subprocess.run([EXECUTABLE, "--version"], capture_output=True, text=True, timeout=START_SECONDS, check=True)
    version = ElementTree.parse(ROOT / "package.xml").findtext("version")
    assert done.stdout == f"inf_mllm_node {version}\n"


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
        ("bias", -0.5, "a number, 0.0 to"),
        ("max_new_tokens", 0, "an integer, 1 to"),
        ("temperature", -1.5, "a number, 0.0 to"),
        ("queue_size", 0, "an integer, 1 to"),
        ("stats_period", 0.0, "a number, 0.01 to"),
        ("frame_rate", -1.5, "a number, 0.0 to"),
        ("min_change", 1.5, "a number, 0.0 to 1.0"),
        ("time_jump_threshold", 0.05, "a number, 0.1 to"),
        (
            "policy",
            "lru",
            "one of: full, window, streaming_llm, h2o, tova, snapkv, inf_mllm, inf_mllm_plus, last_frames",
        ),
        ("image_transport", "theora", "one of: raw, compressed"),
        ("device", "tpu", "one of: auto, cpu, cuda"),
        ("bias_form", "curve", "one of: slope, range"),
        ("scope", "head", "one of: auto, kv_head, layer, model"),
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
    # The parameter file gives it a value of the right type, which does not hold any longer.
    for parameter_file in (PARAMETER_FILE, None):
        log = refusal({name: value}, parameter_file=parameter_file)
        assert f"parameter {name} is " in log
        assert expected in log


def test_the_last_of_two_values_holds_whatever_their_types(start: Start) -> None:
    # A whole number for a parameter that the file gives with a fraction, and one for a node of another name.
    _, client = start(
        {"bias": 1}, arguments=("-p", "stats_period:=1", "-p", "stats_period:=0.05", "-p", "other:budget:=64")
    )
    names = ["bias", "stats_period", "budget"]
    request = GetParameters.Request(names=names)
    bias, period, budget = client.call(GetParameters, "/inf_mllm/get_parameters", request).values
    assert (bias.double_value, period.double_value, budget.integer_value) == (1.0, 0.05, 512)


@pytest.mark.usefixtures("domain")
def test_an_unknown_parameter() -> None:
    log = refusal({"bugdet": 256})
    assert "unknown parameter bugdet (is budget meant?), expected one of: " in log
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


def swap_shape(folder: Path) -> str:
    """Swaps the two sizes of a matrix in the header of the weights; the name of the tensor."""
    file = folder / "model.safetensors"
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    name, entry = next((n, e) for n, e in header.items() if len(set(e.get("shape", []))) == 2)
    entry["shape"].reverse()
    changed = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    assert len(changed) == length
    file.write_bytes(content[:8] + changed + content[8 + length :])
    return name


@pytest.mark.usefixtures("domain")
def test_weights_of_another_shape(tmp_path: Path) -> None:
    folder = shutil.copytree(MODEL, tmp_path / "model")
    name = swap_shape(folder)
    log = refusal({"model": str(folder)})
    assert str(folder) in log
    assert name in log
    assert "shape" in log


@pytest.mark.usefixtures("domain")
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda tokenizer: tokenizer["added_tokens"].pop(4), "<image>"),
        (lambda tokenizer: tokenizer["added_tokens"].pop(1), "<end_of_utterance>"),
        (
            lambda tokenizer: tokenizer["added_tokens"][4].update(id=3, content="<image>"),
            "the added token <image> has the id 3",
        ),
        (lambda tokenizer: tokenizer["model"]["vocab"].update(foreign=49_279), "at most vocab_size (696)"),
    ],
    ids=["no_image_token", "no_end_token", "another_image_token", "larger_vocabulary"],
)
def test_the_tokenizer_of_another_model(tmp_path: Path, change: Callable[[dict], object], expected: str) -> None:
    folder = shutil.copytree(MODEL, tmp_path / "model")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    change(tokenizer)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    log = refusal({"model": str(folder)})
    assert str(folder / "tokenizer.json") in log
    assert expected in log


@pytest.mark.usefixtures("domain")
@pytest.mark.parametrize("budget", [25, 30])
def test_a_budget_without_room_for_one_frame(budget: int) -> None:
    log = refusal({"budget": budget})
    assert f"budget is {budget}, expected at least " in log
    assert "one frame" in log
