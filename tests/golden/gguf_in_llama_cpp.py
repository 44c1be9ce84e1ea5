"""How far llama.cpp (package xllamacpp) is from transformers on the Qwen-VL files: log probabilities after texts and after pictures."""

import base64
import json
import tempfile
import urllib.request
from pathlib import Path

import torch
import xllamacpp
from pictures import draw
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

TEXTS = ["What is in view?", "Which one is red", "a", "Hello robot, go", "The robot should turn left."]
# Width and height at which neither side resizes; llama.cpp makes no picture smaller than 8 tokens.
PICTURES = {"qwen2_vl": (36, 30), "qwen2_5_vl": (36, 30), "qwen3_vl": (40, 32)}
FRAME = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"


def as_the_file_says(model: torch.nn.Module, family: str) -> torch.nn.Module:
    """What llama.cpp knows of the tower: windows of 112 pixels, and the decoder's epsilon for that of Qwen3-VL."""
    tower = model.model.visual
    if family == "qwen2_5_vl":
        tower.window_size = 112
    if family == "qwen3_vl":
        for module in tower.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.eps = model.config.text_config.rms_norm_eps
    return model


class Server:
    def __init__(self, folder: Path):
        params = xllamacpp.CommonParams()
        params.model.path, params.mmproj.path = str(folder / "model-f32.gguf"), str(folder / "mmproj-model-f32.gguf")
        params.n_ctx, params.n_parallel, params.warmup, params.fit_params = 1024, 1, False, False
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        self.server = xllamacpp.Server(params)
        with urllib.request.urlopen(self.server.listening_address + "/props") as response:
            self.marker = json.load(response)["media_marker"]

    def after(self, prompt: list[int] | dict, vocabulary: int) -> dict[int, float] | None:
        """Log probabilities of the next token; nothing if the likeliest one is half a character, which the server keeps back."""
        body = {"prompt": prompt, "n_predict": 1, "temperature": 0, "n_probs": vocabulary, "cache_prompt": False}
        request = urllib.request.Request(
            self.server.listening_address + "/completion",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as response:
            answer = json.load(response)
        if "completion_probabilities" not in answer:
            return None
        return {entry["id"]: entry["logprob"] for entry in answer["completion_probabilities"][0]["top_logprobs"]}


@torch.no_grad()
def differences(family: str, checkpoint: Path, folder: Path) -> dict:
    """The largest difference of a log probability, and after how many texts and pictures it was looked for."""
    server, processor = Server(folder), AutoProcessor.from_pretrained(checkpoint)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager")
    model = as_the_file_says(model.eval(), family)
    found: dict[str, list[float]] = {"texts": [], "pictures": []}

    def compare(kind: str, inputs: dict, prompt: list[int] | dict) -> None:
        expected = model(**inputs).logits[0, -1].log_softmax(-1)
        got = server.after(prompt, len(expected))
        if got is not None:
            found[kind].append(max(abs(expected[token].item() - value) for token, value in got.items()))

    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "picture.png"
        draw(file, *PICTURES[family], seed=3, noise=20)
        image, data = Image.open(file).convert("RGB"), base64.b64encode(file.read_bytes()).decode()
    for text in TEXTS:
        ids = processor.tokenizer(text).input_ids
        compare("texts", {"input_ids": torch.tensor([ids])}, ids)
        inputs = processor(text=[FRAME + text], images=[image], return_tensors="pt")
        whole = {"prompt_string": f"<|im_start|>user\n{server.marker}{text}", "multimodal_data": [data]}
        compare("pictures", inputs, whole)
    for kind, values in found.items():
        if not values:
            raise SystemExit(f"{family}: llama.cpp gave nothing after {kind}")
    return {kind: {"compared": len(values), "largest_difference": max(values)} for kind, values in found.items()}
