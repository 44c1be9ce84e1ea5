"""Decode and prefill of SmolLM2-135M, here and in llama.cpp, in turns on one machine; prints the ratios.

    python3 -m venv /tmp/llama-cpp && /tmp/llama-cpp/bin/pip install gguf numpy xllamacpp
    cargo build --release --example decode_speed
    /tmp/llama-cpp/bin/python scripts/compare_llama_cpp.py [--context 512] [--threads 2] [--rounds 5] [--blocks]

Both run on the same weights: with --blocks the Q4_1 file of `make weights-smollm2`, else that file widened to f32,
`out/smollm2-135m-f32.gguf`, which is made here.
llama.cpp comes as xllamacpp, which has prebuilt wheels, and keeps keys and values in f32 too. The first line of the output says
which instructions the wheel was built for: one built on the machine itself may be faster.
"""

import argparse
import json
import re
import statistics
import subprocess
import urllib.request
from pathlib import Path

import gguf
import numpy as np
import xllamacpp

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "models/smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf"
WIDE = ROOT / "out/smollm2-135m-f32.gguf"
SPEED = ROOT / "target/release/examples/decode_speed"
NEW_TOKENS = 32
VOCABULARY = 49152


def widen() -> None:
    """Writes the weights as f32."""
    reader = gguf.GGUFReader(SOURCE)
    WIDE.parent.mkdir(exist_ok=True)
    part = WIDE.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "llama")
    own = {"general.architecture", "general.file_type", "general.quantization_version"}
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in own:
            continue
        kind = field.types[0]
        element = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=element)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(WIDE)


class LlamaCpp:
    def __init__(self, weights: Path, context: int, threads: int):
        params = xllamacpp.CommonParams()
        params.model.path = str(weights)
        params.n_ctx, params.n_parallel = context + 4 * NEW_TOKENS, 1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        self.server = xllamacpp.Server(params)
        self.prompt = [i * 7919 % VOCABULARY for i in range(context)]

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
    parser.add_argument("--blocks", action="store_true", help="the quantised file instead of the widened one")
    args = parser.parse_args()
    if not args.blocks and not WIDE.exists():
        widen()
    weights = SOURCE if args.blocks else WIDE
    print(xllamacpp.get_system_info())
    llama_cpp = LlamaCpp(weights, args.context, args.threads)
    results = []
    for number in range(args.rounds):
        theirs, here = llama_cpp.measure(), measure_here(weights, args.context, args.threads)
        results.append(theirs + here)
        print(
            f"round {number + 1}: llama.cpp {theirs[0]:.2f} ms per token, {theirs[1]:.0f} tokens/s prefill; "
            f"here {here[0]:.2f} ms, {here[1]:.0f} tokens/s"
        )
    for name, pick in [("best", min), ("median", statistics.median)]:
        theirs, here = (pick(result[side] for result in results) for side in (0, 2))
        print(f"decode, {name}: llama.cpp {theirs:.2f} ms, here {here:.2f} ms, ratio {here / theirs:.2f}")
    for name, pick in [("best", max), ("median", statistics.median)]:
        theirs, here = (pick(result[1 + side] for result in results) for side in (0, 2))
        print(f"prefill, {name}: llama.cpp {theirs:.0f} tokens/s, here {here:.0f}, ratio {here / theirs:.2f}")


if __name__ == "__main__":
    main()
