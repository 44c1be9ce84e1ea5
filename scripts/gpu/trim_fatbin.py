"""Empties what one kind of GPU has no use for in a library's CUDA code: trim_fatbin.py LIBRARY ARCHITECTURE, in place.

Only code for ARCHITECTURE (90: Hopper) stays, machine code or, where there is none, intermediate code (PTX), of kernels that decode
Llama-built models with weights of f16, bf16, Q8_0 and Q4_K. Everything else becomes zeros where it lies, so that the library packs small and
everything in it keeps its place. A kernel that was emptied fails when it is called, and says so.

The layout of a fat binary was read off libraries: containers with a magic number, each with entries that say their kind (1: PTX, 2: machine
code), size and architecture; both are packed with zstd. Needs the command zstd.
"""

import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAGIC = struct.pack("<I", 0xBA55ED50)
PTX, MACHINE = 1, 2
# Q5_0, Q8_0, Q4_K, Q6_K in ggml's numbering: the types of weights that are measured, and what a file of 4 bits may hold beside them.
TYPES = {"6", "8", "12", "14"}
HEADS = {"64", "128"}
# The first parameter of a template that there is for many types or widths: of a module with none of the wanted ones nothing is used.
WANTED = {
    r"9mul_mat_qIL9ggml_type(\d+)E": TYPES,
    r"15flash_attn_tileILi(\d+)E": HEADS,
    r"18flash_attn_ext_f16ILi(\d+)E": HEADS,
    # Keys in f16, as the cache has them.
    r"18flash_attn_ext_vecILi\d+ELi\d+EL9ggml_type(\d+)E": {"1"},
}


@dataclass(frozen=True)
class Entry:
    """A kernel module for one architecture: where its code lies."""

    kind: int
    architecture: int
    start: int
    length: int
    """With what fills it up."""
    packed: int


def entries(library: bytes) -> Iterator[Entry]:
    """What all containers hold."""
    at = library.find(MAGIC)
    while at >= 0:
        header, size = struct.unpack_from("<HQ", library, at + 6)
        end = at + header + size
        entry = at + header
        if end > len(library):
            raise ValueError(f"a container at {at} ends behind the library")
        while entry < end:
            kind, _, header, size = struct.unpack_from("<HHIQ", library, entry)
            (packed,) = struct.unpack_from("<I", library, entry + 16)
            (architecture,) = struct.unpack_from("<I", library, entry + 28)
            if entry + header + size > end:
                raise ValueError(f"an entry at {entry} ends behind its container")
            yield Entry(kind, architecture, entry + header, size, packed or size)
            entry += header + size
        at = library.find(MAGIC, end)


def names(code: bytes) -> str:
    """Those of the kernels in it: entries of PTX, sections of machine code."""
    return "\n".join(re.findall(r"\.(?:entry |text\.)(\w+)", code.decode("latin-1")))


def kernels(packed: bytes) -> str:
    """Names of the kernels in packed code."""
    return names(subprocess.run(["zstd", "-dcq"], input=packed, capture_output=True, check=True).stdout)


def unused(names: str) -> bool:
    """Whether a module's kernels are of other types and widths than those that are measured."""
    for pattern, wanted in WANTED.items():
        found = set(re.findall(pattern, names))
        if found and not found & wanted:
            return True
    return False


def trim(library: bytearray, architecture: int) -> tuple[int, int]:
    """Empties; returns the bytes of code that stay and that went."""
    kept = gone = 0
    found = list(entries(bytes(library)))
    wanted = MACHINE if any((entry.kind, entry.architecture) == (MACHINE, architecture) for entry in found) else PTX
    for entry in found:
        code = slice(entry.start, entry.start + entry.length)
        fits = (entry.kind, entry.architecture) == (wanted, architecture)
        if fits and not unused(kernels(bytes(library[entry.start : entry.start + entry.packed]))):
            kept += entry.length
            continue
        library[code] = bytes(entry.length)
        gone += entry.length
    return kept, gone


def main() -> None:
    if len(sys.argv) != 3 or not sys.argv[2].isdigit():
        raise SystemExit("usage: trim_fatbin.py LIBRARY ARCHITECTURE")
    path = Path(sys.argv[1])
    library = bytearray(path.read_bytes())
    kept, gone = trim(library, int(sys.argv[2]))
    if not kept:
        raise SystemExit(f"{path}: no code for {sys.argv[2]}")
    path.write_bytes(library)
    print(f"{path.name}: {kept / 1e6:.1f} MB of code stay, {gone / 1e6:.1f} MB went")


if __name__ == "__main__":
    main()
