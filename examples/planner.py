"""Turns a robot towards an object by asking a running node: python3 examples/planner.py "red ball" where a ROS is sourced.

Two questions are asked in every step; whether to stop is a watch, which the node asks by itself and answers when something changes. All
answers are choices: their probabilities steer, and no text is parsed. Nothing that is asked leaves a trace in the node's memory.
"""

import argparse
import sys
import time

import rclpy
from builtin_interfaces.msg import Duration
from geometry_msgs.msg import Twist
from inf_mllm.msg import Instruction, Reasoning
from inf_mllm.srv import Cancel
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args

SEE, SIDE = ("Do you see a {}?", ["yes", "no"]), ("Where is the {}?", ["left", "center", "right"])
STOP = Instruction(id="planner stop", text="Do you need to stop?", choices=["yes", "no"], mode=Instruction.MODE_WATCH)
STOP.watch_period, STOP.watch_on_change, STOP.watch_hysteresis = Duration(nanosec=200_000_000), True, 0.2
PERIOD = 0.5
"""Seconds from one step to the next; what is not answered by then is not waited for."""
MEMORY = 2.0
"""Seconds that an answer is good for."""


class Planner(Node):
    def __init__(self, thing: str, node: str) -> None:
        super().__init__("planner")
        self.thing, self.steps, self.last = thing, 0, {}
        self.create_subscription(Reasoning, f"{node}/reasoning", self.take, 100)
        self.ask = self.create_publisher(Instruction, "instruction", 10)
        self.drive = self.create_publisher(Twist, "cmd_vel", 10)
        self.cancel = self.create_client(Cancel, f"{node}/cancel")
        while not (self.cancel.service_is_ready() and self.ask.get_subscription_count()):
            print(f"waiting for {node}", flush=True)
            time.sleep(0.5)
        # A planner that was killed has left its watch behind.
        rclpy.spin_until_future_complete(self, self.cancel.call_async(Cancel.Request(id=STOP.id)))
        self.ask.publish(STOP)
        self.create_timer(PERIOD, self.step)

    def take(self, answer: Reasoning) -> None:
        name = answer.instruction_id.rstrip("0123456789")
        if name == STOP.id:
            print(f"stop: {answer.text or answer.error}", flush=True)
        if name == STOP.id or answer.choice >= 0:
            self.last[name] = time.monotonic(), answer.choice_probabilities

    def probability(self, name: str, choices: list[str], choice: str) -> float:
        """As the last answer had it; 0 if there is none or, but for the watch, if it is too old."""
        at, probabilities = self.last.get(name, (0.0, []))
        known = len(probabilities) and (name == STOP.id or time.monotonic() - at < MEMORY)
        return probabilities[choices.index(choice)] if known else 0.0

    def step(self) -> None:
        """Looks around while the thing is not in view, turns towards it when it is, and goes on unless the watch says to stop."""
        self.steps += 1
        for name, (text, choices) in (("planner see ", SEE), ("planner side ", SIDE)):
            question = Instruction(
                id=f"{name}{self.steps}", text=text.format(self.thing), choices=choices, ephemeral=True
            )
            question.time_limit = Duration(nanosec=int(PERIOD * 1e9))
            self.ask.publish(question)
        left, center, right = (self.probability("planner side ", SIDE[1], side) for side in SIDE[1])
        twist = Twist()
        if self.probability("planner see ", *SEE[1:], "yes") < 0.5:
            twist.angular.z = 0.3
        else:
            twist.angular.z = 0.5 * (left - right)
            twist.linear.x = 0.2 * center * (self.probability(STOP.id, STOP.choices, "no") > 0.5)
        self.drive.publish(twist)
        print(f"forward {twist.linear.x:+.2f} m/s, turn {twist.angular.z:+.2f} rad/s", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("thing", help="as the model names it")
    parser.add_argument("--node", default="/inf_mllm", help="full name of the node")
    parser.add_argument("--steps", type=int, default=sys.maxsize, help="steps until it ends")
    arguments = parser.parse_args(remove_ros_args(sys.argv)[1:])
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    planner = Planner(arguments.thing, arguments.node)
    try:
        while planner.steps < arguments.steps:
            rclpy.spin_once(planner)
    finally:
        planner.drive.publish(Twist())
        rclpy.spin_until_future_complete(
            planner, planner.cancel.call_async(Cancel.Request(id=STOP.id)), timeout_sec=1.0
        )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
