"""The check of a GPU: what becomes of what its steps print, of steps that fail, and of results that are there already."""

import json
import struct
import sys
from dataclasses import replace
from pathlib import Path

import plan
import pytest
import random_gguf
import report
import results
import run
import shapes
import trim_fatbin

DEVICE = {"device": "GPU 1", "date": "2026-01-02T03:04:05+00:00", "run": "a", "commit": "abc"}


def decode(ms: float, **changed: object) -> dict:
    record = {
        "kind": "decode",
        "role": "ours",
        "shape": "SmolVLM-500M",
        "weights": "bf16",
        "ms": {"median": ms},
        "over_floor": 2.0,
        "read": {"weights": 700e6, "cache": 100e6},
        "copy": {"gb_per_s": 2000.0},
        "compactions": {"count": 1, "share": 0.02},
        "memory": {"before": 1e9, "after": 1e9, "cache": 2e8},
    }
    return record | DEVICE | changed


def peer(ms: float, **changed: object) -> dict:
    read = {"weights": 750e6, "cache": 50e6}
    record = {"kind": "peer", "peer": "llama.cpp", "shape": "SmolVLM-500M", "weights": "bf16"}
    return record | {"ms": {"median": ms}, "read": read} | DEVICE | changed


def cells(text: str, *words: str) -> list[str]:
    """The row of a table that holds these words."""
    (row,) = [line for line in text.splitlines() if all(word in line for word in words)]
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_lines_of_json_are_results_and_a_cut_one_is_none() -> None:
    output = 'loading\n{"shape": "tiny", "ms": {"median": 1.5}}\n{"shape": "ti'
    assert results.records_of("decode", output) == [{"kind": "decode", "shape": "tiny", "ms": {"median": 1.5}}]
    assert results.records_of("peer", "nothing") == []


@pytest.mark.parametrize(
    ("line", "tool", "errors"),
    [
        ("========= ERROR SUMMARY: 0 errors", "memcheck", 0),
        ("========= ERROR SUMMARY: 1 error", "memcheck", 1),
        ("========= RACECHECK SUMMARY: 3 hazards displayed (1 error, 2 warnings)", "racecheck", 3),
    ],
)
def test_a_sanitizer_is_taken_by_its_summary(line: str, tool: str, errors: int) -> None:
    output = f"========= COMPUTE-SANITIZER\n{{}}\n{line}\n"
    assert results.records_of("sanitizer", output) == [{"kind": "sanitizer", "tool": tool, "errors": errors}]
    assert results.records_of("sanitizer", "killed") == []


def test_everything_is_over_the_fastest_copy_of_its_own_run() -> None:
    records = [
        decode(0.8),
        decode(0.9, weights="q8_0", copy={"gb_per_s": 4000.0}),
        peer(1.2),
        peer(1.2, peer="other", run="b"),
    ]
    text = results.speed_table(records)
    # 800 MB at 4,000 GB/s take 0.2 ms.
    assert cells(text, "inf_mllm", "bf16")[3:8] == ["0.800", "1250.0", "0.200", "4.00", "-"]
    assert cells(text, "llama.cpp")[3:8] == ["1.200", "833.3", "0.200", "6.00", "1.50"]
    # In that run there was neither a copy nor a decode.
    assert cells(text, "other")[5:8] == ["-", "-", "-"]
    assert cells(text, "llama.cpp")[-1] == "abc, 2026-01-02"


def test_an_earlier_build_is_told_apart() -> None:
    text = results.speed_table([decode(0.5), decode(5.0, role="baseline", commit="old")])
    assert cells(text, "inf_mllm before")[7:] == ["10.00", "2.0", "old, 2026-01-02"]


def test_what_was_cut_short_and_what_grew_is_told() -> None:
    flat = {
        "kind": "flat",
        "tokens": 12000,
        "asked": 20000,
        "first": {"mean": 1.0},
        "last": {"mean": 1.01},
        "flatness": 1.01,
        "memory": {"before": 1e9, "after": 1.5e9, "cache": 1},
    }
    row = cells(results.flat_table([decode(1.0, **flat)]), "SmolVLM-500M")
    assert row[3:9] == ["12,000 of 20,000", "1.000", "1.010", "1.010", "2.0", "500 MB"]


