#!/usr/bin/env bash
# transformers 5.24.0: config.json has rope_parameters since version 5, and rope_scaling with rope_theta before. Model cards say to add
# rope_scaling for long contexts; what then becomes of rope_theta depends on how the file was saved, and on the way it is added:
# - to a file of the old kind it is what it seems: rope_theta stays;
# - in a file of the new kind rope_scaling replaces rope_parameters whole, and rope_theta is the default of the code (10000), not the
#   file's 1000000, without a word;
# - given to from_pretrained, which changes a field of either kind of file, it leaves no rope_theta (None) in both.
# Ends with an error if it behaves otherwise today. Needs python3 with venv.
set -euo pipefail
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0
cat >"$dir/show.py" <<'PYTHON'
import json
import sys
from pathlib import Path

from transformers import AutoConfig

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
MODEL = {"model_type": "qwen3", "max_position_embeddings": 131072}
FILES = {
    "old": MODEL | {"rope_theta": 1000000.0},
    "new": MODEL | {"rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}},
}


def show(what, fields, **overrides):
    folder = Path(sys.argv[1])
    (folder / "config.json").write_text(json.dumps(fields))
    rope = AutoConfig.from_pretrained(folder, **overrides).rope_parameters
    print(f"{what}: {rope['rope_type']}, rope_theta {rope['rope_theta']}")


for kind, fields in FILES.items():
    show(f"{kind} file", fields)
    show(f"{kind} file with rope_scaling", fields | {"rope_scaling": YARN})
    show(f"{kind} file, rope_scaling to from_pretrained", fields, rope_scaling=dict(YARN))
PYTHON
expected="old file: default, rope_theta 1000000.0
old file with rope_scaling: yarn, rope_theta 1000000.0
old file, rope_scaling to from_pretrained: yarn, rope_theta None
new file: default, rope_theta 1000000.0
new file with rope_scaling: yarn, rope_theta 10000.0
new file, rope_scaling to from_pretrained: yarn, rope_theta None"
# Standard error has a notice that there is no PyTorch, and a deprecation warning for the last way.
found="$(HF_HUB_OFFLINE=1 "$dir/venv/bin/python" "$dir/show.py" "$dir" 2>/dev/null)"
echo "$found"
diff <(echo "$expected") <(echo "$found") && echo "transformers 5.24.0 behaves as described"
