#!/usr/bin/env bash
# Builds the package with CMake into build/ and installs it into install/.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$INF_MLLM_ROOT"
command -v cmake >/dev/null || { echo "build: cmake is missing; run make setup" >&2; exit 1; }

# CMake keeps absolute paths: a build folder made for another place or another ROS is of no use.
origin="$INF_MLLM_ROOT $ROS_DISTRO $AMENT_PREFIX_PATH"
if [ "$(cat build/origin 2>/dev/null)" != "$origin" ]; then
    rm -rf build install
    mkdir -p build
    options=(-DCMAKE_INSTALL_PREFIX="$INF_MLLM_ROOT/install" -DCMAKE_BUILD_TYPE=Release -DBUILD_TESTING=OFF)
    if [ -n "${INF_MLLM_PRIVATE_ROS-}" ]; then
        options+=(-DPython3_EXECUTABLE="$INF_MLLM_PYTHON" -DCMAKE_PREFIX_PATH="$INF_MLLM_PRIVATE_ROS")
    fi
    cmake -S . -B build "${options[@]}" >build/configure.log || { tail -n 30 build/configure.log >&2; exit 1; }
    echo "$origin" >build/origin
fi
cmake --build build --parallel "$(nproc)"
cmake --install build >build/install.log
