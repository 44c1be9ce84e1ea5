"""Training streams of several cameras: labels as the node writes them, and answers that are about the camera that is named."""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from cameras import LABELS, NAMED, NOW, PAST, CameraBuilder, spoken
from dataset import TOKENS_PER_FRAME, Shown, Stream
from questions import PHRASES, view_candidates, visibility
from runs import COLORS, SHAPES, Run

GRAMMAR = Path(__file__).parents[2] / "src" / "stream" / "grammar"
FRAMES = 24
LABEL = re.compile(r"(\d\d:\d\d), (\w+) camera:$")


class Words:
    """A tokenizer of whole words, with the demo's control tokens."""

    start, end, fake, globe, image = "<start>", "<end>", "<fake>", "<global>", "<image>"

    def __init__(self) -> None:
        self.shapes = {f" {shape}" for shape in SHAPES}

    def text(self, text: str) -> list[str]:
        return re.findall(r" ?\w+|\W", text)


class Whole(CameraBuilder):
    """Streams of which nothing was evicted in part."""

    def fragment(self, *_: object) -> list:
        return []


@dataclass
class Asked:
    """A question, its answer, and each camera's frames before it, the newest last."""

    text: str
    answer: str
    frames: dict[str, list[Shown]]


@dataclass
class Script:
    """What a stream says: the text in front of every frame, and what is asked."""

    labels: list[str] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)

    @classmethod
    def of(cls, stream: Stream) -> "Script":
        script, frames, text, question = cls(), defaultdict(list), "", ""
        for token, frame, part in zip(stream.ids, stream.frame, stream.part):
            if token == Words.image and part == 0:
                script.labels.append(text)
                frames[LABEL.search(text)[2]].append(stream.frames[frame])
            elif token == Words.image:
                text = "" if part == TOKENS_PER_FRAME - 1 else text
            elif token == Words.end and "Assistant:" in text:
                shown = {label: list(some) for label, some in frames.items()}
                script.asked.append(Asked(question, text.split("Assistant: ")[1], shown))
                text = ""
            elif token == Words.end:
                question, text = re.split(r"\n\n|User: ", text)[-1], ""
            elif token not in (Words.fake, Words.globe, Words.start):
                text += token
        return script


