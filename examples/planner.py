"""Turns a robot towards an object by asking a running node: python3 examples/planner.py "red ball" where a ROS is sourced.

Two questions are asked in every step; whether to stop is a watch, which the node asks by itself and answers when something changes. All
answers are choices: their probabilities steer, and no text is parsed. Nothing that is asked leaves a trace in the node's memory.
"""

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

PERIOD = 0.5
"""Seconds from one step to the next, or as long as the answers take."""
PATIENCE = 2
"""Seconds that a command holds while there are no answers; then the robot stands still."""
STOP = Instruction(id="planner stop", text="Do you need to stop?", choices=["yes", "no"], mode=Instruction.MODE_WATCH)
STOP.watch_period, STOP.watch_on_change, STOP.watch_hysteresis = Duration(nanosec=200_000_000), True, 0.2


class Planner(Node):
    def __init__(self, thing: str) -> None:
        super().__init__("planner")
        self.begun, self.asked, self.answers, self.free = self.get_clock().now().to_msg(), 0.0, {}, False
        see = Instruction(id="planner see", text=f"Do you see a {thing}?", choices=["yes", "no"])
        side = Instruction(id="planner side", text=f"Where is the {thing}?", choices=["left", "center", "right"])
        self.questions = [see, side]
        for question in self.questions:
            question.ephemeral, question.time_limit.sec, question.header.stamp = True, PATIENCE, self.begun
        self.reasoning = self.create_subscription(Reasoning, "inf_mllm/reasoning", self.take, 100)
        self.instruction = self.create_publisher(Instruction, "instruction", 10)
        self.drive = self.create_publisher(Twist, "cmd_vel", 10)
        self.cancel = self.create_client(Cancel, "inf_mllm/cancel")
        self.timer = self.create_timer(PERIOD, self.step, autostart=False)

    def end_watch(self) -> None:
        rclpy.spin_until_future_complete(self, self.cancel.call_async(Cancel.Request(id=STOP.id)), timeout_sec=5.0)

    def run(self) -> None:
        while not (self.cancel.service_is_ready() and self.instruction.get_subscription_count()):
            print("waiting for inf_mllm", flush=True)
            time.sleep(0.5)
        # A planner that was killed has left its watch behind.
        self.end_watch()
        STOP.header.stamp = self.begun
        self.instruction.publish(STOP)
        self.timer.reset()
        rclpy.spin(self)

    def take(self, answer: Reasoning) -> None:
        if answer.instruction_stamp != self.begun:
            return  # Somebody else has asked.
        if answer.instruction_id == STOP.id:
            print(f"stop: {answer.text or answer.error}", flush=True)
            self.free = answer.choice == STOP.choices.index("no")
        elif answer.choice >= 0:
            self.answers[answer.instruction_id] = answer.choice_probabilities

    def step(self) -> None:
        """Looks around while the thing is not in view, turns towards it when it is, and goes on unless the watch says to stop."""
        answered = len(self.answers) == len(self.questions)
        if not answered and time.monotonic() < self.asked + PATIENCE:
            return
        twist = Twist()
        if answered:
            (seen, _), (left, center, right) = (self.answers[question.id] for question in self.questions)
            twist.angular.z = 0.5 * (left - right) if seen > 0.5 else 0.3
            twist.linear.x = 0.2 * center if seen > 0.5 and self.free else 0.0
        self.drive.publish(twist)
        print(f"forward {twist.linear.x:+.2f} m/s, turn {twist.angular.z:+.2f} rad/s", flush=True)
        self.answers, self.asked = {}, time.monotonic()
        for question in self.questions:
            self.instruction.publish(question)


if __name__ == "__main__":
    if len(arguments := remove_ros_args(sys.argv)) != 2:
        sys.exit(__doc__.partition("\n")[0])
    # With Ctrl-C the robot stops and the watch ends before the context is shut down.
    rclpy.init(args=sys.argv, signal_handler_options=SignalHandlerOptions.NO)
    planner = Planner(arguments[1])
    try:
        planner.run()
    except KeyboardInterrupt:
        # No step behind the stop, and no word of the watch that is ended here.
        planner.timer.cancel()
        planner.destroy_subscription(planner.reasoning)
        planner.drive.publish(Twist())
        planner.end_watch()
