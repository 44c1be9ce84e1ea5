#!/usr/bin/env bash
# rclpy 7.1.6 with rcl 9.2.8 (ROS 2 Jazzy): `-p name:=value` is a parameter of all nodes (/**), and takes the place that /** got when it
# was first named on the command line. So a -p at the very end
# - wins against a file that names the node only, or /** after the node;
# - loses against a file that names /** before the node, even if all that it says under /** is about another parameter; the same for
#   two files in that order;
# - wins there as well when it names the node (-p camera:rate:=...).
# Ends with an error if it behaves otherwise today. Needs python3 with venv (3.10 to 3.13, x86_64), unshare and ip.
set -euo pipefail
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check 'ros-jazzy-rclpy[fastrtps]==7.1.6' ros-rclpy==7.1.6 ros-rcl==9.2.8 \
    ros-rcl-yaml-param-parser==9.2.8
cat >"$dir/node.py" <<'PYTHON'
import sys

import rclpy

rclpy.init(args=sys.argv)
node = rclpy.create_node("camera")
print(node.declare_parameter("rate", "default").value)
PYTHON
block() { printf '%s:\n  ros__parameters:\n    %s\n' "$@"; }
block camera 'rate: file' >"$dir/node.yaml"
block '/**' 'other: 1' >"$dir/all.yaml"
cat "$dir/node.yaml" "$dir/all.yaml" >"$dir/node_all.yaml"
cat "$dir/all.yaml" "$dir/node.yaml" >"$dir/all_node.yaml"
# A network of the node's own: it talks to nobody.
# shellcheck disable=SC2016
show() {
    local value
    value="$(cd "$dir" && env -i HOME="$dir" PATH="$PATH" ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST ROS_DOMAIN_ID=77 \
        unshare --map-root-user --mount --net \
        bash -c 'mount -t tmpfs tmpfs /dev/shm && ip link set lo up && exec venv/bin/python node.py --ros-args "$@"' show "$@")"
    echo "$*: $value"
}
expected="--params-file node.yaml -p rate:=p: p
--params-file node_all.yaml -p rate:=p: p
--params-file all_node.yaml -p rate:=p: file
--params-file node.yaml --params-file all.yaml -p rate:=p: p
--params-file all.yaml --params-file node.yaml -p rate:=p: file
--params-file all_node.yaml -p camera:rate:=p: p"
found="$(
    show --params-file node.yaml -p rate:=p
    show --params-file node_all.yaml -p rate:=p
    show --params-file all_node.yaml -p rate:=p
    show --params-file node.yaml --params-file all.yaml -p rate:=p
    show --params-file all.yaml --params-file node.yaml -p rate:=p
    show --params-file all_node.yaml -p camera:rate:=p
)"
echo "$found"
diff <(echo "$expected") <(echo "$found") && echo "rclpy 7.1.6 behaves as described"
