"""The state of the node on /diagnostics, with the levels used as they are meant."""

import re
from collections.abc import Callable

import pictures
import pytest
from client import Client
from conftest import Start
from diagnostic_msgs.msg import DiagnosticStatus
from inf_mllm.msg import Reasoning
from std_srvs.srv import SetBool

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR


def wait_for(client: Client, part: str, level: bytes, action: Callable[[], object] = lambda: None) -> DiagnosticStatus:
    """The next report in which a part has the level, of those from an action on."""
    found: list[DiagnosticStatus] = []

    def seen() -> bool:
        for array in client.diagnostics:
            found.extend(s for s in array.status if s.name == f"{client.name}: {part}" and s.level == level)
        client.diagnostics.clear()
        return bool(found)

    client.forget_diagnostics()
    action()
    client.wait(seen, f"{part} at level {level!r}")
    return found[-1]


def wait_for_message(client: Client, part: str, level: bytes, message: str) -> DiagnosticStatus:
    """The next report in which a part has the level and the message."""
    found = wait_for(client, part, level)
    while found.message != message:
        found = wait_for(client, part, level)
    return found


def values(status: DiagnosticStatus) -> dict[str, str]:
    return {pair.key: pair.value for pair in status.values}


def said_of_silence(status: DiagnosticStatus) -> str:
    """What a report says behind the seconds since the last image on /image, which are at least 5: more where reports come late."""
    found = re.match(r"no image for (\d+) s on /image: ", status.message)
    assert found, status.message
    assert int(found[1]) >= 5
    assert float(values(status)["silence_s"]) > 5
    return status.message[found.end() :]


def test_a_silent_camera_is_a_warning_and_a_speaking_one_is_not(start: Start) -> None:
    _, client = start()
    status = wait_for_message(client, "camera", WARN, "no image has come on /image")
    assert values(status)["publishers"] == "1"
    client.show(pictures.now())
    status = wait_for(client, "camera", OK)
    assert values(status)["frames_used"] == "1"
    # Nothing comes any more.
    status = wait_for(client, "camera", WARN)
    assert said_of_silence(status).startswith("/test_client would, but sends nothing that arrives")
    client.stop_camera()
    client.wait(lambda: " s on /image: nobody publishes it" in wait_for(client, "camera", WARN).message, "the reason")


def test_refused_images_are_an_error_unless_others_are_used(start: Start) -> None:
    _, client = start()
    bad = pictures.raw()
    bad.encoding = "bayer_rggb8"
    client.show(bad)
    status = wait_for(client, "camera", ERROR)
    assert status.message.startswith('every image is refused; the last: image encoding is "bayer_rggb8", expected ')
    assert values(status)["rejected_encoding"] == "1"
    # Nothing better has come since.
    wait_for(client, "camera", ERROR)

    def both() -> None:
        for seed in range(2):
            client.publish(pictures.now(seed))
            client.publish(bad)

    assert "images refused; the last: image encoding" in wait_for(client, "camera", WARN, both).message
    client.publish(pictures.now())
    wait_for(client, "camera", OK)


def test_a_paused_node_is_well(start: Start) -> None:
    _, client = start()
    client.show(pictures.now())
    assert client.call(SetBool, "/inf_mllm/pause", SetBool.Request(data=True)).success
    client.wait(lambda: client.stats[-1].paused, "the pause")
    assert wait_for(client, "camera", OK).message == "paused"


def test_a_full_memory_under_policy_full_is_said_once_and_shown_until_the_reset(start: Start) -> None:
    process, client = start({"policy": "full", "budget": 96})
    for sec in range(1, 9):
        client.show(pictures.raw(sec=sec))
    stats = client.fresh_stats()
    message = f"full with {stats.used} of 96 slots: policy full evicts nothing, so nothing more is taken until ~/reset"
    assert wait_for(client, "memory", WARN).message == message
    assert dict(zip(stats.reject_reasons, stats.reject_counts, strict=True)) == {"full": stats.frames_rejected}
    warnings = [line for line in process.lines if "the cache is full: " in line]
    assert len(warnings) == 1, warnings
    assert "[WARN]" in warnings[0]
    assert "policy full never evicts; nothing more is taken until a reset" in warnings[0]
    answer = client.ask("What is in view? " * 2)
    assert answer.finish_reason == Reasoning.FINISH_ERROR
    assert "policy full never evicts" in answer.error
    assert client.reset().success
    wait_for(client, "memory", OK)
    for sec in range(10, 18):
        client.show(pictures.raw(sec=sec))
    wait_for(client, "memory", WARN)
    assert len([line for line in process.lines if "nothing more is taken until a reset" in line]) == 2


@pytest.mark.parametrize("namespace", ["", "/robot"])
def test_what_is_reported_names_the_node_the_model_and_the_budget(start: Start, namespace: str) -> None:
    options = {} if not namespace else {
        "name": "/robot/inf_mllm", "image": "/robot/image", "instruction": "/robot/instruction",
        "instruction_text": "/robot/instruction_text",
    }  # fmt: skip
    _, client = start(arguments=("-r", f"__ns:={namespace or '/'}"), **options)
    stats = client.fresh_stats()
    status = wait_for(client, "memory", OK)
    assert status.hardware_id.endswith("models/demo")
    assert values(status)["budget_tokens"] == str(stats.budget)
    assert values(status)["budget_bytes"] == str(stats.bytes)
    assert values(status)["policy"] == "inf_mllm"


def test_a_refused_instruction_is_a_warning_that_passes(start: Start) -> None:
    _, client = start()
    wait_for(client, "instructions", OK)
    status = wait_for(client, "instructions", WARN, lambda: client.ask("What is in view?"))
    assert status.message == "1 refused or cancelled"
    assert values(status)["failed"] == "1"
    wait_for(client, "instructions", OK)
