"""Measures the action ~/ask of a running node: how soon a cancelled goal has its result, and what many goals do to its memory.

scripts/ros-run python scripts/demo/goals.py cancel --times 100
scripts/ros-run python scripts/demo/goals.py memory --goals 100000
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import rclpy
from action_msgs.msg import GoalStatus
from inf_mllm.action import Ask
from inf_mllm.msg import CacheStats, Instruction
from measure import resident, seconds
from node_process import ROOT, NodeProcess, free_domain, isolate
from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import Image

SIDE = 96
PATIENCE = 20.0
"""Seconds for anything."""
ENDLESS = {"temperature": 100.0, "max_new_tokens": 60_000, "max_new_tokens_limit": 60_000}
"""Answers of whatever is drawn: the end of one is as improbable as any other token."""
LONGEST_WAIT = 0.3
"""Seconds from the first piece of an answer to its cancelling, at most."""
LIMIT_MS = 50
AT_ONCE = 8
ANSWERED_OF = 50
"""Of so many goals one is answered; the others are refused for their empty text, which takes no time."""
REPORTS = 10


class User:
    """Sends goals to a node that has seen an image."""

    def __init__(self, process: NodeProcess) -> None:
        self._process = process
        rclpy.init()
        self._node = Node("measuring_user")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        stats: list[CacheStats] = []
        self._node.create_subscription(CacheStats, "inf_mllm/cache_stats", stats.append, 10)
        images = self._node.create_publisher(Image, "image", qos_profile_sensor_data)
        feedback = QoSProfile(depth=1000)
        self._action = ActionClient(self._node, Ask, "inf_mllm/ask", feedback_sub_qos_profile=feedback)
        self.wait(lambda: images.get_subscription_count() > 0 and self._action.server_is_ready() and bool(stats))
        pixels = np.random.default_rng(1).integers(256, size=(SIDE, SIDE, 3), dtype=np.uint8)
        image = Image(height=SIDE, width=SIDE, encoding="rgb8", step=3 * SIDE, data=pixels.tobytes())
        image.header.stamp.sec = 1
        images.publish(image)
        self.wait(lambda: stats[-1].frames_used == 1)

    def close(self) -> None:
        self._action.destroy()
        self._node.destroy_node()
        rclpy.shutdown()

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            self._process.check_running()
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {PATIENCE} s; the log of the node ends with:\n{self._process.tail()}")
            self._executor.spin_once(timeout_sec=0.1)

    def send(self, instruction: Instruction, on_feedback: Callable[[Any], None] | None = None) -> Any:
        return self._action.send_goal_async(Ask.Goal(instruction=instruction), feedback_callback=on_feedback)


def cancel(user: User, times: int) -> None:
    """Prints how long it takes from a request to cancel to the result, beside the time of a token."""
    draws = random.Random(1)
    took, tokens = [], []
    while len(took) < times:
        pieces: list[Any] = []
        sent = user.send(Instruction(text="Tell me everything.", ephemeral=True), pieces.append)
        user.wait(sent.done)
        handle = sent.result()
        result = handle.get_result_async()
        user.wait(lambda pieces=pieces, result=result: bool(pieces) or result.done())
        until = time.monotonic() + draws.uniform(0, LONGEST_WAIT)
        user.wait(lambda until=until: time.monotonic() > until)
        if result.done():
            # It drew its end.
            continue
        begin = time.monotonic()
        handle.cancel_goal_async()
        user.wait(result.done)
        waited = 1e3 * (time.monotonic() - begin)
        if result.result().status != GoalStatus.STATUS_CANCELED:
            continue
        took.append(waited)
        reasoning = result.result().result.reasoning
        generating = seconds(reasoning.latency) - seconds(reasoning.time_to_first_token)
        tokens.append(1e3 * generating / max(1, reasoning.output_tokens - 1))
    token, (middle, late) = float(np.median(tokens)), np.percentile(took, [50, 95])
    over = sum(ms > token + LIMIT_MS for ms in took)
    print(f"{times} goals cancelled while they were answered; a token takes {token:.1f} ms (median)")
    print(
        f"from the request to the result: {middle:.1f} ms (median), {late:.1f} ms (95 %), {max(took):.1f} ms at most, {over} times more than a token and {LIMIT_MS} ms"
    )


def memory(user: User, process: NodeProcess, goals: int) -> None:
    """Prints the node's memory while goals come and go."""
    begin, ended, first = time.monotonic(), 0, 0
    for report in range(1, REPORTS + 1):
        while ended < goals * report // REPORTS:
            texts = ["What is in view?" if (ended + i) % ANSWERED_OF == 0 else "" for i in range(AT_ONCE)]
            sent = [user.send(Instruction(text=text, max_new_tokens=1, ephemeral=True)) for text in texts]
            user.wait(lambda sent=sent: all(future.done() for future in sent))
            results = [future.result().get_result_async() for future in sent]
            user.wait(lambda results=results: all(future.done() for future in results))
            for text, result in zip(texts, results):
                wanted = GoalStatus.STATUS_SUCCEEDED if text else GoalStatus.STATUS_ABORTED
                assert result.result().status == wanted, result.result()
            ended += AT_ONCE
        used = resident(process.pid)
        first = first or used
        change = 100 * (used / first - 1)
        print(f"{ended} goals: {used} KiB, {change:+.2f} %; {time.monotonic() - begin:.0f} s", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cancel", "memory"])
    parser.add_argument("--times", type=int, default=100, help="goals that are cancelled")
    parser.add_argument("--goals", type=int, default=100_000, help="goals that come and go")
    parser.add_argument("--model", default=str(ROOT / "models" / "demo"))
    arguments = parser.parse_args()
    isolate(free_domain())
    of_answers = ENDLESS if arguments.what == "cancel" else {}
    process = NodeProcess({"model": arguments.model, "stats_period": 0.1, **of_answers})
    try:
        process.wait_ready()
        user = User(process)
        if arguments.what == "cancel":
            cancel(user, arguments.times)
        else:
            memory(user, process, arguments.goals)
        user.close()
        status, _ = process.stop()
    finally:
        process.kill()
    return status


if __name__ == "__main__":
    sys.exit(main())
