"""Writes decoders and their tokenizers as GGUF files in the published layout, with random K-quant blocks where asked."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter, TokenType, quants
from transformers import PretrainedConfig

K_QUANTS = (Type.Q4_K, Type.Q5_K, Type.Q6_K)
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TOP_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


@dataclass(frozen=True)
class Vocabulary:
    """What tokenizer.json and the family say of a tokenizer: `pre` names the way text is cut, empty for SentencePiece."""

    tokenizer_json: Path
    pre: str
    template: str
    size: int  # of the embedding, which may have more rows than the tokenizer has tokens
    begin: int | None
    end: int
    unknown: int | None = None


def gguf_name(name: str) -> str:
    """The name of a tensor of a Llama-like checkpoint."""
    stem, _, kind = name.rpartition(".")
    if stem in TOP_NAMES:
        return f"{TOP_NAMES[stem]}.{kind}"
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{LAYER_NAMES[rest]}.{kind}"


def paired_rows(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head so that the two of a rotary pair are neighbours, as architecture llama has its queries and keys."""
    return weight.view(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def halved_rows(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The opposite of `paired_rows`."""
    return weight.view(heads, -1, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def random_blocks(shape: tuple[int, int], kind: Type, deviation: float, seed: int) -> np.ndarray:
    """Bytes [rows, bytes per row] of K-quant blocks, random but for scales that give the weights the deviation asked for."""
    rng = np.random.default_rng(seed)
    block = {Type.Q4_K: 144, Type.Q5_K: 176, Type.Q6_K: 210}[kind]
    blocks = rng.integers(0, 256, (shape[0] * shape[1] // 256, block), dtype=np.uint8)
    largest = {Type.Q4_K: 15, Type.Q5_K: 31, Type.Q6_K: 0}[kind]

    def set_scales(scale: np.ndarray) -> None:
        if kind == Type.Q6_K:
            blocks[:, -2:] = scale.astype(np.float16).view(np.uint8).reshape(-1, 2)
        else:  # the smallest value is as far below zero as the largest is above, on average
            both = np.stack([scale, scale * largest / 2], axis=1).astype(np.float16)
            blocks[:, :4] = both.view(np.uint8).reshape(-1, 4)

    set_scales(np.ones(len(blocks), dtype=np.float32))
    unit = quants.dequantize(blocks, kind).std()
    set_scales((deviation / unit * rng.uniform(0.7, 1.3, len(blocks))).astype(np.float32))
    return blocks.reshape(shape[0], -1)


def stored(weight: torch.Tensor, kind: Type, seed: int) -> np.ndarray:
    """A weight's bytes or numbers in the file; of K-quants the deviation alone is the weight's."""
    if kind in K_QUANTS:
        return random_blocks(tuple(weight.shape), kind, weight.std().item(), seed)
    return quants.quantize(weight.numpy(), kind)


def widened(data: np.ndarray, kind: Type) -> torch.Tensor:
    return torch.from_numpy(quants.dequantize(data, kind).astype(np.float32).copy())


def add_decoder(writer: GGUFWriter, config: PretrainedConfig) -> None:
    rope = config.rope_parameters
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])
    if head_dim * config.num_attention_heads != config.hidden_size:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if config.model_type == "llama":
        writer.add_vocab_size(config.vocab_size)
        writer.add_rope_dimension_count(head_dim)
    if rope["rope_type"] == "linear":
        writer.add_string(f"{config.model_type}.rope.scaling.type", "linear")
        writer.add_rope_scaling_factor(rope["factor"])


def add_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary) -> None:
    state = json.loads(vocabulary.tokenizer_json.read_text())
    added = {token["content"]: token for token in state["added_tokens"]}
    ids = state["model"]["vocab"] | {name: token["id"] for name, token in added.items()}
    tokens = sorted(ids, key=ids.get)
    first_piece = ids.get("<0xFF>", -1) + 1  # after the control tokens and bytes of a SentencePiece vocabulary
    types, scores = [], []
    for i, token in enumerate(tokens):
        if token == "<unk>":
            types.append(TokenType.UNKNOWN)
        elif token in added:
            types.append(TokenType.CONTROL if added[token]["special"] else TokenType.USER_DEFINED)
        else:
            types.append(TokenType.BYTE if i < first_piece else TokenType.NORMAL)
        scores.append(float(first_piece - i) if i >= first_piece else 0.0)
    for i in range(len(tokens), vocabulary.size):
        tokens.append(f"[PAD{i}]")
        types.append(TokenType.UNUSED)
        scores.append(-1000.0)
    writer.add_tokenizer_model("gpt2" if vocabulary.pre else "llama")
    writer.add_tokenizer_pre(vocabulary.pre or "default")
    writer.add_token_list(tokens)
    if not vocabulary.pre:
        writer.add_token_scores(scores)
    writer.add_token_types(types)
    if vocabulary.pre:
        writer.add_token_merges([" ".join(pair) for pair in state["model"]["merges"]])
    if vocabulary.begin is not None:
        writer.add_bos_token_id(vocabulary.begin)
    writer.add_eos_token_id(vocabulary.end)
    if vocabulary.unknown is not None:
        writer.add_unk_token_id(vocabulary.unknown)
    writer.add_add_bos_token(vocabulary.pre != "qwen2")
    if not vocabulary.pre:
        writer.add_add_eos_token(False)
    writer.add_chat_template(vocabulary.template)


def write_gguf(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
