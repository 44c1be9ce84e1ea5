"""Safetensors files without their library, which the node's Python does not have."""

import json
from pathlib import Path

import numpy as np

Tensors = dict[str, np.ndarray]
TYPES = {"F16": np.float16, "F32": np.float32, "I32": np.int32}


def read(file: Path) -> Tensors:
    """The tensors of a file, by their names."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    tensors = {}
    for name, about in header.items():
        if name != "__metadata__":
            start, end = (8 + length + at for at in about["data_offsets"])
            tensors[name] = np.frombuffer(content[start:end], TYPES[about["dtype"]]).reshape(about["shape"])
    return tensors


def write(file: Path, tensors: Tensors) -> None:
    names, end, header = {kind: name for name, kind in TYPES.items()}, 0, {}
    for name, tensor in tensors.items():
        about = {"dtype": names[tensor.dtype.type], "shape": list(tensor.shape)}
        header[name] = about | {"data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    text = json.dumps(header).encode()
    numbers = b"".join(np.ascontiguousarray(tensor).tobytes() for tensor in tensors.values())
    file.write_bytes(len(text).to_bytes(8, "little") + text + numbers)
