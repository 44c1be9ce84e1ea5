"""Questions about what left the view, each with one certain answer from a record of what was in view when.

They name a kind of object, and kinds come back in the course of an hour, so that all of them mean its *last sighting*: the
newest unbroken stretch of frames in which it was in view, over by the time of the question. Each is answered by few frames:

- past_seen: whether it was ever in view. The answer is no for a kind that no frame shows, not even its edge.
- past_side: left, center or right, where it was in every frame of the last sighting.
- past_color: the color of the only object of a shape that any frame of the last sighting shows beside it; some frame shows
  both well.
- past_before: what was in view alone shortly before the last sighting and not in it: two frames.
- when: the time label of the last sighting. Right is the label of every frame from `SLACK` seconds before it to `SLACK`
  seconds behind it.
- so_far: how many different objects of a shape were in view so far, 1 to 4: one frame for each.
"""

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from questions import name, visibility
from runs import COLORS, SHAPES, Run

KINDS = len(SHAPES) * len(COLORS)
REST = 3.0  # seconds out of view after which a sighting is over
LONGEST = 20.0  # seconds; longer sightings are not asked about
TRAIL = 1.5  # seconds that an object may be partly in view after it was well in view for the last time
LEAD = 15.0  # seconds within which one object comes before another
CLEAR = 0.035  # share of the image that an object must take in the frame of its sighting that shows it largest
SLACK = 2.0  # seconds by which a time may be off
MOST = 4  # objects of a shape up to which they are counted

PLURALS = {"box": "boxes", "ball": "balls", "cone": "cones", "pillar": "pillars"}
PAST_PHRASES = {
    "past_seen": ["Have you seen a {object}?", "Did you ever see a {object}?", "Was there a {object} so far?"],
    "past_side": [
        "On which side was the {object} last?",
        "Where did you last see the {object}?",
        "Where was the {object} last?",
    ],
    "past_color": [
        "What color was the {shape} with the {object}?",
        "Which color did the {shape} with the {object} have?",
        "What was the color of the {shape} with the {object}?",
    ],
    "past_before": [
        "What did you see before the {object}?",
        "What was seen before the {object}?",
        "What came before the {object}?",
    ],
    "when": [
        "When did you last see the {object}?",
        "When was the {object} last in view?",
        "When was the {object} seen last?",
    ],
    "so_far": [
        "How many different {shapes} did you see?",
        "How many different {shapes} have you seen?",
        "Count the different {shapes} you have seen.",
    ],
}
PAST_TYPES = list(PAST_PHRASES)


@dataclass(frozen=True)
class Record:
    """What was in view when. times: seconds [K]. state: 1 well in view, -1 not in view, 0 not certain; int8 [K, 24].
    centre: mean column of the visible pixels, 0 left to 1 right. share: of the image's pixels. All by kind of object: number
    of the shape x 6 + number of the color; there is at most one of a kind in view."""

    times: np.ndarray
    state: np.ndarray
    centre: np.ndarray
    share: np.ndarray

    @classmethod
    def of(cls, runs: list[Run], times: np.ndarray) -> "Record":
        """The record of runs that follow one another, with the times of all their frames."""
        shape = len(times), KINDS
        state, centre, share = np.full(shape, -1, np.int8), np.full(shape, 0.5, np.float32), np.zeros(shape, np.float32)
        start = 0
        for run in runs:
            rows = slice(start, start + len(run.times))
            kinds = run.shape.astype(int) * len(COLORS) + run.color
            state[rows, kinds] = [visibility(run, k) for k in range(len(run.times))]
            centre[rows, kinds] = run.centre
            share[rows, kinds] = run.cells.sum(-1)
            start = rows.stop
        return cls(np.asarray(times, np.float64), state, centre, share)


