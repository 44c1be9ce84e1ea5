"""llama.cpp beside inf_mllm: peer_llama.py FOLDER SHAPE WEIGHTS CONTEXT TOKENS [--device cuda|cpu]; prints one line of JSON.

FOLDER is what `scripts/gpu/pack.sh` packed of llama.cpp. The weights are random and leave the disk again.
"""

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

from random_gguf import read_bytes, write
from shapes import shape

BACKENDS = {"cpu": ["libggml-cpu-x64.so"], "cuda": ["libggml-cpu-x64.so", "libggml-cuda.so"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("shape")
    parser.add_argument("weights")
    parser.add_argument("context", type=int)
    parser.add_argument("tokens", type=int)
    parser.add_argument("--device", choices=BACKENDS, default="cuda")
    args = parser.parse_args()
    decoder = shape(args.shape)
    # Memory, where there is such a place: a disk may take longer to write than the measurement takes.
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place) as scratch:
        model = Path(scratch) / "model.gguf"
        write(model, decoder, args.weights)
        layers = "999" if args.device == "cuda" else "0"
        numbers = [str(args.context), str(args.tokens), layers]
        paths = [str(args.folder), os.environ.get("LD_LIBRARY_PATH", "")]
        environment = os.environ | {"LD_LIBRARY_PATH": ":".join(path for path in paths if path)}
        command = [args.folder / "llama_decode", args.folder, model, *numbers, *BACKENDS[args.device]]
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        # Its own words in front of the stack that they are followed by.
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower() or "assert" in line.lower()]
        raise SystemExit("\n".join([*done.stderr.splitlines()[-5:], *lines[:3]]) or f"exit code {done.returncode}")
    result = json.loads(done.stdout.splitlines()[-1])
    read = {"weights": read_bytes(decoder, args.weights), "cache": decoder.cache_bytes(args.context)}
    print(json.dumps(result | {"shape": args.shape, "weights": args.weights, "read": read}), flush=True)


if __name__ == "__main__":
    main()
