"""What is shipped beside the node: parameters with their defaults, and launch files."""

import py_compile
import re
from itertools import takewhile
from pathlib import Path

import pictures
import pytest
import yaml
from conftest import ROOT, START_SECONDS, Start
from node_process import PARAMETER_FILE, NodeProcess
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import DescribeParameters, GetParameters, ListParameters, SetParameters

TYPES = {
    bool: ParameterType.PARAMETER_BOOL,
    int: ParameterType.PARAMETER_INTEGER,
    float: ParameterType.PARAMETER_DOUBLE,
    str: ParameterType.PARAMETER_STRING,
}
LISTS = {
    ParameterType.PARAMETER_DOUBLE_ARRAY: "double_array_value",
    ParameterType.PARAMETER_STRING_ARRAY: "string_array_value",
}
FIELDS = {bool: "bool_value", int: "integer_value", float: "double_value", str: "string_value"}
TOPICS = ROOT / "docs" / "topics.md"
MESSAGE = ROOT / "msg" / "CacheStats.msg"
DOCUMENT = ROOT / "docs" / "parameters.md"
SET_BY_FIXTURE = {"model", "stats_period"}


def in_file() -> dict[str, object]:
    content = yaml.safe_load(PARAMETER_FILE.read_text())
    return content["/**"]["ros__parameters"]


@pytest.mark.parametrize("parameter_file", [PARAMETER_FILE, None], ids=["with_file", "without_file"])
def test_the_parameter_file_holds_every_parameter_with_its_default(start: Start, parameter_file: Path | None) -> None:
    _, client = start(parameter_file=parameter_file)
    listed = client.call(ListParameters, "/inf_mllm/list_parameters", ListParameters.Request()).result.names
    expected = in_file()
    assert sorted(listed) == sorted(expected)
    names = sorted(set(expected) - SET_BY_FIXTURE)
    values = client.call(GetParameters, "/inf_mllm/get_parameters", GetParameters.Request(names=names)).values
    for name, value in zip(names, values, strict=True):
        kind = type(expected[name])
        if kind is list:
            assert list(getattr(value, LISTS[value.type])) == expected[name], name
            continue
        assert value.type == TYPES[kind], name
        assert getattr(value, FIELDS[kind]) == expected[name], name
    request = DescribeParameters.Request(names=names)
    described = client.call(DescribeParameters, "/inf_mllm/describe_parameters", request).descriptors
    assert [descriptor.name for descriptor in described] == names
    assert all(descriptor.description for descriptor in described)


def test_a_parameter_of_a_running_node_cannot_be_set(start: Start) -> None:
    _, client = start()
    value = ParameterValue(type=ParameterType.PARAMETER_INTEGER, integer_value=64)
    request = SetParameters.Request(parameters=[Parameter(name="budget", value=value)])
    result = client.call(SetParameters, "/inf_mllm/set_parameters", request).results[0]
    assert not result.successful
    assert result.reason
    assert client.fresh_stats().budget == 512


def test_the_system_prompt_of_a_running_node_changes_with_the_next_reset(start: Start) -> None:
    _, client = start()
    before = client.fresh_stats().prefix
    value = ParameterValue(type=ParameterType.PARAMETER_STRING, string_value="You are a mobile robot. " * 3)
    request = SetParameters.Request(parameters=[Parameter(name="system_prompt", value=value)])
    assert client.call(SetParameters, "/inf_mllm/set_parameters", request).results[0].successful
    assert client.fresh_stats().prefix == before
    assert client.reset().success
    stats = client.fresh_stats()
    assert stats.used == stats.prefix > before


def test_a_system_prompt_that_leaves_no_room_is_refused_when_it_is_set_and_nothing_is_lost(start: Start) -> None:
    _, client = start()
    client.show(pictures.raw())
    before = client.fresh_stats().prefix
    value = ParameterValue(type=ParameterType.PARAMETER_STRING, string_value="Look at the room. " * 400)
    request = SetParameters.Request(parameters=[Parameter(name="system_prompt", value=value)])
    result = client.call(SetParameters, "/inf_mllm/set_parameters", request).results[0]
    assert not result.successful
    assert "budget is 512" in result.reason
    assert "one frame" in result.reason
    assert client.ask("What is in view?").frames_seen == 1
    asked = GetParameters.Request(names=["system_prompt"])
    shown = client.call(GetParameters, "/inf_mllm/get_parameters", asked).values[0].string_value
    assert shown == in_file()["system_prompt"]
    assert client.reset().success
    assert client.fresh_stats().prefix == before


def documented() -> dict[str, tuple[object, str]]:
    """Default and range of every row of docs/parameters.md."""
    rows = [line.split(" | ") for line in DOCUMENT.read_text().splitlines() if line.startswith("| `")]
    return {row[0].strip("|` "): (yaml.safe_load(row[1].strip("`")), row[2]) for row in rows}


def test_the_document_holds_every_parameter_with_its_default() -> None:
    assert {name: default for name, (default, _) in documented().items()} == in_file()


@pytest.mark.usefixtures("domain")
@pytest.mark.parametrize("name", list(documented()))
def test_the_document_gives_the_range_that_the_node_checks(name: str) -> None:
    default, expected = documented()[name]
    wrong = 3 if isinstance(default, str) else "neither"
    process = NodeProcess({name: wrong}, parameter_file=None)
    assert process.wait_end(START_SECONDS) == 1, process.log
    assert f"parameter {name} is " in process.log
    assert process.log.rstrip().endswith(f"expected {expected}"), process.log


def rows(document: Path, heading: str) -> list[list[str]]:
    """Cells of the table whose first column has this heading."""
    lines = document.read_text().splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    return [line.strip("| ").split(" | ") for line in takewhile(lambda line: line.startswith("|"), lines[begin + 2 :])]


@pytest.mark.parametrize("transport", ["raw", "compressed"])
def test_the_document_holds_every_topic_and_service_with_its_type(start: Start, transport: str) -> None:
    _, client = start({"image_transport": transport}, compressed=transport == "compressed")
    names = {row[0].strip("`").replace("~", client.name): row[1] for row in rows(TOPICS, "name")}
    documented = {f"/{name.lstrip('/')}": kind for name, kind in names.items()}
    del documented["/image" if transport == "compressed" else "/image/compressed"]

    def found() -> dict[str, str]:
        interface = client.interface().items()
        return {name: re.sub("/(msg|srv|action)/", "/", kind) for name, kind in interface}

    # The graph becomes known bit by bit.
    client.wait(lambda: len(found()) >= len(documented), "the node's topics and services")
    assert found() == documented


def test_the_document_explains_every_reason_for_a_refusal() -> None:
    comment = next(line for line in MESSAGE.read_text().splitlines() if "reject_reasons" in line)
    reasons = comment.partition(": ")[2].split(", ")
    assert [row[0].strip("`") for row in rows(TOPICS, "reason")] == reasons


@pytest.mark.parametrize("file", sorted((ROOT / "launch").glob("*.py")), ids=lambda file: file.name)
def test_a_launch_file_compiles(file: Path, tmp_path: Path) -> None:
    py_compile.compile(str(file), cfile=str(tmp_path / "compiled"), doraise=True)


def test_launch_files_and_the_transport_profile_are_installed() -> None:
    share = ROOT / "install" / "share" / "inf_mllm"
    for name in ("launch/inf_mllm.launch.py", "launch/demo.launch.py", "config/inf_mllm.yaml", "config/fastdds.xml"):
        assert (share / name).read_bytes() == (ROOT / name).read_bytes(), name
