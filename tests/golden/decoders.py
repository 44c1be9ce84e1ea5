"""Weights and layers of the text decoders: Llama and its kin (Mistral, Qwen2, Qwen3, text parts of VLMs), GPT-NeoX."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from checkpoint_files import DECODER, substituted, weight_files
from safetensors.torch import load_file
from transformers import AutoConfig

RECURRENT = ("conv", "linear_attention")
NORM_EPS = {"gpt_neox": "layer_norm_eps", "lfm2": "norm_eps"}


State = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class RopeScaling:
    """How the rotary frequencies are lowered for long inputs; kinds linear and llama3."""

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_positions: int = 0

    @classmethod
    def read(cls, rope: dict) -> "RopeScaling | None":
        kind = rope.get("rope_type", "default")
        if kind == "linear":
            return cls(kind, rope["factor"])
        if kind == "llama3":
            ramp = (rope["low_freq_factor"], rope["high_freq_factor"])
            return cls(kind, rope["factor"], *ramp, rope["original_max_position_embeddings"])
        return None

    def scaled(self, frequencies: torch.Tensor) -> torch.Tensor:
        if self.kind == "linear":
            return frequencies / self.factor
        # by the number of turns within the original length: many turns stay, few are slowed, between them a ramp
        turns = self.original_positions * frequencies / (2 * math.pi)
        stay = ((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)).clamp(0, 1)
        return frequencies * (stay + (1 - stay) / self.factor)


@dataclass(frozen=True)
class TextConfig:
    """What the arithmetic of the text decoder depends on."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rope_theta: float
    max_positions: int
    rotary_dim: int  # width of a head that is rotated
    rope_scaling: RopeScaling | None = None
    parallel_residual: bool = False
    exact_gelu: bool = True
    recurrent: tuple[int, ...] = ()  # layers that keep a state of constant size in the place of keys
    linear_key_heads: int = 0  # of Gated DeltaNet
    ignored: frozenset[str] = field(default_factory=frozenset)  # biases and norms left out on purpose, by projection

    @classmethod
    def read(cls, model_dir: Path) -> "TextConfig":
        text = AutoConfig.from_pretrained(model_dir).get_text_config(decoder=True)
        rope = text.rope_parameters
        heads = text.num_attention_heads
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
        return cls(
            layers=text.num_hidden_layers,
            heads=heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=head_dim,
            norm_eps=getattr(text, NORM_EPS.get(text.model_type, "rms_norm_eps")),
            rope_theta=rope["rope_theta"],
            max_positions=text.max_position_embeddings,
            rotary_dim=int(head_dim * (rope.get("partial_rotary_factor") or 1.0)),
            rope_scaling=RopeScaling.read(rope),
            parallel_residual=getattr(text, "use_parallel_residual", False),
            linear_key_heads=getattr(text, "linear_num_key_heads", 0),
            recurrent=tuple(i for i, kind in enumerate(getattr(text, "layer_types", None) or []) if kind in RECURRENT),
        )

    def frequencies(self) -> torch.Tensor:
        """Rotary frequencies [rotary_dim / 2] in f32."""
        half = torch.arange(0, self.rotary_dim, 2, dtype=torch.float32)
        frequencies = 1.0 / self.rope_theta ** (half / self.rotary_dim)
        return self.rope_scaling.scaled(frequencies) if self.rope_scaling else frequencies


