#!/usr/bin/env bash
# Builds the package with CMake into build/ and installs it into install/.
# Usage: scripts/build.sh [node]; node: without the command line, unless that is there already.
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
tools=ON
if [ "${1-}" = node ] && [ ! -e install/lib/inf_mllm/inf_mllm ]; then tools=OFF; fi
[ "$(cat build/tools 2>/dev/null)" = "$tools" ] || cmake -DINF_MLLM_TOOLS="$tools" build >build/configure.log
echo "$tools" >build/tools
cmake --build build --parallel "$(nproc)"
cmake --install build >build/install.log
