"""Remapping, namespaces, another node name and simulated time work as for any ROS node."""

import pictures
import pytest
import rclpy
from conftest import Start
from test_diagnostics import OK, WARN, wait_for


@pytest.mark.parametrize("compressed", [False, True])
def test_a_namespace_and_remapped_topics(start: Start, compressed: bool) -> None:
    _, client = start(
        {"image_transport": "compressed" if compressed else "raw"},
        ("-r", "__ns:=/robot1", "-r", "image:=front/camera", "-r", "instruction:=/ask"),
        name="/robot1/inf_mllm",
        image="/robot1/front/camera",
        instruction="/ask",
        instruction_text="/robot1/instruction_text",
        compressed=compressed,
    )
    client.show(pictures.jpeg(sec=5) if compressed else pictures.raw(sec=5))
    assert client.ask("What is in view?").header.stamp.sec == 5
    assert client.next_answer(lambda: client.instruct_text("What is in view?")).header.stamp.sec == 5
    assert client.reset().success


def test_another_node_name(start: Start) -> None:
    _, client = start({}, ("-r", "__node:=eyes"), name="/eyes")
    client.show(pictures.raw(sec=5))
    assert client.ask("What is in view?").header.stamp.sec == 5


def test_two_nodes_in_two_namespaces_do_not_hear_each_other(start: Start) -> None:
    clients = []
    for robot in ("/robot1", "/robot2"):
        _, client = start(
            {},
            ("-r", f"__ns:={robot}"),
            name=f"{robot}/inf_mllm",
            image=f"{robot}/image",
            instruction=f"{robot}/instruction",
            instruction_text=f"{robot}/instruction_text",
        )
        clients.append(client)
    clients[0].show(pictures.raw(sec=1))
    clients[1].show(pictures.raw(sec=2))
    assert [client.ask("What is in view?").header.stamp.sec for client in clients] == [1, 2]
    assert all(client.fresh_stats().frames_received == 1 for client in clients)


def test_simulated_time(start: Start) -> None:
    _, client = start({"use_sim_time": True})
    for sec in (100, 250):

        def told(sec: int = sec) -> bool:
            client.publish_clock(sec, 500_000_000)
            return client.stats[-1].header.stamp.sec == sec

        client.wait(told, f"statistics of the second {sec}")
        assert client.stats[-1].header.stamp.nanosec == 500_000_000
    client.show(pictures.raw(sec=240))
    answer = client.ask("What is in view?")
    age = answer.newest_frame_age
    assert (answer.header.stamp.sec, age.sec, age.nanosec) == (240, 10, 500_000_000)


def test_another_node_of_the_same_name_is_warned_of(start: Start, domain: int) -> None:
    first, client = start()
    status = wait_for(client, "instructions", OK)
    second, _ = start()
    status = wait_for(client, "instructions", WARN)
    assert "another node is called /inf_mllm" in status.message
    for process in (first, second):
        client.wait(lambda p=process: "another node is called /inf_mllm" in p.log, "the warning")
    second.stop()
    client.wait(lambda: "no other node is called /inf_mllm any longer" in first.log, "the end of the warning", 30.0)
    assert first.log.count("another node is called") == 1
    # Not one of this kind, and with nothing in common but the name.
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    try:
        other = rclpy.create_node("inf_mllm", context=context)
        client.wait(lambda: first.log.count("another node is called") == 2, "the second warning")
        other.destroy_node()
    finally:
        rclpy.shutdown(context=context)