def test_a_newer_result_takes_the_place_of_an_older_one_and_a_failure_of_none(tmp_path: Path) -> None:
    (tmp_path / "gpu.md").write_text(f"# On a GPU\n\n{report.BEGIN}\nNothing yet.\n{report.END}\n\n## Old\n\nKept.\n")
    old = [decode(9.0), peer(8.0), decode(7.0, weights="q8_0"), decode(6.0, device="GPU 2"), decode(5.5, dry=True)]
    new = {"date": "2026-02-01T00:00:00+00:00", "run": "b", "commit": "new"}
    newer = [decode(1.0, **new), {"kind": "failure", "step": "llama.cpp", "why": "late", **DEVICE, **new}]
    for name, records in (("old", old), ("newer", newer)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        sys.argv = ["report.py", str(path), "--docs", str(tmp_path)]
        report.main()
    text = (tmp_path / "gpu.md").read_text()
    assert text.startswith(f"# On a GPU\n\n{report.BEGIN}\n") and text.endswith(f"{report.END}\n\n## Old\n\nKept.\n")
    assert "Nothing yet" not in text and "5.500" not in text
    assert text.count(report.BEGIN) == text.count(report.END) == 1
    assert text.index("## GPU 1") < text.index("## GPU 2")
    mine = text[text.index("## GPU 1") : text.index("## GPU 2")]
    speeds = mine[: mine.index("### Memory")]
    assert cells(speeds, "inf_mllm", "| bf16")[3] == "1.000" and "9.000" not in text
    assert cells(speeds, "llama.cpp")[-1] == "abc, 2026-01-02"
    assert cells(speeds, "q8_0")[3] == "7.000"
    sys.argv = ["report.py", "--docs", str(tmp_path)]
    report.main()
    assert (tmp_path / "gpu.md").read_text() == text


def step(code: str, **changed: object) -> plan.Step:
    return replace(plan.Step("a step", "decode", 60, [sys.executable, "-c", code]), **changed)


def test_a_step_that_fails_ends_nothing_and_what_it_measured_stays(tmp_path: Path) -> None:
    out = run.Run(tmp_path, 300, dict(DEVICE))
    measured = 'print(\'{"ms": {"median": 2.0}}\', flush=True)'
    out.step(step(f"{measured}; import sys; sys.exit('no memory')"))
    out.step(step(f"{measured}; import time; time.sleep(60)", limit=1))
    out.step(step("print('hello')"))
    out.step(step("", needs="no-such-program"))
    out.step(step(measured))
    records = results.load(tmp_path / "results.jsonl")
    assert [record["kind"] for record in records] == [
        *("decode", "failure", "decode", "failure"),
        *("failure", "failure", "decode"),
    ]
    why = [record["why"] for record in records if record["kind"] == "failure"]
    assert why == ["no memory", "stopped after 1 s", "nothing was measured", "no-such-program is not there"]
    assert records[0]["device"] == "GPU 1" and records[0]["step"] == "a step"
    assert "no memory" in (tmp_path / "log.txt").read_text()
    assert "a step: no memory" in results.failures(records)


def test_the_page_in_the_repository_can_be_written() -> None:
    text = (report.DOCS / "gpu.md").read_text()
    assert "## Measured by hand" in report.put(text, "## New").partition(report.END)[2]
    with pytest.raises(SystemExit, match="no marks"):
        report.put("# On a GPU\n", "## New")


def test_a_sanitizer_runs_around_the_program(tmp_path: Path, tools: plan.Tools) -> None:
    fake = tmp_path / "bin/compute-sanitizer"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nshift 2; "$@"; echo "========= ERROR SUMMARY: 2 errors" >&2\n')
    fake.chmod(0o755)
    out = run.Run(tmp_path, 300, dict(DEVICE))
    out.environment["PATH"] = f"{fake.parent}:{out.environment['PATH']}"
    out.step(plan.sanitizer(replace(tools, executable=Path("/bin/echo")), "memcheck"))
    assert out.records[0]["errors"] == 2 and out.records[0]["tool"] == "memcheck"
    assert "bench decode" in (tmp_path / "log.txt").read_text()


def test_nothing_is_begun_when_the_time_is_up(tmp_path: Path) -> None:
    out = run.Run(tmp_path, 1, dict(DEVICE))
    out.step(step("raise SystemExit('ran')"))
    assert "not reached" in out.records[0]["why"]


@pytest.fixture
def tools() -> plan.Tools:
    return plan.Tools(Path("x"), Path("y"), Path("z"), "python3", "cuda", False)


def test_the_plan_has_everything_once_and_the_most_telling_first(tools: plan.Tools) -> None:
    steps = plan.plan(tools)
    names = [step.name for step in steps]
    assert len(names) == len(set(names))
    assert names[0] == "decode SmolVLM2-2.2B bf16"
    for shape in ("SmolVLM-500M", "SmolVLM2-2.2B", "LLaVA-1.5-7B"):
        for weights in (plan.native(shape), "q8_0", "q4_k"):
            assert f"decode {shape} {weights}" in names and f"llama.cpp {shape} {weights}" in names
        assert f"transformers {shape} eager graph" in names
    for kind in ("flat", "frames", "numbers", "sanitizer"):
        assert kind in {step.kind for step in steps}
    alone = plan.plan(replace(tools, baseline=None, llama=None))
    assert not any("llama" in step.name or "baseline" in step.name for step in alone)


@pytest.mark.parametrize("name", [*shapes.FILES, "tiny"])
def test_the_sizes_of_a_shape_are_those_of_its_tensors(name: str) -> None:
    shape = shapes.shape(name)
    if name == "tiny":
        path = Path(__file__).parents[2] / "src/eval/speed/tiny.json"
    else:
        path = shapes.PUBLISHED / f"{shapes.FILES[name]}.json"
    tensors = json.loads(path.read_text())["tensors"]
    # A layer's matrices, the norms left out, and the output layer: what the published decoder has besides the embeddings.
    decoder = [
        (name, dims)
        for name, dims in tensors.items()
        if "vis" not in name and "embed" not in name and "proj" not in name[:20]
    ]
    layers = [dims for name, dims in decoder if "layers.{0.." in name and len(dims) == 2]
    expected = sum(rows * columns for rows, columns in layers) * shape.layers + shape.vocabulary * shape.hidden
    assert sum(rows * columns for rows, columns in shape.matrices) == expected


@pytest.mark.parametrize("weights", ["f16", "bf16", "q8_0", "q4_k"])
def test_a_random_gguf_holds_all_that_its_header_names(weights: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    random_gguf.write(path, shapes.TINY, weights)
    data = path.read_bytes()
    magic, version, count, _ = struct.unpack_from("<4sIQQ", data)
    every = list(random_gguf.tensors(shapes.TINY, weights))
    assert (magic, version, count) == (b"GGUF", 3, len(every))
    sizes = [random_gguf.size(of, rows, columns) for _, rows, columns, of in every]
    assert 0 < len(data) - sum(sizes) < 1 << 14
    # The last tensor is the one before the end, and no tensor is empty.
    assert any(data[-sizes[-1] :])
    assert random_gguf.read_bytes(shapes.TINY, weights) == sum(sizes) - sizes[0]


def test_rows_that_do_not_fill_a_block_are_refused() -> None:
    with pytest.raises(ValueError, match="rows of 100"):
        random_gguf.size(random_gguf.Q8_0, 4, 100)
    with pytest.raises(ValueError, match="not built like Llama"):
        random_gguf.write(Path("unused"), shapes.shape("Qwen3-VL-2B"), "bf16")


def fatbin(entries: list[tuple[int, int, bytes]]) -> bytes:
    """A container of entries: kind, architecture, code."""
    body = b""
    for kind, architecture, code in entries:
        head = struct.pack("<HHIQI", kind, 0x101, 64, len(code), len(code)) + bytes(8) + struct.pack("<I", architecture)
        body += head.ljust(64, b"\0") + code
    return trim_fatbin.MAGIC + struct.pack("<HHQ", 1, 16, len(body)) + body


def test_only_code_that_is_used_stays_and_everything_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trim_fatbin, "kernels", lambda ptx: ptx.decode())
    wanted = b"_Z9mul_mat_qIL9ggml_type8ELi8ELb0EEv"
    other = b"_Z9mul_mat_qIL9ggml_type10ELi8ELb0EEv"
    plain = b"_Z9norm_f32v"
    first = fatbin([(1, 75, plain), (1, 90, plain), (2, 89, b"machine code")])
    second = fatbin([(1, 90, wanted), (1, 120, wanted)])
    third = fatbin([(1, 90, other)])
    library = bytearray(b"head" + first + b"between" + second + third + b"tail")
    before = bytes(library)
    kept, gone = trim_fatbin.trim(library, 90)
    assert kept == len(plain) + len(wanted) and gone == len(plain) + 12 + len(wanted) + len(other)
    assert len(library) == len(before) and library.startswith(b"head") and library.endswith(b"tail")
    assert library.count(plain) == 1 and library.count(wanted) == 1 and other not in library
    # The containers themselves can still be walked.
    assert [entry.architecture for entry in trim_fatbin.entries(bytes(library))] == [75, 90, 89, 90, 120, 90]


def test_machine_code_is_kept_rather_than_what_it_would_be_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trim_fatbin, "kernels", lambda code: code.decode())
    code, other = b"_Z9norm_f32v in sm_90", b"_Z9mul_mat_qIL9ggml_type10ELi8ELb0EEv"
    library = bytearray(fatbin([(1, 90, b"as PTX"), (2, 90, code), (2, 90, other), (2, 89, b"of another")]))
    assert trim_fatbin.trim(library, 90) == (len(code), len(b"as PTX") + len(other) + len(b"of another"))
    assert code in library


def test_names_of_kernels_are_found_in_both_kinds_of_code() -> None:
    for code in (b".visible .entry _Z9norm_f32v(", b"\x7fELF\0.text._Z9norm_f32v\0\xff"):
        assert trim_fatbin.names(code) == "_Z9norm_f32v"


def test_kernels_for_other_types_and_widths_are_unused() -> None:
    assert trim_fatbin.unused("_Z15flash_attn_tileILi256ELi256E")
    assert not trim_fatbin.unused("_Z15flash_attn_tileILi64ELi64E")
    assert trim_fatbin.unused("_Z18flash_attn_ext_vecILi64ELi1EL9ggml_type2ELS0_2E")
    assert not trim_fatbin.unused("_Z18flash_attn_ext_f16ILi256ELi256E _Z18flash_attn_ext_f16ILi128ELi128E")
    assert not trim_fatbin.unused("_Z9norm_f32v")
