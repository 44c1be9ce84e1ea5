"""What the documents tell a user to paste: what it sends is answered, what it names is there, and links lead somewhere."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pictures
import pytest
import yaml
from client import Client
from conftest import ROOT, Start
from inf_mllm.action import Ask
from inf_mllm.msg import Instruction, Reasoning
from inf_mllm.srv import Cancel
from test_action import ASK, Goal

DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
SEEN = 1795780300
"""When the frames were seen that are shown here, seconds: within the range of time that docs/memory.md asks for."""


def blocks(document: Path) -> list[str]:
    """The code of a document."""
    return re.findall(r"^```\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE)


def commands(program: str) -> list[list[str]]:
    """The commands of the documents that begin with this word, as a shell splits them."""
    found = []
    for block in (block for document in DOCUMENTS for block in blocks(document) if "<<" not in block):
        command = ""
        for line in block.replace("\\\n", " ").splitlines():
            command += f"\n{line}"
            try:
                words = shlex.split(command, comments=True)
            except ValueError:
                # A text in quotes goes on in the next line.
                continue
            command = ""
            while program in words[:1]:
                end = words.index("&&") if "&&" in words else len(words)
                found.append(words[:end])
                words = words[end + 1 :]
    return found


def filled(message: Any, fields: dict[str, Any]) -> Any:
    """The message with fields as ros2cli reads them; rclpy checks types and ranges."""
    for name, value in fields.items():
        assert name in message.get_fields_and_field_types(), f"{type(message).__name__} has no field {name}"
        setattr(message, name, filled(getattr(message, name), value) if isinstance(value, dict) else value)
    return message


def fields(message: Any) -> dict[str, Any]:
    return {name: getattr(message, name) for name in message.get_fields_and_field_types()}


def sent(*verbs: str) -> list[list[str]]:
    """Name, type and value of what `ros2 VERBS` sends in the documents, as often as it stands there."""
    words = [command[3:] for command in commands("ros2") if command[1:3] == list(verbs)]
    return [[word for word in command if not word.startswith("--")] for command in words]


@pytest.fixture
def client(start: Start) -> Client:
    """Of a node that sees something."""
    _, client = start()
    for i in range(3):
        client.show(pictures.raw(sec=SEEN + i, seed=i))
    return client


def answered(answer: Reasoning, question: str) -> None:
    assert answer.finish_reason != Reasoning.FINISH_ERROR, f"{question}: {answer.error}"


def test_every_instruction_is_answered(client: Client) -> None:
    published = sent("topic", "pub")
    assert len(published) > 8
    for topic, kind, value in published:
        content = yaml.safe_load(value)
        if kind == "std_msgs/msg/String":
            assert topic == "/instruction_text"
            answered(client.next_answer(lambda text=content["data"]: client.instruct_text(text)), value)
            continue
        assert (topic, kind) == ("/instruction", "inf_mllm/msg/Instruction")
        instruction = filled(Instruction(), content)
        answer = client.ask(**fields(instruction))
        answered(answer, value)
        if instruction.mode == Instruction.MODE_WATCH:
            client.call(Cancel, "/inf_mllm/cancel", Cancel.Request(id=instruction.id))
            client.wait(lambda: client.answers[-1].watch_ended, "the watch to end")


def test_every_goal_is_answered(client: Client) -> None:
    action = client.action(Ask, ASK)
    goals = sent("action", "send_goal")
    assert goals
    for name, kind, value in goals:
        assert (name, kind) == (ASK, "inf_mllm/action/Ask")
        goal = Goal(client, action, **fields(filled(Ask.Goal(), yaml.safe_load(value)).instruction))
        answered(goal.result()[1], value)


def test_every_service_takes_its_request(client: Client) -> None:
    called = sent("service", "call")
    assert called
    for name, kind, *value in called:
        package, _, service = kind.split("/")
        service = getattr(importlib.import_module(f"{package}.srv"), service)
        client.call(service, name, filled(service.Request(), yaml.safe_load("".join(value)) or {}))


def test_every_topic_that_is_to_be_listened_to_is_published(client: Client) -> None:
    listened = {word for words in sent("topic", "echo") for word in words if word.startswith("/")}
    assert len(listened) > 3
    client.wait(lambda: listened <= {*client.interface(), "/diagnostics"}, f"the topics {listened}")


def test_the_program_that_sends_a_picture_prints_its_answer_and_ends(client: Client, tmp_path: Path) -> None:
    [program] = [block for block in blocks(ROOT / "docs" / "planner.md") if block.startswith("python3 - cup.jpg <<")]
    (tmp_path / "cup.jpg").write_bytes(bytes(pictures.jpeg().data))
    process = subprocess.Popen(
        ["bash", "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        client.wait(lambda: process.poll() is not None, "the program to end", timeout=30)
    finally:
        process.kill()
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    [answer] = client.answers
    answered(answer, "the picture")
    assert (answer.instruction_id, answer.text) == ("cup", out.rstrip("\n"))


def arguments(command: list[str]) -> set[str]:
    return {word.partition(":=")[0] for word in command if ":=" in word}


def test_every_parameter_that_is_set_is_one() -> None:
    rows = re.findall(r"^\| `(\w+)`", (ROOT / "docs" / "parameters.md").read_text(), re.MULTILINE)
    started = [command for command in commands("ros2") if command[1:3] == ["run", "inf_mllm"]]
    given = {name for words in started for flag, name in pairwise(words) if flag == "-p"}
    given |= {f"{words[1]}:=" for words in sent("param", "set")}
    assert len(given) > 8
    assert arguments([*given]) <= set(rows)
    assert all(words[0] == "/inf_mllm" for words in sent("param", "set"))


def test_every_argument_of_the_launch_file_is_one_that_it_has() -> None:
    table = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", (ROOT / "docs" / "quick-start.md").read_text(), re.MULTILINE)
    documented = {name.strip("`") for row in table for name in row.split(", ")}
    launch = (ROOT / "launch" / "inf_mllm.launch.py").read_text()
    assert documented == set(re.findall(r'^ +"(\w+)": \(\w+, "', launch, re.MULTILINE)) | set(
        re.findall(r'^ +\("(\w+)", ', launch, re.MULTILINE)
    )
    launched = [command for command in commands("ros2") if command[1:4] == ["launch", "inf_mllm", "inf_mllm.launch.py"]]
    assert len(launched) > 3
    for command in launched:
        assert arguments(command) <= documented, command


def anchors(document: Path) -> set[str]:
    """Those of the document's headings, as GitHub makes them."""
    lines = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if not link.startswith("http"):
            file, _, heading = link.partition("#")
            target = document.parent / file if file else document
            assert target.exists(), link
            assert not heading or heading in anchors(target), link
