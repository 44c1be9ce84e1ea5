"""Starts the node: ros2 launch inf_mllm inf_mllm.launch.py image:=/camera/image image_transport:=compressed."""

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

SHARE = FindPackageShare("inf_mllm")

OVERRIDES = {
    "model": "folder of the checkpoint",
    "device": "where the model runs: auto, cpu, cuda",
    "image_transport": "raw or compressed",
    "use_sim_time": "true: take the time from /clock",
}
"""Parameters that are arguments too; an empty one leaves the value of params_file."""


def node(context: LaunchContext) -> list[Node]:
    given = {name: LaunchConfiguration(name).perform(context) for name in OVERRIDES}
    overrides = {name: value for name, value in given.items() if value}
    if "use_sim_time" in overrides:
        overrides["use_sim_time"] = overrides["use_sim_time"].lower() == "true"
    return [
        Node(
            package="inf_mllm",
            executable="inf_mllm_node",
            name="inf_mllm",
            namespace=LaunchConfiguration("namespace"),
            parameters=[LaunchConfiguration("params_file"), overrides],
            remappings=[("image", LaunchConfiguration("image"))],
            additional_env={"FASTRTPS_DEFAULT_PROFILES_FILE": PathJoinSubstitution([SHARE, "config", "fastdds.xml"])},
            output="screen",
        )
    ]


def generate_launch_description() -> LaunchDescription:
    params_file = PathJoinSubstitution([SHARE, "config", "inf_mllm.yaml"])
    return LaunchDescription(
        [
            DeclareLaunchArgument("namespace", default_value="", description="namespace of the node"),
            DeclareLaunchArgument("params_file", default_value=params_file, description="parameters of the node"),
            DeclareLaunchArgument("image", default_value="image", description="image topic, without /compressed"),
            *(DeclareLaunchArgument(name, default_value="", description=text) for name, text in OVERRIDES.items()),
            OpaqueFunction(function=node),
        ]
    )
