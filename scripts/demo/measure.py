"""Measures the node under a camera of another process: what is lost, how long a frame takes into the cache, how soon answers begin.

scripts/ros-run python scripts/demo/measure.py --rate 30 --seconds 60 --ask-every 3
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import struct
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import rclpy
from inf_mllm.msg import CacheStats, Instruction, Reasoning, ReasoningDelta
from node_process import ROOT, NodeProcess, free_domain, isolate
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image

WIDTH, HEIGHT = 640, 480
PICTURES = 30
QUESTIONS = [
    "What is the closest object?",
    "How many objects are in view?",
    "Should the robot stop?",
    "What was seen just before?",
]
STATS_PERIOD = 0.01
BESIDE_AN_ANSWER = 0.25
"""Seconds after an answer during which a frame may have waited for it."""
SETTLE = 2.0
"""Seconds at the end for what is still on its way."""
REASONS = ("stop", "length", "cancelled", "error")


def camera(rate: float, seconds: float, sent: multiprocessing.Value) -> None:
    """Publishes raw 640x480 rgb8 images; a process of its own."""
    rclpy.init()
    node = Node("measuring_camera")
    publisher = node.create_publisher(Image, "image", qos_profile_sensor_data)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    messages = []
    for i in range(PICTURES):
        pixels = np.stack([x // 3 + 8 * i, y // 2, (x + y) // 5 + 4 * i], axis=-1).astype(np.uint8)
        image = Image(height=HEIGHT, width=WIDTH, encoding="rgb8", step=3 * WIDTH, data=pixels.tobytes())
        image.header.frame_id = "camera"
        messages.append(bytearray(serialize_message(image)))
    while publisher.get_subscription_count() == 0:
        time.sleep(0.05)
    begin, count = time.monotonic(), 0
    while (at := count / rate) < seconds:
        time.sleep(max(0.0, begin + at - time.monotonic()))
        message, now = messages[count % PICTURES], time.time_ns()
        # The stamp follows the four bytes of the encapsulation.
        message[4:12] = struct.pack("<iI", *divmod(now, 1_000_000_000))
        publisher.publish(bytes(message))
        count += 1
        sent.value = count
    time.sleep(SETTLE)
    node.destroy_node()
    rclpy.shutdown()


@dataclass
class Measured:
    """What has been seen from outside; times in seconds."""

    frames: list[tuple[float, ...]] = field(default_factory=list)
    """Per frame used while nothing was asked: transport, wait, conversion, vision, prefill."""
    first_token: list[float] = field(default_factory=list)
    """From an instruction's arrival at the node to its first token."""
    first_delta: list[float] = field(default_factory=list)
    """From the publication of an instruction to the arrival of the first piece of its answer, between two processes."""
    memory: list[tuple[float, int]] = field(default_factory=list)
    """Resident memory in kB at times since the start."""
    asked: dict[str, float] = field(default_factory=dict)
    """When the instructions without an answer were published."""
    finished: Counter[str] = field(default_factory=Counter)
    stats: CacheStats | None = None
    quiet_since: float = 0.0


def seconds(duration: object) -> float:
    return duration.sec + duration.nanosec * 1e-9


