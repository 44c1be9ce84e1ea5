"""Random training streams from runs: a drive with questions, what an eviction leaves of older frames before it, and frames
recalled from earlier in the hour: after the recent frames, after them with the newest of them once more, or before them."""

from dataclasses import replace

import numpy as np

from dataset import SYSTEM_PROMPT, TOKENS_PER_FRAME, Codec, Stream
from memory import Moment, View
from questions import DESCRIBE, TYPES, Asker, Options, Question, view_candidates, visibility
from recollection import PAST_PHRASES, PAST_TYPES, named
from runs import Run

# How often a type is asked in training, relative to the others: the harder, the more often.
HARDER = {
    "before": 2.0, "seen": 1.6, "position": 2.0, "color": 2.0, "exists": 1.6, "distance": 1.2, "stop": 0.6, "count": 0.4, DESCRIBE: 2.0,
    "past_seen": 1.6, "past_side": 1.6, "past_color": 1.6, "past_before": 1.2, "when": 1.2, "so_far": 0.8,
}  # fmt: skip
KINDS = [*TYPES, DESCRIBE, *PAST_TYPES]
DENSE = 260  # tokens up to which most streams are dense with questions
TRICKY = 6  # questions about what stands elsewhere in the room: of few rooms seen often, most are learnt by heart
CROWDED = 2  # objects in view from which their attributes can be mixed up
FRAME, TURN = 20, 26  # tokens that a frame with its label, and a question with its answer, take at most
UNITS = 8  # frames recalled at most
RECALLED = ("after", "again", "before")  # where recalled frames are: see this file's beginning
HOUR = 3600.0


def newest(moments: list[Moment]) -> list[Moment]:
    """The newest moment of each camera, in the order of time."""
    return sorted({m.camera: m for m in sorted(moments, key=lambda m: m.seconds)}.values(), key=lambda m: m.seconds)


