"""Runs to token streams, laid out as docs/stream.md says; parts are dropped as eviction does."""

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from questions import DESCRIBE, TYPES, Asker, Options, Question, visibility
from recollection import label
from runs import Run
from tokenizer import SPECIAL, SYSTEM_PROMPT

TOKENS_PER_FRAME = 9
# How often a type is asked in training, relative to the others: the harder, the more often.
HARDER = {
    "before": 2.0, "seen": 1.6, "position": 2.0, "color": 2.0, "exists": 1.6, "distance": 1.2, "stop": 0.6, "count": 0.4, DESCRIBE: 2.0,
}  # fmt: skip
DENSE = 260  # tokens up to which most streams are dense with questions
TRICKY = 6  # questions about what stands elsewhere in the room: of few rooms seen often, most are learnt by heart
CROWDED = 2  # objects in view from which their attributes can be mixed up


class Codec:
    """Token ids of texts between control tokens, and of the control tokens."""

    def __init__(self, folder: Path):
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.start, self.end, self.fake, self.globe, self.image, self.pad = (tokenizer.token_to_id(t) for t in SPECIAL)
        self.size = tokenizer.get_vocab_size()
        self.text = lru_cache(100_000)(lambda text: tokenizer.encode(text, add_special_tokens=False).ids)
        self.decode = tokenizer.decode


@dataclass
class Stream:
    """A token stream under construction: ids, each token's frame and place in it, and which tokens are learnt."""

    codec: Codec
    ids: list[int] = field(default_factory=list)
    frame: list[int] = field(default_factory=list)  # row of `frames` that an image token shows, else -1
    part: list[int] = field(default_factory=list)  # which of the frame's nine image tokens, else -1
    learn: list[bool] = field(default_factory=list)
    branch: list[int] = field(default_factory=list)  # the aside that a token belongs to, else -1
    frames: list[int] = field(default_factory=list)  # the run's frames in the order used
    answers: list[tuple[str, int, int]] = field(
        default_factory=list
    )  # question type, and where the answer begins and ends
    text: str = ""  # text not yet tokenised: it may go on
    open: bool = False  # a user turn is open
    framed: bool = False  # and holds a frame
    asides: int = 0
    aside: int = -1  # the one that is being written

    def write(self, ids: list[int], learn: bool = False, frame: int = -1) -> None:
        """Appends tokens."""
        self.ids += ids
        self.frame += [frame] * len(ids)
        self.part += range(len(ids)) if frame >= 0 else [-1] * len(ids)
        self.learn += [learn] * len(ids)
        self.branch += [self.aside] * len(ids)

    def flush(self) -> None:
        """Tokenises the pending text as one run."""
        self.write(self.codec.text(self.text)) if self.text else None
        self.text = ""

    def control(self, *ids: int) -> None:
        """Appends control tokens after the pending text."""
        self.flush()
        self.write(list(ids))

    def begin(self, system_prompt: str | None) -> None:
        """The protected prefix."""
        self.control(self.codec.start)
        if system_prompt:
            self.text = f"System: {system_prompt}"
            self.control(self.codec.end)
            self.text = "\n"

    def add_frame(self, index: int, seconds: float) -> None:
        """A frame with its time label."""
        self.text += ("" if self.open else "User:") + f"\nFrame from {label(seconds)}:"
        self.open = self.framed = True
        self.control(self.codec.fake, self.codec.globe)
        self.write([self.codec.image] * TOKENS_PER_FRAME, frame=len(self.frames))
        self.frames.append(index)
        self.control(self.codec.fake)

    def add_question(self, text: str) -> None:
        """Closes the user turn with a question and opens the answer."""
        self.text += ("" if self.open else "User:") + ("\n\n" if self.framed else " ") + text
        self.control(self.codec.end)
        self.text = "\nAssistant:"
        self.flush()
        self.open = self.framed = False

    def add_answer(self, text: str, kind: str | None = None) -> None:
        """An answer, to be learnt if the question's type is given, and what follows it."""
        start = len(self.ids)
        self.write([*self.codec.text(f" {text}"), self.codec.end], learn=kind is not None)
        if kind is not None:
            self.answers.append((kind, start, len(self.ids)))
        self.text = "\n"

    def add_aside(self, question: str, answer: str, kind: str) -> None:
        """A question and its answer that nothing after them sees, nor they each other: as if each alone had been asked."""
        before = self.text, self.open, self.framed
        self.flush()
        self.aside, self.asides = self.asides, self.asides + 1
        self.add_question(question)
        self.add_answer(answer, kind)
        self.aside = -1
        self.text, self.open, self.framed = ("", *before[1:])

    def positions(self) -> np.ndarray:
        """Each token's place in what it sees."""
        branch = np.array(self.branch)
        trunk = np.cumsum(branch < 0)
        places = trunk - 1
        for aside in range(self.asides):
            inside = np.flatnonzero(branch == aside)
            places[inside] = trunk[inside] + np.arange(len(inside))
        return places

    def keep(self, mask: np.ndarray) -> None:
        """Drops the tokens that are not in the mask."""
        for values in (self.ids, self.frame, self.part, self.learn, self.branch):
            values[:] = [v for v, kept in zip(values, mask) if kept]


