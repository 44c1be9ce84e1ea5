#!/usr/bin/env bash
# rmw_fastrtps_cpp 8.4.3 (ROS 2 Jazzy, Fast DDS 2.14.5) and 9.3.3 (ROS 2 Kilted, Fast DDS 3.2.3): FASTDDS_BUILTIN_TRANSPORTS has no effect
# where ROS_AUTOMATIC_DISCOVERY_RANGE is LOCALHOST, since the transports are chosen in code then; nothing says so. With SUBNET,
# LARGE_DATA opens a TCP port and UDPv4 goes without shared memory; with LOCALHOST the node has UDP and shared memory with either.
# Ends with an error if it behaves otherwise today. Needs python3 with venv (3.10 to 3.13, x86_64), unshare and ip.
set -euo pipefail
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
install() {
    python3 -m venv "$dir/$1"
    "$dir/$1/bin/pip" install --quiet --disable-pip-version-check "${@:2}"
}
install jazzy 'ros-jazzy-rclpy[fastrtps]==7.1.6' ros-fastrtps==2.14.5 ros-rmw-fastrtps-cpp==8.4.3
install kilted 'ros-kilted-rclpy[fastrtps]==9.1.2' ros-fastdds==3.2.3 ros-rmw-fastrtps-cpp==9.3.3
cat >"$dir/show.py" <<'PYTHON'
import os

import rclpy


def listening(table):
    """TCP ports on which somebody listens in this network, which is the node's own (state 0A)."""
    with open(f"/proc/net/{table}") as lines:
        return any(line.split()[3] == "0A" for line in lines)


rclpy.init()
node = rclpy.create_node("node")
tcp = listening("tcp") or listening("tcp6")
memory = any(name.startswith(("fastrtps_port", "fastdds_port")) for name in os.listdir("/dev/shm"))
print(f"TCP {'yes' if tcp else 'no'}, shared memory {'yes' if memory else 'no'}")
PYTHON
# A network and a /dev/shm for each node; what it says on standard error is part of what is shown.
# shellcheck disable=SC2016
show() {
    env -i HOME="$dir" PATH="$PATH" ROS_DOMAIN_ID=77 FASTDDS_BUILTIN_TRANSPORTS="$2" ROS_AUTOMATIC_DISCOVERY_RANGE="$3" \
        unshare --map-root-user --mount --net \
        bash -c 'mount -t tmpfs tmpfs /dev/shm && ip link set lo up && exec "$0/$1/bin/python" "$0/show.py"' "$dir" "$1" 2>&1
}
expected="" found=""
for ros in jazzy kilted; do
    expected+="$ros, LARGE_DATA, SUBNET: TCP yes, shared memory yes
$ros, LARGE_DATA, LOCALHOST: TCP no, shared memory yes
$ros, UDPv4, SUBNET: TCP no, shared memory no
$ros, UDPv4, LOCALHOST: TCP no, shared memory yes
"
    for transports in LARGE_DATA UDPv4; do
        for range in SUBNET LOCALHOST; do
            found+="$ros, $transports, $range: $(show "$ros" "$transports" "$range")
"
        done
    done
done
echo -n "$found"
diff <(echo -n "$expected") <(echo -n "$found") && echo "rmw_fastrtps_cpp 8.4.3 and 9.3.3 behave as described"
