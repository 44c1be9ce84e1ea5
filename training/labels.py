"""Dense labels of single frames: what is in each patch, in each of the nine cells and in the image."""

from pathlib import Path

import numpy as np

from questions import HIDDEN, view_candidates, visibility
from runs import COLORS, SHAPES, Run, load_shard, mirrored

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


WIDTHS = {
    "patch": (144,), "cell_holds": (9, PAIRS), "cell_near": (9, PAIRS), "near": (PAIRS,), "cell_color": (9,), "cell_shape": (9,),
    "visible": (PAIRS,), "cell_closest": (9,), "closest": (), "count": (), "stop": (), "side": (PAIRS,), "cell_side": (9,), "cell": (9,),
    "crowd": (),
}  # fmt: skip


def label_rows(runs: list[Run]) -> np.ndarray:
    """`frame_labels` of runs' frames behind one another in the order of WIDTHS; at the end how many objects may be in view."""
    rows = []
    for run in runs:
        for frame in range(len(run.times)):
            labels = {**frame_labels(run, frame), "crowd": np.int8((visibility(run, frame) >= 0).sum())}
            rows.append(np.concatenate([np.ravel(labels[key]) for key in WIDTHS]))
    return np.stack(rows).astype(np.int8)


def label_file(path: Path) -> np.ndarray:
    """`label_rows` of a shard's runs and of the mirrored ones, from a file beside it; makes it if it is missing."""
    file = path.with_name(f"labels{path.stem[-4:]}.npy")
    if not file.exists():
        runs = load_shard(path)
        save_labels(path, runs)
    return np.load(file)


def save_labels(path: Path, runs: list[Run]) -> None:
    """Writes the file that `label_file` reads."""
    np.save(path.with_name(f"labels{path.stem[-4:]}.npy"), label_rows([*runs, *map(mirrored, runs)]))