class StreamBuilder:
    """Makes random training streams from runs."""

    def __init__(self, codec: Codec, rng: np.random.Generator):
        self.codec, self.rng = codec, rng
        self.asker = Asker(rng, weights=HARDER, tricky=TRICKY)

    def build(self, run: Run, length: int) -> Stream:
        """A stream of at most about `length` tokens; a share of them begins with what an eviction might have left."""
        rng = self.rng
        stream = Stream(self.codec)
        stream.begin(SYSTEM_PROMPT if rng.random() < 0.8 else None)
        stream.flush()
        prefix = len(stream.ids)
        epoch = 0.0 if rng.random() < 0.5 else rng.uniform(0, 120) if rng.random() < 0.9 else rng.uniform(0, 3600)
        first = int(rng.integers(0, len(run.times) // 2)) if rng.random() < 0.5 else 0
        stride = int(rng.choice([1, 1, 1, 2]))
        order = list(range(first, len(run.times), stride))
        if rng.random() < 0.2:
            order = [k for k in order if rng.random() < 0.75] or order
        asking, most = rng.uniform(0.3, 1.3), int(rng.choice([2, 6, 12]))
        if length <= DENSE and rng.random() < 0.8:  # little but questions about frames in which things can be mixed up
            crowds = [(visibility(run, k) >= 0).sum() for k in order]
            chosen = [k for k, crowd in zip(order, crowds) if rng.random() < (0.03, 0.1, 0.7, 1.0)[min(crowd, 3)]]
            order, asking, most = chosen[:: int(rng.integers(1, 4))] or order, 2.0, 12
        # A question that comes again is answered by copying; most streams have none, so that the frames must be looked at.
        repeats, avoid = rng.random() < 0.2, set[str]()
        # Questions that see each other give each other's answers away: mostly, each is asked as if it were the only one.
        asides = rng.random() < 0.65
        states: list[np.ndarray] = []
        fragments = int(rng.integers(1, len(order))) if rng.random() < 0.4 and len(order) > 3 else 0
        if fragments:
            self.fragment(stream, run, order[:fragments], epoch, states, prefix, rng.uniform(0.1, 0.5) * length)
        for i, frame in enumerate(order[fragments:]):
            if len(stream.ids) + 20 > length - 30:
                break
            stream.add_frame(frame, epoch + run.times[frame])
            states.append(visibility(run, frame))
            last = len(stream.ids) + 20 > length - 60 or i == len(order) - fragments - 1
            in_view = (states[-1] == 1).sum()
            if last or rng.random() < asking * (1.0 if in_view >= CROWDED else 0.7 if in_view else 0.3):
                avoid = set() if repeats else avoid
                found = self.asker.options(run, frame, np.stack(states))
                for _ in range(int(rng.integers(1, most + 1))):
                    if len(stream.ids) + 26 > length:
                        break
                    question = self.ask(stream, found, avoid, aside=asides)
                    if question is None:
                        break
                    avoid.add(question.text)
        return stream

    def ask(
        self, stream: Stream, found: Options, avoid: set[str], learn: bool = True, aside: bool = False
    ) -> Question | None:
        """Appends one of the questions found and its answer, if any can be asked."""
        question = self.asker.ask(found, avoid, [*TYPES, DESCRIBE])
        if question is not None and aside:
            stream.add_aside(question.text, question.answer, question.type)
        elif question is not None:
            stream.add_question(question.text)
            stream.add_answer(question.answer, question.type if learn else None)
        return question

    def fragment(
        self,
        stream: Stream,
        run: Run,
        order: list[int],
        epoch: float,
        states: list[np.ndarray],
        prefix: int,
        length: float,
    ) -> None:
        """Frames and turns as eviction leaves them; appends each frame's visibility in what is left of it."""
        rng = self.rng
        for frame in order:
            stream.add_frame(frame, epoch + run.times[frame])
            if rng.random() < 0.3:
                found = self.asker.options(run, frame, visibility(run, frame)[None])
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
        for row, frame in enumerate(order):
            cells = np.array([p for p in range(TOKENS_PER_FRAME) if (row, p) in left], int)
            states.append(visibility(run, frame, cells))
