"""What the demo has seen of the node so far, and what it makes of it at the end."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from inf_mllm.msg import CacheStats, Reasoning, ReasoningDelta
from recording import Question

MEMORIES = {"view": "about now", "past": "seen before"}
"""The words of an instructions file, and those of the summary."""


def seconds(duration: object) -> float:
    """A builtin_interfaces Duration or Time in seconds."""
    return duration.sec + duration.nanosec * 1e-9


@dataclass
class Exchange:
    """A question that was asked and what came back."""

    question: Question
    text: str = ""
    reasoning: Reasoning | None = None

    @property
    def failed(self) -> bool:
        """It was answered by an error."""
        return self.reasoning is not None and self.reasoning.finish_reason in (
            Reasoning.FINISH_ERROR,
            Reasoning.FINISH_CANCELLED,
        )

    @property
    def right(self) -> bool | None:
        """Whether the answer is right; none while it is unknown."""
        return None if self.reasoning is None else self.question.is_right(self.text)

    @property
    def recalled_ages(self) -> list[float]:
        """How old the frames were that were fed again for the answer, seconds before the question; ascending. Turns are left out."""
        if self.reasoning is None:
            return []
        asked = seconds(self.reasoning.instruction_stamp)
        recalled = zip(self.reasoning.recalled_stamps, self.reasoning.recalled_kinds, strict=True)
        return sorted(asked - seconds(stamp) for stamp, kind in recalled if kind == Reasoning.RECALLED_FRAME)


@dataclass
class Record:
    """Everything the node has said."""

    exchanges: dict[str, Exchange] = field(default_factory=dict)
    stats: CacheStats = field(default_factory=CacheStats)
    over_budget: str = ""
    """The first report of more slots in use than the budget allows; empty: none."""

    def asked(self, question: Question) -> None:
        self.exchanges[question.id] = Exchange(question)

    def take_delta(self, delta: ReasoningDelta) -> None:
        exchange = self.exchanges.get(delta.instruction_id)
        if exchange and exchange.reasoning is None and not delta.thought:
            exchange.text += delta.text

    def take_reasoning(self, reasoning: Reasoning) -> None:
        exchange = self.exchanges.get(reasoning.instruction_id)
        if exchange:
            exchange.text = reasoning.text
            exchange.reasoning = reasoning

    def take_stats(self, stats: CacheStats) -> None:
        if stats.used > stats.budget and not self.over_budget:
            self.over_budget = f"{stats.used} slots were in use, the budget is {stats.budget}"
        self.stats = stats

    @property
    def waiting(self) -> bool:
        """Something that was asked has not been answered."""
        return any(exchange.reasoning is None for exchange in self.exchanges.values())

    @property
    def evicted_budgets(self) -> float:
        """Tokens evicted, in units of the budget."""
        return self.stats.tokens_evicted / max(self.stats.budget, 1)

    def tally(self, memory: str | None = None) -> tuple[int, int]:
        """Right answers, and questions with a known truth; of one memory only if one is given."""
        known = [
            exchange
            for exchange in self.exchanges.values()
            if exchange.question.truth is not None and memory in (None, exchange.question.memory)
        ]
        return sum(exchange.right is True for exchange in known), len(known)

    def times_to_first_token(self) -> tuple[float, float] | None:
        """Median and maximum, seconds; none without an answer."""
        times = [
            seconds(exchange.reasoning.time_to_first_token)
            for exchange in self.exchanges.values()
            if exchange.reasoning is not None and exchange.reasoning.output_tokens > 0
        ]
        return (statistics.median(times), max(times)) if times else None

    def failures(self, least_evicted_budgets: float) -> list[str]:
        """What went wrong, in words; empty if nothing did. That an answer is not the truth is no failure."""
        found = []
        for exchange in self.exchanges.values():
            name = f"instruction {exchange.question.id} ({exchange.question.text!r})"
            if exchange.reasoning is None:
                found.append(f"{name} was not answered")
            elif exchange.failed:
                found.append(f"{name} failed: {exchange.reasoning.error}")
        if self.over_budget:
            found.append(self.over_budget)
        if self.stats.frames_used == 0:
            found.append(f"no frame was used of {self.stats.frames_received} received")
        if self.evicted_budgets < least_evicted_budgets:
            found.append(
                f"{self.stats.tokens_evicted} tokens were evicted, {self.evicted_budgets:.1f} times the budget of "
                f"{self.stats.budget}; expected at least {least_evicted_budgets:g} times"
            )
        return found
