"""Makes `tiny_llama_g1/` and `tiny_llama_g9/`: small random Llama checkpoints, 1 and 9 query heads per KV head."""

import json

import torch
from golden_io import HERE, max_diff
from make_tiny_model import randomise
from reference import BoundedDecoder, CacheParams, TextModel
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

SHARED = {
    "num_hidden_layers": 3,
    "rms_norm_eps": 1e-3,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# head_dim is not hidden_size / heads in either
MODELS = {
    "tiny_llama_g1": {
        "seed": 21,
        "vocab_size": 72,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "rope_theta": 2500.0,
    },
    "tiny_llama_g9": {
        "seed": 22,
        "vocab_size": 72,
        "hidden_size": 18,
        "intermediate_size": 30,
        "num_attention_heads": 18,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "rope_theta": 700.0,
    },
}


def hub_style(config: dict) -> dict:
    """The spelling of the published config.json files, which newer library versions read and no longer write."""
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    for name in ("dtype", "transformers_version", "architectures"):
        config.pop(name, None)
    return {"architectures": ["LlamaForCausalLM"], **config, "torch_dtype": "float32"}


@torch.no_grad()
def make(name: str, sizes: dict) -> None:
    out, sizes = HERE / name, dict(sizes)
    out.mkdir(exist_ok=True)
    seed = sizes.pop("seed")
    config = LlamaConfig(**SHARED, **sizes)
    model = LlamaForCausalLM(config).eval()
    randomise(model, seed)
    weights = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)
    published = hub_style(json.loads(config.to_json_string()))
    (out / "config.json").write_text(json.dumps(published, indent=2) + "\n")
    check(name)


def check(name: str) -> None:
    """The checkpoint as transformers reads it back against the reference decoder."""
    out = HERE / name
    model = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32, attn_implementation="eager").eval()
    ids = torch.arange(3, 3 + 60)
    logits = model(ids[None]).logits[0]
    text = TextModel(out)
    off = max_diff(
        BoundedDecoder(text, CacheParams("full", budget=0, slack=0, prefix=0)).append(text.embed(ids), 0), logits
    )
    print(f"{name}: logits deviate by {logits.std():.1f}, the reference from transformers by {off:.1e}")
    if off > 1e-4:
        raise SystemExit(f"{name}: the reference is {off:.1e} from transformers")


def main() -> None:
    for name, sizes in MODELS.items():
        make(name, sizes)


if __name__ == "__main__":
    main()
