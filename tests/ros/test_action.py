"""The action ~/ask and the service ~/cancel: instructions as goals, cut off by their user and by more urgent ones."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pictures
from action_msgs.msg import GoalStatus, GoalStatusArray
from action_msgs.srv import CancelGoal
from builtin_interfaces.msg import Duration
from client import ENDLESS, LONG, Client
from conftest import STOP_SECONDS, Start
from inf_mllm.action import Ask
from inf_mllm.msg import Instruction, Reasoning
from inf_mllm.srv import Cancel
from node_process import NodeProcess
from rclpy.action import ActionClient
from rclpy.action.client import ClientGoalHandle
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_srvs.srv import SetBool

ASK = "/inf_mllm/ask"
EVERYTHING = {"text": "Tell me everything.", **ENDLESS}
FAST = 2000
"""Goals of the test of memory."""


class Goal:
    """A goal that has been sent, and what has come of it."""

    def __init__(self, client: Client, action: ActionClient, **fields: Any) -> None:
        self._client = client
        # Those in a row from the first one: a client has no room for all that come while it is busy.
        self.pieces: list[str] = []
        self.first_piece: float | None = None
        sent = action.send_goal_async(Ask.Goal(instruction=Instruction(**fields)), feedback_callback=self._feedback)
        client.wait(sent.done, "the goal to be accepted or refused")
        self.handle: ClientGoalHandle = sent.result()
        assert self.handle.accepted
        self._result = self.handle.get_result_async()

    def _feedback(self, message: Any) -> None:
        self.first_piece = self.first_piece or time.monotonic()
        delta = message.feedback.delta
        if delta.index == len(self.pieces):
            self.pieces.append(delta.text)

    def begin(self) -> None:
        self._client.wait(lambda: self.first_piece is not None, "a piece of the answer")

    @property
    def done(self) -> bool:
        return self._result.done()

    def result(self) -> tuple[int, Reasoning]:
        self._client.wait(self._result.done, "the result of the goal")
        response = self._result.result()
        return response.status, response.result.reasoning

    def cancel(self) -> CancelGoal.Response:
        cancelled = self.handle.cancel_goal_async()
        self._client.wait(cancelled.done, "the goal to be cancelled")
        return cancelled.result()


def resident(process: NodeProcess) -> int:
    """Memory of the node, KiB."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS")))


def test_a_goal_is_answered_like_any_instruction_with_the_pieces_as_feedback(start: Start) -> None:
    _, client = start()
    client.show(pictures.raw(sec=7))
    action = client.action(Ask, ASK)
    client.wait(lambda: client.actions() == {ASK: ["inf_mllm/action/Ask"]}, "the action in the graph")
    states: list[int] = []
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    topic = f"{ASK}/_action/status"
    client.subscribe(GoalStatusArray, topic, lambda array: states.extend(s.status for s in array.status_list), latched)
    goal = Goal(client, action, text="What is in view?", id="as a goal")
    status, reasoning = goal.result()
    assert (status, reasoning.finish_reason, reasoning.error) == (
        GoalStatus.STATUS_SUCCEEDED,
        Reasoning.FINISH_STOP,
        "",
    )
    assert reasoning.text
    assert (reasoning.instruction_id, reasoning.header.stamp.sec) == ("as a goal", 7)
    # rclpy leaves out the feedback that it finds behind a result.
    assert reasoning.text.startswith("".join(goal.pieces))
    client.wait(lambda: bool(client.answers), "the answer on the topic")
    assert client.answers == [reasoning]
    client.wait(lambda: GoalStatus.STATUS_SUCCEEDED in states, "the state of the goal")
    unnamed = Goal(client, action, text="What is in view?")
    name = bytes(unnamed.handle.goal_id.uuid).hex()
    assert unnamed.result()[1].instruction_id.replace("-", "") == name


def test_goals_queue_and_are_cancelled_one_by_one_within_a_token(start: Start) -> None:
    _, client = start(LONG)
    client.show(pictures.raw())
    action = client.action(Ask, ASK)
    first, second, third = (Goal(client, action, **EVERYTHING, id=f"goal {i}") for i in range(3))
    first.begin()
    assert second.cancel().return_code == CancelGoal.Response.ERROR_NONE
    status, reasoning = second.result()
    assert (status, reasoning.finish_reason) == (GoalStatus.STATUS_CANCELED, Reasoning.FINISH_CANCELLED)
    assert reasoning.error == "cancelled while it waited"
    assert not first.done

    asked = time.monotonic()
    cancelling = first.handle.cancel_goal_async()
    client.wait(lambda: first.done, "the result of the cancelled goal")
    took = time.monotonic() - asked
    client.wait(cancelling.done, "the response")
    status, reasoning = first.result()
    assert (status, reasoning.finish_reason) == (GoalStatus.STATUS_CANCELED, Reasoning.FINISH_CANCELLED)
    assert reasoning.text.startswith("".join(first.pieces))
    # A token of the demo model takes some milliseconds; the node looks for requests every 50 ms at the latest.
    assert took < 0.5, took

    third.begin()
    response = client.call(Cancel, "/inf_mllm/cancel", Cancel.Request(id="goal 2"))
    assert (response.success, response.message) == (True, "cancelled: the one being answered")
    assert third.result()[0] == GoalStatus.STATUS_CANCELED


