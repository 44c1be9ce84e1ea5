"""The steps of a check of a GPU, the most telling ones first."""

from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent

MEASURED = ["SmolVLM2-2.2B", "SmolVLM-500M", "LLaVA-1.5-7B", "Qwen3-VL-2B", "Qwen2.5-VL-3B"]
NATIVE = {"LLaVA-1.5-7B": "f16"}
"""What a shape's published weights are, where not bf16."""


def native(shape: str) -> str:
    return NATIVE.get(shape, "bf16")


@dataclass(frozen=True)
class Tools:
    """What the steps are run with."""

    executable: Path
    baseline: Path | None
    """An executable of earlier code, measured beside the other one."""
    llama: Path | None
    """The folder with llama.cpp."""
    python: str
    """With torch and transformers."""
    device: str
    dry: bool
    """A small part of everything at a tiny shape, to see that it runs."""


@dataclass(frozen=True)
class Step:
    name: str
    kind: str
    limit: float
    """Seconds."""
    command: list[str]
    about: dict = field(default_factory=dict)
    """Put into its records."""
    needs: str | None = None
    """A program that has to be there."""


def decode(
    tools: Tools,
    shape: str,
    weights: str,
    limit: float = 25,
    role: str = "ours",
    path: str | None = None,
    storage: str | None = None,
) -> Step:
    executable = tools.executable if role == "ours" else tools.baseline
    tokens = "40" if tools.dry else "300"
    command = [str(executable), "bench", "decode", "--device", tools.device, "--json", "--seconds", "10"]
    # An executable of earlier code may know of no paths.
    command += ["--path", path] if path else []
    command += ["--kv-storage", storage] if storage else []
    how = (f" in {path}" if path else "") + (f" with {storage} cache" if storage else "")
    return Step(
        f"{'' if role == 'ours' else 'baseline '}decode {shape} {weights}{how}",
        "decode",
        limit,
        [*command, "--shape", shape, "--weights", weights, "--fill", "2048", "--tokens", tokens],
        {"role": role} | ({"storage": storage} if storage else {}),
    )


def transformers(tools: Tools, shape: str, how: list[str], limit: float) -> Step:
    command = [tools.python, str(HERE / "peer_transformers.py"), shape, "256" if tools.dry else "2048"]
    tokens = ["--tokens", "10" if tools.dry else "100"]
    name = f"transformers {shape} {' '.join(how)}"
    return Step(
        name, "peer", limit, [*command, *tokens, "--device", tools.device, "--dtype", native(shape), "--how", *how]
    )


def llama(tools: Tools, shape: str, weights: str, limit: float) -> Step:
    context, tokens = ("256", "20") if tools.dry else ("2048", "200")
    command = [tools.python, str(HERE / "peer_llama.py"), str(tools.llama), shape, weights, context, tokens]
    return Step(f"llama.cpp {shape} {weights}", "peer", limit, [*command, "--device", tools.device])


def numbers(tools: Tools, part: str, limit: float, more: list[str]) -> Step:
    command = [tools.python, str(ROOT / "scripts/gpu_check.py"), str(tools.executable), "--device", tools.device]
    jobs = "2" if tools.device == "cpu" else "6"
    return Step(f"numbers: {part}", "numbers", limit, [*command, "--json", "--jobs", jobs, "--part", part, *more])


def sanitizer(tools: Tools, tool: str) -> Step:
    run = [str(tools.executable), "bench", "decode", "--device", tools.device, "--shape", "tiny", "--weights", "bf16"]
    # A budget of 64, so that it compacts.
    run += ["--budget", "64", "--fill", "60", "--warmup", "4", "--tokens", "24"]
    return Step(
        f"compute-sanitizer {tool}",
        "sanitizer",
        60,
        ["compute-sanitizer", "--tool", tool, *run],
        {},
        "compute-sanitizer",
    )


def frames(tools: Tools, shape: str, weights: str) -> Step:
    command = [str(tools.executable), "bench", "frames", "--device", tools.device, "--json", "--shape", shape]
    more = ["--weights", weights, "--size", "512x512", "--seconds", "1" if tools.dry else "5"]
    return Step(f"frames {shape} {weights}", "frames", 30, [*command, *more])


def flat(tools: Tools, shape: str, weights: str) -> Step:
    command = [str(tools.executable), "bench", "decode", "--device", tools.device, "--json", "--shape", shape]
    tokens = "3000" if tools.dry else "20000"
    more = ["--weights", weights, "--fill", "2048", "--tokens", tokens, "--seconds", "5" if tools.dry else "60"]
    return Step(f"{tokens} tokens {shape} {weights}", "flat", 75, [*command, *more], {"role": "ours"})


def plan(tools: Tools) -> list[Step]:
    shapes = ["tiny"] if tools.dry else MEASURED
    main = shapes[:3]

    steps = [decode(tools, shape, native(shape)) for shape in main]
    steps += [decode(tools, shape, native(shape), path="operations") for shape in main]
    if tools.baseline:
        steps += [decode(tools, shape, native(shape), role="baseline") for shape in main]
    steps.append(
        numbers(
            tools,
            "families",
            60,
            ["--dtypes", "f32", "--family", "idefics3"] if tools.dry else ["--dtypes", "f32", "bf16"],
        )
    )
    graphs = ["eager", "graph"] if tools.device == "cuda" else ["eager"]
    steps.append(transformers(tools, main[0], graphs, 45))
    if tools.llama:
        # The first one translates its kernels for this GPU.
        steps.append(llama(tools, main[0], native(main[0]), 100))
    steps += [sanitizer(tools, tool) for tool in ("memcheck", "racecheck")]
    steps.append(flat(tools, main[0], native(main[0])))
    steps.append(frames(tools, main[0], native(main[0])))
    steps += [decode(tools, shape, weights) for weights in ("q4_k", "q8_0") for shape in main]
    steps += [decode(tools, main[-1], weights, storage="q8") for weights in ("q4_k", native(main[-1]))]
    if tools.llama:
        steps += [llama(tools, shape, "q4_k", 40) for shape in main]
    steps.append(numbers(tools, "turns", 60, ["--family", "idefics3"] if tools.dry else []))
    steps += [transformers(tools, shape, graphs, 45) for shape in main[1:]]
    if tools.llama:
        steps += [llama(tools, shape, "q8_0", 40) for shape in main]
    steps += [decode(tools, shape, native(shape)) for shape in shapes[3:]]
    steps.append(transformers(tools, main[0], ["compile"], 90))
    if tools.llama:
        steps += [llama(tools, shape, native(shape), 60) for shape in main[1:]]
    steps += [decode(tools, shape, "q4_k") for shape in shapes[3:]]
    if not tools.dry:
        steps.append(numbers(tools, "demo", 180, []))
    return steps
