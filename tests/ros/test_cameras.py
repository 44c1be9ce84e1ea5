"""Several cameras in one memory: nothing lost, labels with the frames, one that stops, and what is refused at the start."""

import time
from collections import Counter
from collections.abc import Callable

import pictures
import pytest
from client import TIMEOUT, Client
from conftest import Advertise, Start
from diagnostic_msgs.msg import DiagnosticStatus
from inf_mllm.msg import Reasoning
from rcl_interfaces.msg import ParameterType
from rcl_interfaces.srv import GetParameters
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image
from test_diagnostics import OK, WARN, values
from test_start import refusal

RATE = 15.0
"""Images per second of each camera."""

TWO = {"cameras": ["front", "rear"], "image_reliability": "reliable", "image_depth": 100}
"""Reliable, and with room for what comes while the node is not scheduled, so that what is counted is what the node does and not the network."""

FRONT, REAR = "/front/image", "/rear/image"


def connected(client: Client, publisher: Publisher) -> Publisher:
    client.wait(lambda: publisher.get_subscription_count() > 0, "the node to hear the camera")
    # Its side of the match, of which nothing is seen from here, may come a little later.
    for _ in range(3):
        client.fresh_stats()
    return publisher


def begin(start: Start, advertise: Advertise, **parameters: object) -> tuple[Client, list[Publisher]]:
    """A node with a front and a rear camera, of each of which it has used one image."""
    _, client = start({**TWO, **parameters}, image=FRONT, reliable_images=True)
    cameras = [client._image, connected(client, advertise(Image, REAR, QoSProfile(depth=1000)))]
    for camera, label in zip(cameras, ("front", "rear"), strict=True):
        camera.publish(pictures.now())
        of_camera(client, label, received=1)
    return client, cameras


def pattern(camera: int, number: int) -> Image:
    """A camera's image of this moment, each another one."""
    return pictures.now(seed=number * 2 + camera, ahead=-0.02 * camera)


def film(
    client: Client,
    cameras: list[Publisher],
    images: int,
    image: Callable[[int, int], Image | CompressedImage] = pattern,
) -> Counter:
    """Publishes so many images by each camera at [`RATE`], the last camera 20 ms behind the stamps of the first; how many each sent.
    `image` makes one from the camera's number and its own."""
    sent: Counter = Counter()
    begin = time.monotonic()
    for number in range(images):
        for index, camera in enumerate(cameras):
            camera.publish(image(index, number))
            sent[camera.topic_name] += 1
        client.spin(max(0.0, begin + (number + 1) / RATE - time.monotonic()))
    return sent


def status_of(client: Client, label: str) -> DiagnosticStatus | None:
    """The last report on a camera."""
    name = f"{client.name}: camera {label}"
    found = [status for array in client.diagnostics for status in array.status if status.name == name]
    return found[-1] if found else None


def film_until(client: Client, cameras: list[Publisher], levels: dict[str, bytes]) -> Counter:
    """Films until the cameras are reported at these levels; how many images each sent."""
    client.forget_diagnostics()
    sent: Counter = Counter()
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        sent += film(client, cameras, images=5)
        reported = {label: status_of(client, label) for label in levels}
        if all(status and status.level == levels[label] for label, status in reported.items()):
            return sent
    raise AssertionError(f"not at {levels}: {reported}")


def of_camera(client: Client, label: str, received: int) -> dict[str, int]:
    """The counters of a camera once so many images have been decided on."""
    counts: dict[str, int] = {}

    def settled() -> bool:
        for array in client.diagnostics:
            for status in array.status:
                if status.name == f"{client.name}: camera {label}":
                    found = values(status)
                    keys = [key for key in found if key.startswith("frames_") and key != "frames_per_second"]
                    counts.update({key: int(found[key]) for key in keys})
        client.diagnostics.clear()
        done = ("used", "superseded", "rejected", "skipped_rate", "skipped_unchanged", "skipped_paused")
        return counts.get("frames_received") == received == sum(counts[f"frames_{key}"] for key in done)

    client.wait(settled, f"{received} images of {label} to be decided on, last {counts}")
    return counts


