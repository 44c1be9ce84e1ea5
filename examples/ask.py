"""Asks a running node a question and prints the answer: python3 examples/ask.py "What is in view?" where a ROS is sourced."""

import argparse
import sys
import uuid

import rclpy
from inf_mllm.msg import Instruction, Reasoning


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("question")
    parser.add_argument("--node", default="/inf_mllm", help="full name of the node")
    parser.add_argument("--instruction", default="/instruction", help="its topic")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds to wait for the node and for the answer")
    arguments = parser.parse_args()

    rclpy.init()
    node = rclpy.create_node("ask")
    answers: list[Reasoning] = []
    node.create_subscription(Reasoning, f"{arguments.node}/reasoning", answers.append, 10)
    publisher = node.create_publisher(Instruction, arguments.instruction, 10)

    def wait_for(condition) -> bool:
        deadline = node.get_clock().now().nanoseconds + arguments.timeout * 1e9
        while not condition() and node.get_clock().now().nanoseconds < deadline:
            rclpy.spin_once(node, timeout_sec=0.05)
        return condition()

    if not wait_for(
        lambda: publisher.get_subscription_count() and node.count_publishers(f"{arguments.node}/reasoning")
    ):
        sys.exit(f"no node listens on {arguments.instruction} and answers on {arguments.node}/reasoning")
    question = Instruction(id=str(uuid.uuid4()), text=arguments.question)
    question.header.stamp = node.get_clock().now().to_msg()
    publisher.publish(question)
    if not wait_for(lambda: any(answer.instruction_id == question.id for answer in answers)):
        sys.exit(f"no answer within {arguments.timeout} s")
    answer = next(answer for answer in answers if answer.instruction_id == question.id)
    if answer.finish_reason == Reasoning.FINISH_ERROR:
        sys.exit(f"not answered: {answer.error}")
    age = answer.newest_frame_age.sec + answer.newest_frame_age.nanosec * 1e-9
    print(f"{answer.text} (from an image {age:.1f} s old)")
    rclpy.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
