"""The sizes of published decoders, from tests/golden/published, for what is measured beside inf_mllm."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

PUBLISHED = Path(__file__).resolve().parents[2] / "tests/golden/published"
FILES = {
    "SmolVLM-500M": "SmolVLM-500M-Instruct",
    "SmolVLM2-2.2B": "SmolVLM2-2.2B-Instruct",
    "Qwen3-VL-2B": "Qwen3-VL-2B-Instruct",
    "LLaVA-1.5-7B": "llava-1.5-7b-hf",
    "Qwen2.5-VL-3B": "Qwen2.5-VL-3B-Instruct",
}
"""As `inf_mllm bench --shape` names them."""


@dataclass(frozen=True)
class Shape:
    """A decoder that is built like Llama."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocabulary: int
    tied: bool = False
    """The output layer is the table of embeddings."""
    qk_norm: bool = False
    """Queries and keys are normalised, as in Qwen3."""
    qkv_bias: bool = False
    """Queries, keys and values have biases, as in Qwen2.5."""

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """Rows and columns of every matrix that a token is multiplied with."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        layer = [(queries, self.hidden), (keys, self.hidden), (keys, self.hidden), (self.hidden, queries)]
        layer += [(self.inner, self.hidden), (self.inner, self.hidden), (self.hidden, self.inner)]
        return layer * self.layers + [(self.vocabulary, self.hidden)]

    def cache_bytes(self, tokens: int, size: int = 2) -> int:
        """Keys and values of so many tokens, `size` bytes a number."""
        return 2 * self.layers * self.kv_heads * self.head_dim * tokens * size


TINY = Shape("tiny", 256, 3, 4, 2, 64, 512, 1024)


def shape(name: str) -> Shape:
    if name == TINY.name:
        return TINY
    about = json.loads((PUBLISHED / f"{FILES[name]}.json").read_text())
    tensors = about["tensors"]

    def dims(ending: str) -> list[int]:
        return next(dims for tensor, dims in tensors.items() if tensor.endswith(ending))

    def there(ending: str) -> bool:
        return any(tensor.endswith(ending) for tensor in tensors)

    query = next(tensor for tensor in tensors if tensor.endswith("self_attn.q_proj.weight") and "vision" not in tensor)
    vocabulary, hidden = dims("embed_tokens.weight")
    head_dim = about["config"].get("text_config", {}).get("head_dim") or 128
    keys = tensors[query.replace("q_proj", "k_proj")][0]
    return Shape(
        name,
        hidden=hidden,
        layers=int(re.search(r"\{0\.\.(\d+)\}", query)[1]) + 1,
        heads=tensors[query][0] // head_dim,
        kv_heads=keys // head_dim,
        head_dim=head_dim,
        inner=tensors[query.replace("self_attn.q_proj", "mlp.gate_proj")][0],
        vocabulary=vocabulary,
        tied=not there("lm_head.weight"),
        qk_norm=there("self_attn.q_norm.weight"),
        qkv_bias=query.replace("q_proj.weight", "q_proj.bias") in tensors,
    )