def test_a_higher_priority_aborts_the_goal_that_is_being_answered(start: Start) -> None:
    _, client = start(LONG)
    client.show(pictures.raw())
    action = client.action(Ask, ASK)
    patient = Goal(client, action, **EVERYTHING, id="patient", priority=-1)
    patient.begin()
    urgent = client.next_answer(lambda: client.instruct("What is in view?", id="urgent", max_new_tokens=2))
    assert urgent.instruction_id == "patient", "what was cut off is told first"
    status, reasoning = patient.result()
    assert (status, reasoning.finish_reason) == (GoalStatus.STATUS_ABORTED, Reasoning.FINISH_PREEMPTED)
    assert reasoning.error == "instruction urgent of priority 0 came before this one of priority -1"
    assert reasoning.text
    client.wait(lambda: client.answers[-1].instruction_id == "urgent", "the urgent answer")
    assert client.answers[-1].finish_reason == Reasoning.FINISH_LENGTH


def test_in_a_full_queue_a_more_urgent_goal_takes_the_place_of_another_one(start: Start) -> None:
    _, client = start({**LONG, "queue_size": 1})
    client.show(pictures.raw())
    action = client.action(Ask, ASK)
    runs = Goal(client, action, **EVERYTHING, id="runs", priority=9)
    runs.begin()
    waits = Goal(client, action, **EVERYTHING, id="waits")
    equal = Goal(client, action, **EVERYTHING, id="equal")
    status, reasoning = equal.result()
    assert (status, reasoning.finish_reason) == (GoalStatus.STATUS_ABORTED, Reasoning.FINISH_ERROR)
    assert "instruction queue is full: 1 wait, expected at most 1" in reasoning.error
    urgent = Goal(client, action, text="What is in view?", id="urgent", priority=3, max_new_tokens=2)
    status, reasoning = waits.result()
    assert (status, reasoning.finish_reason) == (GoalStatus.STATUS_ABORTED, Reasoning.FINISH_PREEMPTED)
    expected = (
        "the instruction queue was full, and instruction urgent of priority 3 took the place of this one of priority 0"
    )
    assert (reasoning.error, reasoning.text) == (expected, "")
    assert not runs.done
    runs.cancel()
    assert urgent.result()[0] == GoalStatus.STATUS_SUCCEEDED


def test_what_is_echoed_of_an_id_is_cut_off(start: Start) -> None:
    process, client = start()
    response = client.call(Cancel, "/inf_mllm/cancel", Cancel.Request(id="x" * 100_000))
    assert not response.success
    assert "xxx... (100000 bytes)" in response.message
    assert len(response.message) < 300
    client.spin(0.2)
    assert len(process.log) < 20_000


def test_a_goal_ends_at_its_time_limit_as_a_success(start: Start) -> None:
    _, client = start(LONG)
    client.show(pictures.raw())
    action = client.action(Ask, ASK)
    limit = Duration(sec=1)
    status, reasoning = Goal(client, action, **EVERYTHING, time_limit=limit).result()
    assert (status, reasoning.finish_reason) == (GoalStatus.STATUS_SUCCEEDED, Reasoning.FINISH_TIME_LIMIT)
    assert reasoning.text
    latency = reasoning.latency.sec + reasoning.latency.nanosec * 1e-9
    assert 1.0 <= latency < 2.0


def test_a_goal_that_cannot_be_answered_is_aborted_and_says_why(start: Start) -> None:
    _, client = start({**LONG, "queue_size": 1})
    action = client.action(Ask, ASK)

    def refusal(**fields: Any) -> str:
        status, reasoning = Goal(client, action, **fields).result()
        assert (status, reasoning.finish_reason) == (GoalStatus.STATUS_ABORTED, Reasoning.FINISH_ERROR)
        assert reasoning.text == ""
        return reasoning.error

    assert "no frame has been seen yet" in refusal(text="What is in view?")
    client.show(pictures.raw())
    assert "instruction text is empty" in refusal(text=" ")
    assert "max_new_tokens is 60001" in refusal(text="Why?", max_new_tokens=60_001)
    assert "instruction id is 257 bytes long" in refusal(text="Why?", id="i" * 257)
    assert "instruction mode is 1 (watch) in a goal" in refusal(
        text="Why?", mode=Instruction.MODE_WATCH, watch_frames=1
    )
    negative = Duration(sec=-2)
    assert refusal(text="Why?", time_limit=negative) == "instruction time_limit is -2 s, expected 0 or more"
    client.call(SetBool, "/inf_mllm/pause", SetBool.Request(data=True))
    assert "the node is paused" in refusal(text="Why?")
    client.call(SetBool, "/inf_mllm/pause", SetBool.Request(data=False))

    running = Goal(client, action, **EVERYTHING, id="taken")
    running.begin()
    assert 'instruction id is "taken"' in refusal(text="Why?", id="taken")
    assert not running.done, "another goal of its id is not the same goal"
    waiting = Goal(client, action, **EVERYTHING)
    assert "instruction queue is full" in refusal(text="Why?")
    response = client.call(Cancel, "/inf_mllm/cancel", Cancel.Request())
    assert (response.success, response.message) == (True, "cancelled: the one being answered and 1 that waited")
    assert [goal.result()[0] for goal in (running, waiting)] == [GoalStatus.STATUS_CANCELED] * 2


