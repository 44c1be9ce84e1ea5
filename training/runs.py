"""A recorded run: camera frames with their ground truth, the objects' names, and shards of runs on disk."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SHAPES = ["box", "ball", "cone", "pillar"]
COLORS = ["red", "green", "blue", "yellow", "purple", "black"]
MODEL_EDGE = 96


@dataclass
class Run:
    """One drive: K camera frames and, for each of N objects, where it was in each frame.

    images: uint8 [K, 96, 96, 3] as the model sees them; jpegs: the camera's own files, if asked for.
    times: seconds [K]. cells: share of the image's pixels that an object takes in each of 3 x 3 cells
    [K, N, 9]. patches: which object, counted from 1, fills a twelfth by a twelfth of the image, 0 none, 255 not certain
    [K, 12, 12]. within: share of the object's outline inside the image, were nothing in front of it [K, N]. centre: mean column of its visible pixels, 0 left to 1 right [K, N]. distance, ahead, lateral: metres from the
    camera to the object's surface, to its surface along the heading, and its centre's offset from the heading [K, N].
    wall: metres to the next wall along the heading [K]. fovy: the camera's vertical field of view, degrees.
    """

    images: np.ndarray
    times: np.ndarray
    shape: np.ndarray
    color: np.ndarray
    cells: np.ndarray
    patches: np.ndarray
    within: np.ndarray
    centre: np.ndarray
    distance: np.ndarray
    ahead: np.ndarray
    lateral: np.ndarray
    wall: np.ndarray
    jpegs: list[bytes] | None = None
    fovy: float = 55.0

    def arrays(self) -> dict[str, np.ndarray]:
        """The run's arrays by name."""
        return {k: v for k, v in vars(self).items() if k not in ("jpegs", "fovy")}


def model_pixels(jpeg: bytes) -> np.ndarray:
    """Camera JPEG to uint8 [96, 96, 3], resized in the two steps of the SmolVLM image processor."""
    from PIL import Image  # here, as recorded runs can be read without it

    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    width, height = image.size
    scale = MODEL_EDGE / max(width, height)
    kept = (MODEL_EDGE, int(height * scale)) if width >= height else (int(width * scale), MODEL_EDGE)
    kept = tuple(n + n % 2 for n in kept)
    image = image.resize(kept, Image.Resampling.LANCZOS)
    return np.asarray(image.resize((MODEL_EDGE, MODEL_EDGE), Image.Resampling.LANCZOS))


PER_FRAME = ("images", "times", "patches", "wall")
PER_OBJECT = ("shape", "color")


def save_shard(path: Path, runs: list[Run]) -> None:
    """Writes runs as one uncompressed .npz: every array of all runs behind one another, flat but for the images and patches, and
    how many frames and objects each run has."""
    counts = np.array([(len(run.times), len(run.shape)) for run in runs], np.int32)
    arrays = {}
    for key in runs[0].arrays():
        values = [getattr(run, key) for run in runs]
        arrays[key] = np.concatenate([v if key in ("images", "patches") else v.ravel() for v in values])
    partial = path.with_suffix(".part.npz")
    np.savez(partial, counts=counts, **arrays)
    partial.rename(path)


def load_shard(path: Path, images: bool = True) -> list[Run]:
    """Reads the runs that `save_shard` wrote; without images, they and the patches are empty."""
    with np.load(path) as data:
        counts = data["counts"].tolist()
        names = [key for key in data.files if key != "counts" and (images or key not in ("images", "patches"))]
        arrays = {key: data[key] for key in names}
    runs, at = [], dict.fromkeys(names, 0)
    nothing = {} if images else dict.fromkeys(("images", "patches"), np.zeros((0, 0, 0), np.uint8))
    for frames, objects in counts:
        parts = {}
        for key, values in arrays.items():
            if key in PER_FRAME:
                shape = (frames, *values.shape[1:])
            elif key in PER_OBJECT:
                shape = (objects,)
            else:
                shape = (frames, objects, 9) if key == "cells" else (frames, objects)
            size = shape[0] if key in ("images", "patches") else int(np.prod(shape))
            parts[key] = values[at[key] : at[key] + size].reshape(shape)
            at[key] += size
        runs.append(Run(**parts, **nothing))
    return runs


def mirrored(run: Run) -> Run:
    """The run as a robot in the mirrored room would see it; every left is a right."""
    cells = run.cells.reshape(*run.cells.shape[:2], 3, 3)[..., ::-1].reshape(run.cells.shape)
    return Run(
        run.images[:, :, ::-1], run.times, run.shape, run.color, cells, run.patches[..., ::-1], run.within, 1 - run.centre,
        run.distance, run.ahead, -run.lateral, run.wall,
    )  # fmt: skip
