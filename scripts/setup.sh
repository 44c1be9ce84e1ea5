#!/usr/bin/env bash
# Installs what build, demo and tests need: Debian packages and Rust where they are missing, and .ros (see below).
# With a sourced ROS 2, .ros holds only Python tools; without one it is a private ROS 2 Jazzy made of pinned wheels.
# Can be run again at any time; when nothing has changed it ends at once.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$INF_MLLM_ROOT"

# Minutes of one core that the first build of the demo takes.
FIRST_BUILD=19

say() { echo "setup: $*" >&2; }
die() { say "$*"; exit 1; }

# apt_install WHAT PACKAGE...: installs Debian packages, or says which ones to install.
apt_install() {
    local what="$1" sudo=""
    shift
    local hint="$what is missing; install the Debian packages: $*"
    command -v apt-get >/dev/null || die "$hint"
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null && sudo -n true 2>/dev/null || die "$hint (needs root)"
        sudo=sudo
    fi
    say "installing $* ($what is missing)"
    [ -n "${APT_UPDATED-}" ] || $sudo apt-get update -qq
    APT_UPDATED=yes
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null || die "$hint"
}

apt_has() { [ "$(apt-cache policy "$1" 2>/dev/null | sed -n 's/ *Candidate: //p')" != "(none)" ] && apt-cache show "$1" >/dev/null 2>&1; }

compilers() {
    printf 'int main() { return 0; }' | g++ -x c++ -o /dev/null - 2>/dev/null && command -v gcc >/dev/null ||
        apt_install "a C++ compiler" gcc g++ libc6-dev
    command -v pkg-config >/dev/null || apt_install pkg-config pkg-config
    [ -e /etc/ssl/certs/ca-certificates.crt ] || [ -e /etc/pki/tls/certs/ca-bundle.crt ] ||
        apt_install "the list of certificate authorities" ca-certificates
}

rust() {
    if ! use_rust; then
        if command -v rustup >/dev/null; then
            say "installing Rust with rustup"
            rustup toolchain install stable --profile minimal -c rustfmt -c clippy && rustup default stable
        else
            [ -n "${APT_UPDATED-}" ] || ! [ "$(id -u)" = 0 ] || apt-get update -qq
            if apt_has cargo-web; then
                apt_install "Rust $RUST_NEEDED" cargo-web rustc-web rustfmt-web rust-web-clippy
            elif apt_has rustup; then
                apt_install "Rust $RUST_NEEDED" rustup
                rustup toolchain install stable --profile minimal -c rustfmt -c clippy && rustup default stable
            else
                apt_install "Rust $RUST_NEEDED" cargo rustc rustfmt rust-clippy
            fi
        fi
        hash -r
        use_rust || die "Rust: found $(rustc --version 2>&1 | head -n1), expected $RUST_NEEDED or newer"
    fi
}

# Python for .ros: 3.10 to 3.13 (the wheels' range) with venv, pip and the headers.
python_fits() {
    "$1" - 2>/dev/null <<'P'
import ensurepip, os, sys, sysconfig, venv
header = os.path.join(sysconfig.get_paths()["include"], "Python.h")
sys.exit(not ((3, 10) <= sys.version_info < (3, 14) and os.path.exists(header)))
P
}

find_python() {
    local python
    for python in python3 /usr/bin/python3 python3.12 python3.11 python3.13 python3.10; do
        # The modules of a sourced ROS 2 are built for the system's Python.
        if ros_is_sourced && [ "$python" = python3 ]; then continue; fi
        if command -v "$python" >/dev/null && python_fits "$python"; then
            command -v "$python"
            return
        fi
    done
    return 1
}

compilers
rust

kind=private
ros_is_sourced && kind=tools
stamp="$(cat scripts/{ros,tool}-requirements.txt scripts/setup.sh scripts/vision_msgs/{CMakeLists.txt,package.xml,msg/*} | sha256sum | cut -d' ' -f1) $kind $INF_MLLM_ROOT"
if [ "$(cat .ros/stamp 2>/dev/null)" = "$stamp" ] && .ros/bin/python -c "import numpy" 2>/dev/null; then
    exit 0
