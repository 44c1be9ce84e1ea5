"""A robot that sees nothing says so, with the reason: in the log, on /diagnostics and to those who ask."""

import random
import time

import numpy as np
import pictures
import pytest
from conftest import Advertise, Start
from diagnostic_msgs.msg import DiagnosticStatus
from inf_mllm.msg import Reasoning
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String
from std_srvs.srv import SetBool
from test_diagnostics import values, wait_for

WARN, OK = DiagnosticStatus.WARN, DiagnosticStatus.OK


def test_the_topics_that_there_are_are_named_until_images_come(start: Start, advertise: Advertise) -> None:
    process, client = start({"image_timeout": 4.0})
    client.stop_camera()
    advertise(Image, "/camera/image_raw", qos_profile_sensor_data)
    advertise(CompressedImage, "/camera/image_raw/compressed", qos_profile_sensor_data)
    # Two types on one topic, which no list must stumble over.
    advertise(CompressedImage, "/instruction_text", qos_profile_sensor_data)
    advertise(String, "/camera/name", qos_profile_sensor_data)
    told = (
        "no image has come on /image: nobody publishes it; topics with images: /camera/image_raw (Image), "
        "/camera/image_raw/compressed (CompressedImage), /instruction_text (CompressedImage)"
    )
    # The graph becomes known bit by bit, on a slow machine not before it is told for the first time.
    client.wait(lambda: wait_for(client, "camera", WARN).message == told, "all topics")
    client.wait(lambda: told.partition(";")[0] in process.log, "the log")
    refused = client.ask("What is in view?")
    assert refused.finish_reason == Reasoning.FINISH_ERROR
    assert refused.error.endswith(f": {told}")
    client.wait(lambda: client.texts == [f"not answered: {refused.error}"], "the reason as text")
    client.spin(2)
    assert process.log.count("no image has come") == 2, "said once by itself, and once to the one who asked"

    camera = advertise(Image, "/image", qos_profile_sensor_data)

    def seen() -> bool:
        camera.publish(pictures.now())
        client.spin(0.1)
        return "images come again on /image" in process.log

    client.wait(seen, "word that images have come")
    assert client.ask("What is in view?").finish_reason == Reasoning.FINISH_STOP
    # And when they stop.
    client.wait(lambda: wait_for(client, "camera", WARN).message.startswith("no image for "), "silence")
    # Another silence is another warning, however soon it comes.
    client.wait(lambda: "no image for " in process.log, "the second warning")


def test_two_cameras_of_one_name_are_two(start: Start, advertise: Advertise) -> None:
    """As of a driver that was launched twice; not at once, as one that was killed is listed for a while beside the one in its place."""
    process, client = start()
    client.stop_camera()
    for _ in range(2):
        advertise(Image, "/image", qos_profile_sensor_data)
    told = "2 publishers send images on /image: /other/driver, /other/driver; expected one"
    client.spin(15)
    assert told not in process.log
    client.wait(lambda: told in process.log, "the warning of two publishers", timeout=30)


def test_a_paused_node_does_not_miss_images(start: Start) -> None:
    process, client = start({"image_timeout": 0.5})
    assert client.call(SetBool, "/inf_mllm/pause", SetBool.Request(data=True)).success
    assert wait_for(client, "camera", OK).message == "paused"
    before = process.log.count("no image")
    client.spin(3)
    assert wait_for(client, "camera", OK).message == "paused"
    assert process.log.count("no image") == before
    assert client.call(SetBool, "/inf_mllm/pause", SetBool.Request(data=False)).success
    wait_for(client, "camera", WARN)


def test_who_asks_hears_that_all_images_were_refused(start: Start) -> None:
    _, client = start()
    depth = pictures.raw()
    depth.encoding = "16UC1"
    for _ in range(3):
        client.show(depth)
    told = '3 images came, all refused; the last: image encoding is "16UC1", expected rgb8'
    answer = client.ask("What is in view?")
    assert told in answer.error
    client.wait(lambda: bool(client.texts), "the reason as text")
    assert client.texts[0].startswith("not answered: no frame has been seen yet")
    assert told in client.texts[0]
    # What was before a reset does not count.
    client.show(pictures.now())
    assert client.reset().success
    assert client.ask("What is in view?").error.endswith(": no image has come since the reset")


def test_the_suffix_of_a_compressed_topic_may_be_given(start: Start) -> None:
    _, client = start(
        {"image_transport": "compressed"}, ("-r", "image:=/cam/image/compressed"), image="/cam/image", compressed=True
    )
    client.show(pictures.jpeg())
    assert client.fresh_stats().frames_used == 1


@pytest.mark.parametrize("lossy", [False, True])
def test_large_images_that_get_lost_are_told_of(start: Start, lossy: bool) -> None:
    process, client = start()
    chance = random.Random(5)
    side = 200
    image = Image(height=side, width=side, encoding="rgb8", step=3 * side, data=np.zeros(3 * side * side, np.uint8))
    first = time.time() - 2
    sent = 0
    for index in range(240 if lossy else 60):
        # Stamps at 30 Hz, of which seven in ten are missing.
        stamp = divmod(round((first + index / 30) * 1e9), 1_000_000_000)
        if not lossy or chance.random() < 0.3:
            client.publish(pictures.stamped(image, *stamp))
            client.spin(0.03)
            sent += 1
    client.wait(lambda: client.stats[-1].frames_received > 0.8 * sent, "the images")
    told = "of the images on /image get lost on their way, by their stamps; one has 120000 bytes"
    if lossy:
        client.wait(lambda: told in process.log, "word of the losses")
        assert "config/fastdds.xml" in process.log
        assert 0.5 < float(values(wait_for(client, "camera", WARN))["lost_share"]) < 0.85
    else:
        client.spin(2)
        assert told not in process.log
