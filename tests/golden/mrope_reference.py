"""The bounded-cache decoder for models with M-RoPE: three positions per token, renumbered by segments; DeepStack."""

from dataclasses import dataclass
from pathlib import Path

import torch
from decoders import TextModel
from policies import Annotations, CacheParams
from reference import MASK, POSITIONS, BoundedDecoder, LayerCache
from transformers import AutoConfig

TEXT = -1  # the frame number of a text token
EXTENT_OF_ONE, SURVIVING_EXTENT, SLOTS, SWAPPED, OTHER_LAYOUT, NO_DEEPSTACK, APART = (
    "extent_of_one",
    "surviving_extent",
    "slot_positions",
    "swapped_axes",
    "other_section_layout",
    "no_deepstack",
    "parts_apart",
)


@dataclass(frozen=True)
class Sections:
    """How the rotary frequencies are dealt to the axes t, h, w."""

    sizes: tuple[int, int, int]
    interleaved: bool

    @classmethod
    def read(cls, model_dir: Path) -> "Sections":
        config = AutoConfig.from_pretrained(model_dir).get_text_config(decoder=True)
        rope = config.rope_parameters
        always = config.model_type == "cosmos3_edge_text"  # whose files do not say it
        return cls(tuple(rope["mrope_section"]), rope.get("mrope_interleaved", always))

    def axes(self) -> torch.Tensor:
        """The axis of each frequency [rotary_dim / 2]: in blocks, or in turn for as long as h and w have any left."""
        if not self.interleaved:
            return torch.arange(3).repeat_interleave(torch.tensor(self.sizes))
        frequency = torch.arange(sum(self.sizes))
        turn = frequency % 3
        return torch.where(frequency < 3 * torch.tensor(self.sizes)[turn], turn, 0)


@dataclass(frozen=True)
class StreamLayout:
    """Where the images of a stream lie: one entry per token, in time order."""

    frames: torch.Tensor  # [tokens], TEXT or the image's number
    offsets: torch.Tensor  # [tokens, 3], the token's place (t, h, w) in its image; 0 for text
    extents: torch.Tensor  # [tokens], positions that the whole image takes; 1 for text
    deepstack: torch.Tensor | None = None  # [layers, tokens, hidden], added to the output of the first layers
    videos: torch.Tensor | None = None  # [tokens], the number of the video that the image is a part of; 0: of none
    steps: torch.Tensor | None = None  # [tokens], how much later the part is than the one before

    def positions(self, index: torch.Tensor, perturb: frozenset[str] = frozenset()) -> torch.Tensor:
        """Positions [3, kept] of kept tokens given by their stream indices [kept], in time order.

        A text token takes one position. An image of which anything is kept takes its whole extent, each token at its
        offset; an image of which nothing is kept takes none. Parts of a video that follow one another are one image: each
        stands its step behind the part before that is kept, and what follows is behind the last one on every axis.
        """
        frames, offsets, extents = self.frames[index], self.offsets[index], self.extents[index]
        image = frames != TEXT
        first = torch.ones_like(image)
        first[1:] = frames[1:] != frames[:-1]
        first |= ~image
        if SURVIVING_EXTENT in perturb:
            reach = torch.zeros(int(self.frames.max()) + 1, dtype=torch.long)
            reach = reach.scatter_reduce(0, frames[image], offsets[image].amax(1) + 1, "amax")
            extents = torch.where(image, reach[frames], 1)
        if EXTENT_OF_ONE in perturb:
            extents = torch.ones_like(extents)
        later = torch.zeros_like(frames)
        if self.videos is not None and APART not in perturb:
            videos, steps = self.videos[index], self.steps[index]
            joined = first.clone()
            joined[0] = False
            joined[1:] &= (videos[1:] == videos[:-1]) & (videos[1:] > 0)
            first = first & ~joined
            moved = torch.where(joined, steps, 0).cumsum(0)
            later = moved - moved[first][first.cumsum(0) - 1]
        run = first.cumsum(0) - 1
        reach = torch.zeros(int(run[-1]) + 1, dtype=torch.long)
        reach = reach.scatter_reduce(0, run, torch.maximum(extents, later + 1), "amax")
        base = (reach.cumsum(0) - reach)[run]
        if SLOTS in perturb:
            return torch.arange(len(index)).expand(3, -1)
        places = offsets.T[[0, 2, 1]] if SWAPPED in perturb else offsets.T
        return base + places + torch.stack([later, torch.zeros_like(later), torch.zeros_like(later)])


class MropeDecoder(BoundedDecoder):
    """One stream through the text decoder of a model with M-RoPE; `layout` says what the stream's tokens are.

    Every kept set has positions of its own. What a query may see depends on the order in time, not on positions.
    """

    def __init__(
        self,
        model: TextModel,
        params: CacheParams,
        perturb: frozenset[str] = frozenset(),
        notes: Annotations | None = None,
        *,
        layout: StreamLayout,
        sections: Sections,
    ):
        if params.position_gap != 0:
            raise ValueError("position_gap is not defined with M-RoPE")
        super().__init__(model, params, perturb, notes)
        self.layout = layout
        if OTHER_LAYOUT in perturb:
            sections = Sections(sections.sizes, not sections.interleaved)
        self.axes = sections.axes()
        self.in_stream = layout.positions(torch.arange(len(layout.frames)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One sub-chunk that fits into the free room."""
        model, tokens = self.model, len(x)
        deepstack = None if NO_DEEPSTACK in self.perturb else self.layout.deepstack
        layers = iter(self.layers)
        for i in range(self.config.layers):
            name = f"layers.{i}"
            h = model.norm(x, f"{name}.input_layernorm")
            x = x + (self.recurrent(i, h) if i in self.states else self.attention(name, next(layers), h))
            x = x + model.mlp(name, model.norm(x, f"{name}.post_attention_layernorm"))
            if deepstack is not None and i < len(deepstack):
                x = x + deepstack[i, self.seen : self.seen + tokens].to(x.dtype)
        self.seen += tokens
        return model.logits(x)

    def attend(self, layer: LayerCache, query: torch.Tensor) -> torch.Tensor:
        """Attention [heads, queries, slots] over every cached key of queries at the newest slots, one slot each."""
        tokens, length = len(query), layer.keys.shape[1]
        positions = torch.stack([self.kept_positions(index) for index in layer.index])  # [kv_heads, 3, slots]
        slots = torch.arange(length)
        own = slots[length - tokens :]
        k = torch.stack([self.rotate(*both) for both in zip(layer.keys, positions, strict=True)])
        q = torch.stack(
            [self.rotate(query[:, h], positions[g][:, own]) for h, g in enumerate(self.kv_of_head.tolist())]
        )
        scores = q @ k[self.kv_of_head].transpose(1, 2) / self.config.head_dim**0.5
        last_visible = own[:, None] + (1 if MASK in self.perturb else 0)
        return scores.masked_fill(slots > last_visible, float("-inf")).softmax(-1)

    def kept_positions(self, index: torch.Tensor) -> torch.Tensor:
        """Positions [3, slots] of one kept set, given by its stream indices [slots]."""
        return self.in_stream[:, index] if POSITIONS in self.perturb else self.layout.positions(index, self.perturb)

    def rotate(self, x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Rotary embedding of x [tokens, head_dim] at positions [3, tokens], each frequency by its own axis.

        Of its first `rotary_dim` numbers, that is; the rest stays as it is.
        """
        angle = position[self.axes].T * self.frequencies
        cos, sin = angle.cos(), angle.sin()
        x, rest = x[..., : self.config.rotary_dim], x[..., self.config.rotary_dim :]
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)