fi

# While the wheels are installed, all is compiled that needs no ROS; what does need it fails here, and is compiled later.
compile_ahead() {
    mkdir -p target
    cargo build --release --locked --keep-going --features ros --bins >target/ahead.log 2>&1 &
    ahead=$!
    trap '[ $? = 0 ] || kill "$ahead" 2>/dev/null || true' EXIT
}
if [ "$kind" = private ] && ! ls "${CARGO_TARGET_DIR:-target}"/release/deps/libcandle_core-*.rlib >/dev/null 2>&1; then
    say "compiling meanwhile; the first time takes about $((FIRST_BUILD / $(nproc) + 1)) minutes on the $(nproc) cores here"
    compile_ahead
fi

[ "$kind" = tools ] || [ "$(uname -m)" = x86_64 ] ||
    die "no ROS 2 is sourced, and the private one exists for x86_64 only, not $(uname -m): install ROS 2 and source it"
# Its own Python, which comes first in the path, is none to make it anew with.
rm -rf .ros
hash -r
python="$(find_python)" || { apt_install "Python 3.10 to 3.13 with venv and headers" python3 python3-venv python3-dev; python="$(find_python)"; } ||
    die "Python: expected 3.10 to 3.13 with venv and headers"
say "installing into .ros ($kind, $("$python" --version))"
options=()
[ "$kind" = private ] || options=(--system-site-packages)
"$python" -m venv "${options[@]}" .ros
pip=(.ros/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes)
"${pip[@]}" -r scripts/tool-requirements.txt
# One package comes as source; its build uses the pinned setuptools installed just now.
[ "$kind" = tools ] || "${pip[@]}" --no-build-isolation --use-pep517 -r scripts/ros-requirements.txt

# What the ROS wheels leave out or get wrong for programs outside of Python.
repair_ros_wheels() {
    local lib="$INF_MLLM_ROOT/.ros/lib" library name
    ln -sf librmw_fastrtps_cpp.so "$lib/librmw_implementation.so"
    # The rcl libraries link the messages' Python modules, which a Rust process must not load: empty ones come first in its
    # library path.
    mkdir -p "$lib/stub"
    for library in "$lib"/lib*__rosidl_generator_py.so; do
        name="$(basename "$library")"
        gcc -shared -fPIC -o "$lib/stub/$name" -Wl,-soname,"$name" -x c /dev/null
    done
    # The CMake files name the Python that the wheels were built with.
    local include numpy
    include="$(.ros/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["include"])')"
    numpy="$(.ros/bin/python -c 'import numpy; print(numpy.get_include())')"
    find .ros/share -name '*.cmake' -exec sed -i -E \
        -e "s#/opt/python/[^;\"]*/numpy/_?core/include#$numpy#g" -e "s#/opt/python/[^;\"]*/include/python3\.[0-9]+#$include#g" {} +
}

# No wheel has vision_msgs; those of its messages that are published are built as a package of that name.
build_vision_msgs() {
    local build="$INF_MLLM_ROOT/.ros/src/vision_msgs"
    {
        cmake -S scripts/vision_msgs -B "$build" -DCMAKE_INSTALL_PREFIX="$INF_MLLM_PRIVATE_ROS" -DCMAKE_BUILD_TYPE=Release \
            -DBUILD_TESTING=OFF -DPython3_EXECUTABLE="$INF_MLLM_PYTHON" -DCMAKE_PREFIX_PATH="$INF_MLLM_PRIVATE_ROS" &&
            cmake --build "$build" --parallel "$(nproc)" && cmake --install "$build"
    } >.ros/vision_msgs.log 2>&1 || { tail -n 30 .ros/vision_msgs.log >&2; die "vision_msgs could not be built"; }
    rm -r "$build"
}
if [ "$kind" = private ]; then
    repair_ros_wheels
    build_vision_msgs
fi

echo "$stamp" > .ros/stamp
say "done"
