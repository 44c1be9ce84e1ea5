#!/usr/bin/env bash
# Installs ROS 2 Kilted's rclpy (pinned wheels, 262 MB) into .kilted: the other side of tests/ros/test_kilted.py, whatever ROS 2 the
# node is built with. When nothing has changed it ends at once.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$INF_MLLM_ROOT"
# Nothing of the ROS 2 in use is to be mixed in.
unset PYTHONPATH LD_LIBRARY_PATH

say() { echo "kilted: $*" >&2; }

if [ "$(uname -m)" != x86_64 ]; then
    say "its wheels exist for x86_64 only, not $(uname -m): tests/ros/test_kilted.py is skipped"
    exit 0
fi
stamp="$(cat scripts/kilted-requirements.txt scripts/kilted.sh | sha256sum | cut -d' ' -f1) $INF_MLLM_ROOT"
if [ "$(cat .kilted/stamp 2>/dev/null)" = "$stamp" ] && .kilted/bin/python -c "import rclpy" 2>/dev/null; then
    exit 0
fi
say "installing into .kilted ($("$INF_MLLM_PYTHON" --version))"
rm -rf .kilted
"$INF_MLLM_PYTHON" -m venv .kilted
.kilted/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r scripts/kilted-requirements.txt
echo "$stamp" > .kilted/stamp
say "done"
