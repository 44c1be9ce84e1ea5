"""Asks a running node from a behaviour tree: python3 examples/behaviour_tree.py "red ball" where a ROS is sourced.

The leaf `Ask` is a client of the action ~/ask: a tick sends the goal or looks whether its result is there, and halting it cancels the goal.
Around it stand the nodes of any behaviour tree, as few of them as this tree needs; in a library of such trees only the leaf would remain.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from enum import Enum

import rclpy
from action_msgs.msg import GoalStatus
from geometry_msgs.msg import Twist
from inf_mllm.action import Ask as Action
from inf_mllm.msg import Instruction
from rclpy.action import ActionClient
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args

RATE = 10.0
"""Ticks per second."""

Status = Enum("Status", "SUCCESS FAILURE RUNNING")


class Ask:
    """Whether the answer to a question is the expected one of its choices. Fails where it is another one, and where there is none."""

    def __init__(self, client: ActionClient, text: str, choices: list[str], expected: str) -> None:
        self.client, self.expected = client, expected
        self.instruction = Instruction(text=text, choices=choices, ephemeral=True)
        self.sent = self.result = None

    def tick(self) -> Status:
        if self.sent is None:
            self.sent = self.client.send_goal_async(Action.Goal(instruction=self.instruction))
            self.sent.add_done_callback(self._accepted)
        if self.sent.done() and not self.sent.result().accepted:
            self.sent = None
            return Status.FAILURE
        if self.result is None or not self.result.done():
            return Status.RUNNING
        ended = self.result.result()
        self.sent = self.result = None
        answer = ended.result.reasoning
        print(f"{self.instruction.text} {answer.text or answer.error}", flush=True)
        right = ended.status == GoalStatus.STATUS_SUCCEEDED and answer.text == self.expected
        return Status.SUCCESS if right else Status.FAILURE

    def halt(self) -> None:
        """Lets go of the goal; one that has not been accepted yet is cancelled when it is."""
        sent, self.sent, self.result = self.sent, None, None
        if sent is not None:
            print(f"{self.instruction.text} halted", flush=True)
            sent.add_done_callback(lambda sent: sent.result().accepted and sent.result().cancel_goal_async())

    def _accepted(self, sent: rclpy.Future) -> None:
        if sent is self.sent and sent.result().accepted:
            self.result = sent.result().get_result_async()


class Drive:
    """Publishes a speed for some seconds."""

    def __init__(self, publish: Callable[[Twist], None], forward: float, turn: float, seconds: float) -> None:
        self.publish, self.seconds, self.until = publish, seconds, None
        self.twist = Twist()
        self.twist.linear.x, self.twist.angular.z = forward, turn

    def tick(self) -> Status:
        self.until = self.until or time.monotonic() + self.seconds
        if time.monotonic() < self.until:
            self.publish(self.twist)
            return Status.RUNNING
        print(f"forward {self.twist.linear.x:+.2f} m/s, turn {self.twist.angular.z:+.2f} rad/s: done", flush=True)
        self.halt()
        return Status.SUCCESS

    def halt(self) -> None:
        if self.until is not None:
            self.publish(Twist())
        self.until = None


class Composite:
    """Ticks its children one after the other, as long as they end like `goes_on`; begins anew with the first once it has ended."""

    def __init__(self, goes_on: Status, *children) -> None:
        self.goes_on, self.children, self.at = goes_on, children, 0

    def tick(self) -> Status:
        while self.at < len(self.children):
            status = self.children[self.at].tick()
            if status is Status.RUNNING:
                return status
            if status is not self.goes_on:
                self.at = 0
                return status
            self.at += 1
        self.at = 0
        return self.goes_on

    def halt(self) -> None:
        if self.at < len(self.children):
            self.children[self.at].halt()
        self.at = 0


class Within:
    """Halts its child, and fails, where it takes longer than so many seconds."""

    def __init__(self, seconds: float, child) -> None:
        self.seconds, self.child, self.since = seconds, child, None

    def tick(self) -> Status:
        self.since = self.since or time.monotonic()
        status = self.child.tick()
        if status is Status.RUNNING and time.monotonic() - self.since > self.seconds:
            self.child.halt()
            status = Status.FAILURE
        if status is not Status.RUNNING:
            self.since = None
        return status

    def halt(self) -> None:
        self.child.halt()
        self.since = None


def tree(client: ActionClient, publish: Callable[[Twist], None], thing: str, patience: float) -> Composite:
    """Goes on where the thing is in view and the way is free, else looks around."""
    sees = Ask(client, f"Do you see a {thing}?", ["yes", "no"], "yes")
    free = Ask(client, "Do you need to stop?", ["yes", "no"], "no")
    go_on = Composite(Status.SUCCESS, Within(patience, sees), Within(patience, free), Drive(publish, 0.2, 0.0, 0.5))
    return Composite(Status.FAILURE, go_on, Drive(publish, 0.0, 0.3, 0.5))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("thing", help="as the model names it")
    parser.add_argument("--node", default="/inf_mllm", help="full name of the node")
    parser.add_argument("--rounds", type=int, default=sys.maxsize, help="times that the tree is run to its end")
    parser.add_argument("--patience", type=float, default=2.0, help="seconds to wait for an answer")
    arguments = parser.parse_args(remove_ros_args(sys.argv)[1:])
    # The tree is halted before the context is shut down.
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = Node("behaviour_tree")
    client = ActionClient(node, Action, f"{arguments.node}/ask")
    while not client.wait_for_server(timeout_sec=2.0):
        print(f"waiting for {arguments.node}/ask", flush=True)
    root = tree(client, node.create_publisher(Twist, "cmd_vel", 10).publish, arguments.thing, arguments.patience)
    rounds = 0

    def tick() -> None:
        nonlocal rounds
        rounds += root.tick() is not Status.RUNNING

    timer = node.create_timer(1 / RATE, tick)
    try:
        while rounds < arguments.rounds:
            rclpy.spin_once(node)
    finally:
        timer.cancel()
        root.halt()
        # What was halted is still to be cancelled.
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            rclpy.spin_once(node, timeout_sec=0.1)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
