"""The decoder's forward over streams of different lengths, packed one after the other: no padding in its matrix products, and
of the last layer only what learnt tokens need."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import SmolVLMForConditionalGeneration

from dataset import TOKENS_PER_FRAME, Stream

FAR = 1 << 20  # beyond every place
FINDS = 2  # layer whose queries of a question find frames by their keys, counted from 0
EDGE = 16  # streams are padded to a multiple of so many tokens


@dataclass
class Pack:
    """Streams ready for the forward, each with its trunk first and its asides behind it, in tensors over all tokens.

    ids, places [tokens]; branch: the aside that a token belongs to, -1 in the trunk [tokens]; since: of an aside's token, how
    much of the trunk it sees; FAR in the trunk [tokens]. image: the tokens that show a part of a frame; part: which row of the
    pool's image tokens [image tokens]. whole: first image token of every frame of which nothing is lost, and frame: its number
    in the pool [frames]. named: questions that name a kind, as `Stream.named` has them [questions, 4]. spans: per stream its
    first token, its trunk's length, its length, and how many of its tokens predict a learnt one. wanted: the places of these
    in their streams, in rising order; target: the learnt tokens; answer: the number of the answer that they are of. answers:
    question type and layout of each.
    """

    ids: torch.Tensor
    places: torch.Tensor
    branch: torch.Tensor
    since: torch.Tensor
    image: torch.Tensor
    part: torch.Tensor
    whole: torch.Tensor
    frame: torch.Tensor
    named: torch.Tensor
    spans: torch.Tensor
    wanted: torch.Tensor
    target: torch.Tensor
    answer: torch.Tensor
    answers: list[tuple[str, str]]

    def moved(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Pack":
        """The same with all tensors changed: on a device, say."""
        return Pack(**{key: change(x) if isinstance(x, torch.Tensor) else x for key, x in vars(self).items()})


def pack(streams: list[Stream], starts: np.ndarray) -> Pack:
    """Packs streams of a pool whose runs' frames are numbered from `starts`."""
    columns: dict[str, list[np.ndarray]] = defaultdict(list)
    answers, start = [], 0
    for stream in streams:
        branch, frame, part = (np.array(x, int) for x in (stream.branch, stream.frame, stream.part))
        order = np.argsort(branch >= 0, kind="stable")  # an aside's tokens stay together, in the order of the asides
        at = np.argsort(order)
        follows = np.array(stream.learn)
        numbers = np.array([starts[run] + k for run, k in stream.frames], int)
        answer = np.full(len(branch), -1)
        for kind, begin, end in stream.answers:
            answer[begin:end] = len(answers)
            answers.append((kind, stream.layout))
        columns["ids"].append(np.array(stream.ids)[order])
        columns["places"].append(stream.positions()[order])
        columns["branch"].append(branch[order])
        columns["since"].append(np.where(branch < 0, FAR, np.cumsum(branch < 0))[order])
        frame, part = frame[order], part[order]
        image = np.flatnonzero(frame >= 0)
        columns["image"].append(start + image)
        columns["part"].append(numbers[frame[image]] * TOKENS_PER_FRAME + part[image])
        complete = np.flatnonzero(np.bincount(frame[image], minlength=len(numbers)) == TOKENS_PER_FRAME)
        first = np.full(len(numbers), -1)
        first[frame[image][part[image] == 0]] = image[part[image] == 0]
        columns["whole"].append(start + first[complete])
        columns["frame"].append(numbers[complete])
        named = np.array(stream.named, int).reshape(-1, 4)
        columns["named"].append(np.concatenate([start + at[named[:, :3]], named[:, 3:]], 1))
        columns["wanted"].append(np.flatnonzero(np.append(follows[1:], False)[order]))
        columns["target"].append(np.array(stream.ids)[order][follows[order]])
        columns["answer"].append(answer[order][follows[order]])
        columns["spans"].append(np.array([[start, int((branch < 0).sum()), len(branch), int(follows.sum())]]))
        start += len(branch)
    joined = {key: torch.from_numpy(np.concatenate(values).astype(np.int64)) for key, values in columns.items()}
    return Pack(**joined, answers=answers)


