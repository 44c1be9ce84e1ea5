"""Dense supervision of single frames: what is in each patch, in each of the nine cells and in the image, by linear heads."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from questions import HIDDEN, view_candidates, visibility
from runs import COLORS, SHAPES, Run

PAIRS = len(COLORS) * len(SHAPES)
UNCERTAIN = 255  # in Run.patches
SIDES = ("left", "center", "right")
CELL_VISIBLE, CELL_HIDDEN = 0.008, 0.0008

# Of every image token: its cell, what is in that (multi-hot over the pairs, and of the largest object), and what is in the
# whole image, with side and distance of each, so that a decoder finds any of it at any token of the frame.
SETS = {"cell_holds": PAIRS, "cell_near": PAIRS, "visible": PAIRS, "near": PAIRS}
CHOICES = {
    "cell_color": len(COLORS) + 1,
    "cell_shape": len(SHAPES) + 1,
    "cell_closest": 2,
    "closest": PAIRS,
    "count": 4,
    "stop": 2,
    "cell_side": len(SIDES),
    "cell": 9,
}
NEAR = ("cell_near", "near")  # sets of which either answer counts alike


def frame_labels(run: Run, frame: int) -> dict[str, np.ndarray]:
    """Labels of one frame as int8, -1 where none is certain: patch [144] (pair or 24 for nothing); cell_holds, cell_near
    [9, pairs]; cell_color, cell_shape, cell_closest, cell_side, cell [9]; visible, near, side [pairs]; closest, count, stop
    []."""
    pair = run.shape.astype(int) * len(COLORS) + run.color
    share, state = run.cells[frame], visibility(run, frame)
    total = share.sum(-1)
    found = view_candidates(run, frame)
    names = {f"{COLORS[p % len(COLORS)]} {SHAPES[p // len(COLORS)]}": p for p in range(PAIRS)}

    owner = run.patches[frame].ravel().astype(int)
    known = np.append(pair, PAIRS)[np.where(owner == UNCERTAIN, 0, owner) - 1]
    labels = {"patch": np.where(owner == UNCERTAIN, -1, known)}

    holds, near, depth = np.zeros((PAIRS, 9), int), np.full((PAIRS, 9), -1), np.full(PAIRS, -1)
    holds[pair] = np.where(share >= CELL_VISIBLE, 1, np.where(share < CELL_HIDDEN, 0, -1))
    for answer, words in found["distance"]:
        at = names[words["object"]]
        depth[at] = answer == "near"
        near[at] = np.where(holds[at] == 1, depth[at], -1)
    labels |= {"cell_holds": holds.T, "cell_near": near.T, "near": depth}

    largest, most = share.argmax(0), share.max(0)
    for key, values, none in (("cell_color", run.color, len(COLORS)), ("cell_shape", run.shape, len(SHAPES))):
        held = values[largest].astype(int)
        labels[key] = np.where(most >= CELL_VISIBLE, held, np.where(most < CELL_HIDDEN, none, -1))
    visible = np.zeros(PAIRS, int)
    visible[pair] = np.where(state == 1, 1, np.where(total < HIDDEN, 0, -1))
    labels["visible"] = visible
    for key in ("cell_closest", "closest", "count", "stop"):
        labels[key] = np.full(9, -1) if key == "cell_closest" else np.array(-1)
    sides = np.full(PAIRS, -1)
    for answer, words in found["position"]:
        sides[names[words["object"]]] = SIDES.index(answer)
    labels |= {
        "side": sides,
        "cell_side": np.where(most >= CELL_VISIBLE, sides[pair[largest]], -1),
        "cell": np.arange(9),
    }
    for answer, _ in found["closest"]:
        labels["closest"] = np.array(names[answer])
        labels["cell_closest"] = np.where(most >= CELL_VISIBLE, pair[largest] == names[answer], -1)
    for answer, _ in found["count"]:
        labels["count"] = np.array(int(answer))
    for answer, _ in found["stop"]:
        labels["stop"] = np.array(int(answer == "yes"))
    return {key: value.astype(np.int8) for key, value in labels.items()}


class Heads(nn.Module):
    """Linear readouts of a frame's patch states and image tokens; used in training only."""

    def __init__(self, tower_hidden: int, hidden: int):
        super().__init__()
        self.patches = nn.Linear(tower_hidden, PAIRS + 1)
        self.tokens = nn.Linear(hidden, sum(SETS.values()) + sum(CHOICES.values()))
        self.sides = nn.Linear(hidden, PAIRS * len(SIDES))

    def loss(
        self, states: torch.Tensor, tokens: torch.Tensor, labels: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Summed loss of patch states [frames, 144, tower hidden] and image tokens [frames, 9, hidden], and per label the
        share right (of sets: of their members; of cells and patches: of those that hold an object)."""
        widths = SETS | CHOICES
        out = dict(zip(widths, self.tokens(tokens).float().split(list(widths.values()), -1)))
        right: dict[str, float] = {}
        patch = self.patches(states).float()
        loss = F.cross_entropy(patch.flatten(0, 1), labels["patch"].flatten(), ignore_index=-1)
        held = (labels["patch"] >= 0) & (labels["patch"] < PAIRS)
        right["patch"] = (patch.argmax(-1) == labels["patch"])[held].float().mean().item()
        for key in widths:
            target, logits = labels[key], out[key]
            if key in SETS:
                target = target[:, None].expand(logits.shape) if target.dim() == 2 else target
                known = (target >= 0).float()
                weight = known if key in NEAR else known * (1 + 3 * (target == 1))
                each = F.binary_cross_entropy_with_logits(logits, (target == 1).float(), weight=weight, reduction="sum")
                loss = loss + 2 * each / known.sum().clamp(min=1)
                wanted = target >= 0 if key in NEAR else target == 1
                right[key] = ((logits > 0) == (target == 1))[wanted].float().mean().item()
            else:
                target = target[:, None].expand(logits.shape[:2]) if target.dim() == 1 else target
                known = target >= 0
                if known.any():
                    loss = loss + 0.5 * F.cross_entropy(logits[known], target[known])
                    wanted = known & (target < CHOICES[key] - 1) if key in ("cell_color", "cell_shape") else known
                    right[key] = (logits.argmax(-1) == target)[wanted].float().mean().item()
        sides = self.sides(tokens).float().unflatten(-1, (PAIRS, len(SIDES)))
        target = labels["side"][:, None].expand(sides.shape[:3])
        known = target >= 0
        if known.any():
            loss = loss + F.cross_entropy(sides[known], target[known])
            right["side"] = (sides.argmax(-1) == target)[known].float().mean().item()
        return loss, right
