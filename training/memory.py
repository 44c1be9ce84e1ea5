"""What a stream shows of one or several runs: its frames as one run in the order of time, and what can be asked of them."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from dataset import Shown
from questions import Options, absent, name, visibility
from recollection import LEAD, LONGEST, MOST, PLURALS, TRAIL, label, side_of
from runs import COLORS, SHAPES, Run

OUT_OF_SIGHT = {"centre": 0.5, "distance": 1e3, "ahead": 1e3, "lateral": 1e3}
BY_OBJECT = ("cells", "within", "centre", "distance", "ahead", "lateral")


@dataclass(frozen=True)
class Moment:
    """A frame in a stream: which, its time in seconds, which of its nine tokens are left, None for all of them, and the label of
    its camera, empty if there is but one."""

    shown: Shown
    seconds: float
    left: tuple[int, ...] | None = None
    camera: str = ""


def kinds_of(run: Run) -> np.ndarray:
    """The number of each object's kind: of its shape x 6 + of its color."""
    return run.shape.astype(int) * len(COLORS) + run.color


class View:
    """What a stream shows: its moments in the order of time, the last of them now, as one run whose objects are the kinds that
    its rooms hold; there is at most one of a kind in a room. state [moments, objects]: 1 seen, -1 not seen, 0 not certain."""

    def __init__(self, runs: list[Run], moments: list[Moment]):
        moments = sorted(moments, key=lambda m: m.seconds)
        rows = defaultdict(list)
        for row, moment in enumerate(moments):
            rows[moment.shown[0]].append(row)
        kinds = np.array(sorted({k for number in rows for k in kinds_of(runs[number]).tolist()}), int)
        shape = (len(moments), len(kinds))
        arrays = {key: np.full(shape, OUT_OF_SIGHT.get(key, 0.0), np.float32) for key in BY_OBJECT if key != "cells"}
        arrays["cells"] = np.zeros((*shape, 9), np.float32)
        wall = np.zeros(len(moments), np.float32)
        for number, at in rows.items():
            run, frames = runs[number], [moments[row].shown[1] for row in at]
            columns = np.searchsorted(kinds, kinds_of(run))
            for key, values in arrays.items():
                values[np.ix_(at, columns)] = getattr(run, key)[frames]
            wall[at] = run.wall[frames]
        nothing = np.zeros((len(moments), 0, 0))
        self.run = Run(
            images=nothing, times=np.array([m.seconds for m in moments]), patches=nothing, wall=wall,
            shape=(kinds // len(COLORS)).astype(np.int8), color=(kinds % len(COLORS)).astype(np.int8), **arrays,
        )  # fmt: skip
        lefts = [None if m.left is None else np.array(m.left, int) for m in moments]
        self.state = np.stack([visibility(self.run, row, left) for row, left in enumerate(lefts)])
        self.whole = np.array([left is None for left in lefts])

    def recollections(self, tricky: int = 1) -> Options:
        """Per type of recollection.py, (answer, words, age in frames) of every question that these frames answer with
        certainty about what is not in view now; `tricky` as in `questions.absent`."""
        found: Options = defaultdict(list)
        run, state, now = self.run, self.state, len(self.state) - 1
        for i in np.flatnonzero((state[-1] == -1) & (state == 1).any(0)):
            shown = np.flatnonzero(state[:, i] >= 0)
            sighting = shown[run.times[shown] >= run.times[shown[-1]] - LONGEST]
            sure = sighting[state[sighting, i] == 1]
            words = {"object": name(run.shape[i], run.color[i])}
            found["past_seen"].append(("yes", words, now - int(sure[-1]) if len(sure) else now))
            if not len(sure) or run.times[shown[-1]] - run.times[sure[-1]] > TRAIL:
                continue
            age = now - int(sure[-1])
            found["when"].append((label(run.times[sure[-1]]), words, age))
            if self.whole[sighting].all():
                if side := side_of(run.centre[sighting, i], state[sighting, i]):
                    found["past_side"].append((side, words, age))
                for shape, color in self.beside(i, sighting):
                    found["past_color"].append((COLORS[color], {"shape": SHAPES[shape], **words}, age))
            if (other := self.before(i, sighting)) is not None:
                found["past_before"].append((name(run.shape[other], run.color[other]), words, age))
        ever = np.flatnonzero((state == 1).any(0))
        for shape, color in absent(run, np.flatnonzero((state >= 0).any(0)), ever, tricky):
            found["past_seen"].append(("no", {"object": name(shape, color)}, 0))
        for shape, plural in enumerate(PLURALS.values()):
            alike = np.flatnonzero((run.shape == shape) & (state >= 0).any(0))
            certain = (state[:, alike] == 1).any(0).all() and (state[-1, alike] == -1).all()
            if certain and 1 <= len(alike) <= MOST:
                newest = [int(np.flatnonzero(state[:, i] == 1)[-1]) for i in alike]
                found["so_far"].append((str(len(alike)), {"shapes": plural}, now - min(newest)))
        return found

    def beside(self, i: int, sighting: np.ndarray) -> list[tuple[int, int]]:
        """(shape, color) of what alone of its shape is in view together with object i in a sighting [frames] of that."""
        run, state, found = self.run, self.state[sighting], []
        for shape in set(range(len(SHAPES))) - {int(run.shape[i])}:
            alike = np.flatnonzero((run.shape == shape) & (state >= 0).any(0))
            if len(alike) == 1 and ((state[:, i] == 1) & (state[:, alike[0]] == 1)).any():
                found.append((shape, int(run.color[alike[0]])))
        return found

    def before(self, i: int, sighting: np.ndarray) -> int | None:
        """The object that is in view alone shortly before a sighting [frames] of object i, and not in it."""
        times, state, other = self.run.times, self.state, None
        for row in range(sighting[0] - 1, -1, -1):
            there = np.flatnonzero(state[row] >= 0)
            if times[sighting[0]] - times[row] > LEAD or len(there) > 1:
                return None
            if len(there):
                other = int(there[0]) if other is None else other
                if there[0] != other or (state[sighting, other] >= 0).any():
                    return None
                if state[row, other] == 1:
                    return other
        return None