class Attention(torch.autograd.Function):
    """softmax(query key^T) value of query [heads, queries, width], key and value [heads, keys, width]; hidden [queries, keys]
    is what a query does not see. The scale is the query's. In place wherever the next step allows it."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, hidden: torch.Tensor
    ) -> torch.Tensor:
        weights = torch.matmul(query, key.transpose(1, 2)).masked_fill_(hidden, -torch.inf)
        torch.softmax(weights, -1, out=weights)
        out = torch.matmul(weights, value)
        ctx.save_for_backward(query, key, value, weights, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, weights, out = ctx.saved_tensors
        scores = torch.matmul(grad, value.transpose(1, 2))
        scores.sub_((grad * out).sum(-1, keepdim=True)).mul_(weights)
        return (
            torch.matmul(scores, key),
            torch.matmul(scores.transpose(1, 2), query),
            torch.matmul(weights.transpose(1, 2), grad),
            None,
        )


BLOCK = 128  # queries attended at once on a CPU: their weights stay in its cache


def attended_in_blocks(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pack: Pack, wanted: bool
) -> torch.Tensor:
    """What each query finds in what it sees of its stream [tokens, heads, width]; the queries are all tokens', or only those of the
    wanted ones."""
    query, key, value = (x.to(value.dtype).transpose(0, 1) for x in (query, key, value))
    found, at = [], 0
    spans = pack.spans.tolist()
    asking = pack.wanted.split([span[3] for span in spans])
    for i, (start, trunk, length, _) in enumerate(spans):
        keys, values = key[:, start : start + length], value[:, start : start + length]
        branch, since, index = (
            pack.branch[start : start + length],
            pack.since[start : start + length],
            torch.arange(length),
        )
        places = asking[i] if wanted else index
        early = int((places < trunk).sum())
        for begin, end in [*blocks(0, early), *blocks(early, len(places))]:
            rows = places[begin:end]
            own = query[:, at + begin : at + end]
            last = int(rows[-1]) + 1
            if begin < early:
                seen = slice(0, last)
                hidden = rows[:, None] < index[seen]
                found.append(Attention.apply(own, keys[:, seen], values[:, seen], hidden))
                continue
            first = int(torch.searchsorted(branch[trunk:], branch[rows[0]])) + trunk
            sees = int(since[rows].max())
            columns = torch.cat([index[:sees], index[first:last]])
            hidden = (rows[:, None] < columns) | torch.where(
                columns < trunk, columns >= since[rows][:, None], branch[columns] != branch[rows][:, None]
            )
            chosen = (torch.cat([x[:, :sees], x[:, first:last]], 1) for x in (keys, values))
            found.append(Attention.apply(own, *chosen, hidden))
        at += len(places)
    return torch.cat(found, 1).transpose(0, 1)


def blocks(begin: int, end: int) -> list[tuple[int, int]]:
    """A range in pieces of about equal size, at most BLOCK."""
    edges = np.linspace(begin, end, -(-(end - begin) // BLOCK) + 1).astype(int)
    return list(pairwise(edges))


class Padded:
    """Where a pack's tokens lie once all its streams are padded to one length, and what each sees: attention over all streams at
    once, for devices that are slow to start. Nothing in it waits for the device."""

    def __init__(self, spans: torch.Tensor, wanted: torch.Tensor, pack: Pack, dtype: torch.dtype):
        """spans and wanted are the pack's on the CPU, the pack itself on the device."""
        device = pack.ids.device
        starts, _, lengths, counts = spans.numpy().T
        longest = -(-int(lengths.max()) // EDGE) * EDGE
        index = np.arange(longest)
        inside, asks = index < lengths[:, None], np.arange(counts.max()) < counts[:, None]
        places = np.zeros(asks.shape, np.int64)
        places[asks] = wanted.numpy()

        def there(values: np.ndarray) -> torch.Tensor:
            tensor = torch.from_numpy(np.ascontiguousarray(values))
            return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)

        self.where = there(np.where(inside, starts[:, None] + index, 0))
        self.back, self.asked_back = there(np.flatnonzero(inside)), there(np.flatnonzero(asks))
        self.asked = there(np.where(asks, (counts.cumsum() - counts)[:, None] + np.arange(asks.shape[1]), 0))
        self.rows = there(np.repeat(starts, counts) + wanted.numpy())
        places, index = there(places), there(index)
        branch, since = pack.branch[self.where], pack.since[self.where]
        seen = (index <= index[:, None]) & torch.where(
            branch[:, None] < 0, index < since[..., None], branch[:, None] == branch[..., None]
        )
        seen |= index == index[:, None]  # or what is only padding would be divided by nothing
        mask = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, -torch.inf)
        self.mask = mask[:, None]
        self.asked_mask = mask.gather(1, places[..., None].expand(-1, -1, longest))[:, None]

    def attended(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _: Pack, wanted: bool
    ) -> torch.Tensor:
        """The same as `attended_in_blocks`."""
        mask, rows, back = (
            (self.asked_mask, self.asked, self.asked_back) if wanted else (self.mask, self.where, self.back)
        )
        query, key, value = (x.to(mask.dtype) for x in (query, key, value))
        out = F.scaled_dot_product_attention(
            query[rows].transpose(1, 2), key[self.where].transpose(1, 2), value[self.where].transpose(1, 2),
            attn_mask=mask, scale=1.0,
        )  # fmt: skip
        return out.transpose(1, 2).flatten(0, 1)[back]


