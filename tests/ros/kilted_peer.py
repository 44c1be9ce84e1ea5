"""A camera and a user of ROS 2 Kilted, as a process of its own: what it is told comes as JSON lines, and so does what it answers.

Runs with the Python of .kilted, which has only the standard message packages. A request is a list, the name of a method below and
its arguments; the answer is what the method returns. The first line comes when the node has been found. What fails ends it.
"""

import json
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.srv import GetParameters, SetParameters
from rclpy.node import Node
from rclpy.parameter import Parameter, parameter_value_to_python
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

TIMEOUT = 30.0
"""Seconds for anything that needs the network or the model, on a machine that has other things to do."""
TARGET = "/inf_mllm"


class Peer:
    """The requests; all of them give up after TIMEOUT."""

    def __init__(self) -> None:
        self._node = Node("kilted_peer")
        self._texts: list[str] = []
        self._diagnostics: list[DiagnosticArray] = []
        self._image = self._node.create_publisher(Image, "/image", qos_profile_sensor_data)
        self._compressed = self._node.create_publisher(CompressedImage, "/image/compressed", qos_profile_sensor_data)
        self._instruction = self._node.create_publisher(String, "/instruction_text", 10)
        self._subscriptions = [
            self._node.create_subscription(
                String, f"{TARGET}/reasoning_text", lambda message: self._texts.append(message.data), 10
            ),
            self._node.create_subscription(DiagnosticArray, "/diagnostics", self._diagnostics.append, 10),
        ]

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {TIMEOUT} s for {what}")
            rclpy.spin_once(self._node, timeout_sec=0.02)

    def _call(self, service: type, name: str, request: object) -> object:
        client = self._node.create_client(service, f"{TARGET}/{name}")
        try:
            self._wait(client.service_is_ready, f"the service {name}")
            future = client.call_async(request)
            self._wait(future.done, f"the response of {name}")
            return future.result()
        finally:
            self._node.destroy_client(client)

    def connect(self) -> str:
        """Waits until every topic is connected; the version of rclpy."""
        cameras = (self._image, self._compressed)
        self._wait(
            lambda: (
                any(camera.get_subscription_count() > 0 for camera in cameras)
                and self._instruction.get_subscription_count() > 0
                and all(subscription.get_publisher_count() > 0 for subscription in self._subscriptions)
            ),
            "the node's topics",
        )
        return metadata.version("ros-rclpy")

    def show(self, file: str, encoding: str, height: int, width: int) -> None:
        """Publishes the content of a file as an image of now."""
        data = Path(file).read_bytes()
        if encoding == "jpeg":
            message, camera = CompressedImage(format=encoding, data=data), self._compressed
        else:
            message = Image(encoding=encoding, height=height, width=width, step=len(data) // height, data=data)
            camera = self._image
        message.header.stamp = self._node.get_clock().now().to_msg()
        camera.publish(message)

    def ask(self, question: str) -> str:
        """Gives an instruction; the answer."""
        before = len(self._texts)
        self._instruction.publish(String(data=question))
        self._wait(lambda: len(self._texts) > before, "the answer")
        return self._texts[before]

    def reset(self) -> bool:
        return self._call(Trigger, "reset", Trigger.Request()).success

    def pause(self, paused: bool) -> bool:
        return self._call(SetBool, "pause", SetBool.Request(data=paused)).success

    def set_parameter(self, name: str, value: object) -> str:
        """Sets a parameter; why that failed, else nothing."""
        request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
        return self._call(SetParameters, "set_parameters", request).results[0].reason

    def get_parameter(self, name: str) -> object:
        return parameter_value_to_python(
            self._call(GetParameters, "get_parameters", GetParameters.Request(names=[name])).values[0]
        )

    def diagnostics(self) -> list[str]:
        """The names of the parts that the node's next diagnostics speak of."""
        before = len(self._diagnostics)
        self._wait(lambda: len(self._diagnostics) > before, "diagnostics")
        return [status.name for status in self._diagnostics[before].status]


def main() -> None:
    rclpy.init()
    peer = Peer()
    print(json.dumps(peer.connect()), flush=True)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(json.dumps(getattr(peer, name)(*arguments)), flush=True)


if __name__ == "__main__":
    main()
