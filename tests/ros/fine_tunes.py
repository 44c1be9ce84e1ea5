"""Fine-tunes laid over the tiny checkpoints of their families, as the tests of the library lay them."""

import json
import shutil
from pathlib import Path

import safetensors_files
from conftest import ROOT

GOLDEN = ROOT / "tests" / "golden"
FOLDER = GOLDEN / "fine_tunes"
NAMES = sorted(path.name for path in FOLDER.iterdir())


def about(name: str) -> dict:
    """What transformers made of it."""
    return json.loads((FOLDER / name / "golden.json").read_text())


def fine_tune(name: str, folder: Path) -> Path:
    """The checkpoint, put into a folder."""
    base, own = GOLDEN / "families" / about(name)["base"], FOLDER / name
    for file in (file for file in base.iterdir() if file.is_file()):
        shutil.copy(file, folder)
    for file in own.glob("*.json"):
        if file.name != "golden.json":
            shutil.copy(file, folder)
    changed = own / "changed.safetensors"
    if changed.is_file():
        weights = folder / "model.safetensors"
        safetensors_files.write(weights, safetensors_files.read(weights) | safetensors_files.read(changed))
    return folder