def drive(rng: np.random.Generator) -> Run:
    """A drive past objects at random places, each well in view or not at all."""
    objects = int(rng.integers(3, 9))
    kinds = rng.permutation(len(SHAPES) * len(COLORS))[:objects]
    shown, distance = rng.random((FRAMES, objects)) < 0.4, rng.uniform(0.3, 4.0, (FRAMES, objects))
    nothing = np.zeros((FRAMES, 0, 0))
    return Run(
        images=nothing, patches=nothing, times=np.arange(FRAMES) * 0.5, shape=kinds // len(COLORS),
        color=kinds % len(COLORS), cells=np.repeat(np.where(shown, 0.01, 0.0)[..., None], 9, -1),
        within=shown.astype(float), centre=rng.uniform(0, 1, distance.shape), distance=distance, ahead=distance,
        lateral=rng.uniform(-1, 1, distance.shape), wall=rng.uniform(0.5, 4.0, FRAMES),
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    rng = np.random.default_rng(1)
    return [drive(rng) for _ in range(40)]


@pytest.fixture(scope="module")
def scripts(runs: list[Run]) -> list[Script]:
    builder = Whole(Words(), runs, np.random.default_rng(2), recall=0.5)
    return [Script.of(builder.build(length)) for length in (180, 400, 640) * 100]


def words_of(run: Run, frame: int) -> list[tuple[str, str, dict[str, str]]]:
    """(type, answer, words) of every question about one frame."""
    return [(kind, answer, words) for kind, some in view_candidates(run, frame).items() for answer, words in some]


def answers(
    runs: list[Run], shown: Shown, phrases: dict[str, list[str]], text: str, **named: str
) -> dict[str, set[str]]:
    """By type, the answers that a frame gives to a question in these words."""
    found = defaultdict(set)
    for kind, answer, words in words_of(runs[shown[0]], shown[1]):
        if any(phrase.format(**named, **words) == text for phrase in phrases.get(kind, ())):
            found[kind].add(answer)
    return dict(found)


def named(text: str) -> str | None:
    """The one camera that a question names."""
    names = {label.lower() for label in re.findall(r"(\w+) camera\b", text)}
    return names.pop() if names else None


def test_a_label_is_written_as_the_node_writes_it(scripts: list[Script]) -> None:
    [time] = re.findall(r'TimeLabel::MinutesSeconds\("(.*?)"\)', (GRAMMAR / "formats.rs").read_text())
    [within] = re.findall(r'let within = .*format!\("(.*?)"\)\);', (GRAMMAR / "mod.rs").read_text())
    seen = Counter()
    for script in scripts:
        for text in script.labels:
            stamp, label = LABEL.search(text).groups()
            expected = time.replace("\\n", "\n").replace("{}", stamp + within.replace("{camera}", label))
            assert text.endswith(expected), text
            seen[label] += 1
    assert set(seen) == set(LABELS)


def test_an_answer_is_about_the_newest_frame_of_the_camera_that_is_named(
    runs: list[Run], scripts: list[Script]
) -> None:
    told, elsewhere = Counter(), Counter()
    for asked in (asked for script in scripts for asked in script.asked):
        camera = named(asked.text)
        if camera is None:
            continue
        right = {
            label: answers(runs, frames[-1], NAMED, asked.text, **spoken(camera))
            for label, frames in asked.frames.items()
        }
        for kind in right[camera]:
            assert right[camera] == {kind: {asked.answer}}, asked
            told[kind] += 1
            elsewhere[kind] += any(other.get(kind, {asked.answer}) != {asked.answer} for other in right.values())
    assert set(told) == set(NOW)
    # Of every type there are questions that another camera's frame answers otherwise: about it the answer would be seen to be.
    assert min(elsewhere[kind] for kind in NOW) >= 5, (elsewhere, told)


def test_what_a_camera_has_seen_is_what_its_own_frames_show(runs: list[Run], scripts: list[Script]) -> None:
    given, elsewhere = Counter(), 0
    phrases = [
        re.escape(phrase).replace(r"\{camera\}", r"(\w+)").replace(r"\{object\}", r"(\w+) (\w+)")
        for phrase in PAST["past_seen"]
    ]
    for asked in (asked for script in scripts for asked in script.asked):
        for match in filter(None, (re.fullmatch(phrase, asked.text) for phrase in phrases)):
            camera, color, shape = match.groups()

            def seen(label: str, color: str = color, shape: str = shape, asked: Asked = asked) -> bool:
                kind = SHAPES.index(shape), COLORS.index(color)
                return any(
                    (int(run.shape[i]), int(run.color[i])) == kind and visibility(run, frame)[i] == 1
                    for run, frame in ((runs[number], frame) for number, frame in asked.frames[label])
                    for i in range(len(run.shape))
                )

            assert asked.answer == ("yes" if seen(camera) else "no"), asked
            given[asked.answer] += 1
            elsewhere += asked.answer == "no" and any(seen(label) for label in asked.frames)
    assert min(given["yes"], given["no"], elsewhere) > 10, (given, elsewhere)


def test_who_names_no_camera_asks_about_all(runs: list[Run], scripts: list[Script]) -> None:
    given = Counter()
    for asked in (asked for script in scripts for asked in script.asked):
        if named(asked.text) is None and answers(runs, next(iter(asked.frames.values()))[-1], PHRASES, asked.text).get(
            "exists"
        ):
            each = [answers(runs, frames[-1], PHRASES, asked.text)["exists"] for frames in asked.frames.values()]
            assert asked.answer == ("yes" if {"yes"} in each else "no"), asked
            given[asked.answer, len(each)] += 1
    assert min(given["yes", 2], given["no", 2]) > 10, given
