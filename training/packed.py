"""The decoder's forward over streams of different lengths, packed one after the other: no padding in its matrix products, and
of the last layer only what learnt tokens need."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import SmolVLMForConditionalGeneration

from dataset import TOKENS_PER_FRAME, Shown, Stream

FAR = 1 << 20  # beyond every place


@dataclass
class Pack:
    """Streams ready for the forward, each with its trunk first and its asides behind it, in tensors over all tokens.

    ids, places [tokens]; image: row of the batch's image tokens that a token shows, -1 for text [tokens]; branch: the aside that
    a token belongs to, -1 in the trunk [tokens]; since: of an aside's token, how much of the trunk it sees; FAR in the trunk
    [tokens]. spans: per stream its first token, its trunk's length, its length, and how many of its tokens predict a learnt one.
    wanted: the places of these in their streams, in rising order; target: the learnt tokens. frames: what `image`
    counts. answers: question type, layout, and where the answer begins and ends in `target`.
    """

    ids: torch.Tensor
    places: torch.Tensor
    image: torch.Tensor
    branch: torch.Tensor
    since: torch.Tensor
    spans: list[tuple[int, int, int, int]]
    wanted: torch.Tensor
    target: torch.Tensor
    frames: list[Shown]
    answers: list[tuple[str, str, int, int]]

    @property
    def rows(self) -> torch.Tensor:
        """The wanted tokens among all."""
        starts, counts = (torch.tensor([span[k] for span in self.spans], device=self.ids.device) for k in (0, 3))
        return starts.repeat_interleave(counts) + self.wanted

    def to(self, device: torch.device) -> "Pack":
        """The same on a device."""
        moved = {key: value.to(device) for key, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return Pack(**{**vars(self), **moved})


def pack(streams: list[Stream]) -> Pack:
    """Packs streams."""
    columns: dict[str, list[np.ndarray]] = {
        key: [] for key in ("ids", "places", "image", "branch", "since", "wanted", "target")
    }
    spans, frames, answers, start, learnt = [], [], [], 0, 0
    for stream in streams:
        branch, frame, part = (np.array(x) for x in (stream.branch, stream.frame, stream.part))
        order = np.argsort(branch >= 0, kind="stable")  # an aside's tokens stay together, in the order of the asides
        trunk = int((branch < 0).sum())
        follows = np.array(stream.learn)
        predicts = np.append(follows[1:], False)
        columns["ids"].append(np.array(stream.ids)[order])
        columns["places"].append(stream.positions()[order])
        columns["image"].append(np.where(frame >= 0, (frame + len(frames)) * TOKENS_PER_FRAME + part, -1)[order])
        columns["branch"].append(branch[order])
        columns["since"].append(np.where(branch < 0, FAR, np.cumsum(branch < 0))[order])
        columns["wanted"].append(np.flatnonzero(predicts[order]))
        columns["target"].append(np.array(stream.ids)[order][follows[order]])
        place = np.cumsum(follows[order]) - 1
        at = np.argsort(order)
        for kind, begin, end in stream.answers:
            first = learnt + int(place[at[begin]])
            answers.append((kind, stream.layout, first, first + end - begin))
        spans.append((start, trunk, len(branch), int(follows.sum())))
        frames += stream.frames
        start, learnt = start + len(branch), learnt + int(follows.sum())
    joined = {key: torch.from_numpy(np.concatenate(values)) for key, values in columns.items()}
    return Pack(**joined, spans=spans, frames=frames, answers=answers)


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
    """What each query finds in what it sees of its stream [heads, queries, width]; the queries are all tokens', or only those of the
    wanted ones."""
    found, at = [], 0
    asking = pack.wanted.split([span[3] for span in pack.spans])
    for i, (start, trunk, length, _) in enumerate(pack.spans):
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
    return torch.cat(found, 1)


def blocks(begin: int, end: int) -> list[tuple[int, int]]:
    """A range in pieces of about equal size, at most BLOCK."""
    edges = np.linspace(begin, end, -(-(end - begin) // BLOCK) + 1).astype(int)
    return list(pairwise(edges))


def attended_at_once(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pack: Pack, wanted: bool
) -> torch.Tensor:
    """The same as `attended_in_blocks` with all streams padded to one length, for devices that are slow to start."""
    count, longest, device = len(pack.spans), max(span[2] for span in pack.spans), key.device
    index = torch.arange(longest, device=device)
    starts, lengths, counts = (torch.tensor([span[k] for span in pack.spans], device=device) for k in (0, 2, 3))
    inside = index < lengths[:, None]
    where = (starts[:, None] + index).masked_fill(~inside, 0)
    keys, values = (x[:, where].transpose(0, 1) for x in (key, value))  # [streams, heads, longest, width]
    branch, since = pack.branch[where], pack.since[where]
    asking, places, rows = inside, index.expand(count, -1), where
    if wanted:
        asking = index[: int(counts.max())] < counts[:, None]
        places = torch.zeros(asking.shape, dtype=torch.long, device=device)
        places[asking] = pack.wanted
        rows = torch.zeros_like(places)
        rows[asking] = torch.arange(len(pack.wanted), device=device)
    queries = query[:, rows]
    own_branch, own_since = branch.gather(1, places), since.gather(1, places)
    seen = (index <= places[..., None]) & torch.where(
        branch[:, None] < 0, index < own_since[..., None], branch[:, None] == own_branch[..., None]
    )
    seen |= ~asking[..., None]  # or what is only padding would be divided by nothing
    out = F.scaled_dot_product_attention(queries.transpose(0, 1), keys, values, attn_mask=seen[:, None], scale=1.0)
    return out.transpose(0, 1)[:, asking]


def rotated(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """heads [tokens, heads, width] turned by their places; cos, sin [tokens, 1, width]."""
    low, high = heads.chunk(2, -1)
    return heads * cos + torch.cat([-high, low], -1) * sin


def packed_hidden(model: SmolVLMForConditionalGeneration, pack: Pack, features: torch.Tensor) -> torch.Tensor:
    """Last hidden states of the wanted tokens [wanted, hidden], given the image tokens of the pack's frames [frames, 9, hidden]."""
    text = model.model.text_model
    width, groups = text.config.head_dim, text.config.num_attention_heads // text.config.num_key_value_heads
    attended = attended_in_blocks if features.device.type == "cpu" else attended_at_once
    hidden, image, rows = model.get_input_embeddings()(pack.ids), pack.image >= 0, pack.rows
    hidden = hidden.masked_scatter(image[:, None], features.reshape(-1, features.shape[-1])[pack.image[image]])
    angles = pack.places[:, None] * text.rotary_emb.inv_freq
    angles = torch.cat([angles, angles], -1)[:, None]
    cos, sin = angles.cos(), angles.sin()
    for layer in text.layers:
        last = layer is text.layers[-1]
        attention, normal = layer.self_attn, layer.input_layernorm(hidden)
        asking = normal[rows] if last else normal
        query = attention.q_proj(asking).view(len(asking), -1, width)
        key, value = (project(normal).view(len(normal), -1, width) for project in (attention.k_proj, attention.v_proj))
        turn = (cos[rows], sin[rows]) if last else (cos, sin)
        query, key = rotated(query, *turn) * attention.scaling, rotated(key, cos, sin)
        if groups > 1:
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        heads = (x.to(value.dtype).transpose(0, 1) for x in (query, key, value))
        found = attended(*heads, pack, wanted=last)
        hidden = hidden[rows] if last else hidden
        hidden = hidden + attention.o_proj(found.transpose(0, 1).reshape(len(hidden), -1))
        normal, mlp = layer.post_attention_layernorm(hidden), layer.mlp
        hidden = hidden + mlp.down_proj(F.silu(mlp.gate_proj(normal)) * mlp.up_proj(normal))
    return text.norm(hidden)
