"""Random training streams of several cameras: each frame with the label of its camera, as the node writes it, and questions that name
a camera, each with its one certain answer from what that camera shows."""

from collections import defaultdict
from dataclasses import replace

import numpy as np

from dataset import Codec, Stream
from memory import Moment, View, kinds_of
from questions import DESCRIBE, PHRASES, Asker, Options, view_candidates
from recollection import PAST_PHRASES
from runs import Run
from streams import HARDER, TRICKY, StreamBuilder, newest

LABELS = ("front", "rear", "left", "right")
AHEAD = "front"  # the label of the camera that looks where the robot goes
LABELLED = 25  # tokens that a frame with its time and its camera's label takes at most
STRIDES = (1, 1, 1, 1, 2, 4)  # one camera's interval between frames, in those of the quickest
LAG = 0.02  # seconds from one camera's frame to the next one's of the same moment
CANDIDATES = 6  # runs among which the one is taken that shares the most kinds of object
TELLING = 4  # how much oftener a question is asked that another camera's frame answers otherwise
MEMORY = 0.35  # how often what a camera has shown can be asked about
PLACES = (
    "{question} in the {{camera}} camera{mark}",
    "{question} on the {{camera}} camera{mark}",
    "{{Camera}} camera: {begun}{mark}",
    "In the {{camera}} camera, {begun}{mark}",
)
OTHERS = {
    "exists": ["Does the {camera} camera show a {object}?", "Does the {camera} camera see a {object}?"],
    "count": ["How many objects does the {camera} camera show?", "How many objects does the {camera} camera see?"],
    DESCRIBE: ["What does the {camera} camera show?", "What does the {camera} camera see?"],
}
PAST = {
    "past_seen": ["Has the {camera} camera seen a {object}?", "Has the {camera} camera shown a {object}?"],
    "past_side": [
        "Where did the {camera} camera last see the {object}?",
        "On which side did the {camera} camera last see the {object}?",
    ],
}
# About all cameras at once: without a camera's name.
ANY = {"any_exists": PHRASES["exists"], "any_stop": PHRASES["stop"]}
NOW = ("closest", "color", "position", "distance", "count", "exists", "stop", DESCRIBE)
CAMERA_KINDS = [*NOW, *PAST, *ANY]
OPEN = {"closest", "color", "past_side", DESCRIBE}  # types whose answers need not be equally frequent
LAYOUTS = ("cameras", "recalled")  # of streams of several cameras: without recalled frames and with them

Candidates = dict[str, list[tuple[str, dict[str, str]]]]  # as `questions.view_candidates` returns them


def naming(kind: str) -> list[str]:
    """The phrases of a question type about the current view that name a camera."""
    places = PLACES[2:] if kind == "stop" else PLACES
    parts = ((phrase[:-1], phrase[0].lower() + phrase[1:-1], phrase[-1]) for phrase in PHRASES[kind])
    found = [place.format(question=q, begun=b, mark=m) for q, b, m in parts for place in places]
    return found + OTHERS.get(kind, []) * 2


NAMED = {kind: naming(kind) for kind in NOW}


