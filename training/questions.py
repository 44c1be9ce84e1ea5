"""Question types: from what is remembered of a run, every question with one certain answer."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from runs import COLORS, SHAPES, Run

VISIBLE, HIDDEN = 0.025, 0.002  # share of the image above which an object counts as seen, below which as unseen
WHOLE = 0.5  # share of an object's outline that must lie inside the image for it to count as seen
NEAR, FAR = 1.1, 1.9  # metres; between them neither is asked
STOP, FREE = 0.85, 1.4  # metres of free way ahead; between them stopping is not asked
APART = 0.05  # of the image's width between two objects' centres that are told one after the other
LANE = 0.25  # half the robot's width, metres

PHRASES = {
    "closest": ["What is the closest object?", "Which object is nearest?", "What is nearest to you?"],
    "color": ["What color is the {shape}?", "Which color does the {shape} have?", "What is the color of the {shape}?"],
    "position": ["Where is the {object}?", "On which side is the {object}?", "In which direction is the {object}?"],
    "distance": ["How far is the {object}?", "Is the {object} near or far?", "Near or far: the {object}?"],
    "count": ["How many objects are in view?", "How many objects do you see?", "Count the objects."],
    "exists": ["Is there a {object}?", "Is a {object} in view?", "Do you see a {object}?"],
    "stop": ["Should the robot stop?", "Is something blocking the way?", "Do you need to stop?"],
    "before": ["What was seen just before?", "What did you see just before?", "What left the view last?"],
    "seen": ["Did you see a {object}?", "Did you pass a {object}?", "Have you seen a {object} before?"],
}
TYPES = list(PHRASES)
PAST = {"before", "seen"}
# Learnt but not asked in the bags, as there are many ways to say it: everything in view from left to right. One answer teaches
# which side and distance belong to which object for all of them at once.
DESCRIBE = "describe"
PHRASES[DESCRIBE] = ["What is in view?", "What do you see?", "Describe the view."]
OPEN = {"closest", "before", "color", DESCRIBE}  # types whose answers need not be equally frequent

Options = dict[str, list[tuple[str, dict[str, str], int]]]  # per type, (answer, words for the phrase, age in frames)


@dataclass(frozen=True)
class Question:
    """A question with its type and its one answer."""

    type: str
    text: str
    answer: str
    age: int = 0  # remembered frames since what it asks about was last seen
    words: tuple[str, ...] = ()  # what the phrase names


def visibility(run: Run, frame: int | slice, cells: np.ndarray | None = None) -> np.ndarray:
    """Per object 1 (seen), -1 (not seen), 0 (not certain) in a frame of which only some cells may be left, or in several."""
    share = run.cells[frame].sum(-1)
    kept = share if cells is None else run.cells[frame][..., cells].sum(-1)
    return np.where((kept >= VISIBLE) & (run.within[frame] >= WHOLE), 1, np.where(share < HIDDEN, -1, 0))


def name(shape: int, color: int) -> str:
    """An object's name, as answers and questions use it."""
    return f"{COLORS[color]} {SHAPES[shape]}"


def view_candidates(run: Run, frame: int, tricky: int = 1) -> dict[str, list[tuple[str, dict[str, str]]]]:
    """Per type, (answer, words for the phrase) of every certain question about one frame; `tricky` as in `absent`."""
    state = visibility(run, frame)
    names = [name(s, c) for s, c in zip(run.shape, run.color)]
    seen, maybe = np.flatnonzero(state == 1), np.flatnonzero(state >= 0)
    distance, ahead = run.distance[frame], run.ahead[frame]
    found = defaultdict(list)
    sides, depths = {}, {}

    order = maybe[np.argsort(distance[maybe])]
    alone = len(order) == 1 or (len(order) > 1 and distance[order[0]] + 0.1 < 0.75 * (distance[order[1]] + 0.1))
    if alone and state[order[0]] == 1:
        found["closest"].append((names[order[0]], {}))
    for i in seen:
        if sum(run.shape[maybe] == run.shape[i]) == 1:
            found["color"].append((COLORS[run.color[i]], {"shape": SHAPES[run.shape[i]]}))
        x = run.centre[frame, i]
        side = "left" if x < 0.3 else "right" if x > 0.7 else "center" if 0.39 < x < 0.61 else None
        if side:
            sides[i] = side
            found["position"].append((side, {"object": names[i]}))
        if distance[i] < NEAR or distance[i] > FAR:
            depths[i] = "near" if distance[i] < NEAR else "far"
            found["distance"].append((depths[i], {"object": names[i]}))
        found["exists"].append(("yes", {"object": names[i]}))
    if len(seen) == len(maybe) and len(seen) <= 3:
        found["count"].append((str(len(seen)), {}))
        row = seen[np.argsort(run.centre[frame, seen])]
        if len(sides) == len(depths) == len(seen) and (np.diff(run.centre[frame, row]) > APART).all():
            told = [f"{names[i]} {sides[i]} {depths[i]}" for i in row]
            found[DESCRIBE].append((", ".join(told) or "nothing", {}))
    for shape, color in absent(run, maybe, seen, tricky):
        found["exists"].append(("no", {"object": name(shape, color)}))

    side = np.abs(run.lateral[frame])
    inside = (ahead > -0.1) & (side < LANE + 0.15)
    blocking = (run.cells[frame].sum(-1) >= VISIBLE) & inside & (ahead < STOP) & (side < LANE)
    possible = (ahead > -0.3) & (side < LANE + 0.45) & (ahead < FREE)
    if blocking.any():
        found["stop"].append(("yes", {}))
    elif not possible.any() and run.wall[frame] > 1.2:
        found["stop"].append(("no", {}))
    return found


