"""The demo in a terminal: what the node has in memory, what it is asked and what it answers; or plain lines without one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from record import MEMORIES, Exchange, Record, seconds
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
WIDE = 96
"""From this many characters per line on there is room for the time to the first token."""
NARROW_ANSWER = 13
"""Characters of an answer where there is not."""


@dataclass
class About:
    """What does not change during a run."""

    domain: int
    seconds: float
    """Length of the recording."""


def mark(exchange: Exchange) -> Text:
    """Whether the answer is right, as one sign."""
    if exchange.failed:
        return Text("!", style="bold red")
    signs = {None: (" ", ""), True: ("✓", "bold green"), False: ("✗", "bold red")}
    return Text(*signs[exchange.right])


def age(exchange: Exchange) -> str:
    """Time to the first token in milliseconds; empty before it is known."""
    if exchange.reasoning is None or exchange.reasoning.output_tokens == 0:
        return ""
    return f"{seconds(exchange.reasoning.time_to_first_token) * 1e3:.0f} ms"


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
        short = {} if wide else {"width": NARROW_ANSWER}
        table = Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
        table.add_column("at", justify="right", width=4, style="bright_black")
        table.add_column("question", ratio=3, no_wrap=True)
        table.add_column("about", width=5, style="bright_black", no_wrap=True)
        table.add_column("answer", ratio=2 if wide else None, no_wrap=True, **short)
        table.add_column("", width=1)
        table.add_column("truth", ratio=2 if wide else None, style="bright_black", no_wrap=True, **short)
        if wide:
            table.add_column("first token", justify="right", style="bright_black", no_wrap=True)
        newest = list(self._record.exchanges.values())[-max(rows, 1) :]
        for exchange in newest:
            question = exchange.question
            open_ = exchange.reasoning is None
            table.add_row(
                f"{question.at:.1f}",
                Text(question.text, style="bold" if open_ else ""),
                question.memory,
                Text(exchange.text + ("▌" if open_ else ""), style="bold"),
                mark(exchange),
                question.truth or "",
                *([age(exchange)] if wide else []),
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
            self._line(f"{question.at:5.1f} s  {question.id}  {question.text}  ->  {outcome}  ({age(exchange)})")

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def summary(record: Record) -> Table:
    """What a run came to, as a table of lines."""
    stats = record.stats
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bright_black")
    grid.add_column()

    def right(memory: str | None) -> str:
        count, of = record.tally(memory)
        return f"{count} of {of}" + (f" ({100 * count / of:.0f} %)" if of else "")

    grid.add_row("right answers", Text(right(None), style="bold"))
    for memory, words in MEMORIES.items():
        grid.add_row(f"  {words}", right(memory))
    grid.add_row(
        "frames",
        f"{stats.frames_used} used of {stats.frames_received} received, {stats.frames_superseded} superseded, "
        f"{stats.frames_rejected} rejected",
    )
    grid.add_row(
        "memory",
        f"{stats.tokens_evicted} of {stats.tokens_seen} tokens evicted = {record.evicted_budgets:.1f} budgets of "
        f"{stats.budget}, in {stats.compactions} compactions by {stats.policy}",
    )
    grid.add_row("cache", f"{stats.used} of {stats.budget} slots in use, {stats.bytes / 2**20:.1f} MiB")
    times = record.times_to_first_token()
    if times:
        grid.add_row("time to first token", f"median {times[0] * 1e3:.0f} ms, at most {times[1] * 1e3:.0f} ms")
    return grid
