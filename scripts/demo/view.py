"""The demo in a terminal: what the node has in memory, what it is asked and what it answers; or plain lines without one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from record import Exchange, Record, seconds
from recording import Question
from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

PARTS = (("prefix", "magenta"), ("relevant", "green"), ("recent", "cyan"))
"""The parts of the cache in the order they lie in it, and their colours."""
PLAIN_PERIOD = 5.0
"""Seconds between two lines about the cache when there is no terminal."""
LINES_AROUND_TABLE = 13
"""Lines of the live view that are not answers."""
WIDE = 106
"""From this many characters per line on there is room for where an answer comes from, and how long its first token took."""
ANSWER = 12
"""Characters of an answer."""


@dataclass
class About:
    """What does not change during a run."""

    domain: int
    seconds: float
    """Length of the recording."""


def mark(right: bool | None, failed: bool = False) -> Text:
    """Whether an answer is right, as one sign."""
    if failed:
        return Text("!", style="bold red")
    signs = {None: (" ", ""), True: ("✓", "bold green"), False: ("✗", "bold red")}
    return Text(*signs[right])


def first_token(exchange: Exchange) -> str:
    """Time to the first token in milliseconds; empty before it is known."""
    if exchange.reasoning is None or exchange.reasoning.output_tokens == 0:
        return ""
    return f"{seconds(exchange.reasoning.time_to_first_token) * 1e3:.0f} ms"


def about(question: Question) -> str:
    """When what a question is about was in view."""
    if question.memory == "past":
        return "before" if question.age is None else f"{question.age:.0f} s ago"
    return "now" if question.memory == "view" else ""


def recalled(exchange: Exchange) -> str:
    """How long before the question the frames were seen that were fed again for its answer, in whole seconds; empty: none were."""
    spans: list[list[int]] = []
    for age in map(round, exchange.recalled_ages):
        if spans and age <= spans[-1][1] + 1:
            spans[-1][1] = age
        else:
            spans.append([age, age])
    return ", ".join(f"{low}" if low == high else f"{low}–{high}" for low, high in spans)


def cache_bar(record: Record, width: int) -> Text:
    """The cache as one bar of `width` cells, each part in its colour, free slots grey."""
    stats = record.stats
    bar = Text(no_wrap=True)
    filled = slots = 0
    for part, colour in PARTS:
        slots += getattr(stats, part)
        end = round(width * slots / max(stats.budget, 1))
        bar.append("█" * (end - filled), style=colour)
        filled = max(filled, end)
    return bar.append("░" * (width - filled), style="bright_black")


class LiveView:
    """The whole state, redrawn in place."""

    def __init__(self, console: Console, record: Record, about: About) -> None:
        self._record = record
        self._about = about
        self._played = 0.0
        self._drawn = -1.0
        self._live = Live(self, console=console, auto_refresh=False, vertical_overflow="crop")

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.refresh()
        self._live.__exit__(*exception)

    def tick(self, played: float) -> None:
        """Redraws; `played` is how much of the recording has been played, seconds."""
        self._played = min(played, self._about.seconds)
        self._live.refresh()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = Table.grid(expand=True)
        width = options.max_width - 4
        rows.add_row(self._head())
        rows.add_row(self._state(width))
        rows.add_row("")
        rows.add_row(self._answers(width, options.size.height - LINES_AROUND_TABLE))
        title = Text.assemble(("inf_mllm", "bold"), " follows a robot's camera with a bounded memory")
        subtitle = f"policy {self._record.stats.policy}, ROS_DOMAIN_ID={self._about.domain}"
        yield Panel(rows, title=title, subtitle=subtitle, box=box.ROUNDED, padding=(0, 1))

    def _head(self) -> Table:
        played = f"{self._played:5.1f} of {self._about.seconds:.1f} s"
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(width=8, style="bright_black")
        grid.add_column(ratio=1)
        grid.add_column(justify="right")
        bar = ProgressBar(total=self._about.seconds, completed=self._played, style="bright_black")
        grid.add_row("bag", bar, played)
        return grid

    def _state(self, width: int) -> Table:
        stats = self._record.stats
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(width=8, style="bright_black")
        grid.add_column(ratio=1, no_wrap=True)
        late = f", {stats.frames_superseded} superseded by newer ones" if stats.frames_superseded else ""
        bad = f", {stats.frames_rejected} rejected" if stats.frames_rejected else ""
        grid.add_row("frames", f"{stats.frames_used} used of {stats.frames_received} received{late}{bad}")
        times = f"{stats.frames_per_second:.1f} frames/s, vision {seconds(stats.vision_time) * 1e3:.0f} ms"
        times += f", decoder {seconds(stats.prefill_time) * 1e3:.0f} ms"
        times += f", per answer token {seconds(stats.decode_time) * 1e3:.0f} ms"
        grid.add_row("speed", times)
        grid.add_row("", "")
        grid.add_row("cache", cache_bar(self._record, max(width - 9, 10)))
        legend = Text(f"{stats.used} of {stats.budget} slots ", style="bold", no_wrap=True)
        for part, colour in PARTS:
            legend.append(" ■", style=f"not bold {colour}").append(f" {part} {getattr(stats, part)}", style="not bold")
        legend.append(" ░", style="not bold bright_black").append(
            f" free {stats.budget - stats.used}", style="not bold"
        )
        grid.add_row("", legend)
        evicted = f"{stats.tokens_evicted} of {stats.tokens_seen} tokens evicted"
        evicted += f" = {self._record.evicted_budgets:.1f} budgets, {stats.compactions} compactions"
        grid.add_row("", evicted)
        return grid

    def _answers(self, width: int, rows: int) -> Table:
        wide = width >= WIDE
        table = Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
        table.add_column("at", justify="right", width=5, style="bright_black")
        table.add_column("question", ratio=1, no_wrap=True)
        table.add_column("about", width=8, style="bright_black", no_wrap=True)
        table.add_column("answer", width=ANSWER, no_wrap=True)
        table.add_column("", width=1)
        table.add_column("truth", width=ANSWER, style="bright_black", no_wrap=True)
        if wide:
            table.add_column("recalled, s ago", width=15, style="bright_black", no_wrap=True)
            table.add_column("1st token", justify="right", width=9, style="bright_black", no_wrap=True)
        newest = list(self._record.exchanges.values())[-max(rows, 1) :]
        for exchange in newest:
            question = exchange.question
            open_ = exchange.reasoning is None
            table.add_row(
                f"{question.at:.1f}",
                Text(question.text, style="bold" if open_ else ""),
                about(question),
                Text(exchange.text + ("▌" if open_ else ""), style="bold"),
                mark(exchange.right, exchange.failed),
                question.truth or "",
                *([recalled(exchange), first_token(exchange)] if wide else []),
            )
        for _ in range(max(rows, 1) - len(newest)):
            table.add_row()
        return table


class PlainView:
    """Lines for a log: every answer, and the cache now and then."""

    def __init__(self, console: Console, record: Record, about: About) -> None:
        self._console = console
        self._record = record
        self._about = about
        self._told: set[str] = set()
        self._next = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._tell_answers()

    def tick(self, played: float) -> None:
        """Writes what is new; `played` is how much of the recording has been played, seconds."""
        self._tell_answers()
        if played < self._next:
            return
        self._next = played + PLAIN_PERIOD
        stats = self._record.stats
        if stats.budget:
            self._line(
                f"{played:5.1f} s  frames {stats.frames_used}/{stats.frames_received}  cache {stats.used}/{stats.budget} = "
                f"prefix {stats.prefix} + relevant {stats.relevant} + recent {stats.recent}  "
                f"evicted {stats.tokens_evicted}  compactions {stats.compactions}"
            )

    def _tell_answers(self) -> None:
        for exchange in self._record.exchanges.values():
            question = exchange.question
            if exchange.reasoning is None or question.id in self._told:
                continue
            self._told.add(question.id)
            signs = {None: "", True: ", right", False: f", truth: {question.truth}"}
            outcome = exchange.reasoning.error if exchange.failed else exchange.text + signs[exchange.right]
            notes = [first_token(exchange), f"recalled from {ages} s ago" if (ages := recalled(exchange)) else ""]
            noted = "; ".join(note for note in notes if note)
            self._line(
                f"{question.at:5.1f} s  {question.id}  {question.text}  ->  {outcome}"
                + (f"  ({noted})" if noted else "")
            )

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
