"""Fixtures: the real node process, and an rclpy client in the same ROS domain.

Without a ROS or a built package the imports fail, and with them the run: nothing is skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import rclpy
from client import Client
from node_process import PARAMETER_FILE, NodeProcess, free_domain, isolate
from rclpy.node import Node
from rclpy.publisher import Publisher

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 30.0
"""Seconds for what a node that refuses to start takes to end, on a machine that has other things to do."""
STOP_SECONDS = 2.0
"""What a node may take to end, where that is what is tested; elsewhere a busy machine has longer."""
FAST_STATS = 0.05
"""Seconds between two CacheStats messages where a test waits for a counter."""

Start = Callable[..., tuple[NodeProcess, Client]]
Advertise = Callable[..., Publisher]


@pytest.fixture
def domain() -> int:
    """A ROS domain of the test's own."""
    number = free_domain()
    isolate(number)
    return number


@pytest.fixture
def advertise(domain: int) -> Iterator[Advertise]:
    """Publishers of another node than the client's: advertise(type, topic, qos)."""
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    node = Node("driver", namespace="/other", context=context)
    yield node.create_publisher
    node.destroy_node()
    rclpy.shutdown(context=context)


@pytest.fixture
def start(domain: int) -> Iterator[Start]:
    """Starts a node and a client that has found it: start(parameters, arguments, parameter_file, **client options).

    A node that still runs at the end of the test is to end by SIGINT, with exit code 0 in 2 s.
    """
    processes: list[NodeProcess] = []
    clients: list[Client] = []

    def begin(
        parameters: dict[str, object] | None = None,
        arguments: tuple[str, ...] = (),
        parameter_file: Path | None = PARAMETER_FILE,
        **options: str | bool,
    ) -> tuple[NodeProcess, Client]:
        given = {"model": str(ROOT / "models" / "demo"), "stats_period": FAST_STATS, **(parameters or {})}
        process = NodeProcess(given, arguments, parameter_file)
        processes.append(process)
        client = Client(domain, process, **options)
        clients.append(client)
        process.wait_ready(START_SECONDS)
        client.wait_for_node()
        return process, client

    try:
        yield begin
        for process in processes:
            if process.returncode is None:
                process.stop()
            assert process.returncode == 0, process.log
            assert "panicked" not in process.log, process.log
    finally:
        for client in clients:
            client.close()
        for process in processes:
            process.kill()
