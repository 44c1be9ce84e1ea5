"""Starts the node: ros2 launch inf_mllm inf_mllm.launch.py image:=/camera/image image_transport:=compressed.

The launch ends with an error if the node ends with one, unless respawn is true.
"""

from pathlib import Path

import yaml
from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, EmitEvent, OpaqueFunction, RegisterEventHandler
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.events.process import ProcessExited
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch.utilities.type_utils import coerce_to_type
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

SHARE = FindPackageShare("inf_mllm")

OVERRIDES = {
    "model": (str, "folder of the checkpoint, a .gguf file, or a name on the hub (ORG/NAME)"),
    "device": (str, "where the model runs: auto, cpu, cuda"),
    "policy": (str, "what stays in the cache, such as inf_mllm, streaming_llm, window"),
    "budget": (int, "slots of the cache, tokens"),
    "image_transport": (str, "raw or compressed"),
    "cameras": (list, "labels of several cameras, as in [front, rear]"),
    "camera_topics": (list, "their image topics, in the same order"),
    "camera_transports": (list, "raw or compressed, of each"),
    "autostart": (bool, "false: wait unconfigured for a lifecycle manager, or ros2 lifecycle set"),
    "use_sim_time": (bool, "true: take the time from /clock"),
}
"""Parameters that are arguments too, with their types; an empty one leaves the value of params_file."""

PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
"""Where Fast DDS looks for its profile: until version 2 (Jazzy), and since version 3 (Kilted)."""

RESPAWN_DELAY = 2.0
"""Seconds."""


def profile(context: LaunchContext) -> dict[str, str]:
    """The transport that camera images need, unless the user has chosen a profile."""
    if any(name in context.environment for name in PROFILE_VARIABLES):
        return {}
    path = PathJoinSubstitution([SHARE, "config", "fastdds.xml"]).perform(context)
    return dict.fromkeys(PROFILE_VARIABLES, path)


def ended(event: ProcessExited, context: LaunchContext) -> EmitEvent | None:
    """Ends the launch when the node ends by itself: with an error if it had one."""
    if context.is_shutdown:
        return None
    if event.returncode != 0:
        raise RuntimeError(f"the node ended with exit code {event.returncode}; the end of its log says why")
    return EmitEvent(event=Shutdown(reason="the node was ended"))


def strings(text: str) -> list[str]:
    """The strings of a list that is written as YAML. Launch cannot hand an empty one over."""
    values = yaml.safe_load(text)
    if values and isinstance(values, list) and all(isinstance(value, str) for value in values):
        return values
    raise ValueError("not a list of strings")


def argument(context: LaunchContext, name: str, kind: type) -> str | int | bool | list[str]:
    """The value of an argument, of which the error names it."""
    text = LaunchConfiguration(name).perform(context)
    try:
        return strings(text) if kind is list else coerce_to_type(text, kind)
    except (ValueError, yaml.YAMLError):
        expected = {int: "an integer", bool: "true or false", str: "a string", list: "a list of strings, not empty"}[
            kind
        ]
        raise ValueError(f"{name} is {text!r}, expected {expected}") from None


def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    given = {name: LaunchConfiguration(name).perform(context) for name in ("params_file", "log_level")}
    if not Path(given["params_file"]).is_file():
        raise FileNotFoundError(f"params_file is {given['params_file']!r}, expected an existing file")
    respawn = argument(context, "respawn", bool)
    overrides = {
        # Lists are lists of strings as they are.
        name: value if isinstance(value, list) else ParameterValue(value, value_type=kind)
        for name, (kind, _) in OVERRIDES.items()
        if LaunchConfiguration(name).perform(context)
        for value in [argument(context, name, kind)]
    }
    node = Node(
        package="inf_mllm",
        executable="inf_mllm_node",
        name=LaunchConfiguration("name"),
        namespace=LaunchConfiguration("namespace"),
        parameters=[given["params_file"], overrides],
        remappings=[("image", LaunchConfiguration("image"))],
        ros_arguments=["--log-level", given["log_level"]] if given["log_level"] else [],
        additional_env=profile(context),
        output="screen",
        respawn=respawn,
        respawn_delay=RESPAWN_DELAY,
    )
    return [node] if respawn else [RegisterEventHandler(OnProcessExit(target_action=node, on_exit=ended)), node]


def generate_launch_description() -> LaunchDescription:
    params_file = PathJoinSubstitution([SHARE, "config", "inf_mllm.yaml"])
    arguments = [
        ("name", "inf_mllm", "name of the node"),
        ("namespace", "", "namespace of the node"),
        ("params_file", params_file, "parameters of the node"),
        ("image", "image", "image topic, without /compressed"),
        *((name, "", text) for name, (_, text) in OVERRIDES.items()),
        ("log_level", "", "debug, info, warn, error or fatal, of everything; or NAME:=LEVEL"),
        ("respawn", "false", f"true: start the node again {RESPAWN_DELAY:g} s after it has ended"),
    ]
    return LaunchDescription(
        [
            *(DeclareLaunchArgument(name, default_value=value, description=text) for name, value, text in arguments),
            OpaqueFunction(function=start),
        ]
    )
