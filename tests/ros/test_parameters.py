"""Parameters as ROS tools meet them: listed, described, set while the node runs; parameter files by rcl's rules."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path

import pictures
import pytest
import yaml
from client import Client
from conftest import ROOT, START_SECONDS, Start
from inf_mllm.msg import Reasoning
from node_process import NodeProcess
from rcl_interfaces.msg import Parameter, ParameterEvent, ParameterType, ParameterValue, SetParametersResult
from rcl_interfaces.srv import (
    DescribeParameters,
    GetParameters,
    GetParameterTypes,
    ListParameters,
    SetParameters,
    SetParametersAtomically,
)
from rclpy.parameter import parameter_dict_from_yaml_file
from rclpy.qos import qos_profile_parameter_events

MODEL = str(ROOT / "models" / "demo")
TYPES = {
    "bool": ParameterType.PARAMETER_BOOL,
    "integer": ParameterType.PARAMETER_INTEGER,
    "double": ParameterType.PARAMETER_DOUBLE,
    "string": ParameterType.PARAMETER_STRING,
    "bool_array": ParameterType.PARAMETER_BOOL_ARRAY,
    "double_array": ParameterType.PARAMETER_DOUBLE_ARRAY,
    "string_array": ParameterType.PARAMETER_STRING_ARRAY,
}
CODES = {bool: TYPES["bool"], int: TYPES["integer"], float: TYPES["double"], str: TYPES["string"]}
FIELDS = {code: f"{name}_value" for name, code in TYPES.items()}


@cache
def table() -> dict[str, dict]:
    """What the command line says of every parameter."""
    printed = subprocess.run(["inf_mllm", "parameters", "--json"], check=True, capture_output=True, text=True).stdout
    return {parameter["name"]: parameter for parameter in json.loads(printed)}


def message(name: str, value: object) -> Parameter:
    if isinstance(value, list):
        flags = any(isinstance(element, bool) for element in value)
        code = TYPES["bool_array" if flags else table()[name]["type"]]
    else:
        code = CODES[type(value)]
    return Parameter(name=name, value=ParameterValue(type=code, **{FIELDS[code]: value}))


def put(client: Client, **values: object) -> list[SetParametersResult]:
    request = SetParameters.Request(parameters=[message(name, value) for name, value in values.items()])
    return client.call(SetParameters, f"{client.name}/set_parameters", request).results


def get(client: Client, *names: str) -> list[object]:
    response = client.call(GetParameters, f"{client.name}/get_parameters", GetParameters.Request(names=names))
    values = [getattr(value, FIELDS[value.type]) if value.type else None for value in response.values]
    return [value if isinstance(value, (bool, int, float, str, type(None))) else list(value) for value in values]


def test_every_parameter_is_listed_and_described_as_the_command_line_does(start: Start) -> None:
    _, client = start(parameter_file=None)
    names = list(table())
    listed = client.call(ListParameters, f"{client.name}/list_parameters", ListParameters.Request()).result.names
    assert listed == names
    request = DescribeParameters.Request(names=names)
    described = client.call(DescribeParameters, f"{client.name}/describe_parameters", request).descriptors
    kinds = client.call(
        GetParameterTypes, f"{client.name}/get_parameter_types", GetParameterTypes.Request(names=names)
    ).types
    for descriptor, kind, row in zip(described, kinds, table().values(), strict=True):
        assert descriptor.name == row["name"]
        assert descriptor.type == kind == TYPES[row["type"]], row
        assert row["about"] in descriptor.description
        assert row["unit"] in descriptor.description
        assert descriptor.read_only == (row["settable"] == "start"), row
        ranges = [(r.from_value, r.to_value) for r in (*descriptor.integer_range, *descriptor.floating_point_range)]
        assert ranges == ([tuple(row["range"])] if row["range"] else []), row
        assert bool(descriptor.integer_range) == (row["type"] == "integer"), row
        for choice in row["choices"] or []:
            assert choice in descriptor.additional_constraints, row
    values = dict(zip(names, get(client, *names), strict=True))
    defaults = {name: row["default"] for name, row in table().items()}
    given = {"model": MODEL, "stats_period": values["stats_period"]}
    assert values == {**defaults, **given}


def test_a_name_that_no_parameter_has_is_not_set_for_every_service(start: Start) -> None:
    _, client = start()
    assert get(client, "budget", "bugdet") == [512, None]
    request = DescribeParameters.Request(names=["bugdet"])
    described = client.call(DescribeParameters, f"{client.name}/describe_parameters", request).descriptors
    assert [(d.name, d.type) for d in described] == [("bugdet", ParameterType.PARAMETER_NOT_SET)]


def test_a_dump_of_the_parameters_can_be_loaded(start: Start, tmp_path: Path) -> None:
    _, client = start({"budget": 300, "temperature": 0.5})
    names = list(table())
    dump = dict(zip(names, get(client, *names), strict=True))
    # As `ros2 param load` reads it, to which an empty list is one of booleans.
    file = parameter_file(tmp_path, {client.name: {"ros__parameters": dump}})
    parameters = list(parameter_dict_from_yaml_file(str(file)).values())
    assert len(parameters) == len(names)
    request = SetParameters.Request(parameters=parameters)
    results = client.call(SetParameters, f"{client.name}/set_parameters", request).results
    assert [result.reason for result in results if not result.successful] == []
    atomically = SetParametersAtomically.Request(parameters=parameters)
    result = client.call(SetParametersAtomically, f"{client.name}/set_parameters_atomically", atomically).result
    assert result.successful, result.reason
    assert get(client, *names) == list(dump.values())


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        (
            "budget",
            64,
            "parameter budget is 512 and can be set at the start, and while the node is unconfigured: the node is active",
        ),
        (
            "policy",
            "window",
            'parameter policy is "inf_mllm" and can be set at the start, and while the node is unconfigured',
        ),
        (
            "image_depth",
            9,
            "parameter image_depth is 5 and can be set at the start only: give it there and restart the node",
        ),
        ("budget", 0, "parameter budget is 0, expected an integer, 1 to 16777216"),
        ("temperature", -0.5, "parameter temperature is -0.5, expected a number, 0.0 to 100.0"),
        ("frame_rate", 2000.0, "parameter frame_rate is 2000.0, expected a number, 0.0 to 1000.0"),
        ("min_change", "all", 'parameter min_change is "all", expected a number, 0.0 to 1.0'),
        ("max_new_tokens", 1.5, "parameter max_new_tokens is 1.5, expected an integer, 1 to "),
        ("system_prompt", 3, "parameter system_prompt is 3, expected a string"),
        ("camera_rates", [True], "parameter camera_rates is of type boolean array, expected a list of numbers"),
        ("temprature", 0.5, "unknown parameter temprature (is temperature meant?), expected one of: model, "),
    ],
)
def test_what_cannot_be_set_is_refused_with_the_reason(start: Start, name: str, value: object, reason: str) -> None:
    _, client = start()
    (result,) = put(client, **{name: value})
    assert not result.successful
    assert result.reason.startswith(reason)
    if name in table():
        assert get(client, name) == [table()[name]["default"]]


def test_what_is_set_atomically_is_set_all_or_not_at_all(start: Start) -> None:
    _, client = start()

    def put_all(*twice: tuple[str, object], **values: object) -> SetParametersResult:
        parameters = [message(name, value) for name, value in [*twice, *values.items()]]
        request = SetParametersAtomically.Request(parameters=parameters)
        return client.call(SetParametersAtomically, f"{client.name}/set_parameters_atomically", request).result

    result = put_all(temperature=0.5, frame_rate=-1.0)
    assert not result.successful
    assert result.reason == "parameter frame_rate is -1.0, expected a number, 0.0 to 1000.0"
    assert get(client, "temperature", "frame_rate") == [0.0, 0.0]
    assert put_all(temperature=0.5, frame_rate=2.0).successful
    assert get(client, "temperature", "frame_rate") == [0.5, 2.0]
    # Parameters that have to fit each other are judged together; of two values of one the later one holds.
    result = put_all(max_new_tokens=2000)
    assert (result.successful, result.reason) == (
        False,
        "parameter max_new_tokens is 2000, expected at most 1024 (max_new_tokens_limit)",
    )
    assert put_all(max_new_tokens=2000, max_new_tokens_limit=4000).successful
    assert put_all(("max_new_tokens", 5), max_new_tokens=2000).successful
    assert get(client, "max_new_tokens", "max_new_tokens_limit") == [2000, 4000]


def test_the_length_of_answers_is_set_for_the_next_instruction(start: Start) -> None:
    _, client = start()
    client.show(pictures.raw(sec=1))
    assert client.ask("What is in view?").output_tokens > 2
    (result,) = put(client, max_new_tokens=2)
    assert result.successful, result.reason
    answer = client.ask("What is in view?")
    assert (answer.output_tokens, answer.finish_reason) == (2, Reasoning.FINISH_LENGTH)
    assert get(client, "max_new_tokens") == [2]


def test_the_temperature_is_set_for_the_next_instruction_and_stays_after_a_reset(start: Start) -> None:
    _, client = start()
    client.show(pictures.raw(sec=1))
    greedy = client.ask("What is in view?", ephemeral=True).text
    assert client.ask("What is in view?", ephemeral=True).text == greedy
    # At this temperature every token of the vocabulary is nearly as probable as any other.
    assert put(client, temperature=100.0)[0].successful
    assert client.ask("What is in view?", ephemeral=True).text != greedy
    assert client.reset().success
    client.show(pictures.raw(sec=1))
    assert client.ask("What is in view?", ephemeral=True).text != greedy
    # ROS tools send a whole number as an integer.
    assert put(client, temperature=0)[0].successful
    assert get(client, "temperature") == [0.0]
    assert client.ask("What is in view?", ephemeral=True).text == greedy


def test_rate_and_change_of_frames_are_set_for_the_next_frame(start: Start) -> None:
    _, client = start()
    client.show(pictures.raw(sec=1))
    assert put(client, min_change=1.0)[0].successful

    def publish(sec: int, nanosec: int = 0) -> None:
        received = client.stats[-1].frames_received
        client.publish(pictures.raw(sec=sec, nanosec=nanosec))
        client.wait(lambda: client.stats[-1].frames_received > received, "the frame")

    publish(2)
    client.wait(lambda: client.stats[-1].frames_skipped_unchanged == 1, "the unchanged frame")
    assert [result.successful for result in put(client, min_change=0.0, frame_rate=1.0)] == [True, True]
    client.show(pictures.raw(sec=3))
    publish(3, 500_000_000)
    client.wait(lambda: client.stats[-1].frames_skipped_rate == 1, "the frame that came too soon")
    # Not from when the old rate would have let the next one through.
    assert put(client, frame_rate=20.0)[0].successful
    client.show(pictures.raw(sec=3, nanosec=600_000_000))
    assert client.fresh_stats().frames_used == 3


def test_a_change_is_told_to_the_tools_that_follow_parameters(start: Start) -> None:
    _, client = start()
    events: list[ParameterEvent] = []
    client.subscribe(ParameterEvent, "/parameter_events", events.append, qos_profile_parameter_events)
    # The same value is no change.
    put(client, temperature=0.0, frame_rate=2.5)
    client.wait(lambda: any(event.node == client.name for event in events), "the event")
    changed = [p for event in events if event.node == client.name for p in event.changed_parameters]
    assert [(p.name, p.value.double_value) for p in changed] == [("frame_rate", 2.5)]


def parameter_file(folder: Path, content: object) -> Path:
    file = folder / "parameters.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def values(**given: object) -> dict[str, object]:
    return {"ros__parameters": given}


@pytest.mark.parametrize(
    "content",
    [
        {"/**": values(budget=300)},
        {"/*/inf_mllm": values(budget=300)},
        {"/**/inf_mllm": values(budget=300)},
        {"/robot1/*": values(budget=300)},
        {"/robot1/**": values(budget=300)},
        {"/robot1/inf_mllm": values(budget=300)},
        {"robot1/inf_mllm": values(budget=300)},
        {"robot1": {"inf_mllm": values(budget=300)}},
        {"/robot1": {"inf_mllm": values(budget=300)}},
        {"robot1": {"other": values(budget=64), "inf_mllm": values(budget=300)}},
        {"/**": values(budget=64), "/robot1/inf_mllm": values(budget=300)},
        {"/robot1/inf_mllm": values(budget=64), "/**": values(budget=300)},
    ],
    ids=str,
)
def test_names_in_a_parameter_file_stand_for_the_nodes_that_rcl_lets_them_stand_for(
    start: Start, tmp_path: Path, content: object
) -> None:
    process, client = start(
        {},
        ("-r", "__ns:=/robot1"),
        parameter_file(tmp_path, content),
        name="/robot1/inf_mllm",
        image="/robot1/image",
        instruction="/robot1/instruction",
        instruction_text="/robot1/instruction_text",
    )
    assert get(client, "budget") == [300]
    assert client.fresh_stats().budget == 300
    assert "parameter file" not in process.log


@pytest.mark.parametrize("nodes", ["/robot1/inf_mllm", "/*/inf_mllm", "/other", "/robot1/*"])
def test_a_parameter_file_for_other_nodes_is_said_to_be_that(start: Start, tmp_path: Path, nodes: str) -> None:
    file = parameter_file(tmp_path, {nodes: values(budget=300)})
    process, client = start(parameter_file=file)
    assert get(client, "budget") == [512]
    assert str(file) in process.log
    assert nodes in process.log
    assert "whose name is /inf_mllm" in process.log


@pytest.mark.parametrize("text", ["", "# nothing is set here\n"], ids=["empty", "comment"])
def test_a_parameter_file_without_any_node_is_said_to_be_empty(start: Start, tmp_path: Path, text: str) -> None:
    file = tmp_path / "parameters.yaml"
    file.write_text(text)
    process, client = start(parameter_file=file)
    assert get(client, "budget") == [512]
    assert f"parameter file {file} has nothing for this node, whose name is /inf_mllm; it is empty" in process.log


def test_the_root_namespace_is_one_level_for_a_wildcard(start: Start, tmp_path: Path) -> None:
    _, client = start(parameter_file=parameter_file(tmp_path, {"/*": values(budget=300)}))
    assert get(client, "budget") == [300]


def test_what_is_given_later_wins_and_the_command_line_wins_after_a_file(start: Start, tmp_path: Path) -> None:
    first = parameter_file(tmp_path, {"/**": values(budget=100, sinks=3), "inf_mllm": values(budget=200, sinks=2)})
    second = tmp_path / "second.yaml"
    second.write_text(yaml.safe_dump({"/**": values(sinks=7)}))
    _, client = start({"budget": 300}, ("--params-file", str(second)), first)
    assert get(client, "budget", "sinks") == [300, 7]


def test_under_a_wildcard_the_parameters_of_others_are_warned_of_and_those_of_ros_ignored(
    start: Start, tmp_path: Path
) -> None:
    content = {
        "/**": values(
            robot_base_frame="base_link",
            bugdet=7,
            budget=300,
            use_sim_time=False,
            start_type_description_service=False,
            qos_overrides={"/clock": {"subscription": {"depth": 1}}},
        ),
        "/inf_mllm": values(start_type_description_service=False, qos_overrides={"/tf": {"publisher": {"depth": 1}}}),
    }
    file = parameter_file(tmp_path, content)
    process, client = start({}, ("-p", "start_type_description_service:=false"), file)
    assert get(client, "budget") == [300]
    said = [line for line in process.lines if "is not a parameter of this node" in line]
    assert len(said) == 2, said
    assert f"ignored: robot_base_frame, under /** in {file}, is not a parameter of this node" in said[0]
    assert said[1].endswith("(is budget meant?)")
    assert not any("qos_overrides" in line or "type_description" in line for line in process.lines)


@pytest.mark.usefixtures("domain")
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"inf_mllm": values(robot_base_frame="base_link")}, "under inf_mllm: unknown parameter robot_base_frame"),
        ({"/**": values(budget=0)}, "under /**: parameter budget is 0, expected an integer, 1 to"),
        ({"/inf_mllm": values(budget=[1, 2])}, "parameter budget is of type integer array, expected an integer, 1 to"),
    ],
)
def test_what_a_parameter_file_says_wrong_of_this_node_ends_it_and_names_the_file(
    tmp_path: Path, content: object, expected: str
) -> None:
    file = parameter_file(tmp_path, content)
    process = NodeProcess({"model": MODEL}, parameter_file=file)
    assert process.wait_end(START_SECONDS) == 1, process.log
    assert f"{file}, " in process.log
    assert expected in process.log


def test_a_parameter_that_the_policy_does_not_read_is_warned_of(start: Start) -> None:
    # The parameter file gives all of them, with their defaults: that is no reason to warn.
    process, _ = start({"policy": "window", "bias": 0.5, "slack": 40})
    said = [line for line in process.lines if "does not read" in line]
    assert len(said) == 1, said
    assert "parameter bias is 0.5, but policy window does not read it (inf_mllm, inf_mllm_plus would)" in said[0]


@pytest.mark.usefixtures("domain")
@pytest.mark.parametrize("prompt", ["", "You are a mobile robot. Answer briefly."])
def test_the_least_budget_has_room_for_a_frame_and_a_question(start: Start, prompt: str) -> None:
    process = NodeProcess({"model": MODEL, "budget": 16, "system_prompt": prompt})
    assert process.wait_end(START_SECONDS) == 1, process.log
    assert "budget is 16, expected at least " in process.log
    least = int(process.log.partition("budget is 16, expected at least ")[2].split()[0])
    _, client = start({"budget": least, "system_prompt": prompt, "max_new_tokens": 4})
    for sec in range(1, 4):
        client.show(pictures.raw(sec=sec))
        answer = client.ask("What is in view?")
        assert answer.finish_reason in (Reasoning.FINISH_STOP, Reasoning.FINISH_LENGTH), answer.error
    too_small = NodeProcess({"model": MODEL, "budget": least - 1, "system_prompt": prompt})
    assert too_small.wait_end(START_SECONDS) == 1, too_small.log
    assert f"budget is {least - 1}, expected at least {least} " in too_small.log
