"""What the golden scripts share: the transformers model and processor, one user turn with images, files and checks."""

import hashlib
import json
from pathlib import Path

import torch
from PIL import Image
from reference import MASK, ROPE, BoundedDecoder, CacheParams, TextModel, wrong_heads
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoTokenizer, Idefics3Processor, SmolVLMForConditionalGeneration

HERE = Path(__file__).resolve().parent
NEW_TOKENS = 32


def load_processor(model_dir: Path) -> Idefics3Processor:
    """Tokenizer and PIL image processor of a checkpoint, one tile per image.

    Idefics3Processor expands single images exactly as SmolVLMProcessor does, and does not need the video packages.
    """
    template = model_dir / "chat_template.json"
    if template.exists():
        text = json.loads(template.read_text())["chat_template"]
    else:
        text = (model_dir / "chat_template.jinja").read_text()
    config = json.loads((model_dir / "config.json").read_text())
    vision = config["vision_config"]
    return Idefics3Processor(
        image_processor=AutoImageProcessor.from_pretrained(model_dir, backend="pil", do_image_splitting=False),
        tokenizer=AutoTokenizer.from_pretrained(model_dir),
        image_seq_len=(vision["image_size"] // vision["patch_size"] // config["scale_factor"]) ** 2,
        chat_template=text,
    )


def load_model(model_dir: Path, attention: str = "eager") -> SmolVLMForConditionalGeneration:
    """The checkpoint in f32, whatever precision it is stored in."""
    model = SmolVLMForConditionalGeneration.from_pretrained(
        model_dir, dtype=torch.float32, attn_implementation=attention
    )
    return model.eval()


def image_features(model: SmolVLMForConditionalGeneration, pixel_values: torch.Tensor) -> torch.Tensor:
    """Connector output [images, image tokens, hidden] of pixel values [1, images, 3, side, side]."""
    features = torch.cat(model.get_image_features(pixel_values, return_dict=True).pooler_output)
    return features.view(pixel_values.shape[1], -1, features.shape[-1])


def merged_embeds(model: SmolVLMForConditionalGeneration, ids: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Embeddings [tokens, hidden] of ids [tokens], image tokens replaced by features in order."""
    embeds = model.get_input_embeddings()(ids).clone()
    embeds[ids == model.config.image_token_id] = features.reshape(-1, features.shape[-1])
    return embeds


def max_diff(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.double() - b.double()).abs().max().item()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    path.chmod(0o644)


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


def perturbed_forward(model_dir: Path, embeds: torch.Tensor) -> dict[str, float]:
    """Largest change of the prompt's logits for mistakes in the text decoder."""
    text, params = TextModel(model_dir), CacheParams("full", budget=0, slack=0, prefix=0)

    def run(perturb: frozenset[str]) -> torch.Tensor:
        return BoundedDecoder(text, params, perturb).append(embeds, 0)

    base = run(frozenset())
    changes = {name: max_diff(base, run(frozenset([name]))) for name in (MASK, wrong_heads(text.config), ROPE)}
    reverse = BoundedDecoder(text, params)
    reverse.frequencies = reverse.frequencies * 0.0
    changes["no_positions"] = max_diff(base, reverse.append(embeds, 0))
    return changes


def perturbed_vision(model_dir: Path, inputs: dict[str, torch.Tensor], logits: torch.Tensor) -> dict[str, float]:
    """Largest change of the prompt's logits for mistakes outside the decoder's attention."""

    def change(edit) -> float:
        model = load_model(model_dir)
        edit(model)
        return max_diff(model(**inputs).logits, logits)

    def transpose_positions(model: SmolVLMForConditionalGeneration) -> None:
        table = model.model.vision_model.embeddings.position_embedding.weight
        side = round(table.shape[0] ** 0.5)
        table.data = table.data.view(side, side, -1).transpose(0, 1).reshape(table.shape).clone()

    def exact_gelu(model: SmolVLMForConditionalGeneration) -> None:
        for layer in model.model.vision_model.encoder.layers:
            layer.mlp.activation_fn = torch.nn.GELU()

    def rms_epsilon(model: SmolVLMForConditionalGeneration) -> None:
        for module in model.model.text_model.modules():
            if hasattr(module, "variance_epsilon"):
                module.variance_epsilon = 1e-6 if module.variance_epsilon != 1e-6 else 1e-5

    def layer_norm_epsilon(model: SmolVLMForConditionalGeneration) -> None:
        for module in model.model.vision_model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.eps = 1e-6 if module.eps != 1e-6 else 1e-5

    return {
        "transposed_patch_positions": change(transpose_positions),
        "exact_gelu": change(exact_gelu),
        "other_rms_norm_eps": change(rms_epsilon),
        "other_layer_norm_eps": change(layer_norm_epsilon),
    }


@torch.no_grad()
def make_forward_golden(model_dir: Path, out: Path, images: list[str], question: str, tolerance: float) -> None:
    """One user turn, images first: inputs as the processor gives them, features, logits, greedy tokens."""
    processor, model = load_processor(model_dir), load_model(model_dir)
    content = [{"type": "image"} for _ in images] + [{"type": "text", "text": question}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    pictures = [Image.open(out / name).convert("RGB") for name in images]
    batch = processor(text=[prompt], images=[pictures], return_tensors="pt")
    inputs = {"input_ids": batch["input_ids"], "pixel_values": batch["pixel_values"]}
    logits = model(**inputs).logits
    features = image_features(model, inputs["pixel_values"])
    generated = model.generate(
        **inputs, do_sample=False, max_new_tokens=NEW_TOKENS, output_scores=True, return_dict_in_generate=True
    )
    new_ids = generated.sequences[0, inputs["input_ids"].shape[1] :]
    top2 = torch.stack(generated.scores)[:, 0].topk(2).values
    sdpa = load_model(model_dir, "sdpa")(**inputs).logits
    embeds = merged_embeds(model, inputs["input_ids"][0], features)
    full = CacheParams("full", budget=0, slack=0, prefix=0)
    reference = BoundedDecoder(TextModel(model_dir), full).append(embeds, 0)
    exact = BoundedDecoder(TextModel(model_dir, torch.float64), full).append(embeds.double(), 0)
    write_tensors(out / "inputs.safetensors", inputs)
    write_tensors(
        out / "expected.safetensors", {"image_features": features, "logits": logits, "generated_ids": new_ids}
    )
    perturbed = perturbed_forward(model_dir, embeds) | perturbed_vision(model_dir, inputs, logits)
    write_json(
        out / "forward.json",
        {
            "images": images,
            "question": question,
            "template_text": prompt,
            "prompt": processor.tokenizer.decode(inputs["input_ids"][0]),
            "generated_text": processor.tokenizer.decode(new_ids, skip_special_tokens=True),
            "tolerance": tolerance,
            "model_sha256": sha256(model_dir / "model.safetensors"),
            "logits_deviation": logits.std().item(),
            "smallest_greedy_margin": (top2[:, 0] - top2[:, 1]).min().item(),
            "image_processor": type(processor.image_processor).__name__,
            "sdpa_against_eager": max_diff(sdpa, logits),
            "reference_against_transformers": max_diff(reference, logits[0]),
            "transformers_against_f64": max_diff(exact, logits[0]),
            "perturbed": perturbed,
        },
    )


def check_sensitive(perturbed: dict[str, float], names: tuple[str, ...], tolerance: float, what: str) -> None:
    """A golden that a mistake leaves within 100 tolerances proves nothing."""
    for name in names:
        if perturbed[name] < 100 * tolerance:
            raise SystemExit(
                f"{what}: {name} changes the logits by {perturbed[name]:.1e}, expected > {100 * tolerance}"
            )