@dataclass
class Sighting:
    """One sighting of a kind. first, last: frames in which it is well in view; begin, end: frames that show any of it.
    until: the frame in which it comes into view again, or the record's length. best: the frame that shows it largest. side:
    None if it changes or is not certain. beside: by shape, the color of the only such object and the frame that shows both
    best. before: the kind seen before it and the frame that shows it last."""

    kind: int
    begin: int
    first: int
    last: int
    end: int
    until: int
    best: int
    side: str | None = None
    beside: dict[int, tuple[int, int]] = field(default_factory=dict)
    before: tuple[int, int] | None = None


@dataclass(frozen=True)
class Recollection:
    """A question about the past. shown: the frames that show the answer, oldest first. accept: all right answers."""

    type: str
    answer: str
    words: dict[str, str]
    shown: tuple[int, ...]
    newest: int  # last frame whose evidence counts: what asks must lie behind it
    oldest: int  # the frame in which the answer was last in view
    accept: tuple[str, ...] = ()


def label(seconds: float) -> str:
    """The time label that the stream gives a frame; it wraps after 59:59."""
    return "{:02}:{:02}".format(*divmod(int(seconds) % 3600, 60))


def object_name(kind: int) -> str:
    """A kind's name."""
    return name(*divmod(kind, len(COLORS)))


def named(words: tuple[str, ...]) -> int:
    """The kind that a question's words name, KINDS + the number of the shape if it is all objects of one shape, -1 if neither."""
    if words and words[-1] in PLURALS.values():
        return KINDS + list(PLURALS.values()).index(words[-1])
    color, _, shape = words[-1].partition(" ") if words else ("", "", "")
    return SHAPES.index(shape) * len(COLORS) + COLORS.index(color) if shape else -1


def side_of(centre: np.ndarray, state: np.ndarray) -> str | None:
    """The side on which an object is in all frames of a sighting, with a margin where it is well in view."""
    sure = centre[state == 1]
    any_of = centre[state >= 0]
    if (sure < 0.3).all() and (any_of < 0.4).all():
        return "left"
    if (sure > 0.7).all() and (any_of > 0.6).all():
        return "right"
    if ((sure > 0.39) & (sure < 0.61)).all() and ((any_of > 0.3) & (any_of < 0.7)).all():
        return "center"
    return None


def sightings(record: Record) -> list[Sighting]:
    """All sightings that may be asked about, in the order of their ends."""
    found = []
    for kind in range(KINDS):
        shown = np.flatnonzero(record.state[:, kind] >= 0)
        if not len(shown):
            continue
        gaps = np.flatnonzero(np.diff(record.times[shown]) >= REST)
        begins, ends = shown[np.r_[0, gaps + 1]], shown[np.r_[gaps, -1]]
        for i, (begin, end) in enumerate(zip(begins, ends)):
            sure = begin + np.flatnonzero(record.state[begin : end + 1, kind] == 1)
            until = int(begins[i + 1]) if i + 1 < len(begins) else len(record.times)
            if len(sure) < 2 or record.times[end] - record.times[sure[-1]] > TRAIL:
                continue
            best = int(sure[np.argmax(record.share[sure, kind])])
            sighting = Sighting(kind, int(begin), int(sure[0]), int(sure[-1]), int(end), until, best)
            if record.times[end] - record.times[begin] <= LONGEST and record.share[best, kind] >= CLEAR:
                complete(record, sighting)
                found.append(sighting)
    return sorted(found, key=lambda s: s.end)


def complete(record: Record, sighting: Sighting) -> None:
    """Fills in side, beside and before."""
    kind, rows = sighting.kind, slice(sighting.begin, sighting.end + 1)
    state = record.state[rows]
    sighting.side = side_of(record.centre[rows, kind], state[:, kind])
    for shape in range(len(SHAPES)):
        kinds = np.arange(shape * len(COLORS), (shape + 1) * len(COLORS))
        seen = kinds[(state[:, kinds] >= 0).any(0)]
        both = np.flatnonzero((state[:, kind] == 1) & (state[:, seen[0]] == 1)) if len(seen) == 1 else []
        if shape != kind // len(COLORS) and len(both):
            shares = np.minimum(*record.share[rows][both][:, [kind, seen[0]]].T)
            sighting.beside[shape] = int(seen[0]) % len(COLORS), sighting.begin + int(both[np.argmax(shares)])
    sighting.before = before(record, sighting)