def test_two_cameras_at_15_hz_lose_nothing_and_answers_say_which_is_the_newest(
    start: Start, advertise: Advertise
) -> None:
    client, [front, rear] = begin(start, advertise)
    film(client, [front, rear], images=45)
    counts = {label: of_camera(client, label, received=46) for label in ("front", "rear")}
    for count in counts.values():
        # What was not used gave way to a newer one of the same camera.
        assert count["frames_used"] + count["frames_superseded"] == 46, counts
    used = [count["frames_used"] for count in counts.values()]
    assert min(used) > max(used) // 2, f"a camera was starved: {counts}"
    stats = client.fresh_stats()
    assert stats.frames_received == 92
    assert stats.frames_used == sum(used)
    # Two cameras whose stamps interleave are no clock that jumps.
    assert (stats.time_jumps, stats.frames_rejected) == (0, 0)
    for camera, label in ((front, "front"), (rear, "rear"), (front, "front")):
        before = client.fresh_stats().frames_used
        camera.publish(pictures.now())
        client.wait(lambda before=before: client.stats[-1].frames_used == before + 1, "the frame to be used")
        answer = client.ask("What is in view?")
        assert (answer.finish_reason, answer.camera) == (Reasoning.FINISH_STOP, label), answer.error


LABELLED = {"front": 24, "rear": 23}
"""Tokens of a frame of the demo model with its time and its label: 19, and those of `, front camera` or `, rear camera`."""


def test_while_two_cameras_run_at_15_hz_every_image_is_counted_and_labelled_and_answers_say_whose_it_is(
    start: Start, advertise: Advertise
) -> None:
    parameters = {**TWO, "camera_transports": ["compressed", "compressed"], "evidence_frames": 4}
    _, client = start(parameters, image=FRONT, compressed=True, reliable_images=True)
    rear = connected(client, advertise(CompressedImage, f"{REAR}/compressed", QoSProfile(depth=1000)))
    cameras = {"front": client._image, "rear": rear}
    shown = [pictures.frames_with("red ball"), pictures.frames_with("green ball")]
    stamps: list[set[tuple[int, int]]] = [set(), set()]

    def frame(camera: int, number: int) -> CompressedImage:
        image = pictures.jpeg_now(shown[camera][number % len(shown[camera])], ahead=-0.02 * camera)
        stamps[camera].add((image.header.stamp.sec, image.header.stamp.nanosec))
        return image

    def used() -> dict[str, int]:
        counts = {
            label: of_camera(client, label, received=len(sent)) for label, sent in zip(cameras, stamps, strict=True)
        }
        for label, count in counts.items():
            assert count["frames_used"] + count["frames_superseded"] == count["frames_received"], (label, count)
        return {label: count["frames_used"] for label, count in counts.items()}

    # The first image opens the user turn, which takes some tokens too.
    film(client, list(cameras.values()), 1, frame)
    before, tokens = used(), client.fresh_stats().tokens_seen
    film(client, list(cameras.values()), 45, frame)
    after, taken = used(), client.fresh_stats().tokens_seen - tokens
    assert taken == sum(LABELLED[label] * (after[label] - before[label]) for label in cameras), (before, after)
    assert min(after.values()) > max(after.values()) // 2, f"a camera was starved: {after}"
    for number in range(4):
        # The cameras go on while the question waits and is answered.
        answered = len(client.answers)
        client.instruct("What is in view?")
        film(client, list(cameras.values()), 5, frame)
        client.wait(lambda answered=answered: len(client.answers) > answered, "the answer")
        answer = client.answers[answered]
        assert answer.finish_reason == Reasoning.FINISH_STOP, answer.error
        whose = [
            (answer.camera, answer.header.stamp),
            *zip(answer.evidence_cameras, answer.evidence_stamps, strict=True),
        ]
        assert len(whose) > 1
        for label, stamp in whose:
            assert (stamp.sec, stamp.nanosec) in stamps[list(cameras).index(label)], (label, stamp, number)
    used()
    stats = client.fresh_stats()
    assert (stats.frames_received, stats.frames_rejected, stats.time_jumps) == (sum(map(len, stamps)), 0, 0)


