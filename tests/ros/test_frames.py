"""Camera images reach the memory, and the statistics tell what became of each."""

import itertools

import pictures
import pytest
from client import ENDLESS, LONG
from conftest import Start
from inf_mllm.srv import Cancel


@pytest.mark.parametrize("encoding", list(pictures.LAYOUTS))
def test_raw_images_are_used(start: Start, encoding: str) -> None:
    _, client = start()
    client.show(pictures.raw(encoding, sec=7))
    client.show(pictures.raw(encoding, sec=8, padding=5))
    stats = client.fresh_stats()
    assert (stats.frames_received, stats.frames_used, stats.frames_rejected) == (2, 2, 0)
    assert stats.header.frame_id == pictures.FRAME_ID
    assert stats.oldest_frame_stamp.sec == 7


def test_the_encodings_of_one_picture_are_one_picture_to_the_model(start: Start) -> None:
    _, client = start()

    def outcome(encoding: str) -> tuple[str, float]:
        client.show(pictures.raw(encoding))
        answer = client.ask("What is in view?")
        assert client.reset().success
        return answer.text, answer.mean_logprob

    colours = {encoding: outcome(encoding) for encoding in ("rgb8", "bgr8", "rgba8", "bgra8", "8UC3")}
    assert len(set(colours.values())) == 1, colours
    greys = {encoding: outcome(encoding) for encoding in ("yuv422", "yuv422_yuy2", "nv12", "nv21")}
    assert len(set(greys.values())) == 1, greys
    assert set(greys.values()) != set(colours.values())


def test_what_is_behind_the_rows_of_a_buffer_is_left_alone(start: Start) -> None:
    _, client = start()
    image = pictures.raw(sec=1)
    image.data = bytes(image.data) + bytes(4096)
    client.show(image)
    stats = client.fresh_stats()
    assert (stats.frames_used, stats.frames_rejected) == (1, 0)


def test_an_encoding_that_does_not_name_its_channels_is_warned_of_once(start: Start) -> None:
    process, client = start()
    for sec in range(1, 5):
        client.show(pictures.raw("8UC3", sec=sec))
    assert client.fresh_stats().frames_used == 4
    assert process.log.count("image encoding 8UC3 does not say what its channels are: taken for bgr8") == 1


@pytest.mark.parametrize("make", [pictures.jpeg, pictures.png])
def test_compressed_images_are_used(start: Start, make) -> None:
    _, client = start({"image_transport": "compressed"}, compressed=True)
    client.show(make(sec=3))
    stats = client.fresh_stats()
    assert (stats.frames_received, stats.frames_used, stats.frames_rejected) == (1, 1, 0)


def test_statistics_come_once_a_second_and_stay_within_the_budget(start: Start) -> None:
    _, client = start({"stats_period": 1.0, "budget": 128})
    client.wait(lambda: len(client.stats) >= 2, "a second message")
    client.stats.clear()
    frame = 0
    while len(client.stats) < 4:
        frame += 1
        client.publish(pictures.raw(sec=frame))
        client.spin(0.05)
    times = [stats.header.stamp.sec + stats.header.stamp.nanosec * 1e-9 for stats in client.stats]
    periods = [later - earlier for earlier, later in itertools.pairwise(times)]
    # A machine that has other things to do may hold one of them up, and the next one comes the sooner.
    assert 0.8 < sum(periods) / len(periods) < 1.2, periods
    for stats in client.stats:
        assert stats.policy == "inf_mllm"
        assert stats.budget == 128
        assert 0 < stats.used <= stats.budget
        assert stats.prefix + stats.relevant + stats.recent == stats.used
        assert stats.tokens_seen - stats.tokens_evicted == stats.used
        assert stats.bytes == client.stats[0].bytes > 0
        # One frame may wait while another one is with the model.
        settled = stats.frames_used + stats.frames_superseded + stats.frames_rejected
        assert 0 <= stats.frames_received - settled <= 2
    last = client.stats[-1]
    assert last.frames_used > 0
    assert last.frames_per_second > 0
    assert last.tokens_evicted > 0
    assert last.compactions > 0
    for duration in (last.vision_time, last.prefill_time):
        assert duration.sec == 0
        assert duration.nanosec > 0


def test_of_a_burst_the_newest_frame_is_used_and_the_others_are_superseded(start: Start) -> None:
    _, client = start({**LONG, "frames_during_answers": 0})
    client.show(pictures.raw(sec=1))
    # While the model has other things to do.
    client.instruct("What is in view?", id="long", **ENDLESS)
    client.wait(lambda: bool(client.deltas), "the first piece of an answer")
    for index in range(1, 41):
        client.publish(pictures.raw(sec=1, nanosec=index))
    client.wait(lambda: client.stats[-1].frames_received > 2, "images of the burst")
    client.publish(pictures.raw(sec=2))
    stats = client.fresh_stats()
    assert stats.frames_used == 1
    assert client.call(Cancel, "/inf_mllm/cancel", Cancel.Request(id="long")).success
    answer = client.ask("What is in view?", id="behind it")
    assert (answer.frames_seen, answer.header.stamp.sec) == (2, 2)
    stats = client.fresh_stats()
    assert (stats.frames_used, stats.frames_rejected) == (2, 0)
    assert stats.frames_superseded == stats.frames_received - 2 > 0


def test_full_takes_frames_until_the_budget_is_used_up(start: Start) -> None:
    _, client = start({"policy": "full", "budget": 96})
    for sec in range(12):
        client.show(pictures.raw(sec=sec))
    stats = client.fresh_stats()
    assert stats.tokens_evicted == 0
    assert stats.used <= stats.budget
    assert stats.frames_rejected > 0
    assert stats.frames_used + stats.frames_rejected == stats.frames_received == 12