def listen(process: NodeProcess, arguments: argparse.Namespace, source: multiprocessing.Process) -> Measured:
    """Asks, and keeps what the node says, until the camera has ended and everything is answered or must be taken as lost."""
    rclpy.init()
    node, measured = Node("measuring_user"), Measured()

    def on_stats(stats: CacheStats) -> None:
        before, measured.stats = measured.stats, stats
        new = stats.frames_used - before.frames_used if before else 0
        if new == 1 and not measured.asked and time.monotonic() - measured.quiet_since > BESIDE_AN_ANSWER:
            parts = (stats.transport_time, stats.frame_wait_time, stats.conversion_time, stats.vision_time)
            measured.frames.append((*map(seconds, parts), seconds(stats.prefill_time)))

    def on_delta(delta: ReasoningDelta) -> None:
        if delta.index == 0 and delta.text and delta.instruction_id in measured.asked:
            measured.first_delta.append(time.monotonic() - measured.asked[delta.instruction_id])

    def on_answer(answer: Reasoning) -> None:
        measured.asked.pop(answer.instruction_id)
        measured.quiet_since = time.monotonic()
        measured.finished[REASONS[answer.finish_reason]] += 1
        if answer.output_tokens:
            measured.first_token.append(seconds(answer.time_to_first_token))

    node.create_subscription(CacheStats, "inf_mllm/cache_stats", on_stats, 100)
    node.create_subscription(ReasoningDelta, "inf_mllm/reasoning_delta", on_delta, 1000)
    node.create_subscription(Reasoning, "inf_mllm/reasoning", on_answer, 1000)
    instructions = node.create_publisher(Instruction, "instruction", 1000)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    begin, number, next_memory = time.monotonic(), 0, 0.0
    lost_at = None
    while source.is_alive() or (measured.asked and time.monotonic() < lost_at):
        executor.spin_once(timeout_sec=0.005)
        process.check_running()
        if source.is_alive():
            lost_at = time.monotonic() + SETTLE
        if measured.stats is None or measured.stats.frames_used == 0:
            begin = time.monotonic()
            continue
        passed = time.monotonic() - begin
        if passed >= next_memory:
            measured.memory.append((round(passed, 1), resident(process.pid)))
            next_memory += arguments.seconds / 60
        if arguments.ask_every and (number + 1) * arguments.ask_every <= passed < arguments.seconds:
            measured.asked[f"q{number}"] = time.monotonic()
            instructions.publish(Instruction(id=f"q{number}", text=QUESTIONS[number % len(QUESTIONS)]))
            number += 1
    node.destroy_node()
    rclpy.shutdown()
    return measured


def resident(pid: int) -> int:
    """Resident memory in kB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


def spread(values: list[float]) -> dict[str, float]:
    """Median, 95th percentile and maximum in milliseconds."""
    if not values:
        return {}
    median, p95 = np.percentile(values, [50, 95])
    return {"median": round(1e3 * median, 2), "p95": round(1e3 * p95, 2), "max": round(1e3 * max(values), 2)}


def summary(measured: Measured, sent: int, arguments: argparse.Namespace) -> dict[str, object]:
    stats, parts = measured.stats, list(zip(*measured.frames, strict=True)) or [()] * 5
    names = ("transport", "wait", "conversion", "vision", "prefill")
    settled = [memory for at, memory in measured.memory if at > 0.1 * arguments.seconds]
    return {
        "rate_hz": arguments.rate,
        "seconds": arguments.seconds,
        "frames": {
            "published": sent,
            "received": stats.frames_received,
            "used": stats.frames_used,
            "superseded": stats.frames_superseded,
            "rejected": stats.frames_rejected,
            "timed": len(measured.frames),
        },
        "ms": {
            **{name: spread(list(values)) for name, values in zip(names, parts, strict=True)},
            "arrival to cache": spread([sum(frame[1:]) for frame in measured.frames]),
            "first token, in the node": spread(measured.first_token),
            "first token, seen by the asker": spread(measured.first_delta),
        },
        "instructions": {**measured.finished, "unanswered": len(measured.asked)},
        "cache": {"budget": stats.budget, "bytes": stats.bytes, "tokens_evicted": stats.tokens_evicted},
        "resident_mb": {
            "after a tenth": round(settled[0] / 1024, 1),
            "end": round(settled[-1] / 1024, 1),
            "most": round(max(settled) / 1024, 1),
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=30.0, help="images per second")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--ask-every", type=float, default=3.0, help="seconds between instructions; 0: none")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    isolate(free_domain())
    process = NodeProcess({"model": str(ROOT / "models" / "demo"), "stats_period": STATS_PERIOD})
    try:
        process.wait_ready()
        methods = multiprocessing.get_context("spawn")
        sent = methods.Value("q", 0)
        source = methods.Process(target=camera, args=(arguments.rate, arguments.seconds, sent))
        source.start()
        measured = listen(process, arguments, source)
        source.join()
        status, _ = process.stop()
    finally:
        process.kill()
    figures = summary(measured, sent.value, arguments)
    figures["node"] = {"exit code": status, "panics": process.log.count("panicked")}
    text = json.dumps(figures, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    return int(status != 0 or bool(measured.asked))


if __name__ == "__main__":
    sys.exit(main())
