"""How well the words of a question find the frames that show what they name, among all frames of a batch: what recall does, as a loss.

A token's match with a frame is the mean over heads of the largest cosine of its query with the keys of the frame's image tokens,
both before they are turned by their places. A question's match adds up its tokens', each relative to its best frame and weighted by
how few frames it tells from the rest.
"""

import torch
from torch.nn import functional as F

from dataset import TOKENS_PER_FRAME
from packed import Pack
from runs import COLORS

WARMTH = 0.05
LONGEST = 20  # tokens of a question that count, from its end


def matches(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Match of tokens with frames [tokens, frames], given queries [tokens, heads, width] and keys [frames, 9, heads, width], all of
    length 1."""
    out = queries.new_zeros(len(queries), len(keys))
    for head in range(queries.shape[1]):
        near = queries[:, head] @ keys[:, :, head].flatten(0, 1).T
        out = out + near.unflatten(1, (len(keys), -1)).amax(-1)
    return out / queries.shape[1]


def question_matches(match: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Match of questions with frames [questions, frames] by their tokens' [questions, tokens, frames], of which some are none."""
    close = ((match - match.amax(-1, keepdim=True)) / WARMTH).exp()
    weight = torch.log1p(match.shape[-1] / close.sum(-1)) * inside
    return (weight[..., None] * close).sum(1) / weight.sum(1)[:, None]


def shows(state: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
    """What frames show of what questions name [questions, frames]: 1, 0 not certain, -1 nothing. state: of each kind, int8 [frames, 24]."""
    by_shape = state.unflatten(1, (-1, len(COLORS))).amax(-1)
    return torch.cat([state, by_shape], 1).T[kinds]


def found(
    pack: Pack, finds: tuple[torch.Tensor, torch.Tensor], most: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For questions of a pack, at most so many: match of the token that ends the name, of the whole question
    [questions, frames], and what they name."""
    query, key = finds
    chosen = pack.named[torch.randperm(len(pack.named))[:most].to(pack.named.device, non_blocking=True)]
    parts = pack.whole[:, None] + torch.arange(TOKENS_PER_FRAME, device=query.device)
    keys = F.normalize(key[parts].float(), dim=-1)
    places = chosen[:, 2:3] - torch.arange(LONGEST, device=query.device)
    inside = places >= chosen[:, :1]
    tokens = F.normalize(query[places.clamp(min=0)].float(), dim=-1)
    match = matches(tokens.flatten(0, 1), keys).float().unflatten(0, (len(chosen), LONGEST))
    back = (chosen[:, 2] - chosen[:, 1]).clamp(max=LONGEST - 1)
    name = match.gather(1, back[:, None, None].expand(-1, 1, match.shape[2]))[:, 0]
    return name, question_matches(match, inside), chosen[:, 3]


def finding_loss(
    pack: Pack, finds: tuple[torch.Tensor, torch.Tensor], states: torch.Tensor, most: int = 128
) -> torch.Tensor:
    """Mean over questions, and over the frames that show what they name, of minus the logarithm of the frame's share: of the
    name's match, and of the whole question's. states: of each kind in the pool's frames, int8 [frames, 24]."""
    if not len(pack.named) or not len(pack.whole):
        return finds[0].new_zeros(())
    name, whole, kinds = found(pack, finds, most)
    shown = shows(states[pack.frame], kinds)
    right = (shown == 1).float()
    hidden = shown == 0
    counts = right.sum(1)
    loss = name.new_zeros(())
    for score in (name / WARMTH, (whole + 1e-6).log()):
        share = score.masked_fill(hidden, -1e4).log_softmax(-1)
        each = (share.clamp(min=-50) * right).sum(1) / counts.clamp(min=1)
        loss = loss - each.sum() / (counts > 0).sum().clamp(min=1)
    return loss