def test_what_is_not_there_cannot_be_cancelled_and_has_no_result(start: Start) -> None:
    _, client = start({"goal_result_timeout": 5.0})
    client.show(pictures.raw())
    action = client.action(Ask, ASK)
    goal = Goal(client, action, text="What is in view?")
    goal.result()

    def cancel(name: list[int]) -> int:
        request = CancelGoal.Request()
        request.goal_info.goal_id.uuid = name
        return client.call(CancelGoal, f"{ASK}/_action/cancel_goal", request).return_code

    def result(name: list[int]) -> tuple[int, str]:
        request = Ask.Impl.GetResultService.Request()
        request.goal_id.uuid = name
        response = client.call(Ask.Impl.GetResultService, f"{ASK}/_action/get_result", request)
        return response.status, response.result.reasoning.text

    ended, unknown = list(goal.handle.goal_id.uuid), [9] * 16
    assert result(ended) == (GoalStatus.STATUS_SUCCEEDED, goal.result()[1].text), "kept for who asks late"
    assert cancel(ended) == CancelGoal.Response.ERROR_GOAL_TERMINATED
    assert cancel(unknown) == CancelGoal.Response.ERROR_UNKNOWN_GOAL_ID
    assert result(unknown) == (GoalStatus.STATUS_UNKNOWN, "")
    assert cancel([0] * 16) == CancelGoal.Response.ERROR_REJECTED, "there is none to be cancelled"
    client.wait(lambda: result(ended) == (GoalStatus.STATUS_UNKNOWN, ""), "the result to be kept no longer")
    response = client.call(Cancel, "/inf_mllm/cancel", Cancel.Request(id="nobody"))
    expected = 'id is "nobody", expected that of an instruction that waits, is being answered or is watched'
    assert (response.success, response.message) == (False, expected)
    response = client.call(Cancel, "/inf_mllm/cancel", Cancel.Request())
    assert (response.success, response.message) == (False, "nothing waits, is being answered or is watched")


def test_a_node_that_ends_cancels_its_goals(start: Start) -> None:
    process, client = start(LONG)
    client.show(pictures.raw())
    action = client.action(Ask, ASK)
    goals = [Goal(client, action, **EVERYTHING) for _ in range(2)]
    goals[0].begin()
    status, _ = process.stop()
    assert status == 0
    client.spin_until(lambda: all(goal.done for goal in goals), 10.0)
    assert all(goal.done for goal in goals)
    assert [goal.result()[0] for goal in goals] == [GoalStatus.STATUS_CANCELED] * 2


def test_a_node_that_ends_tells_all_goals_that_wait(start: Start) -> None:
    # Fewer messages than a process can have unread in shared memory, so that nothing depends on how fast this one is.
    count = 150
    process, client = start({**LONG, "queue_size": count})
    client.show(pictures.raw())
    action = client.action(Ask, ASK, QoSProfile(depth=1000))
    sent = [action.send_goal_async(Ask.Goal(instruction=Instruction(**EVERYTHING))) for _ in range(count)]
    client.wait(lambda: all(goal.done() for goal in sent), "the goals to be accepted")
    results = [goal.result().get_result_async() for goal in sent]
    client.wait(lambda: client.fresh_stats().instructions_received == count, "the goals to be received")
    # Whatever was asked before this has been taken by the node.
    client.call(Cancel, "/inf_mllm/cancel", Cancel.Request(id="nobody"))
    status, took = process.stop()
    assert (status, took < STOP_SECONDS) == (0, True)
    client.spin_until(lambda: all(result.done() for result in results) and len(client.answers) == count, 10.0)
    assert [result.result().status for result in results if result.done()] == [GoalStatus.STATUS_CANCELED] * count
    assert len(client.answers) == count


def test_memory_does_not_grow_with_the_goals(start: Start) -> None:
    # The view of the graph, which a silent camera opens, takes memory of its own.
    process, client = start({"goal_results_limit": 100, "image_timeout": 600.0})
    client.show(pictures.raw())
    action = client.action(Ask, ASK)

    def ask(count: int) -> None:
        for _ in range(count // 8):
            goals = [Goal(client, action, text="") for _ in range(8)]
            assert {goal.result()[0] for goal in goals} == {GoalStatus.STATUS_ABORTED}

    # Until the queues of the middleware have all been full.
    ask(2 * FAST)
    before = resident(process)
    ask(FAST)
    grown = resident(process) - before
    assert grown < 0.01 * before, f"{grown} KiB of {before} after {FAST} goals"
    assert client.fresh_stats().instructions_failed == 3 * FAST
