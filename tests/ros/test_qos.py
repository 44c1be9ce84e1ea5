"""QoS by parameters; publishers that cannot be heard are named, with what both sides want."""

import pictures
import pytest
from client import Client
from conftest import Advertise, Start
from diagnostic_msgs.msg import DiagnosticStatus
from inf_mllm.msg import Reasoning
from node_process import NodeProcess
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String
from test_diagnostics import said_of_silence, values, wait_for


def wait_for_log(client: Client, process: NodeProcess, text: str) -> None:
    client.wait(lambda: text in process.log, f"{text!r} in the log")


@pytest.mark.parametrize("reliable_images", [False, True])
def test_best_effort_hears_every_publisher(start: Start, reliable_images: bool) -> None:
    process, client = start(reliable_images=reliable_images)
    client.show(pictures.raw())
    assert client.fresh_stats().frames_used == 1
    assert "publishes on /image" not in process.log


def test_a_latched_publisher_is_heard(start: Start, advertise: Advertise) -> None:
    process, client = start()
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL, reliability=ReliabilityPolicy.RELIABLE)
    publisher = advertise(Image, "/image", latched)

    def heard() -> bool:
        publisher.publish(pictures.raw())
        return client.stats[-1].frames_used > 0

    client.wait(heard, "an image")
    assert "publishes on /image" not in process.log


def test_a_best_effort_camera_of_a_node_that_asks_for_reliable_ones_is_named(
    start: Start, advertise: Advertise
) -> None:
    process, client = start({"image_reliability": "reliable"}, reliable_images=True)
    assert "image=/image (reliable, keep last 5)" in process.log
    advertise(Image, "/image", qos_profile_sensor_data)
    problem = "/other/driver publishes on /image with best_effort, but image_reliability is reliable"
    wait_for_log(client, process, problem)
    # The one that can be heard is heard.
    client.show(pictures.raw())
    assert client.fresh_stats().frames_used == 1
    client.show(pictures.now())
    status = wait_for(client, "camera", DiagnosticStatus.OK)
    assert (values(status)["publishers"], values(status)["publishers_unheard"]) == ("2", "1")
    client.spin(3)
    assert process.log.count(problem) == 1, "said once"
    status = wait_for(client, "camera", DiagnosticStatus.WARN)
    assert problem in said_of_silence(status)


def test_a_camera_of_another_type_is_named(start: Start, advertise: Advertise) -> None:
    process, client = start()
    advertise(CompressedImage, "/image", qos_profile_sensor_data)
    problem = "/other/driver publishes sensor_msgs/msg/CompressedImage on /image, expected sensor_msgs/msg/Image"
    wait_for_log(client, process, problem)


def test_best_effort_instructions_are_named_or_heard(start: Start, advertise: Advertise) -> None:
    process, client = start()
    deaf = advertise(String, "/instruction_text", qos_profile_sensor_data)
    wait_for_log(
        client,
        process,
        "/other/driver publishes on /instruction_text with best_effort, but instruction_reliability is reliable",
    )
    assert deaf.get_subscription_count() == 0


def test_best_effort_instructions_are_heard_if_the_parameter_says_so(start: Start, advertise: Advertise) -> None:
    _, client = start({"instruction_reliability": "best_effort"})
    client.show(pictures.raw())
    publisher = advertise(String, "/instruction_text", qos_profile_sensor_data)

    def answered() -> bool:
        publisher.publish(String(data="What is in view?"))
        # What comes while the queue is full is refused.
        return any(answer.finish_reason == Reasoning.FINISH_STOP for answer in client.answers)

    client.wait(answered, "an answer")


def test_the_start_line_names_topics_qos_model_and_budget(start: Start) -> None:
    process, client = start(
        {"image_depth": 7},
        ("-r", "__ns:=/robot", "-r", "image:=/camera/image", "-r", "~/reasoning:=/robot/says"),
        name="/robot/inf_mllm",
        image="/camera/image",
        instruction="/robot/instruction",
        instruction_text="/robot/instruction_text",
        reasoning="/robot/says",
    )
    line = next(line for line in process.lines if " ready " in line)
    stats = client.fresh_stats()
    for part in (
        "node=",
        "/robot/inf_mllm",
        "image=/camera/image (best_effort, keep last 7)",
        "/robot/instruction (reliable, keep last 1000), /robot/instruction_text (reliable, keep last 1000)",
        "/robot/says, /robot/inf_mllm/reasoning_delta",
        "models/demo",
        'device="cpu, 1 thread"',
        f"budget_tokens={stats.budget}",
        f"budget_bytes={stats.bytes}",
    ):
        assert part in line, line
