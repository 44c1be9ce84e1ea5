"""The statistics of a run counted again, by docs/stream.md and the parameters' meaning alone, from what was sent and answered.

Only for English text, the demo model's tokenizer, and policies whose kept tokens follow from their order (window), or for what
does not depend on them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from inf_mllm.msg import Reasoning

WORDS = re.compile(r"'(?:[sdmt]|ll|ve|re)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+")
"""How a byte-level tokenizer cuts English text before it merges bytes (GPT-2)."""

CONTROL = re.compile(r"(<[a-z_|-]+>)")


class Tokens:
    """Lengths of texts in tokens, by the merges of a tokenizer.json."""

    def __init__(self, model: Path) -> None:
        merges = json.loads((model / "tokenizer.json").read_text())["model"]["merges"]
        self._rank = {tuple(pair): rank for rank, pair in enumerate(merges)}

    def count(self, text: str) -> int:
        """Tokens of text with control tokens in it."""
        pieces = CONTROL.split(text)
        return len(pieces) // 2 + sum(self._word(word) for plain in pieces[::2] for word in WORDS.findall(plain))

    def _word(self, word: str) -> int:
        parts = list(word.replace(" ", "Ġ").replace("\n", "Ċ"))
        while len(parts) > 1:
            best = min(pairwise(parts), key=lambda pair: self._rank.get(pair, len(self._rank)))
            if best not in self._rank:
                break
            at = 0
            while at < len(parts) - 1:
                if (parts[at], parts[at + 1]) == best:
                    parts[at : at + 2] = ["".join(best)]
                at += 1
        return len(parts)


@dataclass
class Recount:
    """A run of one node, told step by step.

    Args:
        tokens: the model's.
        image_tokens: of one frame.
        system_prompt, budget, slack, max_new_tokens: the node's parameters.
        recent: newest tokens that a compaction keeps for being new; none if that is all it keeps above the prefix.
    """

    tokens: Tokens
    image_tokens: int
    system_prompt: str
    budget: int
    slack: int
    recent: int | None
    max_new_tokens: int
    seen: int = 0
    evicted: int = 0
    compactions: int = 0
    cached: list[tuple[int, int | None]] = field(default_factory=list)
    """Stream index and frame of each cached token, if the policy is window."""
    stamps: list[float] = field(default_factory=list)
    """Of the frames used since the last reset, seconds."""
    clock: list[float] = field(default_factory=list)
    """The same on a clock that stands still where the stamps jump."""
    epoch: float = 0.0
    """Stamp of the epoch's first frame."""
    turn: str = ""
    """What stands between the last token and the next piece: "" while a turn with frames is open."""
    prefix: int = 0

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.seen = self.evicted = self.compactions = 0
        self.cached, self.stamps, self.clock, self.turn = [], [], [], "User:"
        text = f"<|im_start|>System: {self.system_prompt}<end_of_utterance>\n"
        self.prefix = self.tokens.count(text)
        self._append(self.prefix, 1)

    def frame(self, stamp: float, jumped: bool = False) -> None:
        """A frame that was used; `jumped`: its stamp was the first after a jump."""
        begins = jumped or not self.stamps
        self.epoch = stamp if begins else self.epoch
        passed = 0.0 if begins else stamp - self.stamps[-1]
        self.clock.append(passed + (self.clock[-1] if self.clock else 0.0))
        self.stamps.append(stamp)
        seconds = int(stamp - self.epoch)
        label = f"{self.turn}\nFrame from {seconds // 60:02}:{seconds % 60:02}:"
        before = self.tokens.count(f"{label}<fake_token_around_image><global-img>")
        length = before + self.image_tokens + 1
        self.turn = ""
        shown = range(self.seen + before, self.seen + before + self.image_tokens)
        self._append(length, length, {index: len(self.stamps) - 1 for index in shown})

    def answer(self, text: str, answer: Reasoning) -> None:
        """An instruction that was answered to its end."""
        opening = "\n\n" if self.turn == "" else f"{self.turn} "
        prompt = self.tokens.count(f"{opening}{text}<end_of_utterance>\nAssistant:")
        assert answer.prompt_tokens == prompt
        if self.recent is not None and prompt > self.recent:
            # So that no compaction falls into the middle of the instruction.
            self._reserve(prompt)
        # The end token is fed with the next turn.
        said = answer.output_tokens - (answer.finish_reason == Reasoning.FINISH_STOP)
        if answer.recalled_stamps:
            # What was recalled has left again with the turn, which is fed anew, the answer as a whole.
            self._append(prompt, max(said, 1))
            self._append(said, 1)
        else:
            self._append(prompt, self.max_new_tokens)
            for _ in range(said):
                self._append(1, 1)
        self.turn = "<end_of_utterance>\nUser:"

    def _append(self, length: int, following: int, frames: dict[int, int] | None = None) -> None:
        left = length
        while left:
            if len(self.cached) == self.budget:
                self._compact()
            taken = min(left, self.budget - len(self.cached))
            self.cached += [(i, (frames or {}).get(i)) for i in range(self.seen, self.seen + taken)]
            self.seen += taken
            left -= taken
        self._reserve(following)

    def _reserve(self, following: int) -> None:
        if self.budget - len(self.cached) < min(following, self.slack):
            self._compact()

    def _compact(self) -> None:
        keep = self.budget - self.slack
        self.evicted += len(self.cached) - keep
        self.compactions += 1
        self.cached = self.cached[: self.prefix] + self.cached[self.prefix - keep :]

    @property
    def relevant(self) -> int:
        """Tokens that the last compaction kept by their value."""
        if self.recent is None or not self.compactions:
            return 0
        return self.budget - self.slack - self.prefix - self.recent

    def retained(self) -> list[int]:
        """The frames of which at least half is cached, if the policy is window."""
        frames = [frame for _, frame in self.cached if frame is not None]
        counts = np.bincount(frames, minlength=len(self.stamps))
        return [frame for frame, count in enumerate(counts) if 2 * count >= self.image_tokens]
