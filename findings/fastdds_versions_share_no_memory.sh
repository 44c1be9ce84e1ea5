#!/usr/bin/env bash
# Fast DDS 2.14.5 (ROS 2 Jazzy) and Fast DDS 3.2.3 (ROS 2 Kilted) on one machine match and understand each other, but do not find each
# other's shared memory, whose files they name differently (fastrtps_*, fastdds_*): what two processes of one version pass through memory
# goes through the loopback network between two of different versions, every byte of it and without a word, with the limits of sockets.
# Twenty messages of 100 kB go each way, in a network of their own. Ends with an error if it behaves otherwise today. Needs python3 with
# venv (3.10 to 3.13, x86_64), unshare and ip.
set -euo pipefail
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
install() {
    python3 -m venv "$dir/$1"
    "$dir/$1/bin/pip" install --quiet --disable-pip-version-check "${@:2}"
}
install jazzy 'ros-jazzy-rclpy[fastrtps]==7.1.6' ros-fastrtps==2.14.5 ros-rmw-fastrtps-cpp==8.4.3 ros-jazzy-std-msgs==5.3.6
install kilted 'ros-kilted-rclpy[fastrtps]==9.1.2' ros-fastdds==3.2.3 ros-rmw-fastrtps-cpp==9.3.3 ros-kilted-std-msgs==5.5.1
cat >"$dir/show.py" <<'PYTHON'
import os
import re
import subprocess
import sys
import time

COUNT, SIZE = 20, 100_000


def loopback_bytes():
    with open("/proc/net/dev") as lines:
        return next(int(line.split()[9]) for line in lines if line.split()[0] == "lo:")


def node(side):
    import rclpy
    from std_msgs.msg import String

    rclpy.init()
    node = rclpy.create_node(side)
    if side == "subscriber":
        messages = []
        subscription = node.create_subscription(String, "text", messages.append, COUNT)
        while len(messages) < COUNT:
            rclpy.spin_once(node)
    else:
        publisher = node.create_publisher(String, "text", COUNT)
        while publisher.get_subscription_count() == 0:
            time.sleep(0.1)
        time.sleep(1)
        before = loopback_bytes()
        for _ in range(COUNT):
            publisher.publish(String(data="x" * SIZE))
            time.sleep(0.1)
        # It ends when it has everything, and takes its own files along.
        while publisher.get_subscription_count() > 0:
            time.sleep(0.1)
        time.sleep(1)
        files = {re.split("_|[.]", name)[0] for name in os.listdir("/dev/shm") if name.startswith("fast")}
        print("the network" if loopback_bytes() - before > COUNT * SIZE else "memory", *sorted(files))


def main(root):
    for sender in ("jazzy", "kilted"):
        for receiver in ("jazzy", "kilted"):
            command = [f"{root}/{receiver}/bin/python", __file__, "subscriber"]
            subscriber = subprocess.Popen(command)
            sent = subprocess.check_output([f"{root}/{sender}/bin/python", __file__, "publisher"], text=True, timeout=60).split()
            subscriber.wait(timeout=60)
            print(f"{sender} to {receiver}: through {' '.join(sent[:-1])} (the sender's files: {sent[-1]}_*)", flush=True)


if sys.argv[1] in ("subscriber", "publisher"):
    node(sys.argv[1])
else:
    main(sys.argv[1])
PYTHON
expected="jazzy to jazzy: through memory (the sender's files: fastrtps_*)
jazzy to kilted: through the network (the sender's files: fastrtps_*)
kilted to jazzy: through the network (the sender's files: fastdds_*)
kilted to kilted: through memory (the sender's files: fastdds_*)"
# shellcheck disable=SC2016
found="$(env -i HOME="$dir" PATH="$PATH" ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST ROS_DOMAIN_ID=77 unshare --map-root-user --mount --net \
    bash -c 'mount -t tmpfs tmpfs /dev/shm && ip link set lo up && exec python3 "$0/show.py" "$0"' "$dir")"
echo "$found"
diff <(echo "$expected") <(echo "$found") && echo "Fast DDS 2.14.5 and 3.2.3 behave as described"