def before(record: Record, sighting: Sighting) -> tuple[int, int] | None:
    """The kind that alone was in view before a sighting and is not in it, and the newest frame that shows it well."""
    other = None
    for frame in range(sighting.begin - 1, -1, -1):
        there = np.flatnonzero(record.state[frame] >= 0)
        if record.times[sighting.begin] - record.times[frame] > LEAD or len(there) > 1:
            return None
        if len(there):
            other = int(there[0]) if other is None else other
            if there[0] != other or (record.state[sighting.begin : sighting.end + 1, other] >= 0).any():
                return None
            if record.state[frame, other] == 1:
                return other, frame
    return None


def about(record: Record, sighting: Sighting) -> list[Recollection]:
    """The questions that a sighting answers for as long as its kind stays out of view."""
    words, last = {"object": object_name(sighting.kind)}, sighting.last
    found = [Recollection("past_seen", "yes", words, (sighting.best,), last, last)]
    if sighting.side:
        found.append(Recollection("past_side", sighting.side, words, (sighting.best,), last, last))
    for shape, (color, frame) in sighting.beside.items():
        both = {"shape": SHAPES[shape], **words}
        found.append(Recollection("past_color", COLORS[color], both, (frame,), last, frame))
    if sighting.before:
        other, frame = sighting.before
        shown = (frame, sighting.best)
        found.append(Recollection("past_before", object_name(other), words, shown, last, frame))
    low, high = record.times[sighting.begin] - SLACK, record.times[sighting.end] + SLACK
    labels = tuple(dict.fromkeys(label(t) for t in record.times[(record.times >= low) & (record.times <= high)]))
    answer = label(record.times[sighting.best])
    found.append(Recollection("when", answer, words, (sighting.best,), last, last, labels))
    return found


def never(record: Record, now: int) -> list[int]:
    """The kinds that no frame up to now shows."""
    return np.flatnonzero((record.state[: now + 1] == -1).all(0)).tolist()


def so_far(record: Record, now: int) -> list[Recollection]:
    """How many different objects of a shape were in view up to now, as far as it is certain and not to be seen now; the oldest
    frame is that of the kind that has been out of view for longest."""
    found, state = [], record.state[: now + 1]
    for shape, plural in enumerate(PLURALS.values()):
        kinds = np.arange(shape * len(COLORS), (shape + 1) * len(COLORS))
        seen = kinds[(state[:, kinds] == 1).sum(0) >= 2]
        unclear = kinds[(state[:, kinds] >= 0).any(0) & ((state[:, kinds] == 1).sum(0) < 2)]
        if len(unclear) or not 1 <= len(seen) <= MOST or (state[-1, seen] >= 0).any():
            continue
        frames = [now - int(np.argmax(state[::-1, kind] == 1)) for kind in seen]
        words = {"shapes": plural}
        found.append(
            Recollection("so_far", str(len(seen)), words, tuple(sorted(set(frames))), max(frames), min(frames))
        )
    return found


def options(record: Record, now: int) -> dict[str, list[Recollection]]:
    """Per type, every question with a certain answer that can be asked after frame `now` about what is out of view."""
    found = defaultdict(list)
    newest = {s.kind: s for s in sightings(until(record, now)) if s.end < now}
    for sighting in newest.values():
        if sighting.until > now and record.times[now] - record.times[sighting.end] >= REST:
            for question in about(record, sighting):
                found[question.type].append(question)
    for kind in never(record, now):
        found["past_seen"].append(Recollection("past_seen", "no", {"object": object_name(kind)}, (), now, now))
    for question in so_far(record, now):
        found["so_far"].append(question)
    return found


def until(record: Record, now: int) -> Record:
    """The record up to a frame."""
    return Record(*(values[: now + 1] for values in vars(record).values()))
