"""Puts the results of checks of GPUs into docs/measurements: report.py [RESULTS...], files that scripts/gpu/run.py wrote.

docs/measurements/gpu.jsonl gets what they measured and keeps everything for which there is nothing newer on the same device; the part of
docs/measurements/gpu.md between its two marks is written anew from it, the rest of that page stays as it is. Every line of a table says
which code it is of, and when it was measured. Without RESULTS the page is written from what is known.
"""

import argparse
import json
from pathlib import Path

import results

DOCS = Path(__file__).resolve().parents[2] / "docs/measurements"
BEGIN = "<!-- Written by scripts/gpu/report.py from gpu.jsonl, down to the next mark. -->"
END = "<!-- End of what is written by scripts/gpu/report.py. -->"


def devices(records: list[dict]) -> list[str]:
    """The device that was measured last comes first."""
    last: dict[str, str] = {}
    for record in records:
        last[record["device"]] = max(last.get(record["device"], ""), record.get("date", ""))
    return sorted(last, key=last.get, reverse=True)


def page(records: list[dict]) -> str:
    """The part of the page that is made of these."""
    parts = []
    for device in devices(records):
        own = [record for record in records if record["device"] == device]
        about = next((record for record in own if record["kind"] == "machine"), {})
        details = [f"driver {about['driver']}"] if "driver" in about else []
        details += [about[name] for name in ("memory", "clocks") if name in about]
        parts.append(
            f"## {device}: `make gpu-check`\n\n{', '.join(details) or 'No more is known of it.'}\n\n{results.tables(own)}"
        )
    return "\n".join(parts)


def put(text: str, part: str) -> str:
    """The page with this part between its marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"the page has no marks, expected the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{part.strip()}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", nargs="*", type=Path)
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder with gpu.md and gpu.jsonl")
    args = parser.parse_args()
    kept = args.docs / "gpu.jsonl"
    records = results.load(kept)
    for path in args.results:
        if not path.exists():
            raise SystemExit(f"{path} is not there")
        records += results.load(path)
    records = results.newest([record for record in records if not record.get("dry")])
    if not records:
        raise SystemExit(f"nothing was measured: {kept} is empty, and no results are given but of dry runs")
    kept.write_text("".join(json.dumps(record) + "\n" for record in records))
    text = args.docs / "gpu.md"
    text.write_text(put(text.read_text(), page(records)))
    print(f"{text}: {len(records)} results of {', '.join(devices(records))}")


if __name__ == "__main__":
    main()
