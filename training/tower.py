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
CELL_VISIBLE, CELL_HIDDEN = 0.01, 0.0008
CELL_WIDTHS = {
    "cell_color": len(COLORS) + 1,
    "cell_shape": len(SHAPES) + 1,
    "cell_pair": PAIRS + 1,
}  # the last: nothing


def frame_labels(run: Run, frame: int) -> dict[str, np.ndarray]:
    """Labels of one frame, -1 where none is certain: what fills most of a cell (cell_color, cell_shape, cell_pair [9]);
    visible, near, side [pairs]; closest, count, stop []."""
    visible = np.zeros(PAIRS, np.int64)
    near, side = np.full(PAIRS, -1), np.full(PAIRS, -1)
    pair = run.shape.astype(int) * len(COLORS) + run.color
    share = run.cells[frame]
    largest, most = share.argmax(0), share.max(0)
    labels = {}
    for key, values, none in (
        ("cell_color", run.color, len(COLORS)), ("cell_shape", run.shape, len(SHAPES)), ("cell_pair", pair, PAIRS)
    ):  # fmt: skip
        held = values[largest].astype(np.int64)
        labels[key] = np.where(most >= CELL_VISIBLE, held, np.where(most < CELL_HIDDEN, none, -1))
    total = share.sum(-1)
    visible[pair] = np.where(total >= VISIBLE, 1, np.where(total < HIDDEN, 0, -1))
    labels |= {"visible": visible, "near": near, "side": side}
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
        self.cells = nn.Linear(hidden, sum(CELL_WIDTHS.values()))
        self.image = nn.Linear(hidden * TOKENS_PER_FRAME, sum(WIDTHS.values()))

    def loss(self, features: torch.Tensor, labels: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        """Summed loss of features [frames, 9, hidden], and accuracy per label (of visible: share of those found)."""
        out = dict(zip(WIDTHS, self.image(features.flatten(1)).split(list(WIDTHS.values()), -1)))
        out |= dict(zip(CELL_WIDTHS, self.cells(features).split(list(CELL_WIDTHS.values()), -1)))
        out["side"] = out["side"].view(len(features), PAIRS, 3)
        loss, right = features.new_zeros(()), {}
        for key, weight in (("visible", 4.0), ("near", 1.0)):
            known = labels[key] >= 0
            if not known.any():
                continue
            target = labels[key][known].float()
            loss = loss + 2 * F.binary_cross_entropy_with_logits(
                out[key][known], target, pos_weight=torch.tensor(weight)
            )
            wanted = target > 0 if key != "near" else target >= 0
            right[key] = ((out[key][known] > 0) == (target > 0))[wanted].float().mean().item()
        for key in ("side", "closest", "count", "stop", *CELL_WIDTHS):
            known = labels[key] >= 0
            if not known.any():
                continue
            loss = loss + 0.5 * F.cross_entropy(out[key][known], labels[key][known])
            held = labels[key][known] < CELL_WIDTHS[key] - 1 if key in CELL_WIDTHS else labels[key][known] >= 0
            right[key] = (out[key][known].argmax(-1) == labels[key][known])[held].float().mean().item()
        return loss, right
