# The build environment: Rust, and a ROS 2 (the sourced one, else the private one in .ros). Source it with bash.
# It sets nothing up and changes nothing on disk; `make setup` does.

INF_MLLM_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export INF_MLLM_ROOT
RUST_NEEDED=1.89

# True if `rustc` of the current PATH runs and is new enough.
rust_works() {
    local version
    cargo --version >/dev/null 2>&1 || return 1
    version="$(rustc --version 2>/dev/null | cut -d' ' -f2)" || return 1
    [ -n "$version" ] && [ "$(printf '%s\n%s\n' "$RUST_NEEDED" "$version" | sort -V | head -n1)" = "$RUST_NEEDED" ]
}

# Finds a Rust tool chain. With a foreign HOME rustup's proxies look in the wrong place, so the account's own home is tried.
use_rust() {
    local home old_path="$PATH" old_rustup="${RUSTUP_HOME-}"
    rust_works && return 0
    for home in "${HOME-}" "$(getent passwd "$(id -u)" | cut -d: -f6)"; do
        [ -d "$home/.cargo/bin" ] && [ -d "$home/.rustup" ] || continue
        export PATH="$home/.cargo/bin:$old_path" RUSTUP_HOME="$home/.rustup"
        rust_works && return 0
    done
    if [ -n "$old_rustup" ]; then export RUSTUP_HOME="$old_rustup"; else unset RUSTUP_HOME; fi
    export PATH="/usr/bin:$old_path"
    rust_works && return 0
    export PATH="$old_path"
    return 1
}

# True if the ROS 2 in use is one that the user has sourced.
ros_is_sourced() {
    [ -n "${ROS_DISTRO-}" ] && [ -n "${AMENT_PREFIX_PATH-}" ] && [ -z "${INF_MLLM_PRIVATE_ROS-}" ]
}

# Puts the private ROS 2, or only the tools beside a sourced one, into the environment.
use_ros() {
    local tools="$INF_MLLM_ROOT/.ros" site
    export INF_MLLM_PYTHON="$tools/bin/python"
    site="$(echo "$tools"/lib/python3.*/site-packages)"
    export LIBCLANG_PATH="${LIBCLANG_PATH:-$site/clang/native}"
    # libclang from a wheel comes without the compiler's own headers (stddef.h and the like).
    export BINDGEN_EXTRA_CLANG_ARGS="${BINDGEN_EXTRA_CLANG_ARGS:--I$(gcc -print-file-name=include 2>/dev/null)}"
    # Until Fast DDS 2 (Jazzy), and since Fast DDS 3 (Kilted); a profile of the user's own stays.
    if [ -z "${FASTRTPS_DEFAULT_PROFILES_FILE-}${FASTDDS_DEFAULT_PROFILES_FILE-}" ]; then
        export FASTRTPS_DEFAULT_PROFILES_FILE="$INF_MLLM_ROOT/config/fastdds.xml"
        export FASTDDS_DEFAULT_PROFILES_FILE="$FASTRTPS_DEFAULT_PROFILES_FILE"
    fi
    # python, pytest and ruff are the ones of .ros, also beside a sourced ROS, whose own machine may have none of them.
    export PATH="$tools/bin:${PATH#"$tools/bin:"}"
    ros_is_sourced && return 0
    export INF_MLLM_PRIVATE_ROS="$tools" ROS_DISTRO=jazzy ROS_VERSION=2 ROS_PYTHON_VERSION=3
    export AMENT_PREFIX_PATH="$tools"
    export LD_LIBRARY_PATH="$tools/lib${LD_LIBRARY_PATH:+:${LD_LIBRARY_PATH#"$tools/lib:"}}"
    unset CMAKE_PREFIX_PATH PYTHONPATH
}

# Adds the installed package to the environment of programs that use its messages.
use_install() {
    local install="$INF_MLLM_ROOT/install" python
    python="$(echo "$install"/lib/python3*/site-packages "$install"/local/lib/python3*/dist-packages)"
    python="${python%% *}"
    export AMENT_PREFIX_PATH="$install:$AMENT_PREFIX_PATH"
    export LD_LIBRARY_PATH="$install/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
    export PYTHONPATH="$python${PYTHONPATH:+:$PYTHONPATH}"
    export PATH="$INF_MLLM_ROOT/.ros/bin:$install/lib/inf_mllm:$PATH"
}

use_rust || true
use_ros
