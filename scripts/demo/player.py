"""Publishes a recording at its recorded spacing and listens to the node."""

from __future__ import annotations

import time
from collections.abc import Callable

from inf_mllm.msg import CacheStats, Instruction, Reasoning, ReasoningDelta
from node_process import NodeFailed, NodeProcess
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from record import Record
from recording import CAMERA_INFO_TYPE, IMAGE_TYPE, NANOSECONDS, Question, Recording
from sensor_msgs.msg import CameraInfo, CompressedImage

IMAGE = "/camera/image"
"""What the node's topic `image` is remapped to."""
DISCOVERY_TIMEOUT = 15.0
"""Seconds that sender and node may take to find each other."""
ANSWER_TIMEOUT = 10.0
"""Seconds that the last answers may take after the last frame."""
STATS_TIMEOUT = 3.0
TICK = 0.05
"""Seconds between two looks at the node's health."""


class Player:
    """A ROS node that stands for the camera and the user.

    Args:
        record: takes everything that the node says.
        process: watched while playing; NodeFailed is raised if it ends.
        tick: called about every TICK seconds with the seconds played so far.
    """

    def __init__(self, record: Record, process: NodeProcess, tick: Callable[[float], None]) -> None:
        self._record = record
        self._process = process
        self._tick = tick
        self._seconds = 0.0
        self._ticked = 0.0
        self._node = Node("demo_camera")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._publishers = {
            IMAGE_TYPE: self._node.create_publisher(CompressedImage, f"{IMAGE}/compressed", qos_profile_sensor_data),
            CAMERA_INFO_TYPE: self._node.create_publisher(CameraInfo, "/camera/camera_info", qos_profile_sensor_data),
        }
        self._instruction = self._node.create_publisher(Instruction, "/instruction", QoSProfile(depth=10))
        pieces, answers = QoSProfile(depth=1000), QoSProfile(depth=100)
        self._subscriptions = [
            self._node.create_subscription(CacheStats, "/inf_mllm/cache_stats", self._take_stats, QoSProfile(depth=10)),
            self._node.create_subscription(ReasoningDelta, "/inf_mllm/reasoning_delta", record.take_delta, pieces),
            self._node.create_subscription(Reasoning, "/inf_mllm/reasoning", record.take_reasoning, answers),
        ]
        self._stats_taken = 0

    def wait_for_node(self) -> None:
        """Waits until what is published reaches the node, and what the node says comes back."""
        needed = [self._publishers[IMAGE_TYPE], self._instruction]
        self._wait(
            lambda: (
                all(publisher.get_subscription_count() > 0 for publisher in needed)
                and all(subscription.get_publisher_count() > 0 for subscription in self._subscriptions)
            ),
            DISCOVERY_TIMEOUT,
            "the node's topics were not found",
        )

    def play(self, recording: Recording) -> None:
        """Publishes everything in real time; the stamps are shifted so that the first frame is taken now."""
        start_ns = time.time_ns()
        for event in recording.events():
            self._spin_until(lambda due=start_ns + event.at_ns: (due - time.time_ns()) / NANOSECONDS, start_ns)
            if isinstance(event.what, Question):
                self._ask(event.what, start_ns + event.at_ns, recording.aside)
            else:
                self._publishers[event.what.type].publish(event.what.with_stamp(start_ns + event.at_ns))

    def wait_for_answers(self) -> None:
        """Waits for what has not been answered yet, and then for statistics that count all of it."""
        deadline = time.monotonic() + ANSWER_TIMEOUT
        while self._record.waiting and time.monotonic() < deadline:
            self._spin_once(TICK)
        # The next message may have been on its way already.
        enough = self._stats_taken + 2
        self._wait(lambda: self._stats_taken >= enough, STATS_TIMEOUT, "~/cache_stats did not come")

    def close(self) -> None:
        self._executor.shutdown()
        self._node.destroy_node()

    def _take_stats(self, stats: CacheStats) -> None:
        self._stats_taken += 1
        self._record.take_stats(stats)

    def _ask(self, question: Question, stamp_ns: int, aside: bool) -> None:
        message = Instruction(
            id=question.id, text=question.text, max_new_tokens=question.max_new_tokens, ephemeral=aside
        )
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, NANOSECONDS)
        self._record.asked(question)
        self._instruction.publish(message)

    def _spin_until(self, left: Callable[[], float], start_ns: int) -> None:
        """Handles messages until `left` seconds are over."""
        while True:
            self._seconds = (time.time_ns() - start_ns) / NANOSECONDS
            remaining = left()
            if remaining <= 0:
                return
            self._spin_once(min(remaining, TICK))

    def _wait(self, condition: Callable[[], bool], timeout: float, failure: str) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise NodeFailed(f"{failure} within {timeout} s; the node's log ends with:\n{self._process.tail()}")
            self._spin_once(TICK)

    def _spin_once(self, timeout: float) -> None:
        self._executor.spin_once(timeout_sec=timeout)
        now = time.monotonic()
        if now - self._ticked >= TICK:
            self._ticked = now
            self._process.check_running()
            self._tick(self._seconds)
