#!/usr/bin/env bash
# rclpy 7.1.6 (ROS 2 Jazzy): an action client that comes to its messages late (its executor was busy, its thread had no processor) finds
# the pieces of feedback and the result side by side in its queues, takes one of each at a time, the result at the first, and forgets the
# goal's feedback callback with it: the other pieces are taken and dropped without a word, though all of them had arrived.
# A second client with the same queue, whose program turns to the result only when the feedback has been read, gets every piece.
# Ends with an error if it behaves otherwise today. Needs python3 with venv (3.10 to 3.13, x86_64), unshare and ip.
set -euo pipefail
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check 'ros-jazzy-rclpy[fastrtps]==7.1.6' ros-rclpy==7.1.6 ros-jazzy-test-msgs==2.0.3
cat >"$dir/action.py" <<'PYTHON'
import threading
import time

import rclpy
from rclpy.action import ActionClient, ActionServer
from rclpy.executors import SingleThreadedExecutor
from test_msgs.action import Fibonacci

PIECES = 8


def serve(goal):
    for number in range(PIECES):
        goal.publish_feedback(Fibonacci.Feedback(sequence=[number]))
    goal.succeed()
    return Fibonacci.Result(sequence=list(range(PIECES)))


def pieces(late_result):
    """How many pieces of feedback arrive where the client's executor rests until the goal has ended."""
    client_node, executor = rclpy.create_node("client"), SingleThreadedExecutor()
    executor.add_node(client_node)
    client = ActionClient(client_node, Fibonacci, "count")
    assert client.wait_for_server(10.0)
    found = []
    sent = client.send_goal_async(Fibonacci.Goal(order=PIECES), lambda message: found.append(message.feedback.sequence[0]))
    executor.spin_until_future_complete(sent, 10.0)
    if not late_result:
        result = sent.result().get_result_async()
    time.sleep(2.0)
    if late_result:
        for _ in range(2 * PIECES):
            executor.spin_once(0.1)
        result = sent.result().get_result_async()
    executor.spin_until_future_complete(result, 10.0)
    for _ in range(2 * PIECES):
        executor.spin_once(0.1)
    assert list(result.result().result.sequence) == list(range(PIECES))
    client.destroy()
    client_node.destroy_node()
    return len(found)


rclpy.init()
server_node = rclpy.create_node("server")
server = ActionServer(server_node, Fibonacci, "count", serve)
server_executor = SingleThreadedExecutor()
server_executor.add_node(server_node)
serving = threading.Thread(target=server_executor.spin)
serving.start()
print(f"result asked for at once: all {PIECES} pieces arrive: {pieces(False) == PIECES}")
print(f"result asked for behind the feedback: all {PIECES} pieces arrive: {pieces(True) == PIECES}")
server_executor.shutdown()
serving.join()
rclpy.shutdown()
PYTHON
expected="result asked for at once: all 8 pieces arrive: False
result asked for behind the feedback: all 8 pieces arrive: True"
# A network of the nodes' own: they talk to nobody else.
found="$(cd "$dir" && env -i HOME="$dir" PATH="$PATH" ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST ROS_DOMAIN_ID=78 \
    unshare --map-root-user --mount --net \
    bash -c 'mount -t tmpfs tmpfs /dev/shm && ip link set lo up && exec venv/bin/python action.py')"
echo "$found"
diff <(echo "$expected") <(echo "$found") && echo "rclpy 7.1.6 behaves as described"
