"""Turns a robot towards an object by asking a running node: python3 examples/planner.py "red ball" where a ROS is sourced.

Every period it asks whether the object is in view, on which side, and whether the way is blocked. The answers are choices: their
probabilities steer, and no text is parsed. The questions leave no trace in the node's memory.
"""

import argparse
import sys
import uuid

import rclpy
from geometry_msgs.msg import Twist
from inf_mllm.msg import Instruction, Reasoning
from rclpy.node import Node

SURE = 0.6
"""Probability from which on something is taken for so."""


class Planner(Node):
    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__("planner")
        self.timeout = arguments.timeout
        self.answers: dict[str, Reasoning] = {}
        self.create_subscription(Reasoning, f"{arguments.node}/reasoning", self.take, 100)
        self.ask = self.create_publisher(Instruction, arguments.instruction, 10)
        self.drive = self.create_publisher(Twist, "cmd_vel", 10)

    def take(self, answer: Reasoning) -> None:
        self.answers[answer.instruction_id] = answer

    def choose(self, question: str, *choices: str) -> dict[str, float]:
        """The probability of each choice."""
        instruction = Instruction(id=str(uuid.uuid4()), text=question, choices=choices, ephemeral=True)
        self.ask.publish(instruction)
        deadline = self.get_clock().now().nanoseconds + self.timeout * 1e9
        while instruction.id not in self.answers and self.get_clock().now().nanoseconds < deadline:
            rclpy.spin_once(self, timeout_sec=0.05)
        answer = self.answers.pop(instruction.id, None)
        self.answers.clear()
        if answer is None or answer.choice < 0:
            self.get_logger().warning(f"{question} {answer.error if answer else 'no answer in time'}")
            return dict.fromkeys(choices, 0.0)
        return dict(zip(choices, answer.choice_probabilities, strict=True))

    def step(self, thing: str) -> Twist:
        """Turns on the spot while the thing is not in view, towards it when it is, and goes on where the way is free."""
        twist = Twist()
        if self.choose(f"Do you see a {thing}?", "yes", "no")["yes"] < SURE:
            twist.angular.z = 0.3
        else:
            side = self.choose(f"Where is the {thing}?", "left", "center", "right")
            twist.angular.z = 0.5 * (side["left"] - side["right"])
            if self.choose("Do you need to stop?", "yes", "no")["no"] >= SURE:
                twist.linear.x = 0.2 * side["center"]
        return twist


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("thing", help="as the model names it")
    parser.add_argument("--node", default="/inf_mllm", help="full name of the node")
    parser.add_argument("--instruction", default="/instruction", help="its topic")
    parser.add_argument("--period", type=float, default=0.5, help="seconds from one step to the next")
    parser.add_argument("--steps", type=int, default=0, help="steps until it ends; 0: none")
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds to wait for an answer")
    arguments = parser.parse_args()
    rclpy.init()
    planner = Planner(arguments)
    while not (planner.ask.get_subscription_count() and planner.count_publishers(f"{arguments.node}/reasoning")):
        rclpy.spin_once(planner, timeout_sec=0.1)
    step = 0
    while rclpy.ok() and (step < arguments.steps or not arguments.steps):
        twist = planner.step(arguments.thing)
        planner.drive.publish(twist)
        print(f"forward {twist.linear.x:+.2f} m/s, turn {twist.angular.z:+.2f} rad/s", flush=True)
        end = planner.get_clock().now().nanoseconds + arguments.period * 1e9
        while planner.get_clock().now().nanoseconds < end:
            rclpy.spin_once(planner, timeout_sec=0.02)
        step += 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
