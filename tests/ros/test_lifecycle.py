"""The node as a managed node: every transition, those that it refuses, a configure that fails, what stays and what is let go."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pictures
import pytest
import rclpy
from action_msgs.msg import GoalStatus
from builtin_interfaces.msg import Duration
from client import Client
from conftest import ROOT, START_SECONDS, STOP_SECONDS, Start
from inf_mllm.action import Ask
from inf_mllm.msg import Instruction, Reasoning, Status
from inf_mllm.srv import Cancel, ListWatches
from lifecycle_msgs.msg import Transition, TransitionEvent
from lifecycle_msgs.srv import ChangeState, GetAvailableStates, GetAvailableTransitions, GetState
from node_process import NodeProcess
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_srvs.srv import SetBool, Trigger

MODEL = str(ROOT / "models" / "demo")
WAITS = {"autostart": False}
EVENTS = QoSProfile(depth=100)
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
ROUNDS = 5
WEIGHTS_MB = 16.8
"""What the demo model's take."""
PROMPT = "You are a mobile robot. Answer briefly. " * 400


def change(client: Client, asked: int | str, name: str | None = None) -> bool:
    """Asks for a transition by its number or its label."""
    transition = Transition(id=asked) if isinstance(asked, int) else Transition(label=asked)
    request = ChangeState.Request(transition=transition)
    return client.call(ChangeState, f"{name or client.name}/change_state", request).success


def state(client: Client, name: str | None = None) -> str:
    return client.call(GetState, f"{name or client.name}/get_state", GetState.Request()).current_state.label


def transitions(client: Client, service: str, name: str | None = None) -> list[tuple]:
    request = GetAvailableTransitions.Request()
    response = client.call(GetAvailableTransitions, f"{name or client.name}/{service}", request)
    return [
        (one.transition.id, one.transition.label, one.start_state.id, one.start_state.label)
        + (one.goal_state.id, one.goal_state.label)
        for one in response.available_transitions
    ]


def statuses(client: Client) -> list[Status]:
    """What comes on ~/status from now on, and the last that came before."""
    heard: list[Status] = []
    client.subscribe(Status, f"{client.name}/status", heard.append, LATCHED)
    client.wait(lambda: bool(heard), "the last status")
    return heard


def put(client: Client, name: str, value: str | int) -> tuple[bool, str]:
    """Sets a parameter; whether that was taken, and why not."""
    given = (
        ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=value)
        if isinstance(value, str)
        else ParameterValue(type=ParameterType.PARAMETER_INTEGER, integer_value=value)
    )
    request = SetParameters.Request(parameters=[Parameter(name=name, value=given)])
    (result,) = client.call(SetParameters, f"{client.name}/set_parameters", request).results
    return result.successful, result.reason


def resident_mb(process: NodeProcess) -> float:
    """Memory of the node that is resident and its own, MB: files that are mapped do not count."""
    told = Path(f"/proc/{process.pid}/status").read_text()
    found = re.search(r"RssAnon:\s+(\d+) kB", told)
    assert found is not None, told
    return int(found.group(1)) / 1024


