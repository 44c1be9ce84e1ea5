"""A frame through SmolVLM-256M's vision tower and connector, here and in llama.cpp, in turns on one machine; prints the ratios.

    python3 -m venv /tmp/llama-cpp && /tmp/llama-cpp/bin/pip install gguf numpy xllamacpp
    cargo build --release --example tower_speed
    /tmp/llama-cpp/bin/python scripts/compare_mtmd.py [--threads 2] [--rounds 5] [--before PATH]

Both run on the same files, which are made in `out/mtmd-smolvlm-256m`: a projector of the published shape with random matrices in
f16, and a decoder of one layer that is only there to ask with. --before is the example as an older commit built it, which then
takes its turn too. A time is the better of two frames, a ratio the median of the rounds' own.
llama.cpp comes as xllamacpp, which has prebuilt wheels. The first line of the output says which instructions the wheel was built
for: one built on the machine itself may be faster.
"""

import argparse
import base64
import json
import os
import re
import statistics
import struct
import subprocess
import tempfile
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import gguf
import numpy as np
import xllamacpp

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "out/mtmd-smolvlm-256m"
DECODER, PROJECTOR = FOLDER / "model.gguf", FOLDER / "mmproj-model-f16.gguf"
SPEED = ROOT / "target/release/examples/tower_speed"

IMAGE, PATCH, SCALE, LAYERS = 512, 16, 4, 12
HIDDEN, INNER, HEADS = 768, 3072, 12
DECODER_HIDDEN, DECODER_INNER, DECODER_HEADS = 576, 1536, 9
MARKUP = ["<|im_start|>", "<|im_end|>", "<image>", "<fake_token_around_image>", "<global-img>"]
PLACES = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]


