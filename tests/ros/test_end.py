"""SIGINT and SIGTERM end the node within two seconds with exit code 0, whatever it is doing; idle, it does next to nothing."""

import os
import signal
from pathlib import Path

import pictures
import pytest
from client import ENDLESS, LONG
from conftest import STOP_SECONDS, Start
from inf_mllm.msg import Reasoning

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("by", SIGNALS)
def test_while_idle(start: Start, by: signal.Signals) -> None:
    process, client = start()
    client.show(pictures.raw())
    status, took = process.stop(by)
    assert status == 0
    assert took < STOP_SECONDS


@pytest.mark.parametrize("by", SIGNALS)
def test_during_an_answer_every_instruction_still_gets_one(start: Start, by: signal.Signals) -> None:
    process, client = start({**LONG, "queue_size": 100})
    client.show(pictures.raw())
    ids = [f"i{index}" for index in range(20)]
    for name in ids:
        client.instruct("What is in view?", id=name, **ENDLESS)
    client.wait(lambda: bool(client.deltas), "the first piece of an answer")
    client.wait(lambda: client.stats[-1].instructions_received == len(ids), "the others to wait")
    status, took = process.stop(by)
    assert status == 0
    assert took < STOP_SECONDS
    client.spin_until(lambda: len(client.answers) == len(ids), 10.0)
    assert sorted(answer.instruction_id for answer in client.answers) == sorted(ids)
    cut = [answer for answer in client.answers if answer.finish_reason == Reasoning.FINISH_CANCELLED]
    assert any(answer.output_tokens > 0 for answer in cut)


def test_while_frames_stream_in(start: Start) -> None:
    process, client = start()
    for index in range(100):
        client.publish(pictures.raw(sec=1, nanosec=index))
        client.spin(0.005)
    status, took = process.stop()
    assert status == 0
    assert took < STOP_SECONDS


def test_an_idle_node_does_not_spin(start: Start) -> None:
    process, client = start({"stats_period": 1.0})
    client.show(pictures.raw())
    before = processor_seconds(process.pid)
    client.spin(3.0)
    used = processor_seconds(process.pid) - before
    assert used < 0.3, f"{used:.2f} s of processor time in 3 s"


def processor_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
