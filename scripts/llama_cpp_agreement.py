"""Whether a GGUF file says the same here and in llama.cpp: the likeliest next token and the distribution after twenty prompts.

    python3 -m venv /tmp/llama-cpp && /tmp/llama-cpp/bin/pip install numpy safetensors xllamacpp
    make weights-smollm2 && cargo build --release
    /tmp/llama-cpp/bin/python scripts/llama_cpp_agreement.py [FILE.gguf]

Once with the file's blocks kept (as the node runs it) and once with floats. The divergence is that of this repository's
distribution from llama.cpp's over the tokens that llama.cpp lists, the PROBABILITIES likeliest, and the rest taken together.
llama.cpp comes as xllamacpp, which has prebuilt wheels.
"""

import json
import math
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import numpy as np
import xllamacpp
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "models/smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf"
EXECUTABLE = ROOT / "target/release/inf_mllm"
PROBABILITIES = 2000
PROMPTS = [
    "The capital of France is",
    "Water boils at a temperature of",
    "A robot drives through a corridor and sees",
    "Once upon a time there was",
    "The opposite of hot is",
    "def add(a, b):\n    return",
    "Two plus two equals",
    "The sun rises in the",
    "To make bread you need flour, water, salt and",
    "The largest planet of the solar system is",
    "She opened the door and",
    "In the year 1969 the first human being",
    "The red box is to the left of the blue",
    "A week has seven",
    "Please stop when you see a",
    "The quick brown fox jumps over the lazy",
    "Photosynthesis turns light into",
    "My favourite colour is",
    "If it rains tomorrow, we will",
    "The camera shows an empty room with a table and",
]


def ask(address: str, path: str, body: dict) -> dict:
    request = urllib.request.Request(address + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def theirs(file: Path) -> list[tuple[list[int], dict[int, float]]]:
    """Of each prompt its ids and llama.cpp's probabilities of the likeliest next tokens."""
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx, params.n_parallel = 512, 1
    server = xllamacpp.Server(params)
    found = []
    for prompt in PROMPTS:
        ids = ask(server.listening_address, "/tokenize", {"content": prompt})["tokens"]
        body = {"prompt": ids, "n_predict": 1, "temperature": 0, "n_probs": PROBABILITIES, "cache_prompt": False}
        answer = ask(server.listening_address, "/completion", body)
        listed = answer["completion_probabilities"][0]["top_logprobs"]
        found.append((ids, {entry["id"]: math.exp(entry["logprob"]) for entry in listed}))
    return found


def ours(file: Path, ids: list[int], quantization: str) -> np.ndarray:
    """Probabilities of the next token [vocab] after ids."""
    with tempfile.TemporaryDirectory() as folder:
        given, written = Path(folder) / "in.safetensors", Path(folder) / "out.safetensors"
        save_file({"input_ids": np.array([ids], dtype=np.int64)}, given)
        command = [EXECUTABLE, "forward", "--model", file, "--inputs", given, "--out", written]
        subprocess.run([*command, "--device", "cpu", "--quantization", quantization], check=True, capture_output=True)
        logits = load_file(written)["logits"][0, -1].astype(np.float64)
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def divergence(reference: dict[int, float], got: np.ndarray) -> float:
    """Kullback-Leibler divergence in nats, tokens beyond the listed ones as one."""
    listed = sum(p * math.log(p / max(got[token], 1e-30)) for token, p in reference.items() if p > 0)
    rest, other = 1 - sum(reference.values()), 1 - got[list(reference)].sum()
    return listed + (rest * math.log(rest / max(other, 1e-30)) if rest > 1e-9 else 0.0)


def main() -> None:
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else FILE
    references = theirs(file)
    for quantization in ("auto", "none"):
        same, divergences = 0, []
        for ids, reference in references:
            got = ours(file, ids, quantization)
            same += int(got.argmax()) == max(reference, key=reference.get)
            divergences.append(divergence(reference, got))
        mean, most = sum(divergences) / len(divergences), max(divergences)
        print(f"quantization {quantization}: likeliest token the same {same} of {len(PROMPTS)}, ", end="")
        print(f"divergence mean {mean:.5f}, at most {most:.5f} nats", flush=True)


if __name__ == "__main__":
    main()