def rotated(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """heads [tokens, heads, width] turned by their places; cos, sin [tokens, 1, width]."""
    low, high = heads.chunk(2, -1)
    return heads * cos + torch.cat([-high, low], -1) * sin


def packed_hidden(
    model: SmolVLMForConditionalGeneration, pack: Pack, features: torch.Tensor, padded: Padded | None = None
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Last hidden states of the wanted tokens [wanted, hidden], given the image tokens [image tokens, hidden]; and the queries and keys
    [tokens, heads, width] of layer FINDS before they are turned. Without `padded` on a CPU."""
    text = model.model.text_model
    width, groups = text.config.head_dim, text.config.num_attention_heads // text.config.num_key_value_heads
    rows = padded.rows if padded else (pack.spans[:, 0].repeat_interleave(pack.spans[:, 3]) + pack.wanted)
    attended = padded.attended if padded else attended_in_blocks
    hidden = model.get_input_embeddings()(pack.ids)
    hidden = hidden.index_copy(0, pack.image, features.to(hidden.dtype))
    angles = pack.places[:, None] * text.rotary_emb.inv_freq
    angles = torch.cat([angles, angles], -1)[:, None]
    cos, sin = angles.cos(), angles.sin()
    for number, layer in enumerate(text.layers):
        last = layer is text.layers[-1]
        attention, normal = layer.self_attn, layer.input_layernorm(hidden)
        asking = normal[rows] if last else normal
        query = attention.q_proj(asking).unflatten(-1, (-1, width))
        key, value = (project(normal).unflatten(-1, (-1, width)) for project in (attention.k_proj, attention.v_proj))
        if groups > 1:
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        if number == FINDS:
            finds = query, key
        turn = (cos[rows], sin[rows]) if last else (cos, sin)
        found = attended(rotated(query, *turn) * attention.scaling, rotated(key, cos, sin), value, pack, wanted=last)
        hidden = hidden[rows] if last else hidden
        hidden = hidden + attention.o_proj(found.flatten(1))
        normal, mlp = layer.post_attention_layernorm(hidden), layer.mlp
        hidden = hidden + mlp.down_proj(F.silu(mlp.gate_proj(normal)) * mlp.up_proj(normal))
    return text.norm(hidden), finds
