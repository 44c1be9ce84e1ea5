"""The node as a child process: started with parameters, its log kept, ended by a signal and timed. Demo and tests use it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXECUTABLE = "inf_mllm_node"
PARAMETER_FILE = ROOT / "config" / "inf_mllm.yaml"
PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
"""Where Fast DDS looks for its profile: until version 2 (Jazzy), and since version 3 (Kilted)."""
READY = "ready"
"""A word of the line that the node logs when it has loaded the model."""
WAITING = "unconfigured"
"""A word of the line that it logs instead where it is not to load one by itself."""


class NodeFailed(Exception):
    """The node could not be started, or it ended by itself."""


def free_domain() -> int:
    """A ROS domain in which nothing on this machine takes part.

    DDS binds UDP port 7410 + 250 * domain + 2 * n for the n-th participant of a machine; the domains up to 100 stay below
    the ports that Linux gives out by itself.
    """
    first = os.getpid() % 100
    for offset in range(100):
        domain = 1 + (first + offset) % 100
        if all(_port_is_free(7410 + 250 * domain + 2 * participant) for participant in range(8)):
            return domain
    raise NodeFailed("every ROS domain from 1 to 100 is taken on this machine")


def _port_is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def isolate(domain: int) -> None:
    """Keeps this process and its children in `domain` and on this machine, with the transport that camera images need."""
    os.environ["ROS_DOMAIN_ID"] = str(domain)
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    for name in PROFILE_VARIABLES:
        os.environ[name] = str(ROOT / "config" / "fastdds.xml")


class NodeProcess:
    """One running node.

    Args:
        parameters: override those of the parameter file.
        arguments: further ROS arguments, such as "-r", "image:=/camera/image".
        parameter_file: none: the node's own defaults.
    """

    def __init__(
        self,
        parameters: Mapping[str, object] | None = None,
        arguments: tuple[str, ...] = (),
        parameter_file: Path | None = PARAMETER_FILE,
    ) -> None:
        executable = shutil.which(EXECUTABLE)
        if executable is None:
            raise NodeFailed(f"{EXECUTABLE} is not on the PATH: build first, and run this through scripts/ros-run")
        command = [executable, "--ros-args"]
        if parameter_file is not None:
            command += ["--params-file", str(parameter_file)]
        for name, value in (parameters or {}).items():
            # JSON is YAML, which is what the value of a parameter is read as.
            command += ["-p", f"{name}:={json.dumps(value)}"]
        # Not a pipe: what the node has written is there at once, however late this process comes to read it.
        self._written = os.fdopen(os.memfd_create("log"), "rb", buffering=0)
        self._ready = WAITING if (parameters or {}).get("autostart") is False else READY
        self._process = subprocess.Popen(
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._written,
            # Ctrl-C in the terminal is for the parent, which then ends the node itself.
            start_new_session=True,
        )

    @property
    def lines(self) -> list[str]:
        """What the node has written to stderr so far, in whole lines."""
        file = self._written.fileno()
        *lines, last = os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace").split("\n")
        return [*lines, last] if last and self.returncode is not None else lines

    @property
    def log(self) -> str:
        """What the node has written to stderr so far."""
        return "\n".join(self.lines)

    def tail(self) -> str:
        """The last lines of the log."""
        return "\n".join(self.lines[-20:])

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit status; none while it runs."""
        return self._process.poll()

    def check_running(self) -> None:
        """Raises NodeFailed, with the end of the log, if the node has ended."""
        if self.returncode is not None:
            raise NodeFailed(f"the node ended with exit code {self.returncode}; its log ends with:\n{self.tail()}")

    def wait_ready(self, timeout: float = 20.0) -> None:
        """Waits until the model is loaded, unless it is not to be, and the topics are there."""
        deadline = time.monotonic() + timeout
        while not any(self._ready in line.split() for line in self.lines):
            self.check_running()
            if time.monotonic() > deadline:
                self.kill()
                raise NodeFailed(f"the node was not ready within {timeout} s:\n{self.log}")
            time.sleep(0.01)

    def wait_end(self, timeout: float) -> int:
        """Waits until it ends by itself; the exit status."""
        try:
            status = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise NodeFailed(f"the node still ran after {timeout} s:\n{self.log}") from None
        return status

    def stop(self, by: signal.Signals = signal.SIGINT, timeout: float = 10.0) -> tuple[int, float]:
        """Ends it by a signal; the exit status, and how long it took in seconds."""
        started = time.monotonic()
        self._process.send_signal(by)
        status = self.wait_end(timeout)
        return status, time.monotonic() - started

    def kill(self) -> None:
        """Ends it without mercy; does nothing if it has ended."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