class TextModel:
    """Weights of a checkpoint's text decoder in `dtype`: names and steps of Llama; biases and head norms where it has them."""

    EMBEDDING, FINAL_NORM, HEADS = "embed_tokens", "norm", ("lm_head",)

    def __init__(self, model_dir: Path, dtype: torch.dtype = torch.float32):
        self.config = TextConfig.read(model_dir)
        self.dtype = dtype
        tensors: dict[str, torch.Tensor] = {}
        for path in weight_files(model_dir):
            tensors |= load_file(path)
        if "embed_tokens.weight" in tensors:  # as in diffusers' pipelines
            tensors = {substituted(name, DECODER): tensor for name, tensor in tensors.items()}
        embedding = f".{self.EMBEDDING}.weight"
        self.root = next(n.removesuffix(embedding) for n in sorted(tensors) if n.endswith(embedding))
        self.weights = {n: t.to(dtype) for n, t in tensors.items() if n.startswith(f"{self.root}.")}
        heads = [n for n in sorted(tensors) if n.removesuffix(".weight").rpartition(".")[2] in self.HEADS]
        self.lm_head = tensors[heads[0] if heads else f"{self.root}{embedding}"].to(dtype)

    def get(self, name: str) -> torch.Tensor:
        return self.weights[f"{self.root}.{name}.weight"]

    def has(self, name: str) -> bool:
        """Whether there is a tensor `name` (with .weight or .bias), and it is not left out on purpose."""
        return f"{self.root}.{name}" in self.weights and name.split(".")[-2] not in self.config.ignored

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Token embeddings [tokens, hidden]."""
        return self.get(self.EMBEDDING)[ids]

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        out = x @ self.get(name).T
        return out + self.weights[f"{self.root}.{name}.bias"] if self.has(f"{name}.bias") else out

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.config.norm_eps) * self.get(name)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [tokens, vocab] of the last layer's output."""
        return self.norm(x, self.FINAL_NORM) @ self.lm_head.T

    def projected(self, name: str, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values [tokens, heads or kv_heads, head_dim] of a layer's normed input, before rotation."""
        query, key, value = (
            self.linear(h, f"{name}.self_attn.{p}_proj").view(len(h), -1, self.config.head_dim) for p in "qkv"
        )
        if self.has(f"{name}.self_attn.q_norm.weight"):
            query, key = self.norm(query, f"{name}.self_attn.q_norm"), self.norm(key, f"{name}.self_attn.k_norm")
        return query, key, value

    def attended(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """What a layer's attention adds, of the heads' output [tokens, heads * head_dim]."""
        return self.linear(x, f"{name}.self_attn.o_proj")

    def empty_state(self, layer: int) -> State:
        """What a layer without keys remembers before the stream."""
        raise NotImplementedError

    def mixed(self, name: str, h: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """What a layer without keys adds to tokens of its normed input `h`, and its state behind them."""
        raise NotImplementedError

    def no_inputs(self, name: str) -> torch.Tensor:
        """The inputs [width - 1, channels] of a convolution before the stream."""
        channels, _, width = self.get(name).shape
        return torch.zeros(width - 1, channels, dtype=self.dtype)

    def convolved(self, name: str, x: torch.Tensor, before: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Each channel of x [tokens, channels] convolved behind the inputs `before`, and the inputs that the next ones need."""
        inputs = torch.cat([before, x])
        taps = self.get(name)[:, 0]
        out = (inputs.unfold(0, taps.shape[-1], 1) * taps).sum(-1)  # windows [tokens, channels, width]
        if self.has(f"{name}.bias"):
            out = out + self.weights[f"{self.root}.{name}.bias"]
        return out, inputs[len(inputs) - len(before) :]

    def mlp(self, name: str, h: torch.Tensor) -> torch.Tensor:
        if not self.has(f"{name}.mlp.gate_proj.weight"):  # Cosmos 3 Edge: a squared ReLU
            return self.linear(self.linear(h, f"{name}.mlp.up_proj").relu() ** 2, f"{name}.mlp.down_proj")
        gate = torch.nn.functional.silu(self.linear(h, f"{name}.mlp.gate_proj"))
        return self.linear(gate * self.linear(h, f"{name}.mlp.up_proj"), f"{name}.mlp.down_proj")


class NeoXModel(TextModel):
    """GPT-NeoX: layer norms, biases everywhere, one projection in which each head's query, key and value are neighbours."""

    EMBEDDING, FINAL_NORM, HEADS = "embed_in", "final_layer_norm", ("embed_out", "lm_head")

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        bias = self.weights[f"{self.root}.{name}.bias"]
        return torch.nn.functional.layer_norm(x, x.shape[-1:], self.get(name), bias, self.config.norm_eps)

    def projected(self, name: str, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        fused = self.linear(h, f"{name}.attention.query_key_value")
        return fused.view(len(h), self.config.heads, -1).chunk(3, dim=-1)

    def attended(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x, f"{name}.attention.dense")

    def mlp(self, name: str, h: torch.Tensor) -> torch.Tensor:
        approximate = "none" if self.config.exact_gelu else "tanh"
        h = torch.nn.functional.gelu(self.linear(h, f"{name}.mlp.dense_h_to_4h"), approximate=approximate)
        return self.linear(h, f"{name}.mlp.dense_4h_to_h")


class Lfm2Model(TextModel):
    """LFM2: layers of Llama under other names, and layers of short convolutions between two gates."""

    FINAL_NORM = "embedding_norm"
    NAMES = (
        (".operator_norm.", ".input_layernorm."),
        (".ffn_norm.", ".post_attention_layernorm."),
        (".q_layernorm.", ".q_norm."),
        (".k_layernorm.", ".k_norm."),
        (".self_attn.out_proj.", ".self_attn.o_proj."),
        (".feed_forward.w1.", ".mlp.gate_proj."),
        (".feed_forward.w2.", ".mlp.down_proj."),
        (".feed_forward.w3.", ".mlp.up_proj."),
    )

    def __init__(self, model_dir: Path, dtype: torch.dtype = torch.float32):
        super().__init__(model_dir, dtype)
        for hub, llama in self.NAMES:
            self.weights = {name.replace(hub, llama): tensor for name, tensor in self.weights.items()}

    def empty_state(self, layer: int) -> State:
        return (self.no_inputs(f"layers.{layer}.conv.conv"),)

    def mixed(self, name: str, h: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        before, behind, x = self.linear(h, f"{name}.conv.in_proj").chunk(3, dim=-1)
        out, inputs = self.convolved(f"{name}.conv.conv", before * x, state[0])
        return self.linear(behind * out, f"{name}.conv.out_proj"), (inputs,)


class Qwen35Model(TextModel):
    """Qwen3.5: attention with gated output, and layers of Gated DeltaNet; weights of most norms are stored less one."""

    def __init__(self, model_dir: Path, dtype: torch.dtype = torch.float32):
        super().__init__(model_dir, dtype)
        for name, tensor in self.weights.items():
            if "norm" in name and "linear_attn" not in name:
                self.weights[name] = tensor + 1.0
        self.gates: dict[str, torch.Tensor] = {}

    def projected(self, name: str, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        both = self.linear(h, f"{name}.self_attn.q_proj").view(len(h), self.config.heads, 2, -1)
        query, gate = both.unbind(2)
        self.gates[name] = gate.reshape(len(h), -1).sigmoid()
        key, value = (self.linear(h, f"{name}.self_attn.{p}_proj").view(len(h), -1, self.config.head_dim) for p in "kv")
        return self.norm(query, f"{name}.self_attn.q_norm"), self.norm(key, f"{name}.self_attn.k_norm"), value

    def attended(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return super().attended(name, x * self.gates.pop(name))

    def empty_state(self, layer: int) -> State:
        name = f"layers.{layer}.linear_attn"
        heads, width = len(self.weights[f"{self.root}.{name}.A_log"]), len(self.get(f"{name}.norm"))
        channels = len(self.get(f"{name}.in_proj_qkv"))
        keys = (channels - heads * width) // 2 // self.config.linear_key_heads
        inputs = self.no_inputs(f"{name}.conv1d")
        return inputs, torch.zeros(heads, keys, width, dtype=self.dtype)

    def mixed(self, name: str, h: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        name, tokens = f"{name}.linear_attn", len(h)
        (inputs, matrices), heads = state, len(state[1])
        parameter = {p: self.weights[f"{self.root}.{name}.{p}"] for p in ("A_log", "dt_bias")}
        silu, softplus = torch.nn.functional.silu, torch.nn.functional.softplus
        qkv, inputs = self.convolved(f"{name}.conv1d", self.linear(h, f"{name}.in_proj_qkv"), inputs)
        key_heads, key_width, width = self.config.linear_key_heads, *matrices.shape[1:]
        q, k, v = silu(qkv).split([key_heads * key_width, key_heads * key_width, heads * width], dim=-1)
        q, k = (
            (x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + 1e-6)).repeat_interleave(heads // key_heads, 1)
            for x in (part.view(tokens, key_heads, key_width) for part in (q, k))
        )
        rate = self.linear(h, f"{name}.in_proj_b").sigmoid()
        left = (-parameter["A_log"].exp() * softplus(self.linear(h, f"{name}.in_proj_a") + parameter["dt_bias"])).exp()
        out = []
        for t in range(tokens):
            matrices = matrices * left[t, :, None, None]
            new = (v[t].view(heads, width) - torch.einsum("hkv,hk->hv", matrices, k[t])) * rate[t, :, None]
            matrices = matrices + k[t][:, :, None] * new[:, None]
            out.append(torch.einsum("hkv,hk->hv", matrices, q[t]) / key_width**0.5)
        gate = silu(self.linear(h, f"{name}.in_proj_z")).view(tokens, heads, width)
        out = self.norm(torch.stack(out), f"{name}.norm") * gate
        return self.linear(out.reshape(tokens, -1), f"{name}.out_proj"), (inputs, matrices)


def open_text_model(model_dir: Path, dtype: torch.dtype = torch.float32) -> TextModel:
    """The decoder of a checkpoint, by its config's model_type."""
    kind = AutoConfig.from_pretrained(model_dir).get_text_config(decoder=True).model_type
    classes = {"gpt_neox": NeoXModel, "lfm2": Lfm2Model, "qwen3_5_text": Qwen35Model}
    return classes.get(kind, TextModel)(model_dir, dtype)
