"""The other side of the node in a test: a camera, a user, and everything the node has said."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from inf_mllm.msg import CacheStats, Instruction, Reasoning, ReasoningDelta
from node_process import NodeProcess
from rcl_interfaces.srv import ListParameters
from rclpy.action import ActionClient, get_action_server_names_and_types_by_node
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data, qos_profile_services_default
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String
from std_srvs.srv import Trigger

TIMEOUT = 30.0
"""Seconds for anything that needs the network or the model, on a machine that has other things to do."""
LONG = {"max_new_tokens": 60_000, "max_new_tokens_limit": 60_000}
"""Parameters of a node whose answers may be very long."""
ENDLESS = {"grammar_kind": Instruction.GRAMMAR_REGEX, "grammar": "[a-z]{60000}"}
"""Fields of an instruction whose answer takes a minute, whatever is drawn."""


class Client:
    """Publishes to the node's topics and keeps what it publishes.

    Args:
        domain: the ROS domain.
        process: the node; waiting ends at once if it dies.
        name: full name of the node.
        image, instruction, instruction_text, reasoning: full names of its topics after remapping; reasoning is the node's own
            unless it begins with a slash.
        compressed: publish CompressedImage on `image`/compressed instead of Image on `image`.
        reliable_images: publish images with the reliable QoS instead of that of sensor data.
    """

    def __init__(
        self,
        domain: int,
        process: NodeProcess,
        *,
        name: str = "/inf_mllm",
        image: str = "/image",
        instruction: str = "/instruction",
        instruction_text: str = "/instruction_text",
        compressed: bool = False,
        reliable_images: bool = False,
        reasoning: str = "reasoning",
    ) -> None:
        self._process = process
        self.name = name
        self.stats: list[CacheStats] = []
        self._stats_sent_ns: list[int] = []
        self.answers: list[Reasoning] = []
        self.deltas: list[ReasoningDelta] = []
        self.texts: list[str] = []
        self.diagnostics: list[DiagnosticArray] = []
        self._forgotten_ns = 0
        self._context = rclpy.Context()
        rclpy.init(context=self._context, domain_id=domain)
        self._node = Node("test_client", context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        reliable = QoSProfile(depth=1000)
        image_type, topic = (CompressedImage, f"{image}/compressed") if compressed else (Image, image)
        qos = reliable if reliable_images else qos_profile_sensor_data
        self._image = self._node.create_publisher(image_type, topic, qos)
        self._instruction = self._node.create_publisher(Instruction, instruction, reliable)
        self._instruction_text = self._node.create_publisher(String, instruction_text, reliable)
        self._clock = self._node.create_publisher(Clock, "/clock", reliable)
        self._actions: list[ActionClient] = []
        self._subscriptions = [
            self._node.create_subscription(
                message, topic if topic.startswith("/") else f"{name}/{topic}", take, reliable
            )
            for message, topic, take in (
                (CacheStats, "cache_stats", self._take_stats),
                (DiagnosticArray, "/diagnostics", self._take_diagnostics),
                (Reasoning, reasoning, self.answers.append),
                (ReasoningDelta, "reasoning_delta", self.deltas.append),
                (String, "reasoning_text", lambda message: self.texts.append(message.data)),
            )
        ]

    def close(self) -> None:
        for action in self._actions:
            action.destroy()
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.shutdown(context=self._context)

    def wait_for_node(self) -> None:
        """Waits until every topic of the node is connected and its statistics arrive."""
        inputs = (self._image, self._instruction, self._instruction_text)
        self.wait(
            lambda: (
                all(publisher.get_subscription_count() > 0 for publisher in inputs)
                and all(subscription.get_publisher_count() > 0 for subscription in self._subscriptions)
                and bool(self.stats)
            ),
            "the node's topics",
        )
        self.meet()

    def meet(self) -> None:
        """Waits until the node knows every publisher and subscription of this client: what is best effort, and what the node publishes,
        is lost for who is not known yet. Endpoints become known in the order in which they were made, and this makes two more, of which the
        node has to know to answer."""
        self.call(ListParameters, f"{self.name}/list_parameters", ListParameters.Request())

    def wait(self, condition: Callable[[], bool], what: str, timeout: float = TIMEOUT) -> None:
        """Handles messages until the condition holds."""
        deadline = time.monotonic() + timeout
        while not condition():
            self._process.check_running()
            if time.monotonic() > deadline:
                last = self.stats[-1] if self.stats else None
                raise AssertionError(f"waited {timeout} s for {what}\nlast: {last}\n{self._process.log}")
            self._executor.spin_once(timeout_sec=0.02)

    def spin(self, seconds: float) -> None:
        """Handles messages for a while, whether the node lives or not."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._executor.spin_once(timeout_sec=0.01)

    def spin_until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Handles messages until the condition holds, for so long at most, whether the node lives or not."""
        deadline = time.monotonic() + seconds
        while not condition() and time.monotonic() < deadline:
            self._executor.spin_once(timeout_sec=0.01)

    def subscribe(self, message: type, topic: str, take: Callable[[Any], None], qos: QoSProfile) -> None:
        """Listens to a further topic, and waits until somebody publishes there who knows of it."""
        subscription = self._node.create_subscription(message, topic, take, qos)
        self._subscriptions.append(subscription)
        self.wait(lambda: subscription.get_publisher_count() > 0, f"a publisher of {topic}")
        if qos.durability != DurabilityPolicy.TRANSIENT_LOCAL:
            self.meet()

    def publish(self, image: Image | CompressedImage | bytes) -> None:
        self._image.publish(image)

    def interface(self) -> dict[str, str]:
        """Full name and type of everything that the node publishes, listens to and serves, but what every node has; as far as
        that is known yet."""
        namespace, _, name = self.name.rpartition("/")
        if (name, namespace or "/") not in self._node.get_node_names_and_namespaces():
            return {}
        listed = []
        for kind in ("publisher", "subscriber", "service"):
            listed += getattr(self._node, f"get_{kind}_names_and_types_by_node")(name, namespace or "/")
        # Services and topics that make up an action are listed by its name.
        return {
            name: types[0]
            for name, types in listed
            if not types[0].startswith(("rcl_interfaces/", "rosgraph_msgs/")) and "/_action/" not in name
        } | {name: types[0] for name, types in self.actions().items()}

    def stop_camera(self) -> None:
        """Takes the publisher of images away."""
        self._node.destroy_publisher(self._image)

    def publish_clock(self, sec: int, nanosec: int = 0) -> None:
        clock = Clock()
        clock.clock.sec, clock.clock.nanosec = sec, nanosec
        self._clock.publish(clock)

    def fresh_stats(self) -> CacheStats:
        """Statistics that count everything the node had finished when this was called."""
        # Messages wait here for as long as nobody looks, so their time of publication counts; the first one may have been taken before.
        asked_ns = time.time_ns()
        self.wait(lambda: sum(sent_ns > asked_ns for sent_ns in self._stats_sent_ns) >= 2, "fresh statistics")
        return self.stats[-1]

    def _take_stats(self, message: CacheStats, info: dict[str, int]) -> None:
        self.stats.append(message)
        self._stats_sent_ns.append(info["source_timestamp"])

    def _take_diagnostics(self, message: DiagnosticArray, info: dict[str, int]) -> None:
        if info["source_timestamp"] > self._forgotten_ns:
            self.diagnostics.append(message)

    def forget_diagnostics(self) -> None:
        """Leaves out the reports that the node has published so far, also those that have not been taken yet."""
        self._forgotten_ns = time.time_ns()
        self.diagnostics.clear()

    def show(self, image: Image | CompressedImage | bytes) -> None:
        """Publishes an image and waits until it is used or rejected."""
        before = self.fresh_stats()
        self.publish(image)
        self.wait(
            lambda: (
                self.stats[-1].frames_used + self.stats[-1].frames_rejected
                > before.frames_used + before.frames_rejected
            ),
            "the frame to be used or rejected",
        )

    def instruct(self, text: str, **fields: Any) -> None:
        """Publishes an Instruction; `fields` are those of the message."""
        self._instruction.publish(Instruction(text=text, **fields))

    def instruct_text(self, text: str) -> None:
        self._instruction_text.publish(String(data=text))

    def instruct_serialized(self, message: bytes, plain: bool) -> None:
        """Publishes a serialised String (`plain`) or Instruction."""
        (self._instruction_text if plain else self._instruction).publish(message)

    def ask(self, text: str, **fields: Any) -> Reasoning:
        """Publishes an Instruction and waits for its answer: of one without an id for the next that comes."""
        return self.next_answer(lambda: self.instruct(text, **fields), fields.get("id") or None)

    def next_answer(self, action: Callable[[], None], id: str | None = None) -> Reasoning:
        """Does something that is to be answered, and waits for the answer, if an id is given for that to it."""
        before = len(self.answers)

        def come() -> list[Reasoning]:
            return [answer for answer in self.answers[before:] if id in (None, answer.instruction_id)]

        action()
        self.wait(lambda: bool(come()), "an answer")
        return come()[0]

    def reset(self) -> Trigger.Response:
        return self.call(Trigger, f"{self.name}/reset", Trigger.Request())

    def action(self, action: Any, name: str, services: QoSProfile = qos_profile_services_default) -> ActionClient:
        """A client of an action, once somebody serves it; `services` say how many responses may wait until they are taken."""
        client = ActionClient(
            self._node,
            action,
            name,
            goal_service_qos_profile=services,
            result_service_qos_profile=services,
            # The default holds ten pieces of feedback.
            feedback_sub_qos_profile=QoSProfile(depth=1000),
        )
        self._actions.append(client)
        self.wait(client.server_is_ready, f"action {name}")
        return client

    def actions(self) -> dict[str, list[str]]:
        """Names and types of the actions that the node serves, as far as that is known yet."""
        namespace, _, name = self.name.rpartition("/")
        found = get_action_server_names_and_types_by_node(self._node, name, namespace or "/")
        return dict(found)

    def call_later(self, service: Any, name: str, request: Any) -> Any:
        """Calls a service; the future of its response."""
        client = self._node.create_client(service, name)
        self.wait(client.service_is_ready, f"service {name}")
        return client.call_async(request)

    def call(self, service: Any, name: str, request: Any, timeout: float = TIMEOUT) -> Any:
        """Calls a service and waits for its response."""
        client = self._node.create_client(service, name)
        try:
            self.wait(client.service_is_ready, f"service {name}")
            future = client.call_async(request)
            self.wait(future.done, f"the response of {name}", timeout)
            return future.result()
        finally:
            self._node.destroy_client(client)

    def call_at_once(self, service: Any, name: str, requests: list[Any]) -> list[Any]:
        """Calls a service many times without waiting in between, then waits for all of the responses."""
        # The profile of the client is that of its own queue of responses too.
        client = self._node.create_client(service, name, qos_profile=QoSProfile(depth=1000))
        try:
            self.wait(client.service_is_ready, f"service {name}")
            futures = [client.call_async(request) for request in requests]
            self.wait(lambda: all(future.done() for future in futures), f"{len(requests)} responses of {name}")
            return [future.result() for future in futures]
        finally:
            self._node.destroy_client(client)
