"""Dense supervision of single frames by linear heads on the tower's states and image tokens."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from labels import CHOICES, NEAR, PAIRS, SETS, SIDES, WIDTHS


def split_rows(rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """What `label_rows` made [frames, labels], by name, with the shapes of `frame_labels` behind the frames."""
    parts = rows.long().split([int(np.prod(shape)) for shape in WIDTHS.values()], 1)
    return {key: part.reshape(len(rows), *shape) for (key, shape), part in zip(WIDTHS.items(), parts)}


class Heads(nn.Module):
    """Linear readouts of a frame's patch states and image tokens; used in training only."""

    def __init__(self, tower_hidden: int, hidden: int):
        super().__init__()
        self.patches = nn.Linear(tower_hidden, PAIRS + 1)
        self.tokens = nn.Linear(hidden, sum(SETS.values()) + sum(CHOICES.values()))
        self.sides = nn.Linear(hidden, PAIRS * len(SIDES))

    def loss(
        self, states: torch.Tensor, tokens: torch.Tensor, labels: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Summed loss of patch states [frames, 144, tower hidden] and image tokens [frames, 9, hidden], and per label how many are
        right and how many there are (of sets: of their members; of cells and patches: of those that hold an object)."""
        widths = SETS | CHOICES
        out = dict(zip(widths, self.tokens(tokens).float().split(list(widths.values()), -1)))
        out["patch"], labels = self.patches(states).float(), dict(labels)
        out["side"] = self.sides(tokens).float().unflatten(-1, (PAIRS, len(SIDES)))
        loss, right = tokens.new_zeros((), dtype=torch.float32), {}
        for key, logits in out.items():
            target = labels[key]
            if key in SETS:
                target = target[:, None].expand(logits.shape) if target.dim() == 2 else target
                known = (target >= 0).float()
                weight = known if key in NEAR else known * (1 + 3 * (target == 1))
                each = F.binary_cross_entropy_with_logits(logits, (target == 1).float(), weight=weight, reduction="sum")
                loss = loss + 2 * each / known.sum().clamp(min=1)
                wanted, hits = target >= 0 if key in NEAR else target == 1, (logits > 0) == (target == 1)
            else:
                if key == "side":
                    target = target[:, None].expand(logits.shape[:3])
                elif target.dim() == 1:
                    target = target[:, None].expand(logits.shape[:2])
                known = target >= 0
                each = F.cross_entropy(logits.flatten(0, -2), target.flatten(), ignore_index=-1, reduction="sum")
                loss = loss + (1.0 if key in ("patch", "side") else 0.5) * each / known.sum().clamp(min=1)
                nothing = key in ("cell_color", "cell_shape", "patch")
                wanted, hits = (
                    known & (target < logits.shape[-1] - 1) if nothing else known,
                    logits.argmax(-1) == target,
                )
            right[key] = torch.stack([(hits & wanted).sum(), wanted.sum()])
        return loss, right
