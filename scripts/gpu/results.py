"""What a check of a GPU has found: records from what the steps printed, and tables of them.

A record is a JSON object with `kind` (machine, decode, flat, frames, numbers, sanitizer, peer, failure), `step`, and what was measured;
`device`, `commit` and `date` say on what, of which code and when.
"""

import json
import re
from pathlib import Path

from shapes import FILES

KEYS = {
    "machine": (),
    "decode": ("role", "shape", "weights", "path", "storage"),
    "flat": ("role", "shape", "weights", "path"),
    "frames": ("shape", "weights"),
    "numbers": ("part",),
    "sanitizer": ("tool",),
    "peer": ("peer", "shape", "weights"),
    "failure": ("step",),
}
"""What tells the records of a kind apart: of two with the same, on the same device, the newer one counts."""

WEIGHTS = ["f32", "bf16", "f16", "q8_0", "q4_k"]


def records_of(kind: str, output: str) -> list[dict]:
    """The records in what a step printed: of a sanitizer its summary, else every line that is a JSON object."""
    if kind == "sanitizer":
        return sanitizer(output)
    found = []
    for line in output.splitlines():
        if line.startswith("{"):
            try:
                found.append({"kind": kind, **json.loads(line)})
            except json.JSONDecodeError:
                continue  # cut off when its time was up
    return found


def sanitizer(output: str) -> list[dict]:
    """The errors that compute-sanitizer counted: of memcheck, or of racecheck, which calls them hazards."""
    found = re.search(r"(ERROR|RACECHECK) SUMMARY: (\d+) (?:error|hazard)", output)
    if not found:
        return []
    tool = {"ERROR": "memcheck", "RACECHECK": "racecheck"}[found[1]]
    return [{"kind": "sanitizer", "tool": tool, "errors": int(found[2])}]


def load(path: Path) -> list[dict]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.strip()]


def key(record: dict) -> tuple:
    """What a record is about."""
    about = [json.dumps(record.get(field)) for field in KEYS[record["kind"]]]
    return (record.get("device"), record["kind"], *about)


def place(record: dict) -> tuple:
    """Where a record stands in tables: by shape, then by the width of the weights, ours in front of the others."""
    shape, weights = record.get("shape", ""), record.get("weights", "")
    known = [*FILES, shape].index(shape), [*WEIGHTS, weights].index(weights)
    return (list(KEYS).index(record["kind"]), *known, json.dumps(key(record)))


def newest(records: list[dict]) -> list[dict]:
    """Of records about the same the last one, in the order of tables; no failures, and a failure hides nothing."""
    kept: dict[tuple, dict] = {}
    for record in sorted(records, key=lambda record: record.get("date", "")):
        if record["kind"] != "failure":
            kept[key(record)] = record
    return sorted(kept.values(), key=place)


def copy_bandwidth(records: list[dict]) -> float | None:
    """The fastest copy of a run, GB/s."""
    found = [record["copy"]["gb_per_s"] for record in records if "copy" in record]
    return max(found, default=None)


def floor_ms(record: dict, bandwidth: float | None) -> float | None:
    """Milliseconds in which what a token reads can be read."""
    read = record.get("read")
    return read and bandwidth and (read["weights"] + read["cache"]) / bandwidth * 1e-6


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def megabytes(value: float | None) -> str:
    return "-" if value is None else f"{value * 1e-6:,.0f} MB"


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines) + "\n"


def source(record: dict) -> str:
    """Code and date of a record."""
    return f"{record.get('commit') or '?'}, {record.get('date', '?')[:10]}"


def name(record: dict) -> str:
    """Whose milliseconds these are."""
    if record["kind"] == "peer":
        return record["peer"]
    path = f", {record['path']}" if record.get("path") else ""
    storage = f", {record['storage']} keys and values" if record.get("storage") else ""
    return ("inf_mllm" if record.get("role") != "baseline" else "inf_mllm before") + path + storage


