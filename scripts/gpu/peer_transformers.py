"""transformers beside inf_mllm: peer_transformers.py SHAPE CONTEXT [--device cuda|cpu] [--how eager graph compile] [--dtype bf16|f16].

A decoder of a published shape with random weights, batch 1, a static cache that holds CONTEXT tokens. A step is one token, whose
successor comes back to the host: eager, as a CUDA graph, or compiled by torch (and, on a GPU, captured as a graph). Prints one line of
JSON for each. Needs torch and transformers.
"""

import argparse
import json
import time
from collections.abc import Callable

import torch
from shapes import FILES, TINY, Shape, shape
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    StaticCache,
)

WARMUP = 5
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}


def build(decoder: Shape, context: int, device: str, dtype: torch.dtype) -> torch.nn.Module:
    config_class, model_class = LlamaConfig, LlamaForCausalLM
    if decoder.qk_norm:
        config_class, model_class = Qwen3Config, Qwen3ForCausalLM
    elif decoder.qkv_bias:
        config_class, model_class = Qwen2Config, Qwen2ForCausalLM
    config = config_class(
        hidden_size=decoder.hidden,
        num_hidden_layers=decoder.layers,
        num_attention_heads=decoder.heads,
        num_key_value_heads=decoder.kv_heads,
        head_dim=decoder.head_dim,
        intermediate_size=decoder.inner,
        vocab_size=decoder.vocabulary,
        max_position_embeddings=context + 4096,
        tie_word_embeddings=decoder.tied,
        attn_implementation="sdpa",
    )
    torch.set_default_dtype(dtype)
    with torch.device(device):
        return model_class(config).eval()


class Stream:
    """A model in front of a filled cache, with room for `steps` more tokens: the cache counts them itself, whatever place it is told."""

    def __init__(self, decoder: Shape, context: int, steps: int, device: str, dtype: torch.dtype):
        self.model = build(decoder, context, device, dtype)
        self.cache = StaticCache(config=self.model.config, max_cache_len=context + steps)
        ids = torch.randint(0, decoder.vocabulary, (1, context), device=device)
        self.put(ids, torch.arange(context, device=device))
        self.token = ids[:, -1:].clone()
        self.place = torch.tensor([context], device=device)

    def put(self, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        known = {"past_key_values": self.cache, "position_ids": places[None], "cache_position": places}
        return self.model(ids, use_cache=True, **known).logits

    def step(self) -> torch.Tensor:
        logits = self.put(self.token, self.place)
        self.token.copy_(logits[:, -1].argmax(-1, keepdim=True))
        return self.token


def captured(step: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """The step as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            token = step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        token = step()

    def replay() -> torch.Tensor:
        graph.replay()
        return token

    return replay


def prepared(how: str, stream: Stream, device: str) -> Callable[[], torch.Tensor]:
    if how == "eager":
        return stream.step
    if how == "graph":
        return captured(stream.step)
    compiled = torch.compile(stream.step, mode="max-autotune-no-cudagraphs" if device == "cuda" else "default")
    compiled()
    return captured(compiled) if device == "cuda" else compiled


def times(step: Callable[[], torch.Tensor], count: int) -> list[float]:
    """Milliseconds of each step with its token on the host, sorted."""
    for _ in range(WARMUP):
        step().item()
    found = []
    for _ in range(count):
        started = time.perf_counter()
        step().item()
        found.append((time.perf_counter() - started) * 1e3)
    return sorted(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shape", choices=[*FILES, TINY.name])
    parser.add_argument("context", type=int)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--how", nargs="+", choices=["eager", "graph", "compile"], default=["eager", "graph"])
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    args = parser.parse_args()
    torch.manual_seed(0)
    decoder = shape(args.shape)
    failed = []
    with torch.inference_mode():
        # Those of each way, and those that a graph or a compilation begins with.
        steps = len(args.how) * (WARMUP + args.tokens + 8)
        stream = Stream(decoder, args.context, steps, args.device, DTYPES[args.dtype])
        weights = sum(rows * columns for rows, columns in decoder.matrices) * 2
        read = {"weights": weights, "cache": decoder.cache_bytes(args.context)}
        for how in args.how:
            try:
                ms = times(prepared(how, stream, args.device), args.tokens)
            except Exception as error:  # noqa: BLE001 one way that does not work says nothing of the others
                failed.append(f"{how}: {error!r}"[:500])
                continue
            result = {
                "peer": f"transformers, {how}",
                "shape": args.shape,
                "weights": args.dtype,
                "context": args.context,
            }
            spread = {"median": ms[len(ms) // 2], "min": ms[0], "max": ms[-1]}
            memory = torch.cuda.max_memory_allocated() if args.device == "cuda" else None
            print(json.dumps(result | {"tokens": len(ms), "ms": spread, "read": read, "memory": memory}), flush=True)
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    main()