def random_matrix(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """f16, with a deviation of 1 / sqrt(inputs)."""
    inputs = int(np.prod(shape[1:]))
    return (rng.standard_normal(shape, np.float32) / np.float32(inputs**0.5)).astype(np.float16)


def write(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_decoder(path: Path) -> None:
    """One layer of SmolLM2-135M's sizes; its tokens are single bytes and the markup of pictures."""
    rng = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(8192)
    writer.add_embedding_length(DECODER_HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(DECODER_INNER)
    writer.add_head_count(DECODER_HEADS)
    writer.add_head_count_kv(3)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e5)
    writer.add_rope_dimension_count(64)
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printed]
    letters = [chr(byte) for byte in printed] + [chr(256 + i) for i in range(len(rest))]
    newline = letters[len(printed) + rest.index(10)]
    tokens = [*MARKUP, *PLACES, *letters, 2 * newline]
    control = len(MARKUP) + len(PLACES)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * control + [gguf.TokenType.NORMAL] * (len(tokens) - control))
    writer.add_token_merges([f"{newline} {newline}"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for message in messages %}{{ message.content }}{% endfor %}")
    norm = np.ones(DECODER_HIDDEN, np.float32)
    writer.add_tensor("token_embd.weight", random_matrix(rng, len(tokens), DECODER_HIDDEN))
    writer.add_tensor("output_norm.weight", norm)
    writer.add_tensor("blk.0.attn_norm.weight", norm)
    writer.add_tensor("blk.0.ffn_norm.weight", norm)
    for name, rows, columns in [
        ("attn_q", DECODER_HIDDEN, DECODER_HIDDEN),
        ("attn_k", 192, DECODER_HIDDEN),
        ("attn_v", 192, DECODER_HIDDEN),
        ("attn_output", DECODER_HIDDEN, DECODER_HIDDEN),
        ("ffn_gate", DECODER_INNER, DECODER_HIDDEN),
        ("ffn_up", DECODER_INNER, DECODER_HIDDEN),
        ("ffn_down", DECODER_HIDDEN, DECODER_INNER),
    ]:
        writer.add_tensor(f"blk.0.{name}.weight", random_matrix(rng, rows, columns))
    write(writer)


def write_projector(path: Path) -> None:
    rng = np.random.default_rng(2)
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_type("mmproj")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "idefics3")
    for key, value in [
        ("image_size", IMAGE),
        ("patch_size", PATCH),
        ("embedding_length", HIDDEN),
        ("feed_forward_length", INNER),
        ("projection_dim", DECODER_HIDDEN),
        ("attention.head_count", HEADS),
        ("block_count", LAYERS),
        ("projector.scale_factor", SCALE),
        ("preproc_image_size", IMAGE),
    ]:
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    writer.add_array("clip.vision.image_mean", [0.5] * 3)
    writer.add_array("clip.vision.image_std", [0.5] * 3)
    writer.add_bool("clip.use_gelu", True)

    def linear(name: str, rows: int, columns: int) -> None:
        writer.add_tensor(f"{name}.weight", random_matrix(rng, rows, columns))
        writer.add_tensor(f"{name}.bias", np.zeros(rows, np.float32))

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(HIDDEN, np.float32))
        writer.add_tensor(f"{name}.bias", np.zeros(HIDDEN, np.float32))

    writer.add_tensor("v.patch_embd.weight", random_matrix(rng, HIDDEN, 3, PATCH, PATCH))
    writer.add_tensor("v.patch_embd.bias", np.zeros(HIDDEN, np.float32))
    # llama.cpp adds these without widening them: of f16 it stops with an assertion.
    places = rng.standard_normal(((IMAGE // PATCH) ** 2, HIDDEN), np.float32)
    writer.add_tensor("v.position_embd.weight", places * np.float32(0.02))
    for layer in range(LAYERS):
        block = f"v.blk.{layer}"
        norm(f"{block}.ln1")
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            linear(f"{block}.{name}", HIDDEN, HIDDEN)
        norm(f"{block}.ln2")
        linear(f"{block}.ffn_up", INNER, HIDDEN)
        linear(f"{block}.ffn_down", HIDDEN, INNER)
    norm("v.post_ln")
    writer.add_tensor("mm.model.fc.weight", random_matrix(rng, DECODER_HIDDEN, HIDDEN * SCALE**2))
    write(writer)


def make(path: Path, writes: Callable[[Path], None]) -> None:
    """Writes a file that is not there yet."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        writes(part)
        part.rename(path)


def png(rgb: np.ndarray) -> bytes:
    """A picture (height, width, 3), as a PNG file."""
    height, width, _ = rgb.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), rgb.reshape(height, -1)], 1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows.tobytes(), 1)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


class Log:
    """What this process writes to standard output and error, by whatever language, goes into `file` from now on, but for `say`."""

    def __init__(self, file: BinaryIO, copy: BinaryIO):
        self.terminal, self.copy = os.fdopen(os.dup(1), "w"), copy
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)

    def say(self, text: str) -> None:
        print(text, file=self.terminal, flush=True)

    def new(self) -> str:
        """What has come since this was asked last."""
        return self.copy.read().decode(errors="replace")


class LlamaCpp:
    """llama.cpp in this process. The times are those of its own log, from the copy of the pixels to the rows that come out."""

    def __init__(self, threads: int, log: Log):
        params = xllamacpp.CommonParams()
        params.model.path, params.mmproj.path = str(DECODER), str(PROJECTOR)
        params.n_ctx, params.n_parallel, params.warmup, params.fit_params = 2048, 1, False, False
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.verbosity = 5
        self.log, self.server = log, xllamacpp.Server(params)
        with urllib.request.urlopen(self.server.listening_address + "/props") as response:
            self.marker = json.load(response)["media_marker"]
        self.pictures = 0

    def measure(self) -> float:
        """Milliseconds per frame, the best of two: llama.cpp makes two tiles of a picture, whatever its size."""
        rng = np.random.default_rng(self.pictures)
        self.pictures += 1
        picture = png(rng.integers(0, 256, (IMAGE, IMAGE, 3), np.uint8))
        prompt = {"prompt_string": self.marker + "a", "multimodal_data": [base64.b64encode(picture).decode()]}
        body = {"prompt": prompt, "n_predict": 1, "temperature": 0, "cache_prompt": False}
        request = urllib.request.Request(
            self.server.listening_address + "/completion",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        self.log.new()
        with urllib.request.urlopen(request) as response:
            response.read()
        text = self.log.new()
        frames = re.findall(r"([\d.]+) D clip_encode: copying image.*?([\d.]+) D clip_encode: output", text, re.DOTALL)
        if not frames:
            self.log.say(text)
            raise SystemExit("llama.cpp said nothing of a picture")
        return min(milliseconds(end) - milliseconds(start) for start, end in frames)


def milliseconds(time: str) -> float:
    """Of a time in llama.cpp's log: minutes, seconds, milliseconds and microseconds."""
    minutes, seconds, thousandths, millionths = map(int, time.split("."))
    return (60 * minutes + seconds) * 1e3 + thousandths + millionths / 1e3


def measure_here(speed: Path, threads: int) -> float:
    """The same of a build of this repository."""
    command = [speed, FOLDER, f"{IMAGE}x{IMAGE}", str(threads), "2"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(re.search(r"best +([\d.]+)", text)[1])


def compare(args: argparse.Namespace, log: Log) -> None:
    log.say(xllamacpp.get_system_info())
    llama_cpp = LlamaCpp(args.threads, log)
    sides = {"here": lambda: measure_here(SPEED, args.threads), "llama.cpp": llama_cpp.measure}
    if args.before:
        sides["before"] = lambda: measure_here(args.before, args.threads)
    results = {name: [] for name in sides}
    for number in range(args.rounds):
        for name, measure in sides.items():
            results[name].append(measure())
        times = ", ".join(f"{name} {times[-1]:.0f} ms" for name, times in results.items())
        log.say(f"round {number + 1}: {times}; load {os.getloadavg()[0]:.1f}")
    here = results.pop("here")
    for name, there in results.items():
        ratios = [mine / theirs for mine, theirs in zip(here, there, strict=True)]
        log.say(
            f"{name}: best {min(there):.0f} ms, here {min(here):.0f} ms; "
            f"here over {name}: median of the rounds' ratios {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--before", type=Path, help="the example tower_speed of an older build")
    args = parser.parse_args()
    make(DECODER, write_decoder)
    make(PROJECTOR, write_projector)
    with tempfile.NamedTemporaryFile() as file, open(file.name, "rb") as copy:
        compare(args, Log(file, copy))


if __name__ == "__main__":
    main()