class CameraBuilder(StreamBuilder):
    """Makes random training streams of two or three cameras, each of which drives through a room of its own."""

    frame = LABELLED
    kinds = CAMERA_KINDS

    def __init__(self, codec: Codec, runs: list[Run], rng: np.random.Generator, recall: float):
        # As the node does, recalled frames have the newest one of each camera behind them.
        super().__init__(codec, runs, rng, recall, layouts=(0.0, 1.0, 0.0))
        weights = {**HARDER, **dict.fromkeys(ANY, 0.5), "past_seen": 0.8, "past_side": 0.8}
        self.asker = Asker(rng, weights=weights, tricky=TRICKY, more=PAST_PHRASES | ANY)
        self.asker.phrases = NAMED | PAST | ANY
        self.asker.open = OPEN

    def build(self, length: int) -> Stream:
        """A stream of at most about `length` tokens."""
        stream = super().build(length)
        stream.layout = LAYOUTS[stream.layout != "plain"]
        return stream

    def film(self, number: int, epoch: float, length: int) -> tuple[list[Moment], float, int]:
        """What two or three cameras show, in the order in which it comes, the first of them of this run."""
        rng, lead = self.rng, self.runs[number]
        order, asking, most = self.drive(lead, length)
        count = 2 if length < 180 or rng.random() < 0.7 else 3
        labels = [LABELS[i] for i in rng.permutation(len(LABELS))[:count]]
        numbers = [number]
        for _ in labels[1:]:
            numbers.append(self.beside(numbers))
        strides = [1, *(int(stride) for stride in rng.choice(STRIDES, count - 1))]
        phases = [int(rng.integers(stride)) for stride in strides]
        turns, film = rng.permutation(count).tolist(), []
        for tick, frame in enumerate(order):
            for lag, camera in enumerate(turns):
                if tick % strides[camera] == phases[camera] and frame < len(self.runs[numbers[camera]].times):
                    seconds = epoch + float(lead.times[frame]) + LAG * lag
                    film.append(Moment((numbers[camera], frame), seconds, camera=labels[camera]))
        return film, asking, most

    def beside(self, taken: list[int]) -> int:
        """The number of a run for another camera, mostly one whose room has kinds of object in common with the first of these."""
        free = np.setdiff1d(np.arange(len(self.runs)), taken)
        numbers = self.rng.choice(free, CANDIDATES if self.rng.random() < 0.7 else 1)
        kinds = kinds_of(self.runs[taken[0]])
        return int(max(numbers, key=lambda n: np.isin(kinds_of(self.runs[n]), kinds).sum()))

    def units(self, film: list[Moment], epoch: float, most: int) -> list[Moment]:
        """Frames to recall, of any of the cameras."""
        labels = sorted({moment.camera for moment in film})
        own = {moment.shown[0]: moment.camera for moment in film}
        units = super().units(film, epoch, most)
        cameras: dict[int, str] = defaultdict(lambda: labels[int(self.rng.integers(len(labels)))], own)
        return [replace(unit, camera=cameras[unit.shown[0]]) for unit in units]

    def options(self, moments: list[Moment], past: bool) -> Options:
        """Every question with a certain answer now, about what one camera shows or what any does; without `past`, only about
        what is in view."""
        shown = {m.camera: m.shown for m in newest(moments) if m.left is None}
        now = {camera: view_candidates(self.runs[run], frame, TRICKY) for camera, (run, frame) in shown.items()}
        found: Options = defaultdict(list)
        for camera, views in now.items():
            others = [answers_of(view) for label, view in now.items() if label != camera]
            for kind, questions in views.items():
                if kind == "stop" and camera != AHEAD:
                    continue
                for answer, words in questions:
                    key = (kind, *words.values())
                    telling = any(other.get(key, {answer}) != {answer} for other in others)
                    found[kind] += [(answer, {**spoken(camera), **words}, 0)] * (TELLING if telling else 1)
        whole = all(moment.left is None for moment in moments)
        if whole and now:
            self.of_any(found, now)
            if past and self.rng.random() < MEMORY:
                self.recollect(found, moments, now)
        return found

    def of_any(self, found: Options, now: dict[str, Candidates]) -> None:
        """Questions that name no camera: whether any of them shows something; and stopping, which is about the way ahead."""
        exists = [answers_of(view) for view in now.values()]
        for key in sorted({key for view in exists for key in view if key[0] == "exists"}):
            answers = [view.get(key, {""}) for view in exists]
            answer = "yes" if {"yes"} in answers else "no" if all(one == {"no"} for one in answers) else ""
            if answer:
                found["any_exists"].append((answer, {"object": key[1]}, 0))
        found["any_stop"] += [(answer, {}, 0) for answer, _ in now.get(AHEAD, {}).get("stop", [])]

    def recollect(self, found: Options, moments: list[Moment], now: dict[str, Candidates]) -> None:
        """Questions about what one of the cameras has shown."""
        camera = sorted(now)[int(self.rng.integers(len(now)))]
        view = View(self.runs, [moment for moment in moments if moment.camera == camera])
        elsewhere = {
            words["object"] for label, other in now.items() for answer, words in other["exists"]
            if label != camera and answer == "yes"
        }  # fmt: skip
        for kind, questions in view.recollections(TRICKY).items():
            for answer, words, age in questions if kind in PAST else ():
                telling = TELLING if words["object"] in elsewhere else 1
                found[kind] += [(answer, {**spoken(camera), **words}, age)] * telling


def spoken(camera: str) -> dict[str, str]:
    """A camera's label within a sentence, and at its beginning."""
    return {"camera": camera, "Camera": camera.capitalize()}


def answers_of(view: Candidates) -> dict[tuple[str, ...], set[str]]:
    """The answers of the questions about one frame by type and words."""
    found = defaultdict(set)
    for kind, questions in view.items():
        for answer, words in questions:
            found[kind, *words.values()].add(answer)
    return dict(found)
