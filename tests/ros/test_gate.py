"""Which good frames are used: the rate, what has changed, the order of stamps, and pausing."""

import itertools
import re
import time
from collections.abc import Callable

import pictures
import pytest
from builtin_interfaces.msg import Duration
from client import ENDLESS, LONG, Client
from conftest import Start
from inf_mllm.msg import CacheStats, Reasoning
from std_srvs.srv import SetBool


def seconds(stamp: object) -> float:
    """Of a Time or a Duration."""
    return stamp.sec + stamp.nanosec * 1e-9


def decided(stats: CacheStats) -> int:
    """Frames that wait no more."""
    skipped = stats.frames_skipped_rate + stats.frames_skipped_unchanged + stats.frames_skipped_paused
    return stats.frames_used + stats.frames_superseded + stats.frames_rejected + skipped


def settle(client: Client, received: int) -> CacheStats:
    """Statistics after everything received has been decided on."""
    client.wait(
        lambda: client.stats[-1].frames_received == received == decided(client.stats[-1]),
        f"{received} frames to be decided on",
    )
    return client.stats[-1]


def offer(client: Client, *images: object) -> CacheStats:
    """Publishes images one by one, each after the one before has been decided on."""
    stats = client.fresh_stats()
    for image in images:
        client.publish(image)
        stats = settle(client, stats.frames_received + 1)
    return stats


