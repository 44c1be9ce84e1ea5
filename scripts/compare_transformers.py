"""Compares a checkpoint's numbers with transformers': `python scripts/compare_transformers.py EXECUTABLE MODEL [--image FILE]`.

One turn with an image goes through both, in f32: the published processor makes the inputs, `inf_mllm forward` and transformers compute
the logits of every position. Needs torch, torchvision, transformers, pillow and safetensors, and memory for the model in f32
twice. Exit code 1 if the likeliest token of any position differs where transformers is sure of it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

ROOT = Path(__file__).resolve().parent.parent
# Gap between the likeliest two tokens, in multiples of the largest deviation, from which they must be the same.
SURE = 4


def published(args: argparse.Namespace) -> tuple[dict[str, torch.Tensor], torch.Tensor, float]:
    """The processor's tensors and transformers' logits [tokens, vocab], and the seconds that a second pass takes."""
    processor = AutoProcessor.from_pretrained(args.model)
    content = [{"type": "image"}, {"type": "text", "text": args.prompt}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    picture = Image.open(args.image).convert("RGB")
    batch = processor(text=[text], images=[[picture]], return_tensors="pt")
    model = AutoModelForImageTextToText.from_pretrained(args.model, dtype=torch.float32).to(args.torch_device).eval()
    inputs = {name: tensor.to(args.torch_device) for name, tensor in batch.items()}
    with torch.no_grad():
        logits = model(**inputs).logits[0].float().cpu()
        started = time.monotonic()
        model(**inputs).logits[0, -1, 0].item()
    return dict(batch), logits, time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("executable", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--image", type=Path, default=ROOT / "tests/golden/preprocess/scene.png")
    parser.add_argument("--prompt", default="What is in view?")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--torch-device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="append the result as a JSON line")
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    inputs, logits, seconds = published(args)
    torch.cuda.empty_cache()
    with tempfile.TemporaryDirectory() as folder:
        given, written = Path(folder) / "in.safetensors", Path(folder) / "out.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in inputs.items()}, given)
        command = [args.executable, "forward", "--model", args.model, "--inputs", given, "--out", written]
        subprocess.run([*command, "--device", args.device, "--dtype", "f32"], check=True)
        got = load_file(written)["logits"][0]
    off = (got - logits).abs().max().item()
    top = logits.topk(2).values
    sure = top[:, 0] - top[:, 1] > SURE * off
    same = got.argmax(-1) == logits.argmax(-1)
    result = {
        "model": args.model.name,
        "tokens": len(logits),
        "logits_deviation": logits.std().item(),
        "largest_difference": off,
        "same_likeliest": same.sum().item(),
        "transformers_s": seconds,
    }
    print(json.dumps(result))
    if args.out:
        with args.out.open("a") as file:
            file.write(json.dumps(result) + "\n")
    sys.exit(not same[sure].all())


if __name__ == "__main__":
    main()
