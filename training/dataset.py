"""Token streams, laid out as docs/stream.md says."""

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from recollection import KINDS, label
from runs import SHAPES

SPECIAL = ["<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<global-img>", "<image>", "<pad>"]
SYSTEM_PROMPT = "You are a mobile robot. Answer briefly."
TOKENS_PER_FRAME = 9

Shown = tuple[int, int]  # a run's number and its frame's


class Codec:
    """Token ids of texts between control tokens, and of the control tokens."""

    def __init__(self, folder: Path):
        from tokenizers import Tokenizer  # here, as streams can be built and tested without it

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.start, self.end, self.fake, self.globe, self.image, self.pad = (tokenizer.token_to_id(t) for t in SPECIAL)
        self.size = tokenizer.get_vocab_size()
        self.shapes = {tokenizer.token_to_id(f"\u0120{shape}") for shape in SHAPES}
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
    frames: list[Shown] = field(default_factory=list)  # in the order used
    answers: list[tuple[str, int, int]] = field(
        default_factory=list
    )  # question type, and where the answer begins and ends
    named: list[tuple[int, int, int, int]] = field(
        default_factory=list
    )  # of questions that name a kind: first token, the token that ends the name, last token, and the kind
    text: str = ""  # text not yet tokenised: it may go on
    open: bool = False  # a user turn is open
    framed: bool = False  # and holds a frame
    layout: str = "plain"  # what is recalled: nothing ("plain"), or frames "before" or "after" the recent ones
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

    def add_frame(self, shown: Shown, seconds: float, camera: str = "") -> None:
        """A frame with its time label and, if there are several, its camera's."""
        beside = f", {camera} camera" if camera else ""
        self.text += ("" if self.open else "User:") + f"\nFrame from {label(seconds)}{beside}:"
        self.open = self.framed = True
        self.control(self.codec.fake, self.codec.globe)
        self.write([self.codec.image] * TOKENS_PER_FRAME, frame=len(self.frames))
        self.frames.append(shown)
        self.control(self.codec.fake)

    def add_question(self, text: str, kind: int = -1) -> None:
        """Closes the user turn with a question and opens the answer; `kind`: what it names, see `recollection.named`."""
        start = len(self.ids)
        self.text += ("" if self.open else "User:") + ("\n\n" if self.framed else " ") + text
        self.control(self.codec.end)
        if kind >= 0:
            shape = max(i for i in range(start, len(self.ids)) if self.ids[i] in self.codec.shapes)
            self.named.append((start, shape + (kind >= KINDS), len(self.ids) - 1, kind))  # a plural's ending is a token
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

    def add_aside(self, question: str, answer: str, kind: str, named: int = -1) -> None:
        """A question and its answer that nothing after them sees, nor they each other: as if each alone had been asked."""
        before = self.text, self.open, self.framed
        self.flush()
        self.aside, self.asides = self.asides, self.asides + 1
        self.add_question(question, named)
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