def test_the_frame_rate_counts_by_stamps(start: Start) -> None:
    _, client = start({"frame_rate": 2.0})
    stats = offer(client, *(pictures.raw(sec=1 + i // 4, nanosec=i % 4 * 250_000_000, seed=i) for i in range(12)))
    assert (stats.frames_used, stats.frames_skipped_rate, stats.frames_rejected) == (6, 6, 0)


def test_a_still_picture_is_remembered_once(start: Start) -> None:
    _, client = start({"min_change": 0.01})
    stats = offer(client, *(pictures.raw(sec=sec, seed=0) for sec in range(1, 6)))
    assert (stats.frames_used, stats.frames_skipped_unchanged) == (1, 4)
    tokens = stats.tokens_seen
    stats = offer(client, pictures.raw(sec=6, seed=3))
    assert (stats.frames_used, stats.frames_skipped_unchanged) == (2, 4)
    assert stats.tokens_seen > tokens
    answer = client.ask("What is in view?")
    assert (answer.frames_seen, answer.header.stamp.sec) == (2, 6)


def test_an_overtaken_frame_is_refused(start: Start) -> None:
    process, client = start()
    stats = offer(client, *(pictures.raw(sec=sec) for sec in (5, 8, 6, 9)))
    assert (stats.frames_used, stats.frames_rejected, stats.time_jumps) == (3, 1, 0)
    assert (list(stats.reject_reasons), list(stats.reject_counts)) == (["out_of_order"], [1])
    assert "image stamp is 6 s, expected 8 s or later" in process.log
    assert client.ask("What is in view?").header.stamp.sec == 9


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("stamps", [(100, 101, 3, 4, 5), (100, 101, 200, 201, 202)], ids=["looped_bag", "set_forward"])
def test_a_time_jump_starts_an_epoch(start: Start, reset: bool, stamps: tuple[int, ...]) -> None:
    process, client = start({"time_jump_threshold": 5.0, "reset_on_time_jump": reset})
    stats = offer(client, *(pictures.raw(sec=sec) for sec in stamps))
    # It takes two images; the first one might have been of no clock.
    assert (stats.frames_used, stats.frames_rejected, stats.time_jumps) == (4, 1, 1)
    assert list(stats.reject_reasons) == ["other_clock"]
    assert f"time of the images jumped from_s=101.0 to_s={stamps[3]}.0" in process.log
    answer = client.ask("What is in view?")
    assert (answer.frames_seen, answer.header.stamp.sec) == (2 if reset else 4, stamps[-1])
    assert stats.oldest_frame_stamp.sec == (stamps[3] if reset else 100)
    # The jump itself takes no time: one second before it, one after it.
    assert stats.retained_age_max == pytest.approx(1 if reset else 2)
    assert stats.retained_age_min == 0


@pytest.mark.parametrize("strange", [7, 900])
def test_a_single_strange_stamp_is_left_out(start: Start, strange: int) -> None:
    """It is no jump there and back, which would empty the memory twice."""
    process, client = start({"time_jump_threshold": 5.0, "reset_on_time_jump": True})
    stats = offer(client, *(pictures.raw(sec=sec) for sec in (100, 101, strange, 102, 103, strange + 5, 104)))
    assert (stats.frames_used, stats.frames_rejected, stats.time_jumps) == (5, 2, 0)
    assert (list(stats.reject_reasons), list(stats.reject_counts)) == (["other_clock"], [2])
    assert f"image stamp is {strange} s, but the other images are at 101 s" in process.log
    answer = client.ask("What is in view?")
    assert (answer.frames_seen, answer.header.stamp.sec) == (5, 104)


def test_a_clock_set_back_by_little_is_followed_after_a_few_frames(start: Start) -> None:
    _, client = start()
    offer(client, pictures.raw(sec=7), pictures.raw(sec=8))
    refused = 0
    while offer(client, pictures.raw(sec=2, nanosec=refused * 10_000_000, seed=refused)).time_jumps == 0:
        refused += 1
        assert refused < 20
    assert refused >= 2
    stats = offer(client, pictures.raw(sec=3), pictures.raw(sec=4))
    assert (stats.frames_used, stats.frames_rejected, stats.time_jumps) == (5, refused, 1)
    assert list(stats.reject_reasons) == ["out_of_order"]


def test_two_frames_in_a_row_may_be_overtaken(start: Start) -> None:
    _, client = start()
    stats = offer(client, *(pictures.raw(sec=sec) for sec in (5, 8, 6, 7, 9, 10)))
    assert (stats.frames_used, stats.frames_rejected, stats.time_jumps) == (4, 2, 0)


def test_a_pause_and_a_busy_model_are_no_jumps(start: Start) -> None:
    """Longer ones than time_jump_threshold, while the camera goes on."""
    threshold = 0.5
    process, client = start(
        {**LONG, "time_jump_threshold": threshold, "reset_on_time_jump": True, "frames_during_answers": 0}
    )
    began = time.time()
    seeds = itertools.count()

    def film() -> None:
        client.publish(pictures.now(next(seeds)))
        client.spin(0.05)

    def film_while(condition: Callable[[], bool]) -> None:
        while condition():
            film()

    film_while(lambda: client.stats[-1].frames_used < 3)
    assert client.call(SetBool, "/inf_mllm/pause", SetBool.Request(data=True)).success
    paused = time.monotonic()
    film_while(lambda: time.monotonic() < paused + 2 * threshold)
    assert client.call(SetBool, "/inf_mllm/pause", SetBool.Request(data=False)).success
    limit = Duration(nanosec=round(2 * threshold * 1e9))
    client.instruct("What is in view?", time_limit=limit, **ENDLESS)
    film_while(lambda: not client.answers)
    assert client.answers[-1].finish_reason == Reasoning.FINISH_TIME_LIMIT, client.answers[-1].error
    used = client.stats[-1].frames_used
    film_while(lambda: client.stats[-1].frames_used < used + 2)
    stats = client.fresh_stats()
    assert (stats.time_jumps, stats.frames_rejected) == (0, 0), process.log
    assert stats.frames_skipped_paused > 0
    assert stats.frames_superseded > 0
    stats = settle(client, client.fresh_stats().frames_received)
    last = client.ask("What is in view?", id="last", max_new_tokens=1)
    assert last.frames_seen == stats.frames_used
    assert stats.retained_age_max == pytest.approx(
        seconds(last.header.stamp) - seconds(stats.oldest_frame_stamp), abs=0.5
    )
    assert seconds(stats.oldest_frame_stamp) >= began - 0.1


@pytest.mark.parametrize("still", [False, True])
def test_an_old_picture_is_not_answered_from(start: Start, still: bool) -> None:
    """One that still shows what is there is not old."""
    limit = 3.0
    _, client = start({"max_frame_age": limit, "min_change": 0.01 if still else 0.0})
    client.show(pictures.now())
    assert client.ask("What is in view?").finish_reason == Reasoning.FINISH_STOP
    until = time.monotonic() + limit + 0.5
    while time.monotonic() < until:
        if still:
            client.publish(pictures.now())
        client.spin(0.1)
    answer = client.ask("What is in view?")
    if still:
        assert answer.finish_reason == Reasoning.FINISH_STOP
        assert client.fresh_stats().frames_used == 1
        return
    assert answer.finish_reason == Reasoning.FINISH_ERROR
    told = re.fullmatch(r"the newest picture is (\d+\.\d+) s old, expected at most 3 s \(max_frame_age\)", answer.error)
    assert told, answer.error
    assert limit < float(told[1]) < 10
    client.show(pictures.now())
    assert client.ask("What is in view?").finish_reason == Reasoning.FINISH_STOP


def test_a_paused_node_takes_nothing_and_says_so(start: Start) -> None:
    _, client = start()
    offer(client, pictures.raw(sec=1))
    assert client.call(SetBool, "/inf_mllm/pause", SetBool.Request(data=True)).success
    stats = offer(client, pictures.raw(sec=2), pictures.raw(sec=3))
    assert (stats.paused, stats.frames_used, stats.frames_skipped_paused) == (True, 1, 2)
    refused = client.ask("What is in view?", id="now")
    assert (refused.finish_reason, refused.instruction_id) == (Reasoning.FINISH_ERROR, "now")
    assert "the node is paused" in refused.error
    assert client.call(SetBool, "/inf_mllm/pause", SetBool.Request(data=False)).success
    stats = offer(client, pictures.raw(sec=4))
    assert (stats.paused, stats.frames_used) == (False, 2)
    answer = client.ask("What is in view?")
    assert (answer.finish_reason, answer.header.stamp.sec) == (Reasoning.FINISH_STOP, 4)