@pytest.fixture
def slow(tmp_path: Path) -> dict[str, object]:
    """A model that takes seconds to configure, as a long prompt goes through it, and much memory."""
    folder = shutil.copytree(MODEL, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 65_536
    (folder / "config.json").write_text(json.dumps(config))
    return {**WAITS, "model": str(folder), "budget": 8000, "system_prompt": PROMPT}


@pytest.fixture
def reference(domain: int) -> Iterator[SingleThreadedExecutor]:
    """A managed node of rclpy's, /reference, whose states and transitions are those of rcl itself."""
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    node = LifecycleNode("reference", context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    yield executor
    executor.shutdown()
    node.destroy_node()
    rclpy.shutdown(context=context)


def test_states_transitions_and_events_are_those_of_rcl(start: Start, reference: SingleThreadedExecutor) -> None:
    _, client = start(WAITS)
    both = (client.name, "/reference")
    spinning = threading.Thread(target=reference.spin, daemon=True)
    spinning.start()
    events: dict[str, list[TransitionEvent]] = {name: [] for name in both}
    for name in both:
        client.subscribe(TransitionEvent, f"{name}/transition_event", events[name].append, EVENTS)

    def alike(ask) -> object:
        ours, theirs = (ask(name) for name in both)
        assert ours == theirs
        return ours

    request = GetAvailableStates.Request()
    alike(lambda name: client.call(GetAvailableStates, f"{name}/get_available_states", request).available_states)
    assert len(alike(lambda name: transitions(client, "get_transition_graph", name))) == 25
    path = ["configure", "activate", "deactivate", "cleanup", 1, 3, 4, 2, "configure", "activate", "shutdown"]
    for asked in path:
        assert alike(lambda name: transitions(client, "get_available_transitions", name))
        assert alike(lambda name, asked=asked: change(client, asked, name)) is True
        alike(lambda name: state(client, name))
    assert state(client) == "finalized"
    assert alike(lambda name: transitions(client, "get_available_transitions", name)) == []
    # Two for each: into the state in which it is carried out, and out of that.
    client.wait(lambda: all(len(events[name]) == 2 * len(path) for name in both), "the events")
    ends = {name: [(event.start_state, event.goal_state) for event in events[name]] for name in both}
    assert ends[client.name] == ends["/reference"]
    own = events[client.name]
    assert all(one.timestamp <= other.timestamp for one, other in itertools.pairwise(own))
    assert [event.transition.label for event in own[:2]] == ["configure", "transition_success"]


def test_a_wrong_transition_is_refused_and_changes_nothing(start: Start) -> None:
    process, client = start(WAITS)
    heard = statuses(client)
    reached = {
        "unconfigured": [],
        "inactive": ["configure"],
        "active": ["activate"],
        "finalized": ["shutdown"],
    }
    right = {
        "unconfigured": {1, "configure", 5, "shutdown"},
        "inactive": {2, "cleanup", 3, "activate", 6, "shutdown"},
        "active": {4, "deactivate", 7, "shutdown"},
        "finalized": set(),
    }
    asked = {0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 30, 60, 97, 255}
    labels = {"configure", "cleanup", "activate", "deactivate", "shutdown", "destroy", "transition_success", "Activate"}
    for where, steps in reached.items():
        assert all(change(client, step) for step in steps)
        client.wait(lambda where=where: heard[-1].state.label == where, f"the status of a node that is {where}")
        count = len(heard)
        for wrong in (asked | labels) - right[where]:
            assert change(client, wrong) is False, (where, wrong)
        assert state(client) == where
        assert all(one.state.label == where for one in heard[count:])
    assert "transition 3 is none of unconfigured, which has configure (1), shutdown (5)" in process.log
    assert heard[-1].last_error == ""


def test_a_failed_configure_is_told_and_can_be_mended(start: Start) -> None:
    process, client = start({**WAITS, "model": "/nowhere/at/all"})
    heard = statuses(client)
    assert change(client, "configure") is False
    assert state(client) == "unconfigured"
    client.wait(lambda: heard[-1].last_error != "", "the error")
    assert "/nowhere/at/all" in heard[-1].last_error
    assert (heard[-1].state.label, heard[-1].device) == ("unconfigured", "")
    assert any("ERROR" in line and "/nowhere/at/all" in line for line in process.lines)
    refused = client.ask("What is in view?")
    assert (refused.finish_reason, refused.text) == (Reasoning.FINISH_ERROR, "")
    assert put(client, "model", MODEL) == (True, "")
    assert change(client, "configure") and change(client, "activate")
    client.wait(lambda: heard[-1].state.label == "active", "the node to be active")
    assert (heard[-1].last_error, heard[-1].model) == ("", MODEL)
    client.show(pictures.raw(sec=5))
    assert client.ask("What is in view?").header.stamp.sec == 5


def test_a_model_of_a_very_long_name_is_told_in_short(start: Start) -> None:
    name = "org/" + "a" * 5000
    process, client = start({**WAITS, "model": name})
    heard = statuses(client)
    assert change(client, "configure") is False
    client.wait(lambda: heard[-1].last_error != "", "the error")
    error = heard[-1].last_error
    # Whole it is in none of the folders that were searched, and each of these stands there once.
    assert error.startswith('parameter model is "org/aaa') and len(error) < 3000, error
    assert len(heard[-1].model) < 300 and heard[-1].model.endswith("aaa... (5004 bytes)")
    searched = error.partition("looked for: ")[2].split(", ")
    assert len(searched) == len(set(searched)) > 1, searched
    before = len(client.diagnostics)
    client.wait(lambda: len(client.diagnostics) > before + 1, "diagnostics")
    for status in client.diagnostics[-1].status:
        texts = [status.message, status.hardware_id, *(value.value for value in status.values)]
        assert max(map(len, texts)) < 3000, status
    assert max(map(len, process.lines)) < 4000
    assert put(client, "model", "") == (True, "")
    assert change(client, "configure") is False
    client.wait(lambda: 'model is ""' in heard[-1].last_error, "the error of the empty name")


def test_a_budget_that_is_too_small_fails_at_configure_and_can_be_mended(start: Start) -> None:
    _, client = start({**WAITS, "budget": 10})
    heard = statuses(client)
    assert change(client, "configure") is False
    client.wait(lambda: "at least" in heard[-1].last_error, "the error")
    assert put(client, "budget", 300) == (True, "")
    assert change(client, "configure")
    assert client.fresh_stats().budget == 300


def test_the_memory_survives_deactivate_and_activate(start: Start) -> None:
    _process, client = start()
    client.show(pictures.raw(sec=5))
    before = client.fresh_stats()
    assert change(client, "deactivate")
    assert state(client) == "inactive"
    for sec in (6, 7):
        client.publish(pictures.raw(sec=sec))
    client.wait(lambda: client.stats[-1].frames_skipped_paused == 2, "the skipped frames")
    refused = client.ask("What is in view?")
    assert refused.finish_reason == Reasoning.FINISH_ERROR
    for word in ("inactive", "expected active", "~/change_state with activate"):
        assert word in refused.error
    paused = client.fresh_stats()
    assert paused.paused
    assert (paused.used, paused.tokens_seen, paused.frames_used) == (before.used, before.tokens_seen, 1)
    assert change(client, "activate")
    answer = client.ask("What is in view?")
    assert (answer.header.stamp.sec, answer.frames_seen) == (5, 1)
    assert answer.finish_reason != Reasoning.FINISH_ERROR
    assert not client.fresh_stats().paused


def test_cleanup_lets_go_of_model_and_memory_and_configure_begins_anew(start: Start, slow: dict[str, object]) -> None:
    # The view of the graph, which a silent camera opens, takes memory of its own.
    process, client = start(slow | {"image_timeout": 600.0})
    empty = resident_mb(process)
    left = []
    for round_ in range(ROUNDS):
        assert change_slowly(client, "configure") and change(client, "activate")
        client.show(pictures.raw(sec=5 + round_))
        assert client.ask("What is in view?").frames_seen == 1
        full = resident_mb(process) - empty
        assert change(client, "deactivate") and change(client, "cleanup")
        left.append(resident_mb(process) - empty)
        assert full > 50.0
        # The cache is by far the most of it; of what else there was, the allocator keeps a part that differs from time to time.
        assert left[-1] < 0.3 * full, f"{left} MB are left of {full:.1f}"
    # What stays does not add up.
    assert left[-1] - left[0] < 0.5 * WEIGHTS_MB * (ROUNDS - 1), left
    stats = client.fresh_stats()
    assert (stats.budget, stats.used, stats.bytes, stats.policy) == (0, 0, 0, "")
    # Counters are those of the node.
    assert (stats.frames_used, stats.instructions_answered) == (ROUNDS, ROUNDS)
    assert put(client, "budget", 600) == (True, "")
    assert put(client, "system_prompt", "Answer briefly.") == (True, "")
    assert change(client, "configure")
    stats = client.fresh_stats()
    assert (stats.budget, stats.prefix) == (600, stats.used)
    assert 0 < stats.used < 100
    successful, reason = put(client, "budget", 700)
    assert not successful
    assert "the node is inactive: ~/change_state with cleanup comes first" in reason
    assert change(client, "activate")
    refused = client.ask("What is in view?")
    assert "no image has come" in refused.error


def change_slowly(client: Client, label: str) -> bool:
    """The same where the model takes its time."""
    name, request = f"{client.name}/change_state", ChangeState.Request(transition=Transition(label=label))
    return client.call(ChangeState, name, request, timeout=60.0).success


def test_watches_and_what_waits_end_with_cleanup(start: Start) -> None:
    _, client = start()
    client.show(pictures.raw(sec=5))
    client.instruct("Is the way free?", id="w", mode=Instruction.MODE_WATCH, watch_period=Duration(nanosec=100_000_000))
    client.wait(lambda: bool(client.answers), "the first answer of the watch")
    assert change(client, "deactivate") and change(client, "cleanup")
    client.wait(lambda: client.answers[-1].watch_ended, "the last answer of the watch")
    last = client.answers[-1]
    assert last.finish_reason == Reasoning.FINISH_CANCELLED
    assert "cleanup" in last.error
    assert client.call(ListWatches, f"{client.name}/watches", ListWatches.Request()).watches == []


def test_others_are_answered_while_the_model_is_loaded(start: Start, slow: dict[str, object]) -> None:
    _process, client = start(slow)
    heard = statuses(client)
    answer = client.call_later(
        ChangeState, f"{client.name}/change_state", ChangeState.Request(transition=Transition(id=1))
    )
    client.wait(lambda: heard[-1].state.label == "configuring", "the state of configuring")
    for _ in range(5):
        assert state(client) == "configuring"
    assert "configuring" in client.ask("What is in view?").error
    pause = client.call(SetBool, f"{client.name}/pause", SetBool.Request(data=False))
    assert not pause.success and "configuring" in pause.message
    assert not put(client, "budget", 700)[0]
    assert not answer.done()
    client.wait(answer.done, "the end of configure", 60.0)
    assert answer.result().success
    assert state(client) == "inactive"


@pytest.mark.parametrize("autostart", [False, True])
def test_a_signal_ends_the_node_while_the_model_is_loaded(
    domain: int, slow: dict[str, object], autostart: bool
) -> None:
    process = NodeProcess({**slow, "autostart": autostart})
    client = Client(domain, process)
    try:
        heard = statuses(client)
        if not autostart:
            client.call_later(ChangeState, "/inf_mllm/change_state", ChangeState.Request(transition=Transition(id=1)))
        client.wait(lambda: heard[-1].state.label == "configuring", "the state of configuring")
        status, took = process.stop(signal.SIGINT)
        assert (status, took < STOP_SECONDS) == (0, True), process.log
        assert "panicked" not in process.log
    finally:
        client.close()
        process.kill()


def test_the_last_status_waits_for_those_who_listen_later(start: Start) -> None:
    _, client = start()
    client.show(pictures.raw(sec=5))
    first = statuses(client)
    assert len(first) == 1
    version = re.search(r"<version>(.*)</version>", (ROOT / "package.xml").read_text())
    assert version is not None
    last = first[-1]
    assert (last.state.label, last.state.id, last.paused) == ("active", 3, False)
    assert (last.model, last.last_error, last.version) == (MODEL, "", version.group(1))
    assert last.device.startswith("cpu, ")
    assert change(client, "deactivate")
    client.wait(lambda: first[-1].state.label == "inactive", "the status of an inactive node")
    assert first[-1].paused
    assert change(client, "cleanup")
    client.wait(lambda: first[-1].state.label == "unconfigured", "the status of an unconfigured node")
    late = statuses(client)
    assert [status.state.label for status in late] == ["unconfigured"]
    assert (late[-1].device, late[-1].paused, late[-1].model) == ("", False, MODEL)


def test_without_autostart_the_node_waits_unconfigured_and_says_so_to_everyone(start: Start) -> None:
    process, client = start(WAITS)
    assert state(client) == "unconfigured"
    client.publish(pictures.raw(sec=5))
    client.wait(lambda: client.stats[-1].frames_skipped_paused == 1, "the skipped frame")
    stats = client.fresh_stats()
    assert (stats.budget, stats.frames_used, stats.paused) == (0, 0, True)
    refused = client.ask("What is in view?", id="q")
    assert (refused.instruction_id, refused.finish_reason) == ("q", Reasoning.FINISH_ERROR)
    for word in ("unconfigured", "~/change_state with configure"):
        assert word in refused.error
    client.wait(lambda: bool(client.deltas) and client.deltas[-1].done, "the last piece of the answer")
    ask = client.action(Ask, f"{client.name}/ask")
    sent = ask.send_goal_async(Ask.Goal(instruction=Instruction(text="What is in view?")))
    client.wait(sent.done, "the goal to be accepted")
    result = sent.result().get_result_async()
    client.wait(result.done, "the result of the goal")
    assert result.result().status == GoalStatus.STATUS_ABORTED
    assert "unconfigured" in result.result().result.reasoning.error
    reset = client.call(Trigger, f"{client.name}/reset", Trigger.Request())
    assert not reset.success and "unconfigured" in reset.message
    for paused in (True, False):
        pause = client.call(SetBool, f"{client.name}/pause", SetBool.Request(data=paused))
        assert not pause.success and "unconfigured" in pause.message
    assert not client.call(Cancel, f"{client.name}/cancel", Cancel.Request()).success
    assert "ready" not in process.log.split()
    assert change(client, "configure") and change(client, "activate")
    client.show(pictures.raw(sec=6))
    assert client.ask("What is in view?").header.stamp.sec == 6


def test_pause_is_deactivate_and_activate(start: Start) -> None:
    _, client = start()
    for paused, where in ((True, "inactive"), (True, "inactive"), (False, "active"), (False, "active")):
        assert client.call(SetBool, f"{client.name}/pause", SetBool.Request(data=paused)).success
        assert state(client) == where
    assert change(client, "deactivate")
    assert client.call(SetBool, f"{client.name}/pause", SetBool.Request(data=False)).success
    assert state(client) == "active"


def test_shutdown_leaves_a_node_that_answers_and_does_nothing_else(start: Start) -> None:
    process, client = start()
    client.show(pictures.raw(sec=5))
    assert change(client, "shutdown")
    assert state(client) == "finalized"
    assert "finalized" in client.ask("What is in view?").error
    taken, reason = put(client, "budget", 300)
    assert not taken and "the node is finalized, which it stays: give it there and restart the node" in reason
    assert client.fresh_stats().budget == 0
    client.spin(0.5)
    assert process.returncode is None
    status, took = process.stop()
    assert (status, took < STOP_SECONDS) == (0, True)


def test_a_missing_model_ends_a_node_that_is_to_begin_by_itself(domain: int) -> None:
    process = NodeProcess({"model": "/nowhere/at/all"})
    assert process.wait_end(START_SECONDS) == 1
    assert "/nowhere/at/all" in process.lines[-1]


def test_a_model_in_the_share_folder_of_a_package(start: Start) -> None:
    _process, client = start({**WAITS, "model": "package://no_such_package/models/demo"})
    heard = statuses(client)
    assert change(client, "configure") is False
    client.wait(lambda: heard[-1].last_error != "", "the error")
    for prefix in os.environ["AMENT_PREFIX_PATH"].split(":"):
        assert prefix in heard[-1].last_error
    assert "package no_such_package is not installed" in heard[-1].last_error
    assert put(client, "model", "package://inf_mllm/models/demo") == (True, "")
    assert change(client, "configure") and change(client, "activate")
    client.show(pictures.raw(sec=5))
    assert client.ask("What is in view?").header.stamp.sec == 5
