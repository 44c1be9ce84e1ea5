"""What is shipped beside the node: parameters with their defaults, and launch files."""

import py_compile
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, Start
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import DescribeParameters, GetParameters, ListParameters, SetParameters

TYPES = {
    bool: ParameterType.PARAMETER_BOOL,
    int: ParameterType.PARAMETER_INTEGER,
    float: ParameterType.PARAMETER_DOUBLE,
    str: ParameterType.PARAMETER_STRING,
}
FIELDS = {bool: "bool_value", int: "integer_value", float: "double_value", str: "string_value"}
# Set by the fixture for the test's own sake.
SET_BY_TESTS = {"model", "stats_period"}


def defaults() -> dict[str, object]:
    content = yaml.safe_load((ROOT / "config" / "inf_mllm.yaml").read_text())
    return content["/**"]["ros__parameters"]


def test_the_file_of_parameters_holds_every_parameter_with_its_value(start: Start) -> None:
    _, client = start()
    listed = client.call(ListParameters, "/inf_mllm/list_parameters", ListParameters.Request()).result.names
    expected = defaults()
    assert sorted(listed) == sorted(expected)
    names = sorted(set(expected) - SET_BY_TESTS)
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


def test_without_the_file_the_defaults_are_the_same() -> None:
    """The defaults of the program are in the source; the file repeats them for users."""
    source = (ROOT / "src" / "node" / "params.rs").read_text()
    block = source[source.index("impl Default for Parameters") :]
    block = block[: block.index("/// One parameter")]
    for name, value in defaults().items():
        literal = {True: "true", False: "false"}[value] if isinstance(value, bool) else value
        literal = f'"{literal}".into()' if isinstance(value, str) else literal
        assert f"{name}: {literal}," in block, name


@pytest.mark.parametrize("file", sorted((ROOT / "launch").glob("*.py")), ids=lambda file: file.name)
def test_a_launch_file_compiles(file: Path, tmp_path: Path) -> None:
    py_compile.compile(str(file), cfile=str(tmp_path / "compiled"), doraise=True)


def test_launch_files_and_the_transport_profile_are_installed() -> None:
    share = ROOT / "install" / "share" / "inf_mllm"
    for name in ("launch/inf_mllm.launch.py", "launch/demo.launch.py", "config/inf_mllm.yaml", "config/fastdds.xml"):
        assert (share / name).read_bytes() == (ROOT / name).read_bytes(), name
