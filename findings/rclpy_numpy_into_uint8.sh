#!/usr/bin/env bash
# rosidl's Python messages of ROS 2 Jazzy (sensor_msgs 5.3.6) and Kilted (rclpy 9.1.2): an image's data is set from bytes, a bytearray or an
# array.array at once, but from a numpy array of uint8 or a memoryview value by value: the 921600 bytes of 640x480 rgb8 then take more
# than a hundred times as long (some 0.3 s against 0.1 ms on one core of a server), with assertions and without (python -O). The messages
# are equal. `data=pixels.tobytes()` is the way.
# Ends with an error if it behaves otherwise today. Needs python3 with venv (3.10 to 3.13, x86_64).
set -euo pipefail
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
install() {
    python3 -m venv "$dir/$1"
    "$dir/$1/bin/pip" install --quiet --disable-pip-version-check "${@:2}"
}
install jazzy 'ros-jazzy-rclpy[fastrtps]==7.1.6' ros-jazzy-sensor-msgs==5.3.6 numpy==2.4.6
install kilted 'ros-kilted-rclpy[fastrtps]==9.1.2' ros-kilted-sensor-msgs==5.5.1 numpy==2.4.6
cat >"$dir/show.py" <<'PYTHON'
import array
import time

import numpy as np
from sensor_msgs.msg import Image


def seconds(data):
    """The shortest of three times to set the data."""
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        image.data = data
        times.append(time.perf_counter() - begin)
    return min(times)


image = Image()
pixels = np.arange(640 * 480 * 3).astype(np.uint8)
fast = seconds(pixels.tobytes())
messages = [image.data]
values = (bytearray(pixels), array.array("B", pixels.tobytes()), pixels, memoryview(pixels))
for value in values:
    slow = seconds(value) > 100 * fast
    print(f"{type(value).__name__} {'slow' if slow else 'fast'}", end=", ")
    messages.append(image.data)
print("equal" if all(message == messages[0] for message in messages) else "not equal")
PYTHON
expected="bytearray fast, array fast, ndarray slow, memoryview slow, equal"
for ros in jazzy kilted; do
    for option in -O ''; do
        # shellcheck disable=SC2086
        found="$("$dir/$ros/bin/python" $option "$dir/show.py")"
        echo "$ros $option: $found"
        diff <(echo "$expected") <(echo "$found")
    done
done
echo "the Python messages of ROS 2 Jazzy and Kilted behave as described"
