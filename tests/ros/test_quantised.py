"""The node runs checkpoints with a `quantization_config`: the demo model as AWQ and GPTQ store it, and what is said of damaged ones."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pictures
import pytest
import safetensors_files
from conftest import ROOT, START_SECONDS, Start
from inf_mllm.msg import Reasoning
from node_process import NodeProcess
from safetensors_files import Tensors

sys.path.append(str(ROOT / "tests" / "golden"))

import packed_weights

MODEL = ROOT / "models" / "demo"
FRAMES = 30
QUESTIONS = ["What is in view?", "Is a red ball in view?"]


def awq(matrix: np.ndarray) -> Tensors:
    return packed_weights.awq(packed_weights.quantise(matrix, 4, 32, symmetric=False))


def gptq(matrix: np.ndarray) -> Tensors:
    return packed_weights.gptq(packed_weights.quantise(matrix, 8, 64, symmetric=True), one_less=True)


METHODS = {
    "AWQ, integers of 4 bits in groups of 32": (
        {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True},
        awq,
        "Q4_1",
    ),
    "GPTQ, integers of 8 bits in groups of 64": (
        {"quant_method": "gptq", "bits": 8, "group_size": 64, "sym": True, "desc_act": False},
        gptq,
        "Q8_0",
    ),
}


def quantised(folder: Path, config: dict, store: Callable[[np.ndarray], Tensors]) -> Path:
    """The demo model with the matrices of its decoder as `store` has them."""
    shutil.copytree(MODEL, folder)
    tensors: Tensors = {}
    for name, tensor in safetensors_files.read(MODEL / "model.safetensors").items():
        if ".text_model." in name and name.endswith("_proj.weight"):
            parts = store(tensor.astype(np.float32))
            tensors |= {name.removesuffix("weight") + ending: part for ending, part in parts.items()}
        else:
            tensors[name] = tensor
    safetensors_files.write(folder / "model.safetensors", tensors)
    given = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(given | {"quantization_config": config}))
    return folder


def answers(start: Start, model: Path, quantization: str) -> tuple[list[str], str]:
    """What the node answers to the questions after some frames, and its log."""
    parameters = {"model": str(model), "quantization": quantization, "image_transport": "compressed"}
    process, client = start(parameters, compressed=True)
    for frame in pictures.demo_frames()[:FRAMES]:
        client.show(frame.data)
    told = []
    for question in QUESTIONS:
        answer = client.ask(question)
        assert answer.finish_reason == Reasoning.FINISH_STOP, answer.error
        assert answer.frames_seen == FRAMES
        told.append(answer.text)
    process.stop()
    return told, process.log


@pytest.mark.parametrize("method", METHODS)
def test_the_node_answers_as_with_the_model_of_floats(method: str, start: Start, tmp_path: Path) -> None:
    config, store, blocks = METHODS[method]
    expected, _ = answers(start, MODEL, "auto")
    model = quantised(tmp_path / "model", config, store)
    for quantization in ("auto", "none"):
        told, log = answers(start, model, quantization)
        assert told == expected, quantization
        assert f"quantised             {method}" in log, log
        assert "complete              yes" in log, log
        assert (f"in memory             {blocks}: 56 tensors" in log) == (quantization == "auto"), log


@pytest.mark.usefixtures("domain")
def test_what_does_not_belong_together_is_named(tmp_path: Path) -> None:
    config, store, _ = METHODS["AWQ, integers of 4 bits in groups of 32"]
    model = quantised(tmp_path / "model", config, lambda matrix: store(matrix) | {"qzeros": np.zeros((1, 1), np.int32)})
    process = NodeProcess({"model": str(model)})
    status = process.wait_end(START_SECONDS)
    assert status is not None and status > 0, process.log
    assert "panicked" not in process.log, process.log
    for word in ("model.safetensors: the tensor", "mlp.down_proj.qweight", "mlp.down_proj.qzeros has the shape [1, 1]"):
        assert word in process.log, process.log