def absent(run: Run, known: np.ndarray, seen: np.ndarray, tricky: int = 1) -> list[tuple[int, int]]:
    """Pairs (shape, color) that are not among the known objects; those like a seen object come three times, those that stand
    elsewhere in the room `tricky` times as often: whoever knows the room by heart would take them for known."""
    present = {(int(run.shape[i]), int(run.color[i])) for i in known}
    room = set(zip(run.shape.tolist(), run.color.tolist()))
    pairs = []
    for shape in range(len(SHAPES)):
        for color in range(len(COLORS)):
            if (shape, color) not in present:
                alike = any(run.shape[i] == shape or run.color[i] == color for i in seen)
                pairs += [(shape, color)] * ((3 if alike else 1) * (tricky if (shape, color) in room else 1))
    return pairs


def past_candidates(run: Run, states: np.ndarray, tricky: int = 1) -> dict[str, list[tuple[str, dict[str, str], int]]]:
    """Per type, (answer, words, age in frames) about remembered frames; states [frames, objects], newest last; `tricky` as in
    `absent`."""
    found = defaultdict(list)
    now, frames = states[-1], len(states)
    names = [name(s, c) for s, c in zip(run.shape, run.color)]
    last_seen = np.where((states == 1).any(0), frames - 1 - np.argmax(states[::-1] == 1, axis=0), -1)
    last_maybe = np.where((states >= 0).any(0), frames - 1 - np.argmax(states[::-1] >= 0, axis=0), -1)
    gone = np.flatnonzero((now == -1) & (last_seen >= 0))
    for i in gone:
        found["seen"].append(("yes", {"object": names[i]}, frames - 1 - int(last_seen[i])))
    ever = np.flatnonzero(last_seen >= 0)
    if len(ever):
        for shape, color in absent(run, np.flatnonzero(last_maybe >= 0), ever, tricky):
            found["seen"].append(("no", {"object": name(shape, color)}, 0))
    if len(gone):
        newest = gone[np.argmax(last_seen[gone])]
        others = np.arange(len(names)) != newest
        unclear = others & (last_maybe >= last_seen[newest]) & (now != 1)
        if not unclear.any():
            found["before"].append((names[newest], {}, frames - 1 - int(last_seen[newest])))
    return found


class Asker:
    """Picks questions so that types, weighted if so wished, and answers within a type stay equally frequent; `tricky` as in
    `absent`; `more`: phrases of further types."""

    def __init__(
        self,
        rng: np.random.Generator,
        slack: int = 30,
        weights: dict[str, float] | None = None,
        tricky: int = 1,
        more: dict[str, list[str]] | None = None,
    ):
        self.rng, self.slack, self.weights, self.tricky = rng, slack, weights or {}, tricky
        self.phrases = {**PHRASES, **(more or {})}
        self.open = OPEN | (more or {}).keys()
        self.types: dict[str, float] = defaultdict(float, dict.fromkeys(TYPES, 0.0))
        self.answers: dict[str, dict[str, int]] = {t: defaultdict(int) for t in self.phrases}

    def options(self, run: Run, frame: int, states: np.ndarray) -> Options:
        """Per type, (answer, words, age) of every question with a certain answer now; states [frames, objects] are
        what is remembered, the current frame last."""
        found = {t: [(a, w, 0) for a, w in c] for t, c in view_candidates(run, frame, self.tricky).items()}
        found.update(past_candidates(run, states, self.tricky))
        return found

    def propose(self, found: Options, avoid: set[str], types: list[str] = TYPES) -> Question | None:
        """The most needed of the questions that `options` found and whose text is not in `avoid`; None if there is none."""
        for kind in sorted(types, key=lambda t: self.types[t] + self.rng.random()):
            options = found.get(kind, [])
            if not options:
                continue
            counts = self.answers[kind]
            needed = min(sorted({a for a, _, _ in options}), key=lambda a: counts[a] + self.rng.random())
            if kind not in self.open and counts[needed] > min_count(kind, counts) + self.slack:
                continue
            right = [o for o in options if o[0] == needed]
            answer, words, age = right[self.rng.integers(len(right))]
            text = self.phrases[kind][self.rng.integers(len(self.phrases[kind]))].format(**words)
            if text not in avoid:
                return Question(kind, text, answer, age, tuple(words.values()))
        return None

    def count(self, question: Question) -> None:
        """Takes note that the question is asked."""
        self.types[question.type] += 1 / self.weights.get(question.type, 1.0)
        self.answers[question.type][question.answer] += 1

    def ask(self, found: Options, avoid: set[str], types: list[str] = TYPES) -> Question | None:
        """Proposes a question and counts it."""
        question = self.propose(found, avoid, types)
        if question is not None:
            self.count(question)
        return question


def min_count(kind: str, counts: dict[str, int]) -> int:
    """How often the rarest answer of a closed-answer type has been given."""
    closed = {"position": 3, "count": 4}.get(kind, 2)
    return 0 if len(counts) < closed else min(counts.values())
