"""A bag and its instructions as one list of things to publish, in the order of time."""

from __future__ import annotations

import heapq
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from rosbags.rosbag2 import Reader

IMAGE_TYPE = "sensor_msgs/msg/CompressedImage"
CAMERA_INFO_TYPE = "sensor_msgs/msg/CameraInfo"
NANOSECONDS = 1_000_000_000


class RecordingError(Exception):
    """The bag or the instructions cannot be played; says what was expected."""


@dataclass(frozen=True)
class Question:
    """One entry of the instructions file."""

    id: str
    at: float
    """Seconds since the first image of the bag."""
    text: str
    truth: str | None
    accept: tuple[str, ...]
    """Other answers that are right too."""
    memory: str
    """view: answerable from what is in view; past: needs something seen before; else empty."""
    age: float | None
    """Seconds since the answer was last in view; none where that is not told."""
    max_new_tokens: int

    def is_right(self, answer: str) -> bool | None:
        """Whether an answer is the truth or another that is accepted, but for case and outer spaces; none without a truth."""
        if self.truth is None:
            return None
        return answer.strip().lower() in {right.strip().lower() for right in (self.truth, *self.accept)}


@dataclass(frozen=True)
class BagMessage:
    """A recorded message, as its serialised bytes (CDR, header first)."""

    type: str
    data: bytes

    @property
    def stamp_ns(self) -> int:
        """The header's stamp."""
        sec, nanosec = struct.unpack_from(_stamp_format(self.data), self.data, STAMP_OFFSET)
        return sec * NANOSECONDS + nanosec

    def with_stamp(self, stamp_ns: int) -> bytes:
        """The bytes with another stamp in the header."""
        patched = bytearray(self.data)
        struct.pack_into(_stamp_format(self.data), patched, STAMP_OFFSET, *divmod(stamp_ns, NANOSECONDS))
        return bytes(patched)


# CDR begins with four bytes that tell the byte order; a Header begins with its stamp: int32 sec, uint32 nanosec.
STAMP_OFFSET = 4


def _stamp_format(data: bytes) -> str:
    return "<iI" if data[1] & 1 else ">iI"


@dataclass(frozen=True)
class Event:
    """Something to publish."""

    at_ns: int
    """Since the first image of the bag."""
    what: BagMessage | Question


class Recording:
    """A bag with its instructions."""

    def __init__(self, bag: Path, instructions: Path) -> None:
        self.bag = bag
        if not (bag / "metadata.yaml").is_file():
            raise RecordingError(f"{bag} is no bag, expected a folder with metadata.yaml")
        self.instructions = instructions
        self.questions, self.system_prompt, self.aside = _read_instructions(instructions)
        stamps = [message.stamp_ns for message in self._messages() if message.type == IMAGE_TYPE]
        if not stamps:
            raise RecordingError(f"{bag} has no {IMAGE_TYPE}")
        self.first_ns = stamps[0]
        self.frames = len(stamps)
        end = (stamps[-1] - stamps[0]) / NANOSECONDS
        self.seconds = max([end, *(question.at for question in self.questions)])

    def events(self) -> Iterator[Event]:
        """Everything to publish; a question after the frames that it may use."""
        messages = (Event(message.stamp_ns - self.first_ns, message) for message in self._messages())
        questions = (Event(round(question.at * NANOSECONDS), question) for question in self.questions)
        return heapq.merge(messages, questions, key=lambda event: event.at_ns)

    def _messages(self) -> Iterator[BagMessage]:
        with Reader(self.bag) as reader:
            wanted = [c for c in reader.connections if c.msgtype in (IMAGE_TYPE, CAMERA_INFO_TYPE)]
            for connection, _, data in reader.messages(connections=wanted):
                yield BagMessage(connection.msgtype, bytes(data))


def _read_instructions(file: Path) -> tuple[list[Question], str | None, bool]:
    """The questions in the order of time, the system prompt, and whether each is asked as if no other had been."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        questions = [
            Question(
                id=str(entry["id"]),
                at=float(entry["at"]),
                text=str(entry["text"]),
                truth=None if entry.get("answer") is None else str(entry["answer"]),
                accept=tuple(str(answer) for answer in entry.get("accept") or ()),
                memory=str(entry.get("memory") or ""),
                age=None if entry.get("age") is None else float(entry["age"]),
                max_new_tokens=int(entry.get("max_new_tokens") or 0),
            )
            for entry in content["instructions"]
        ]
        aside = bool(content.get("aside"))
        late = [at for at in content.get("resets") or [] if float(at) > 0]
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise RecordingError(f"{file}: {type(error).__name__}: {error}") from error
    if late:
        raise RecordingError(f"{file}: resets at {late}, expected none after the start (the demo plays one run)")
    return sorted(questions, key=lambda question: question.at), content.get("system_prompt"), aside
