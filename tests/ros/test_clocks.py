"""Cameras whose stamps are not of the node's clock, or of two clocks, and a simulation without one."""

import itertools
import re
import time
from collections.abc import Callable

import pictures
import pytest
from client import Client
from conftest import Advertise, Start
from diagnostic_msgs.msg import DiagnosticStatus
from inf_mllm.msg import Reasoning
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from test_diagnostics import values, wait_for
from test_gate import seconds


def film_until(client: Client, camera: Callable[[], None], condition: Callable[[], bool], what: str) -> None:
    """Lets a camera send an image now and then until a condition holds."""

    def sent() -> bool:
        camera()
        client.spin(0.05)
        return condition()

    client.wait(sent, what)


def warning(client: Client, camera: Callable[[], None]) -> str:
    """What the camera's status warns of while images come."""
    found: list[str] = []

    def seen() -> bool:
        for array in client.diagnostics:
            camera_status = [s for s in array.status if s.name == "/inf_mllm: camera"]
            said = [s.message for s in camera_status if s.level == DiagnosticStatus.WARN]
            found.extend(message for message in said if not message.startswith("no image "))
        client.diagnostics.clear()
        return bool(found)

    film_until(client, camera, seen, "a warning")
    return found[0]


@pytest.mark.parametrize(
    ("stamp", "told"),
    [
        (lambda: pictures.now(ahead=30), r"camera clock is (30\.0|29\.\d) s ahead of the node's clock"),
        (
            lambda: pictures.now(ahead=-30),
            r"camera clock is 30\.\d s behind the node's clock, or images take that long",
        ),
        (
            lambda: pictures.raw(sec=100),
            r"camera clock stands at 10\d\.\d s and not at the time of day: set use_sim_time",
        ),
    ],
    ids=["ahead", "behind", "1970"],
)
def test_another_clock_is_named_and_no_age_is_negative(start: Start, stamp: Callable[[], Image], told: str) -> None:
    process, client = start()

    def camera() -> None:
        client.publish(stamp())

    assert re.match(told, warning(client, camera))
    client.wait(lambda: re.search(told, process.log) is not None, "the same in the log")
    client.spin(2)
    assert len(re.findall(told, process.log)) == 1, "said once"
    age = client.ask("What is in view?").newest_frame_age
    assert age.sec >= 0
    assert (age.sec, age.nanosec) == (0, 0) or not told.startswith("camera clock is (30")


def test_a_camera_of_the_same_clock_is_not_warned_of(start: Start) -> None:
    process, client = start()
    until = time.monotonic() + 4
    film_until(client, lambda: client.publish(pictures.now()), lambda: time.monotonic() > until, "some time")
    status = wait_for(client, "camera", DiagnosticStatus.OK)
    assert values(status)["warnings"] == ""
    assert abs(float(values(status)["clock_ahead_s"])) < 1
    assert "WARN" not in process.log


def test_images_without_a_stamp_get_the_time_of_their_receipt(start: Start) -> None:
    process, client = start({"frame_rate": 2.0})
    began = time.time()

    def camera() -> None:
        client.publish(pictures.raw(sec=0))

    assert warning(client, camera) == "images come without a stamp: the time of their receipt is taken"
    film_until(client, camera, lambda: client.stats[-1].frames_used >= 5, "frames at the rate")
    took = time.time() - began
    stats = client.fresh_stats()
    assert stats.frames_used <= 2 * took + 1
    assert (stats.time_jumps, stats.frames_rejected) == (0, 0)
    assert (stats.frames_used - 1) / 2 - 0.01 <= stats.retained_age_max <= took
    assert process.log.count("images come without a stamp") == 1
    answer = client.ask("What is in view?")
    assert began - 0.1 <= seconds(answer.header.stamp) <= time.time() + 0.1
    assert 0 <= seconds(answer.newest_frame_age) < 10


def test_simulated_time_without_a_clock_is_named_until_it_comes(start: Start) -> None:
    process, client = start({"use_sim_time": True})

    def camera() -> None:
        client.publish(pictures.raw(sec=101))

    assert warning(client, camera).startswith("no /clock: use_sim_time is true, but no time has come on /clock")
    client.wait(lambda: "no /clock" in process.log, "the same in the log")
    age = client.ask("What is in view?").newest_frame_age
    assert (age.sec, age.nanosec) == (0, 0)

    def simulation() -> None:
        client.publish_clock(101, 500_000_000)
        camera()

    def well() -> bool:
        found = [s for array in client.diagnostics for s in array.status if s.name == "/inf_mllm: camera"]
        client.diagnostics.clear()
        return any(status.level == DiagnosticStatus.OK for status in found)

    client.forget_diagnostics()
    film_until(client, simulation, well, "a status without a warning")


@pytest.mark.parametrize("apart", [-3, -3600], ids=["3_s", "an_hour"])
def test_of_two_publishers_with_two_clocks_one_is_followed(start: Start, advertise: Advertise, apart: int) -> None:
    process, client = start({"reset_on_time_jump": True})
    other = advertise(Image, "/image", qos_profile_sensor_data)
    client.show(pictures.now())
    client.show(pictures.now())
    seeds = itertools.count()

    def both() -> None:
        client.publish(pictures.now(next(seeds)))
        other.publish(pictures.now(next(seeds), ahead=apart))

    told = "2 publishers send images on /image: /other/driver, /test_client; expected one"
    film_until(client, both, lambda: told in process.log, "the warning of two publishers")

    def said() -> bool:
        return any(told in status.message for array in client.diagnostics for status in array.status)

    film_until(client, both, said, "the status of two publishers")
    film_until(client, both, lambda: client.stats[-1].frames_used >= 40, "frames of one of them")
    stats = client.fresh_stats()
    assert stats.time_jumps <= 2
    refused = dict(zip(stats.reject_reasons, stats.reject_counts, strict=True))
    assert refused["other_clock"] > 10
    assert refused.get("out_of_order", 0) <= 2
    film = client.ask("What is in view?")
    assert film.finish_reason == Reasoning.FINISH_STOP
    assert film.frames_seen > 20
    # Throttled: a few lines for dozens of images.
    assert 1 <= process.log.count("stamps of two clocks") <= 4
    assert process.log.count(told) == 1