def test_a_camera_that_stops_is_reported_and_blocks_nothing(start: Start, advertise: Advertise) -> None:
    client, [front, rear] = begin(start, advertise, image_timeout=1.0)
    both = film_until(client, [front, rear], {"front": OK, "rear": OK})
    before = of_camera(client, "front", 1 + both[FRONT])
    alone = film_until(client, [front], {"front": OK, "rear": WARN})
    message = status_of(client, "rear").message
    assert message.startswith("no image for ") and f" s on {REAR}: " in message, message
    # The camera that is left is heard as before, when the other one's frames had to be taken too.
    after = of_camera(client, "front", 1 + both[FRONT] + alone[FRONT])
    share = (after["frames_used"] - before["frames_used"]) / alone[FRONT]
    assert share > 0.5 * before["frames_used"] / before["frames_received"], (before, after)
    of_camera(client, "rear", 1 + both[REAR])
    answer = client.ask("What is in view?")
    assert (answer.finish_reason, answer.camera) == (Reasoning.FINISH_STOP, "front"), answer.error
    film_until(client, [front, rear], {"front": OK, "rear": OK})


def test_raw_and_compressed_cameras_go_together_and_topics_can_be_given_and_remapped(
    start: Start, advertise: Advertise
) -> None:
    parameters = {
        "cameras": ["front", "left wrist"],
        "camera_topics": ["", "wrist"],
        "camera_transports": ["raw", "compressed"],
        "camera_rates": [0, 1000],
    }
    _, client = start(parameters, arguments=("-r", "wrist:=/arm/camera"), image=FRONT)
    wrist = connected(client, advertise(CompressedImage, "/arm/camera/compressed", qos_profile_sensor_data))
    client.publish(pictures.now())
    wrist.publish(pictures.jpeg(sec=int(time.time()) + 1))
    assert of_camera(client, "front", 1)["frames_used"] == 1
    assert of_camera(client, "left wrist", 1)["frames_used"] == 1
    assert client.ask("What is in view?").camera == "left wrist"
    names = ["cameras", "camera_transports", "camera_rates", "camera_shares"]
    request = GetParameters.Request(names=names)
    given = client.call(GetParameters, f"{client.name}/get_parameters", request).values
    assert given[0].string_array_value == ["front", "left wrist"]
    assert given[1].string_array_value == ["raw", "compressed"]
    assert list(given[2].double_array_value) == [0.0, 1000.0]
    assert (given[3].type, list(given[3].double_array_value)) == (ParameterType.PARAMETER_DOUBLE_ARRAY, [])


def test_who_asks_before_an_image_hears_of_both_cameras(start: Start) -> None:
    _, client = start({"cameras": ["front", "rear"]}, image=FRONT)
    client.stop_camera()

    def told() -> bool:
        error = client.ask("What is in view?").error
        return all(f"no image has come on {topic}: nobody publishes it" in error for topic in (FRONT, REAR))

    client.wait(told, "the reasons")


@pytest.mark.usefixtures("domain")
@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"cameras": ["front", "front"]}, 'cameras is a list with "front", expected labels that differ'),
        ({"cameras": ["front", ""]}, 'cameras is a list with "", expected a label that is not empty'),
        (
            {"cameras": ["front", "<end_of_utterance>"], "camera_topics": ["/a", "/b"]},
            'cameras is a list with "<end_of_utterance>", expected labels without control tokens of the model',
        ),
        ({"cameras": ["front", "x" * 65]}, "expected labels of at most 64 bytes"),
        ({"cameras": "front"}, 'parameter cameras is "front", expected a list of strings'),
        ({**TWO, "camera_shares": [1.0, -1.0]}, "camera_shares is [1.0, -1.0], expected a list of numbers, 0.0 to"),
        ({**TWO, "camera_shares": [0.0, 0.0]}, "camera_shares is [0.0, 0.0], expected at least one number above 0"),
        ({**TWO, "camera_shares": [1.0]}, "camera_shares is [1.0], expected one for each of cameras, which has 2"),
        ({"camera_rates": [1.0]}, "camera_rates is [1.0], expected at most one for each of cameras, which has 0"),
        ({**TWO, "camera_topics": ["/a", "/a"]}, "camera_topics is twice /a, after remapping, expected a topic of its"),
        ({**TWO, "camera_topics": ["/a b"]}, 'camera_topics is a list with "/a b", expected names of topics: letters'),
        ({**TWO, "camera_topics": ["", "rear/2"]}, 'camera_topics is a list with "rear/2", expected names of topics'),
        ({**TWO, "camera_transports": ["webp"]}, 'camera_transports is a list with "webp", expected raw or compressed'),
        ({"cameras": ["front", "left wrist"]}, 'expected a topic for the camera "left wrist", whose label is no name'),
    ],
)
def test_what_is_wrong_with_cameras_ends_the_node_with_the_reason(parameters: dict[str, object], expected: str) -> None:
    assert expected in refusal(parameters)
