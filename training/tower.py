"""Dense supervision of single frames: what is in each of the nine cells and in the whole image, from linear heads."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from dataset import TOKENS_PER_FRAME
from questions import HIDDEN, VISIBLE, view_candidates
from runs import COLORS, SHAPES, Run

PAIRS = len(COLORS) * len(SHAPES)
WIDTHS = {"visible": PAIRS, "near": PAIRS, "side": PAIRS * 3, "closest": PAIRS, "count": 4, "stop": 2}
CELL_VISIBLE, CELL_HIDDEN = 0.004, 0.0008


def frame_labels(run: Run, frame: int) -> dict[str, np.ndarray]:
    """Labels of one frame: -1 where none is certain. cells [9, pairs]; visible, near, side [pairs]; closest, count, stop []."""
    cells, visible = np.zeros((TOKENS_PER_FRAME, PAIRS), np.int64), np.zeros(PAIRS, np.int64)
    near, side = np.full(PAIRS, -1), np.full(PAIRS, -1)
    pair = run.shape.astype(int) * len(COLORS) + run.color
    share = run.cells[frame]
    cells[:, pair] = np.where(share >= CELL_VISIBLE, 1, np.where(share < CELL_HIDDEN, 0, -1)).T
    total = share.sum(-1)
    visible[pair] = np.where(total >= VISIBLE, 1, np.where(total < HIDDEN, 0, -1))
    labels = {"cells": cells, "visible": visible, "near": near, "side": side}
    for kind in ("closest", "count", "stop"):
        labels[kind] = np.array(-1)
    names = {f"{COLORS[p % len(COLORS)]} {SHAPES[p // len(COLORS)]}": p for p in range(PAIRS)}
    found = view_candidates(run, frame)
    for answer, words in found["distance"]:
        near[names[words["object"]]] = answer == "near"
    for answer, words in found["position"]:
        side[names[words["object"]]] = ("left", "center", "right").index(answer)
    for answer, _ in found["closest"]:
        labels["closest"] = np.array(names[answer])
    for answer, _ in found["count"]:
        labels["count"] = np.array(int(answer))
    for answer, _ in found["stop"]:
        labels["stop"] = np.array(int(answer == "yes"))
    return labels


class Heads(nn.Module):
    """Linear readouts of a frame's image tokens; used in training only."""

    def __init__(self, hidden: int):
        super().__init__()
        self.cells = nn.Linear(hidden, PAIRS)
        self.image = nn.Linear(hidden * TOKENS_PER_FRAME, sum(WIDTHS.values()))

    def loss(self, features: torch.Tensor, labels: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        """Summed loss and per-label accuracy (cells and visible: share of present pairs found) of features [frames, 9, hidden]."""
        out = dict(zip(WIDTHS, self.image(features.flatten(1)).split(list(WIDTHS.values()), -1)))
        cells = self.cells(features)
        loss, right = features.new_zeros(()), {}
        for key, logits in (("cells", cells), ("visible", out["visible"]), ("near", out["near"])):
            known = labels[key] >= 0
            target = labels[key][known].float()
            loss = loss + 4 * F.binary_cross_entropy_with_logits(logits[known], target)
            wanted = target > 0 if key != "near" else target >= 0
            right[key] = ((logits[known] > 0) == (target > 0))[wanted].float().mean().item()
        for key in ("side", "closest", "count", "stop"):
            logits = out[key].view(len(features), PAIRS, 3) if key == "side" else out[key]
            known = labels[key] >= 0
            loss = loss + 0.5 * F.cross_entropy(logits[known], labels[key][known])
            right[key] = (logits[known].argmax(-1) == labels[key][known]).float().mean().item()
        return loss, right
