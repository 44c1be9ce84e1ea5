"""Decode and prefill here and in llama.cpp, in turns on one machine; prints the ratios of time, the median over the rounds.

    python3 -m venv /tmp/llama-cpp && /tmp/llama-cpp/bin/pip install gguf numpy xllamacpp
    cargo build --release --example decode_speed
    /tmp/llama-cpp/bin/python scripts/compare_llama_cpp.py [--context 512] [--threads 2] [--rounds 5] [--weights f32] [--built-here]

Both run on the same file. --weights says which: q4_1 is that of `make weights-smollm2`; f32 and q8_0 are the same model converted, and
q4_k_m has the shape of a model with half a billion weights, 24 layers of 896, blocks as llama.cpp's Q4_K_M chooses them (rows of 896 do
not fill blocks of 256: Q5_0 and Q8_0 take their place) and random numbers. Those are made here, in `out/`.
llama.cpp comes as xllamacpp, which has prebuilt wheels, and keeps keys and values in f32 too. The first line of the output says
which instructions it was built for: one built on the machine itself may be faster. With --built-here it is llama-cpp-python's, which
`pip install --no-binary llama-cpp-python llama-cpp-python` compiles for the machine (five minutes; a C++ compiler is needed).
"""

import argparse
import json
import re
import statistics
import subprocess
import time
import urllib.request
from pathlib import Path

import gguf
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "models/smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf"
SPEED = ROOT / "target/release/examples/decode_speed"
NEW_TOKENS = 32
VOCABULARY = 49152
# Of the model with random numbers.
LAYERS, HIDDEN, INNER, HEADS, KV_HEADS = 24, 896, 4864, 14, 2

Quant = gguf.GGMLQuantizationType


def begin(part: Path, changed: dict[str, int]) -> gguf.GGUFWriter:
    """A file with the header of SmolLM2 but for what is changed."""
    part.parent.mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(part, "llama")
    own = {"general.architecture", "general.file_type", "general.quantization_version"}
    for field in gguf.GGUFReader(SOURCE).fields.values():
        if field.name.startswith("GGUF.") or field.name in own:
            continue
        kind = field.types[0]
        element = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, changed.get(field.name, field.contents()), kind, sub_type=element)
    return writer


def finish(writer: gguf.GGUFWriter, part: Path, file: Path) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(file)


def convert(file: Path, kind: Quant) -> None:
    """Writes the weights of SmolLM2 with its matrices as another type."""
    part = file.with_suffix(".part")
    writer = begin(part, {})
    for tensor in gguf.GGUFReader(SOURCE).tensors:
        wide = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        matrix = len(tensor.shape) == 2
        writer.add_tensor(
            tensor.name,
            gguf.quants.quantize(wide, kind) if matrix else wide,
            raw_dtype=kind if matrix else Quant.F32,
        )
    finish(writer, part, file)


def random_blocks(random: np.random.Generator, rows: int, width: int, kind: Quant) -> np.ndarray:
    """Blocks with small scales and any integers, as bytes [rows, bytes of a row]."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (rows, width // block, size), dtype=np.uint8)
    places = {Quant.Q6_K: [208], Quant.Q4_K: [0, 2]}.get(kind, [0])
    for place in places:
        scales = random.uniform(-1e-4, 1e-4, blocks.shape[:2]).astype(np.float16)
        blocks[:, :, place : place + 2] = scales.view(np.uint8).reshape(*blocks.shape[:2], 2)
    return blocks.reshape(rows, -1)


def half_a_billion(file: Path) -> None:
    """Writes a model with random numbers, in the blocks that llama.cpp's Q4_K_M has for these widths."""
    part = file.with_suffix(".part")
    writer = begin(
        part,
        {
            "llama.block_count": LAYERS,
            "llama.embedding_length": HIDDEN,
            "llama.feed_forward_length": INNER,
            "llama.attention.head_count": HEADS,
            "llama.attention.head_count_kv": KV_HEADS,
            "llama.rope.dimension_count": HIDDEN // HEADS,
        },
    )
    random = np.random.default_rng(0)

    def matrix(name: str, rows: int, width: int, kind: Quant) -> None:
        writer.add_tensor(f"{name}.weight", random_blocks(random, rows, width, kind), raw_dtype=kind)

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(HIDDEN, dtype=np.float32))

    matrix("token_embd", VOCABULARY, HIDDEN, Quant.Q8_0)
    norm("output_norm")
    keys = HIDDEN // HEADS * KV_HEADS
    for layer in range(LAYERS):
        # Half of the layers have values and the way down in more bits.
        more = layer < LAYERS // 8 or layer >= 7 * LAYERS // 8 or (layer - LAYERS // 8) % 3 == 2
        name = f"blk.{layer}"
        norm(f"{name}.attn_norm")
        norm(f"{name}.ffn_norm")
        matrix(f"{name}.attn_q", HIDDEN, HIDDEN, Quant.Q5_0)
        matrix(f"{name}.attn_k", keys, HIDDEN, Quant.Q5_0)
        matrix(f"{name}.attn_v", keys, HIDDEN, Quant.Q8_0 if more else Quant.Q5_0)
        matrix(f"{name}.attn_output", HIDDEN, HIDDEN, Quant.Q5_0)
        matrix(f"{name}.ffn_gate", INNER, HIDDEN, Quant.Q5_0)
        matrix(f"{name}.ffn_up", INNER, HIDDEN, Quant.Q5_0)
        matrix(f"{name}.ffn_down", HIDDEN, INNER, Quant.Q6_K if more else Quant.Q4_K)
    finish(writer, part, file)


