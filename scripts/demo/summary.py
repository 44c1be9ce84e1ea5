"""What a run came to: what was remembered of what had left the view, beside what is answered without a memory, and what it took."""

from __future__ import annotations

from record import MEMORIES, Exchange, Record
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from view import about, mark, recalled
from without_memory import COMMAND, POLICY, Comparison


def summary(record: Record, comparison: Comparison) -> RenderableType:
    """Answers about what was seen before, right answers in two columns, and the figures of the run, below one another."""
    parts: list[RenderableType] = []
    before = [exchange for exchange in record.exchanges.values() if exchange.question.memory == "past"]
    if before:
        parts += [Text(), answers(before, comparison)]
    return Group(*parts, Text(), right_answers(record, comparison), Text(), figures(record, comparison))


def answers(exchanges: list[Exchange], comparison: Comparison) -> Table:
    """What each question was answered, and how long before it the frames were seen that were recalled for it."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    table.add_column("seen before")
    table.add_column("in view", justify="right", style="bright_black", no_wrap=True)
    table.add_column("truth", style="bright_black")
    table.add_column("answer")
    if not comparison.missing:
        table.add_column("without\nmemory")
    table.add_column("frames recalled,\ns ago", style="bright_black")
    for exchange in exchanges:
        question = exchange.question
        row = [
            question.text,
            "–" if question.age is None else about(question),
            question.truth or "",
            judged(exchange.text, exchange.right, exchange.failed or exchange.reasoning is None),
        ]
        if not comparison.missing:
            other = comparison.answers.get(question.id)
            row.append(judged(other or "", comparison.right(question), other is None))
        table.add_row(*row, recalled(exchange) or "–")
    return table


def judged(answer: str, right: bool | None, failed: bool) -> Text:
    """An answer and whether it is right."""
    return Text.assemble(mark(right, failed), " ", (answer, ""))


def right_answers(record: Record, comparison: Comparison) -> Table:
    """How many answers are right, of this run and without a memory."""
    grid = Table.grid(padding=(0, 3, 0, 0))
    grid.add_column(style="bright_black")
    grid.add_column(justify="right")
    grid.add_column(justify="right")
    questions = [exchange.question for exchange in record.exchanges.values()]
    other = [] if comparison.missing else ["without memory"]
    grid.add_row("right answers", Text("this run"), *other)
    for memory, words in {**MEMORIES, None: "all"}.items():
        tallies = [record.tally(memory), comparison.tally(questions, memory)]
        grid.add_row(f"  {words}", *(f"{right} of {known}" for right, known in tallies[: 1 + len(other)]))
    return grid


def figures(record: Record, comparison: Comparison) -> Table:
    """What the run took, and where the other column comes from."""
    stats = record.stats
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bright_black", no_wrap=True)
    grid.add_column()
    grid.add_row("without memory", comparison.missing or told(comparison))
    grid.add_row(
        "frames",
        f"{stats.frames_used} used of {stats.frames_received} received, {stats.frames_superseded} superseded, "
        f"{stats.frames_rejected} rejected",
    )
    grid.add_row("cache", f"{stats.used} of {stats.budget} slots in use, {stats.bytes / 2**20:.1f} MiB")
    grid.add_row(
        "evicted",
        f"{stats.tokens_evicted} of {stats.tokens_seen} tokens = {record.evicted_budgets:.1f} budgets of "
        f"{stats.budget}, in {stats.compactions} compactions by {stats.policy}",
    )
    grid.add_row(
        "archive",
        f"{stats.archive_units - stats.archive_turns} frames and {stats.archive_turns} turns, {stats.archive_bytes / 2**20:.1f} MiB",
    )
    times = record.times_to_first_token()
    if times:
        grid.add_row("first token", f"after {times[0] * 1e3:.0f} ms in the median, {times[1] * 1e3:.0f} ms at most")
    return grid


def told(comparison: Comparison) -> str:
    """How the answers without a memory came about."""
    return f"every frame again through {COMMAND} replay --policy {POLICY}, {comparison.seconds:.0f} s"
