"""Reference decoder with a bounded KV cache: eager attention, raw keys rotated on use, position = slot index."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from decoders import TextConfig, TextModel
from policies import (
    POLICIES,
    RANKED,
    SNAPKV_POOL,
    Annotations,
    CacheParams,
    age_term,
    choose_tokens,
    choose_units,
    max_pooled,
)
from scoring import Evidence, StreamMean, relevance, standing_likeness

MASK, POSITIONS, GROUPS, BIAS, ROPE, REVERSED, STATE = (
    "mask_off_by_one",
    "absolute_positions",
    "swapped_groups",
    "no_bias",
    "interleaved_rope",
    "reversed_groups",
    "forgotten_states",
)


def wrong_heads(config: TextConfig) -> str:
    """The mistake in which KV head a query head uses; with one query head per KV head there are no groups to swap, but an order."""
    return REVERSED if config.heads == config.kv_heads else GROUPS


@dataclass
class LayerCache:
    """Keys before rotation and values [kv_heads, len, head_dim]; the stream index of each slot [kv_heads, len].

    Layers that keep no keys have none; what theirs remember, eviction does not touch.
    """

    number: int  # of the layer
    keys: torch.Tensor
    values: torch.Tensor
    index: torch.Tensor
    queries: torch.Tensor  # every query of the stream before rotation [tokens seen, heads, head_dim]
    sums: torch.Tensor  # attention that each slot has had from every query since it came [kv_heads, len]
    mean: StreamMean


@dataclass
class Compaction:
    """What one compaction did, per layer."""

    tokens_seen: int  # tokens appended before it
    kept: torch.Tensor  # stream indices of the kept keys, in time order [layers, kv_heads, keep]
    scores: torch.Tensor | None  # of the candidates in cache order [layers, sets, candidates], see `stored_scores`
    margin: float  # smallest gap between a kept and a dropped candidate, 1 = their mean; inf if nothing is ranked


class BoundedDecoder:
    """One stream through the text decoder, its cache held to `params.budget` slots per layer.

    `perturb` names deliberate mistakes, which show that an expectation is sensitive to them.
    """

    def __init__(
        self,
        model: TextModel,
        params: CacheParams,
        perturb: frozenset[str] = frozenset(),
        notes: Annotations | None = None,
    ):
        if params.policy not in POLICIES:
            raise ValueError(f"policy is {params.policy!r}, expected one of {POLICIES}")
        config = model.config
        self.model, self.config, self.params, self.perturb = model, config, params, perturb
        self.notes = notes or Annotations()
        self.seen = 0
        self.compactions: list[Compaction] = []
        empty = torch.zeros(config.kv_heads, 0, config.head_dim, dtype=model.dtype)
        no_index = torch.zeros(config.kv_heads, 0, dtype=torch.long)
        no_query = empty.new_zeros(0, config.heads, config.head_dim)
        no_sum = empty.new_zeros(config.kv_heads, 0)
        mean = empty.new_zeros(config.kv_heads, config.head_dim)
        self.layers = [
            LayerCache(i, empty, empty, no_index, no_query, no_sum, StreamMean(mean))
            for i in range(config.layers)
            if i not in config.recurrent
        ]
        self.states = {i: model.empty_state(i) for i in config.recurrent}
        self.frequencies = config.frequencies().to(model.dtype)
        group = config.heads // config.kv_heads
        self.kv_of_head = torch.arange(config.heads) // group
        if GROUPS in perturb:
            self.kv_of_head = torch.arange(config.heads) % config.kv_heads
        if REVERSED in perturb:
            self.kv_of_head = self.kv_of_head.flip(0)

    @property
    def length(self) -> int:
        """Slots in use; the same in every layer."""
        return self.layers[0].keys.shape[1]

    @property
    def room(self) -> int:
        return self.params.budget - self.length

    def append(self, embeds: torch.Tensor, reserve: int) -> torch.Tensor:
        """Feeds embeddings [tokens, hidden], then compacts if `reserve` more would not fit; logits [tokens, vocab]."""
        logits = []
        rest = embeds
        while len(rest):
            if self.params.policy == "full":
                size = len(rest)
            else:
                if self.room == 0:
                    self.compact()
                size = min(self.room, len(rest))
            logits.append(self.forward(rest[:size]))
            rest = rest[size:]
        if self.params.policy != "full" and self.room < min(reserve, self.params.slack):
            self.compact()
        return torch.cat(logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One sub-chunk that fits into the free room."""
        model, tokens = self.model, len(x)
        layers = iter(self.layers)
        for i in range(self.config.layers):
            name = f"layers.{i}"
            h = model.norm(x, f"{name}.input_layernorm")
            attended = x + (self.recurrent(i, h) if i in self.states else self.attention(name, next(layers), h))
            before = x if self.config.parallel_residual else attended
            x = attended + model.mlp(name, model.norm(before, f"{name}.post_attention_layernorm"))
        self.seen += tokens
        return model.logits(x)

    def recurrent(self, layer: int, h: torch.Tensor) -> torch.Tensor:
        state = self.model.empty_state(layer) if STATE in self.perturb else self.states[layer]
        out, self.states[layer] = self.model.mixed(f"layers.{layer}", h, state)
        return out

    def attention(self, name: str, layer: LayerCache, h: torch.Tensor) -> torch.Tensor:
        config, tokens = self.config, len(h)
        query, key, value = self.model.projected(name, h)
        new = torch.arange(self.seen, self.seen + tokens).expand(config.kv_heads, tokens)
        layer.keys = torch.cat([layer.keys, key.transpose(0, 1)], dim=1)
        layer.values = torch.cat([layer.values, value.transpose(0, 1)], dim=1)
        layer.index = torch.cat([layer.index, new], dim=1)
        layer.queries = torch.cat([layer.queries, query])
        layer.sums = torch.cat([layer.sums, layer.sums.new_zeros(config.kv_heads, tokens)], dim=1)
        weights = self.attend(layer, query)
        if self.params.policy == "h2o":
            for weights_of_query in self.per_kv_head(weights).unbind(1):
                layer.sums = layer.sums * self.params.h2o_decay + weights_of_query
        out = torch.einsum("hqk,hkd->qhd", weights, layer.values[self.kv_of_head])
        return self.model.attended(name, out.reshape(tokens, -1))

    def attend(self, layer: LayerCache, query: torch.Tensor) -> torch.Tensor:
        """Attention [heads, queries, slots] over every cached key of queries at the newest slots, one slot each."""
        tokens, length = len(query), layer.keys.shape[1]
        slots = torch.arange(length)
        border = self.params.prefix + self.params.relevant
        gap = int(self.params.position_gap * self.config.max_positions) if self.compactions else 0
        ranks = slots + torch.where(slots < border, 0, min(gap, self.config.max_positions - self.params.budget))
        key_position = layer.index if POSITIONS in self.perturb else ranks.expand_as(layer.index)
        own = slots[length - tokens :]
        q = self.rotate(query.transpose(0, 1), key_position[0, own])
        k = torch.stack([self.rotate(keys, position) for keys, position in zip(layer.keys, key_position, strict=True)])
        scores = q @ k[self.kv_of_head].transpose(1, 2) / self.config.head_dim**0.5
        last_visible = own[:, None] + (1 if MASK in self.perturb else 0)
        return scores.masked_fill(slots > last_visible, float("-inf")).softmax(-1)

    def rotate(self, x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Rotary embedding of x [..., tokens, head_dim] at positions [tokens]; the halves of a head form the pairs.

        Of its first `rotary_dim` numbers, that is; the rest stays as it is.
        """
        angle = position[:, None] * self.frequencies
        cos, sin = angle.cos(), angle.sin()
        x, rest = x[..., : self.config.rotary_dim], x[..., self.config.rotary_dim :]
        if ROPE in self.perturb:
            a, b = x[..., 0::2], x[..., 1::2]
            rotated = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)
        else:
            a, b = x.chunk(2, dim=-1)
            rotated = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
        return torch.cat([rotated, rest], dim=-1)

    def compact(self) -> None:
        """Drops keys down to `keep` in every layer; what is kept stays in time order and is renumbered."""
        p, ranked = self.params, self.params.policy in RANKED
        evidence = [self.evidence(layer) if ranked else None for layer in self.layers]
        shared = [Evidence.mean(evidence)] * len(evidence) if p.scope == "model" else evidence
        selected = [self.select(layer.index, e) for layer, e in zip(self.layers, shared, strict=True)]
        for layer, (slots, _) in zip(self.layers, selected, strict=True):
            gather = slots[:, :, None].expand(-1, -1, self.config.head_dim)
            layer.keys = layer.keys.gather(1, gather)
            layer.values = layer.values.gather(1, gather)
            layer.index = layer.index.gather(1, slots)
            layer.sums = layer.sums.gather(1, slots)
        kept = torch.stack([layer.index for layer in self.layers])
        scores = torch.stack([self.shown(*both) for both in zip(evidence, shared, strict=True)]) if ranked else None
        self.compactions.append(Compaction(self.seen, kept, scores, min(margin for _, margin in selected)))

    def shown(self, own: Evidence, shared: Evidence) -> torch.Tensor:
        """Scores [sets, candidates] for the record, from the evidence of a layer and that by which it chooses.

        h2o: the running sums. snapkv: S, max-pooled. tova, inf_mllm: the layer's S. inf_mllm_plus: R, whose mean is 1.
        """
        if self.params.policy == "inf_mllm_plus":
            return sum(relevance(self.params, shared))
        return max_pooled(own.scores, SNAPKV_POOL) if self.params.policy == "snapkv" else own.scores

    def select(self, index: torch.Tensor, evidence: Evidence | None) -> tuple[torch.Tensor, float]:
        """Slots to keep [kv_heads, keep] and the margin, for stream indices [kv_heads, slots]."""
        p, length = self.params, index.shape[1]
        slots = torch.arange(length)
        if evidence is None:
            kept = torch.cat([slots[: p.protected], slots[length - (p.keep - p.protected) :]])
            return kept.expand(self.config.kv_heads, -1), float("inf")
        candidates = slots[p.prefix : length - p.recent]
        kept, margin = [], float("inf")
        for s in range(len(evidence.scores)):
            chosen, gap = self.choose(evidence.of(slice(None), slice(s, s + 1)), index[s, candidates])
            margin = min(margin, gap)
            kept.append(torch.cat([slots[: p.prefix], candidates[chosen], slots[length - p.recent :]]))
        return torch.stack(kept).expand(self.config.kv_heads, -1), margin

    def choose(self, evidence: Evidence, index: torch.Tensor) -> tuple[list[int], float]:
        """Places of the candidates to keep and the margin, from one set's evidence and stream indices [candidates]."""
        p = self.params
        if not p.policy.startswith("inf_mllm"):
            # ranked as they are: dividing by the mean could make two values equal, or two equal ones differ
            scores = self.shown(evidence, evidence)[0]
            chosen, margin = choose_tokens(p, scores, index, self.notes)
            return chosen, margin / scores.mean().item()
        attention, novelty = (part[0] for part in relevance(p, evidence))
        age = age_term(p, index, self.seen - 1, 0.0 if BIAS in self.perturb else p.age_bias, self.model.dtype)
        if p.units:
            return choose_units(p, attention, novelty, age, index, self.notes)
        return choose_tokens(p, attention + novelty + age, index, self.notes)

    def evidence(self, layer: LayerCache) -> Evidence:
        """What the policy asks about the candidates of a layer, once per compaction: the mean takes in the new keys."""
        p, plus = self.params, self.params.policy == "inf_mllm_plus"
        found = Evidence(layer.sums if p.policy == "h2o" else self.scores(layer))
        if plus and p.value_norms:
            found.norms = self.per_set(layer.values.norm(dim=-1))
        if plus and p.standing:
            standing = self.notes.standing[layer.number].to(self.model.dtype)
            found.standing = self.per_set(standing_likeness(standing, layer.keys, self.notes.units(layer.index)))
        if plus and p.novelty_weight > 0:
            layer.mean.add(layer.keys[:, self.length - (self.seen - layer.mean.seen) :], p.budget)
            found.novelty = self.per_set(layer.mean.novelty(layer.keys))
        return found.of(slice(p.prefix, self.length - p.recent))

    def scores(self, layer: LayerCache) -> torch.Tensor:
        """S of every slot [sets, slots]: mean over the set's heads, then over the window's queries that see it."""
        queries = layer.queries[self.window_indices()]
        weights = self.attend(layer, queries)
        weights = self.per_kv_head(weights) if self.params.per_kv_head else weights.mean(0, keepdim=True)
        length, window = layer.keys.shape[1], len(queries)
        viewers = torch.clamp(length - torch.arange(length), max=window)
        return weights.sum(1) / viewers

    def window_indices(self) -> torch.Tensor:
        """Stream indices of the queries that score; an instruction's count as if they were the stream's newest."""
        start, end = 0, self.seen
        if self.params.query_source == "instruction":
            begun = [(a, min(b, self.seen)) for a, b in self.notes.instructions if a < self.seen]
            start, end = begun[-1] if begun else (start, end)
        return torch.arange(max(start, end - self.params.window), end)

    def per_set(self, by_kv_head: torch.Tensor) -> torch.Tensor:
        """Mean over the KV heads that share a layer's kept set, [kv_heads, slots] to [sets, slots]."""
        return by_kv_head if self.params.per_kv_head else by_kv_head.mean(0, keepdim=True)

    def per_kv_head(self, weights: torch.Tensor) -> torch.Tensor:
        """Mean of weights [heads, queries, slots] over the query heads of each KV head [kv_heads, queries, slots]."""
        return torch.stack([weights[self.kv_of_head == g].mean(0) for g in range(self.config.kv_heads)])


def run_stream(
    model: TextModel,
    params: CacheParams,
    embeds: torch.Tensor,
    chunks: list[int],
    perturb: frozenset[str] = frozenset(),
    notes: Annotations | None = None,
    make_decoder: Callable[..., BoundedDecoder] = BoundedDecoder,
) -> tuple[torch.Tensor, list[Compaction]]:
    """Feeds embeddings [tokens, hidden] in chunks, each reserving the next one's length (the last: 0)."""
    decoder = make_decoder(model, params, perturb, notes)
    logits, start = [], 0
    for size, reserve in zip(chunks, chunks[1:] + [0], strict=True):
        logits.append(decoder.append(embeds[start : start + size].to(model.dtype), reserve))
        start += size
        assert decoder.length <= params.budget or params.policy == "full"
    return torch.cat(logits), decoder.compactions
