"""Plays the demo bag into the node, which takes its time from the bag.

Ask with: ros2 topic pub --once /instruction_text std_msgs/msg/String "{data: What is in view?}".
"""

from launch import LaunchDescription
from launch.actions import ExecuteProcess, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import PathJoinSubstitution
from launch_ros.substitutions import FindPackageShare

SHARE = FindPackageShare("inf_mllm")


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(PathJoinSubstitution([SHARE, "launch", "inf_mllm.launch.py"])),
                launch_arguments={
                    "image": "/camera/image",
                    "image_transport": "compressed",
                    "use_sim_time": "true",
                }.items(),
            ),
            ExecuteProcess(
                cmd=["ros2", "bag", "play", PathJoinSubstitution([SHARE, "bags", "demo"]), "--clock"],
                output="screen",
            ),
        ]
    )