def weights(name: str) -> Path:
    """The file, which is made if it is not there."""
    if name == "q4_1":
        return SOURCE
    file = ROOT / f"out/compare-{name}.gguf"
    if not file.exists():
        make = {
            "f32": lambda: convert(file, Quant.F32),
            "q8_0": lambda: convert(file, Quant.Q8_0),
            "q4_k_m": lambda: half_a_billion(file),
        }
        make[name]()
    return file


def prompt(context: int) -> list[int]:
    return [i * 7919 % VOCABULARY for i in range(context)]


class Wheel:
    """llama.cpp as xllamacpp brings it, behind the server that it has."""

    def __init__(self, weights: Path, context: int, threads: int):
        # Each way needs its own package only.
        import xllamacpp

        self.system = xllamacpp.get_system_info()
        params = xllamacpp.CommonParams()
        params.model.path = str(weights)
        params.n_ctx, params.n_parallel = context + 4 * NEW_TOKENS, 1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        self.server = xllamacpp.Server(params)
        self.prompt = prompt(context)

    def measure(self) -> tuple[float, float]:
        """Milliseconds per decoded token, prefill in tokens per second."""
        body = {"prompt": self.prompt, "n_predict": NEW_TOKENS, "temperature": 0}
        body |= {"cache_prompt": False, "ignore_eos": True}
        request = urllib.request.Request(
            self.server.listening_address + "/completion",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as response:
            timings = json.load(response)["timings"]
        return timings["predicted_per_token_ms"], timings["prompt_per_second"]


class BuiltHere:
    """llama.cpp as llama-cpp-python has compiled it."""

    def __init__(self, weights: Path, context: int, threads: int):
        import llama_cpp

        self.system = llama_cpp.llama_print_system_info().decode()
        self.llama = llama_cpp.Llama(
            str(weights),
            n_ctx=context + 4 * NEW_TOKENS,
            n_batch=context,
            n_ubatch=context,
            n_threads=threads,
            n_threads_batch=threads,
            type_k=llama_cpp.GGML_TYPE_F32,
            type_v=llama_cpp.GGML_TYPE_F32,
            flash_attn=True,
            verbose=False,
        )
        self.prompt = prompt(context)

    def measure(self) -> tuple[float, float]:
        """As that of `Wheel`."""
        self.llama.reset()
        began = time.perf_counter()
        self.llama.eval(self.prompt)
        prefilled = time.perf_counter()
        for token in self.prompt[:NEW_TOKENS]:
            self.llama.eval([token])
        decoded = time.perf_counter()
        return (decoded - prefilled) * 1e3 / NEW_TOKENS, len(self.prompt) / (prefilled - began)


def measure_here(weights: Path, context: int, threads: int) -> tuple[float, float]:
    """The same of this repository's decoder."""
    command = [SPEED, weights, str(context), str(threads), "brief", "auto"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    prefill, decode = (float(re.search(rf"{name} +([\d.]+)", text)[1]) for name in ("prefill", "decode"))
    return decode, prefill


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--weights", choices=["f32", "q8_0", "q4_1", "q4_k_m"], default="f32")
    parser.add_argument("--built-here", action="store_true")
    args = parser.parse_args()
    file = weights(args.weights)
    llama_cpp = (BuiltHere if args.built_here else Wheel)(file, args.context, args.threads)
    print(llama_cpp.system)
    decode, prefill = [], []
    for number in range(args.rounds):
        theirs, here = llama_cpp.measure(), measure_here(file, args.context, args.threads)
        decode.append(here[0] / theirs[0])
        prefill.append(theirs[1] / here[1])
        print(
            f"round {number + 1}: llama.cpp {theirs[0]:.2f} ms per token, {theirs[1]:.0f} tokens/s prefill; "
            f"here {here[0]:.2f} ms, {here[1]:.0f} tokens/s; ratios of time {decode[-1]:.2f}, {prefill[-1]:.2f}",
            flush=True,
        )
    for name, ratios in [("decode", decode), ("prefill", prefill)]:
        print(f"{name}: {statistics.median(ratios):.2f} of llama.cpp's time, {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