class StreamBuilder:
    """Makes random training streams. recall: share of the longer streams that hold recalled frames; layouts: how often these
    come where, in the order of RECALLED."""

    frame = FRAME
    kinds = KINDS

    def __init__(
        self, codec: Codec, runs: list[Run], rng: np.random.Generator, recall: float, layouts: tuple[float, ...]
    ):
        self.codec, self.runs, self.rng, self.recall, self.layouts = codec, runs, rng, recall, layouts
        self.asker = Asker(rng, weights=HARDER, tricky=TRICKY, more=PAST_PHRASES)

    def build(self, length: int) -> Stream:
        """A stream of at most about `length` tokens; a share of them begins with what an eviction might have left."""
        rng, number = self.rng, int(self.rng.integers(len(self.runs)))
        stream = Stream(self.codec)
        stream.begin(SYSTEM_PROMPT if rng.random() < 0.8 else None)
        stream.flush()
        prefix = len(stream.ids)
        recall = length >= 200 and rng.random() < self.recall
        if recall:
            epoch = rng.uniform(60, HOUR) if rng.random() < 0.7 else rng.uniform(10, 300)
        else:
            epoch = 0.0 if rng.random() < 0.5 else rng.uniform(0, 120) if rng.random() < 0.9 else rng.uniform(0, HOUR)
        film, asking, most = self.film(number, epoch, length)
        # A question that comes again is answered by copying; most streams have none, so that the frames must be looked at.
        repeats, avoid = rng.random() < 0.2, set[str]()
        # Questions that see each other give each other's answers away: mostly, each is asked as if it were the only one.
        asides = rng.random() < (0.8 if recall else 0.65)
        fragments = int(rng.integers(1, len(film))) if rng.random() < 0.4 and len(film) > 3 else 0
        moments = []
        if fragments:
            part = rng.uniform(0.1, 0.25 if recall else 0.5) * length
            moments = self.fragment(stream, film[:fragments], prefix, part)
        film = film[fragments:]
        units = self.units(film, epoch, int(length * 0.45) // self.frame) if recall else []
        stream.layout = RECALLED[rng.choice(len(RECALLED), p=self.layouts)] if units else "plain"
        later = units if stream.layout != "before" else []
        if stream.layout == "before":
            self.show(stream, units)
            moments += units
        room = length - self.frame * (len(later) + (len(newest(film)) if stream.layout == "again" else 0))
        for i, moment in enumerate(film):
            if len(stream.ids) + self.frame > room - 30:
                break
            moments.append(moment)
            self.show(stream, [moment])
            last = len(stream.ids) + self.frame > room - 60 or i == len(film) - 1
            run, frame = moment.shown
            in_view = (visibility(self.runs[run], frame) == 1).sum()
            if not last and rng.random() >= asking * (1.0 if in_view >= CROWDED else 0.7 if in_view else 0.3):
                continue
            if last:
                self.show(stream, later)
                self.show(stream, newest(moments) if stream.layout == "again" else [])
                moments += later
            avoid = set() if repeats else avoid
            found = self.options(moments, past=not later or last)
            for _ in range(12 if last and units and asides else int(rng.integers(1, most + 1))):
                if len(stream.ids) + TURN > length:
                    break
                question = self.ask(stream, found, avoid, aside=asides)
                if question is None:
                    break
                if not repeats:  # nor the same in other words
                    left = [one for one in found[question.type] if tuple(one[1].values()) != question.words]
                    found[question.type] = left
                avoid.add(question.text)
            if last:
                break
        return stream

    def show(self, stream: Stream, moments: list[Moment]) -> None:
        """Appends frames with their labels."""
        for moment in moments:
            stream.add_frame(moment.shown, moment.seconds, moment.camera)

    def film(self, number: int, epoch: float, length: int) -> tuple[list[Moment], float, int]:
        """What a stream shows of a run, in the order in which it comes; the rest as `drive`."""
        run = self.runs[number]
        order, asking, most = self.drive(run, length)
        return [Moment((number, frame), epoch + float(run.times[frame])) for frame in order], asking, most

    def drive(self, run: Run, length: int) -> tuple[list[int], float, int]:
        """Frames of a run in the order of time, how likely each is asked about, and how many questions at most at once."""
        rng = self.rng
        first = int(rng.integers(0, len(run.times) // 2)) if rng.random() < 0.5 else 0
        order = list(range(first, len(run.times), int(rng.choice([1, 1, 1, 2]))))
        if rng.random() < 0.2:
            order = [k for k in order if rng.random() < 0.75] or order
        if length > DENSE or rng.random() >= 0.8:
            return order, rng.uniform(0.3, 1.3), int(rng.choice([2, 6, 12]))
        # little but questions about frames in which things can be mixed up
        crowds = [(visibility(run, k) >= 0).sum() for k in order]
        chosen = [k for k, crowd in zip(order, crowds) if rng.random() < (0.03, 0.1, 0.6, 1.0, 1.0)[min(crowd, 4)]]
        return chosen[:: int(rng.integers(1, 4))] or order, 2.0, 12

    def options(self, moments: list[Moment], past: bool) -> Options:
        """Every question with a certain answer now; without `past`, only about what is in view."""
        view = View(self.runs, moments)
        if past:
            found = self.asker.options(view.run, len(view.state) - 1, view.state)
            return {**found, **view.recollections(TRICKY)}
        found = view_candidates(view.run, len(view.state) - 1, TRICKY)
        return {kind: [(answer, words, 0) for answer, words in some] for kind, some in found.items()}

    def ask(
        self, stream: Stream, found: Options, avoid: set[str], learn: bool = True, aside: bool = False
    ) -> Question | None:
        """Appends one of the questions found and its answer, if any can be asked."""
        question = self.asker.ask(found, avoid, self.kinds)
        if question is not None and aside:
            stream.add_aside(question.text, question.answer, question.type, named(question.words))
        elif question is not None:
            stream.add_question(question.text, named(question.words) if learn else -1)
            stream.add_answer(question.answer, question.type if learn else None)
        return question

    def units(self, film: list[Moment], epoch: float, most: int) -> list[Moment]:
        """Frames to recall, in the order of time: of the run itself from before the frames of `film`, and of other rooms seconds
        to an hour ago, one to three of a room as a search finds them; most of them show something."""
        rng, (number, first) = self.rng, film[0].shown
        run = self.runs[number]
        wanted = int(rng.integers(1, min(UNITS, max(1, most)) + 1))
        now, units, taken = film[0].seconds, [], []
        earlier = [k for k in range(first) if (visibility(run, k) == 1).any()]
        if earlier and rng.random() < 0.4:
            chosen = rng.choice(earlier, min(len(earlier), int(rng.integers(1, 3))), replace=False)
            units += [Moment((number, int(k)), epoch + float(run.times[k])) for k in chosen]
        for _ in range(3 * UNITS):
            if len(units) >= wanted:
                break
            other = int(rng.integers(len(self.runs)))
            room = self.runs[other]
            frame = int(rng.integers(len(room.times)))
            if not (visibility(room, frame) == 1).any() and rng.random() < 0.85:
                continue
            stride, count = int(rng.integers(1, 4)), int(rng.integers(1, min(3, wanted - len(units)) + 1))
            frames = range(frame, min(frame + stride * count, len(room.times)), stride)
            start = now - float(np.exp(rng.uniform(np.log(5.0), np.log(max(now, 10.0)))))
            seconds = [start + float(room.times[k] - room.times[frame]) for k in frames]
            if (
                seconds[0] < 0
                or seconds[-1] >= epoch
                or any(a - 5 < seconds[-1] and seconds[0] < b + 5 for a, b in taken)
            ):
                continue
            taken.append((seconds[0], seconds[-1]))
            units += [Moment((other, k), at) for k, at in zip(frames, seconds)]
        return sorted(units, key=lambda unit: unit.seconds)

    def fragment(self, stream: Stream, older: list[Moment], prefix: int, length: float) -> list[Moment]:
        """Frames and turns as eviction leaves them; what is left of each frame."""
        rng = self.rng
        for moment in older:
            self.show(stream, [moment])
            if rng.random() < 0.3:
                found = self.options([moment], past=False)
                kinds = ("color", "position", "exists", "closest")
                self.ask(stream, {kind: found[kind] for kind in kinds if kind in found}, set(), learn=False)
        stream.flush()
        total, count = len(stream.ids), len(stream.frames)
        target = min(0.9, length / total)
        whole = np.full(count + 1, -1.0)
        if rng.random() < 0.5:  # whole frames go or stay; else tokens go one by one
            whole[:count] = rng.random(count) < target
        mask, owner = rng.random(total) < target, 0
        for i in range(total):
            owner = max(owner, stream.frame[i])
            if whole[owner] >= 0 and (stream.frame[i] >= 0 or rng.random() < 0.9):
                mask[i] = whole[owner] > 0
        mask[:prefix] = True
        stream.keep(mask)
        left = {(f, p) for f, p in zip(stream.frame, stream.part) if f >= 0}
        cells = [tuple(p for p in range(TOKENS_PER_FRAME) if (row, p) in left) for row in range(count)]
        return [replace(moment, left=some) for moment, some in zip(older, cells)]
