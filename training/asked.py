"""Which questions a long drive is asked, and when: so many of each type at each distance, closed answers equally often."""

from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np

from check_video import BANDS
from journey import Journey
from questions import PAST, TYPES, Asker, Question, view_candidates
from recollection import (
    KINDS,
    PAST_PHRASES,
    REST,
    Recollection,
    about,
    label,
    never,
    object_name,
    sightings,
    so_far,
)
from runs import Run

AFTER = 0.05  # seconds between a frame and a question about it
FIRST = 4.0  # seconds before anything is asked about now
APART, STEADY = 3.0, 0.3  # seconds, of questions asked live
NEAR = 30.0  # seconds between a question whose answer is yes and the one beside it whose answer is no
NEWEST = 60.0  # seconds before a question whose frames' labels are no right answer to `when`
RECENT = 12.0  # seconds before a question in which the object that its answer names is not seen again
KIND = {object_name(kind): kind for kind in range(KINDS)}


@dataclass(frozen=True)
class Quota:
    """Questions of each type per cell, of `so_far` and about now, in one drive. live: they are asked one after the other while
    the camera runs, so `APART` seconds lie between two of them, their answers hold for `STEADY` seconds before and after, and none
    about the past names an object that another one names, whose answer could be remembered in place of what was seen."""

    past: dict[str, int]
    so_far: int
    now: int
    live: bool = False


HOUR_QUOTA = Quota({"past_seen": 10, "past_side": 9, "past_color": 8, "past_before": 7, "when": 8}, 36, 68)
MINUTES_QUOTA = Quota({"past_seen": 8, "past_side": 9, "past_color": 5, "past_before": 4, "when": 6}, 8, 21)
DEMO_QUOTA = Quota({"past_seen": 2, "past_side": 3, "past_color": 1}, 0, 12, live=True)


@dataclass(frozen=True)
class Choice:
    """A question that can be asked after any of the frames first to last."""

    question: Recollection
    first: int
    last: int
    source: int  # the sighting it is about


