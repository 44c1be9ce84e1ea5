"""Plays a camera bag into the running node in real time, asks it questions, and shows what it answers and what it would without memory.

Run it with `make demo`, options in DEMO_ARGS; or, after `make build`, with `scripts/ros-run python scripts/demo --help`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import rclpy
from node_process import ROOT, NodeFailed, NodeProcess, free_domain, isolate
from player import IMAGE, Player
from rclpy.signals import SignalHandlerOptions
from record import Record
from recording import Recording, RecordingError
from rich.console import Console
from summary import summary
from view import About, LiveView, PlainView
from without_memory import POLICY, Comparison, ReplayFailed, replay

STATS_PERIOD = 0.2
"""Seconds between two reports of the node about its cache: often enough for a live view."""
LOG_WIDTH = 120
"""Characters per line where there is no terminal."""
STOP_SECONDS = 2.0
"""The node has this long to end after SIGINT."""


DESCRIPTION = f"""
Plays a camera bag into the running node in real time, asks it questions, and shows what it answers. After that the same bag and
questions go through `inf_mllm replay` with policy {POLICY}, which knows the last few frames and nothing else. The summary has both
columns, what is about now and what was seen before apart, and how old the frames were that the node recalled. The exit code is
0, however many answers are right; it is 1 if an answer is missing, the budget was exceeded, too little was evicted, or the
replay failed.
"""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="demo", description=DESCRIPTION)
    parser.add_argument("--bag", type=Path, default=ROOT / "bags" / "demo", help="rosbag2 folder (mcap)")
    parser.add_argument("--instructions", type=Path, help="questions with times, YAML; default: in the bag's folder")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "demo", help="folder of the checkpoint")
    parser.add_argument("--policy", help="eviction policy of the node, as its parameter policy")
    parser.add_argument("--budget", type=int, help="slots of the cache per layer, tokens")
    parser.add_argument("--plain", action="store_true", help="lines of text instead of the live view")
    parser.add_argument("--no-replay", action="store_true", help=f"leave out the replay with policy {POLICY}")
    parser.add_argument(
        "--evict-at-least",
        type=float,
        default=5.0,
        metavar="N",
        help="fail if fewer than N times the budget's tokens were evicted (default: %(default)s); 0 for a policy that evicts "
        f"nothing (full, {POLICY})",
    )
    return parser.parse_args()


def main() -> int:
    args = arguments()
    console = Console(width=None if sys.stdout.isatty() else LOG_WIDTH)
    errors = Console(stderr=True)
    try:
        recording = Recording(args.bag, args.instructions or args.bag / "instructions.yaml")
        record = Record()
        run(args, recording, record, console)
        failures = record.failures(args.evict_at_least)
        comparison = compare(args, recording, record, console, failures)
    except (RecordingError, NodeFailed) as error:
        errors.print(f"demo: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        errors.print("demo: interrupted", markup=False)
        return 130
    console.print(summary(record, comparison))
    for failure in failures:
        errors.print(f"demo: {failure}", style="red", markup=False, highlight=False, soft_wrap=True)
    return 1 if failures else 0


def compare(
    args: argparse.Namespace, recording: Recording, record: Record, console: Console, failures: list[str]
) -> Comparison:
    """The answers without a memory, or why there are none; a replay that fails is added to the failures."""
    if args.no_replay:
        return Comparison(missing="not asked for (--no-replay)")
    if record.stats.policy == POLICY:
        return Comparison(missing=f"nothing to compare with: policy {POLICY} is without memory itself")
    console.print(f"The same questions without memory, by a replay with policy {POLICY} ...", highlight=False)
    try:
        return replay(recording, args.model, args.budget)
    except ReplayFailed as error:
        failures.append(f"no answers without memory: {error}")
        return Comparison(missing=f"not known: {error}")


def run(args: argparse.Namespace, recording: Recording, record: Record, console: Console) -> None:
    """Starts the node, plays everything into it and ends it; what it says goes to `record`."""
    parameters: dict[str, object] = {
        "model": str(args.model.resolve()),
        "image_transport": "compressed",
        "stats_period": STATS_PERIOD,
    }
    if recording.system_prompt is not None:
        parameters["system_prompt"] = recording.system_prompt
    for name in ("policy", "budget"):
        if getattr(args, name) is not None:
            parameters[name] = getattr(args, name)
    domain = free_domain()
    isolate(domain)
    process = NodeProcess(parameters, arguments=("-r", f"image:={IMAGE}"))
    try:
        process.wait_ready()
        # Python's own handler turns Ctrl-C into KeyboardInterrupt, so that the node is ended on the way out.
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        try:
            play(recording, record, process, console, args.plain or not console.is_terminal, domain)
        finally:
            rclpy.shutdown()
        status, took = process.stop()
    finally:
        process.kill()
    if status != 0 or took > STOP_SECONDS:
        raise NodeFailed(
            f"the node ended with exit code {status} {took:.1f} s after SIGINT, expected 0 within {STOP_SECONDS:g} s; "
            f"its log ends with:\n{process.tail()}"
        )


def play(
    recording: Recording, record: Record, process: NodeProcess, console: Console, plain: bool, domain: int
) -> None:
    about = About(domain=domain, seconds=recording.seconds)
    view_type = PlainView if plain else LiveView
    with view_type(console, record, about) as view:
        player = Player(record, process, view.tick)
        try:
            player.wait_for_node()
            player.play(recording)
            player.wait_for_answers()
        finally:
            player.close()


if __name__ == "__main__":
    sys.exit(main())