def speed_table(records: list[dict]) -> str:
    """Every decode and every peer, shape by shape, each beside the fastest copy and our milliseconds of its own run."""
    measured = [record for record in records if record["kind"] in ("decode", "peer")]
    rows = []
    for record in sorted(measured, key=lambda record: place(record)[1:]):
        runs = [other for other in records if other.get("run") == record.get("run")]
        floor = floor_ms(record, copy_bandwidth(runs))
        ms = record["ms"]["median"]
        ours = [other for other in runs if other["kind"] == "decode" and other.get("role") != "baseline"]
        ours = [
            other["ms"]["median"]
            for other in ours
            if all(other[field] == record[field] for field in ("shape", "weights"))
        ]
        compactions = record.get("compactions")
        rows.append(
            [
                record["shape"],
                record["weights"],
                name(record),
                number(ms, 3),
                number(1e3 / ms, 1),
                number(floor, 3),
                number(floor and ms / floor),
                number(ms / min(ours) if ours and name(record) != "inf_mllm" else None),
                number(compactions and compactions["share"] * 100, 1),
                source(record),
            ]
        )
    header = [
        "shape",
        "weights",
        "",
        "ms per token",
        "tokens/s",
        "floor, ms",
        "x floor",
        "x ours",
        "eviction, %",
        "code, date",
    ]
    return table(header, rows)


def flat_table(records: list[dict]) -> str:
    rows = []
    for record in (record for record in records if record["kind"] == "flat"):
        memory = record["memory"]
        grown = None if None in (memory["before"], memory["after"]) else memory["after"] - memory["before"]
        counts = f"{record['tokens']:,}" + ("" if record["tokens"] == record["asked"] else f" of {record['asked']:,}")
        times = [number(record["first"]["mean"], 3), number(record["last"]["mean"], 3), number(record["flatness"], 3)]
        share = number(record["compactions"]["share"] * 100, 1)
        rows.append(
            [record["shape"], record["weights"], name(record), counts, *times, share, megabytes(grown), source(record)]
        )
    header = [
        "shape",
        "weights",
        "",
        "tokens",
        "first 1,000, ms",
        "last 1,000, ms",
        "ratio",
        "eviction, %",
        "memory grown by",
    ]
    return table([*header, "code, date"], rows)


def frames_table(records: list[dict]) -> str:
    rows = []
    for record in (record for record in records if record["kind"] == "frames"):
        width, height = record["picture"]
        rows.append(
            [
                record["shape"],
                record["weights"],
                f"{width}x{height}, {record['tokens_per_frame']} tokens",
                number(record["frames_per_s"], 1),
                number(record["tokens_per_s"], 1),
                number(record["asked_tokens_per_s"], 1),
                number(record["frame_ms"]["median"], 1),
                number(record["late_ms"]["p90"], 1),
                source(record),
            ]
        )
    header = [
        "shape",
        "weights",
        "picture",
        "frames/s",
        "tokens/s",
        "due",
        "ms per frame",
        "tokens late, ms (90 %)",
        "code, date",
    ]
    return table(header, rows)


def memory_table(records: list[dict]) -> str:
    rows = []
    for record in (record for record in records if record["kind"] == "decode" and record["memory"]["after"]):
        memory, read = record["memory"], record["read"]
        sizes = [megabytes(memory["after"]), megabytes(read["weights"]), megabytes(memory["cache"])]
        rows.append([record["shape"], record["weights"], name(record), *sizes, source(record)])
    return table(
        ["shape", "weights", "", "device memory", "weights read per token", "keys and values", "code, date"], rows
    )


def checks_table(records: list[dict]) -> str:
    rows = []
    for record in records:
        if record["kind"] == "numbers":
            largest = record.get("largest") or {}
            found = ", ".join(f"{dtype} {value:.1e}" for dtype, value in largest.items())
            verdict = f"{record['checked'] - record['failed']} of {record['checked']}"
            rows.append([f"numbers: {record['part']}", verdict, found, source(record)])
        elif record["kind"] == "sanitizer":
            rows.append([f"compute-sanitizer {record['tool']}", f"{record['errors']} errors", "", source(record)])
    return table(["check", "right", "distance of logits, of their length", "code, date"], rows)


SECTIONS = [
    ("Milliseconds per token", speed_table, ("decode", "peer")),
    ("Flatness", flat_table, ("flat",)),
    ("Frames into the cache while decoding", frames_table, ("frames",)),
    ("Memory", memory_table, ("decode",)),
    ("Numbers", checks_table, ("numbers", "sanitizer")),
]


def tables(records: list[dict], level: str = "###") -> str:
    """All that was measured on one device."""
    parts = []
    for title, make, kinds in SECTIONS:
        if any(record["kind"] in kinds for record in records):
            parts.append(f"{level} {title}\n\n{make(records)}")
    return "\n".join(parts)


def failures(records: list[dict]) -> str:
    """The steps that came to nothing, with why."""
    lines = [f"- {record['step']}: {record['why']}" for record in records if record["kind"] == "failure"]
    return "\n".join(lines)