class Chooser:
    """Chooses the questions of one drive."""

    def __init__(self, journey: Journey, quota: Quota, rng: np.random.Generator):
        self.journey, self.quota, self.rng = journey, quota, rng
        self.apart, self.steady = (round(s * journey.rate) for s in (APART, STEADY)) if quota.live else (1, 0)
        self.record = journey.record()
        self.sightings = sightings(self.record)
        self.taken: set[int] = set()  # frames after which something is asked
        self.objects: set[str] = set()  # that questions about the past have named
        self.phrases: Counter[str] = Counter()
        self.answers: Counter[tuple[str, str]] = Counter()
        self.entries: list[dict] = []

    def all(self, bands: dict[str, tuple[float, float]] = BANDS) -> list[dict]:
        """The instructions in the order of time. bands: seconds since the answer was last in view, by cell."""
        length = self.record.times[-1]
        for cell, band in reversed(bands.items()):
            if band[1] <= length:
                self.past(cell, *band)
        self.counts()
        self.now()
        self.entries.sort(key=lambda entry: entry["at"])
        return [{"id": f"q{i:04d}", **entry} for i, entry in enumerate(self.entries, 1)]

    def choices(self, low: float, high: float) -> dict[str, list[Choice]]:
        """Per type, the questions about what left the view between low and high seconds before them."""
        found, times = defaultdict(list), self.record.times
        for source, sighting in enumerate(self.sightings):
            for question in about(self.record, sighting):
                over = max(times[question.newest] + low - AFTER, times[sighting.end] + REST)
                begin = np.searchsorted(times, over)
                end = np.searchsorted(times, times[question.oldest] + high - AFTER, "right") - 1
                end = min(int(end), sighting.until - 1 - self.steady)
                if begin <= end:
                    found[question.type].append(Choice(question, int(begin), end, source))
        return found

    def past(self, cell: str, low: float, high: float) -> None:
        """Asks a cell's questions: of each type as many as wanted, those whose answers and sightings were taken least first."""
        found = self.choices(low, high)
        sources: Counter[int] = Counter()
        yes: list[dict] = []
        for kind, number in sorted(self.quota.past.items(), key=lambda item: len(found[item[0]])):
            left, answers = found[kind], Counter()
            half = number // 2 if kind == "past_seen" else number
            while left and sum(answers.values()) < half:
                choice = min(
                    left, key=lambda c: (*self.given(c.question, answers), sources[c.source], self.rng.random())
                )
                left = [c for c in left if c is not choice]
                frame = None if self.known(choice.question.words["object"]) else self.free(choice)
                if frame is None:
                    continue
                answers[choice.question.answer] += 1
                self.answers[kind, choice.question.answer] += 1
                sources[choice.source] += 1
                entry = self.add(choice.question, frame, cell)
                yes += [entry] if kind == "past_seen" else []
        for entry in yes:
            self.deny(entry, cell, low, high)

    def given(self, question: Recollection, answers: Counter[str]) -> tuple[int, int]:
        """How often the answer was given: in the cell first for closed answers, in all of the drive first for others."""
        everywhere, here = self.answers[question.type, question.answer], answers[question.answer]
        return (here, everywhere) if question.type == "past_side" else (everywhere, here)

    def free(self, choice: Choice) -> int | None:
        """A frame after which the question can be asked and nothing else is, and what was in view just now is no answer."""
        frames = [f for f in self.rng.permutation(range(choice.first, choice.last + 1)).tolist() if self.open(f)]
        return next((f for f in frames if not self.guessable(choice.question, f)), None)

    def open(self, frame: int) -> bool:
        """Whether nothing is asked after the frame, nor too near to it."""
        return self.taken.isdisjoint(range(frame - self.apart + 1, frame + self.apart))

    def known(self, thing: str) -> bool:
        """Whether an object must not be asked about any more."""
        return self.quota.live and thing in self.objects

    def guessable(self, question: Recollection, frame: int) -> bool:
        """Whether one of the newest frames would give a right answer away to who takes it for what is asked about: by its
        label, as the labels wrap after an hour, or by an object that the answer names."""
        times, now = self.record.times, self.record.times[frame]
        if question.type == "when":
            newest = NEWEST if now - times[question.newest] > 2 * NEWEST else 2.0
            return bool({label(t) for t in times[(times > now - newest) & (times <= now)]} & set(question.accept))
        if question.type in ("past_color", "past_before"):
            named = f"{question.answer} {question.words['shape']}" if "shape" in question.words else question.answer
            first = max(question.newest + 1, int(np.searchsorted(times, now - RECENT)))
            return bool((self.record.state[first : frame + 1, KIND[named]] >= 0).any())
        return False

    def add(self, question: Recollection, frame: int, cell: str) -> dict:
        """Notes a question about the past."""
        phrases = PAST_PHRASES[question.type]
        phrase = min(phrases, key=lambda p: (self.phrases[p], self.rng.random()))
        self.phrases[phrase] += 1
        self.objects.update(v for k, v in question.words.items() if k == "object")
        text = phrase.format(**question.words)
        entry = self.note(frame, text, question.answer, question.type, cell, question.oldest, question.shown)
        if question.accept:
            entry["accept"] = list(question.accept)
        return entry

    def deny(self, entry: dict, cell: str, low: float, high: float) -> None:
        """For a question with the answer yes, one near it about what was never seen. The frame shown is one of the same age in
        which something else is well in view: that a frame is shown must not give the answer away."""
        times, rng, far = self.record.times, self.rng, round(NEAR * self.journey.rate)
        for _ in range(50):
            away = int(rng.integers(-far, far + 1))
            frame = int(np.clip(np.searchsorted(times, entry["at"]) + away, 0, len(times) - 1))
            kinds = [k for k in never(self.record, frame + self.steady) if not self.known(object_name(k))]
            ages = times[frame] + AFTER - times[: frame + 1]
            decoys = np.flatnonzero((ages >= low) & (ages <= high) & (self.record.state[: frame + 1] == 1).any(1))
            if not self.open(frame) or not kinds or not len(decoys):
                continue
            words = {"object": object_name(int(rng.choice(kinds)))}
            shown = int(rng.choice(decoys))
            denied = self.add(Recollection("past_seen", "no", words, (shown,), shown, shown), frame, cell)
            if self.quota.live:
                del denied["age"]
            return

    def counts(self) -> None:
        """Asks how many different objects of a shape were seen: each number as often as the others, spread over the drive;
        never what the frames of the last seconds alone tell."""
        found: dict[str, list[tuple[int, Recollection]]] = defaultdict(list)
        for frame in range(0, len(self.record.times), 7):
            for question in so_far(self.record, frame) if self.open(frame) else []:
                newest, oldest = self.record.times[frame] - self.record.times[[question.newest, question.oldest]]
                if newest >= REST and oldest >= BANDS["30s"][0]:
                    found[question.answer].append((frame, question))
        apart = max(REST, min(20.0, self.record.times[-1] / 100)) * self.journey.rate
        answers, asked = list(found), Counter[tuple]()
        given: Counter[str] = Counter()
        while sum(given.values()) < self.quota.so_far and any(found.values()):
            answer = min((a for a in sorted(found) if found[a]), key=lambda a: (given[a], self.rng.random()))
            if given[answer] > min(given[a] for a in answers) + 1:
                break
            options = [found[answer][i] for i in self.rng.permutation(len(found[answer]))[:200]]
            frame, question = min(options, key=lambda o: asked[(o[1].words["shapes"], answer)])
            found[answer] = [o for o in found[answer] if abs(o[0] - frame) > apart]
            if self.open(frame):
                asked[(question.words["shapes"], answer)] += 1
                given[answer] += 1
                self.add(question, frame, "so_far")

    def now(self) -> None:
        """Asks about what is in view, all over the drive."""
        asker, kinds = Asker(self.rng, slack=0), [kind for kind in TYPES if kind not in PAST]
        for frame in map(int, self.rng.permutation(np.arange(FIRST * self.journey.rate, len(self.record.times)))):
            run, k = self.journey.view(frame)
            found = {t: [(a, w, 0) for a, w in c] for t, c in view_candidates(run, k).items()}
            wanted = [kind for kind in kinds if asker.types[kind] == min(asker.types[k] for k in kinds)]
            question = asker.propose(found, set(), wanted) if self.open(frame) else None
            if question is None or not self.holds(run, k, question):
                continue
            asker.count(question)
            self.note(frame, question.text, question.answer, question.type, "now", frame, (frame,))
            if sum(asker.types.values()) == self.quota.now:
                break

    def holds(self, run: Run, k: int, question: Question) -> bool:
        """Whether a question about now has the same answer some frames before and after frame k of a run."""
        around = range(k - self.steady, k + self.steady + 1)
        if around.start < 0 or around.stop > len(run.times):
            return False
        answers = [{(a, tuple(w.values())) for a, w in view_candidates(run, j)[question.type]} for j in around]
        return all((question.answer, question.words) in found for found in answers)

    def note(
        self, frame: int, text: str, answer: str, kind: str, cell: str, oldest: int, shown: tuple[int, ...]
    ) -> dict:
        """Adds an entry: a question after `frame` whose answer was last in view in the frame `oldest`."""
        self.taken.add(frame)
        times, at = self.record.times, self.record.times[frame] + AFTER
        entry = {
            "at": round(float(at), 2),
            "text": text,
            "answer": answer,
            "type": kind,
            "memory": "view" if cell == "now" else "past",
            "cell": cell,
            "age": round(float(at - times[oldest]), 2),
            "shown": [round(float(times[f]), 3) for f in shown],
        }
        self.entries.append(entry)
        return entry
