"""What is shipped beside the node: parameters with their defaults, and launch files."""

import py_compile
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, Start
from node_process import PARAMETER_FILE
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import DescribeParameters, GetParameters, ListParameters, SetParameters

TYPES = {
    bool: ParameterType.PARAMETER_BOOL,
    int: ParameterType.PARAMETER_INTEGER,
    float: ParameterType.PARAMETER_DOUBLE,
    str: ParameterType.PARAMETER_STRING,
}
FIELDS = {bool: "bool_value", int: "integer_value", float: "double_value", str: "string_value"}
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


@pytest.mark.parametrize("file", sorted((ROOT / "launch").glob("*.py")), ids=lambda file: file.name)
def test_a_launch_file_compiles(file: Path, tmp_path: Path) -> None:
    py_compile.compile(str(file), cfile=str(tmp_path / "compiled"), doraise=True)


def test_launch_files_and_the_transport_profile_are_installed() -> None:
    share = ROOT / "install" / "share" / "inf_mllm"
    for name in ("launch/inf_mllm.launch.py", "launch/demo.launch.py", "config/inf_mllm.yaml", "config/fastdds.xml"):
        assert (share / name).read_bytes() == (ROOT / name).read_bytes(), name
