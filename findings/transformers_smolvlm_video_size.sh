#!/usr/bin/env bash
# transformers 5.23.0, SmolVLM2: frames of videos are not brought to `video_sampling.video_size`, which its published configurations give beside
# the `size` of images (512 and 2048 pixels at the longest edge). The video processor puts the `size` of images in its place, in the
# dictionary of its caller too, so frames are resized to 2048 pixels and then to the square of 512: two resizings, other pixels, 16 times
# the work. With `size` left out, `video_size` counts.
# Ends with an error if it behaves otherwise today. Needs Python 3.10 or later; installs into a temporary folder (3 GB with PyTorch).
set -euo pipefail
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 torch==2.15.0 torchvision==0.29.2
cat >"$dir/show.py" <<'PYTHON'
import json
import sys
from pathlib import Path

import numpy as np
from transformers import SmolVLMVideoProcessor

sampling = {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 512}}
published = {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}, "video_sampling": sampling}
folder = Path(sys.argv[1], "checkpoint")
folder.mkdir()
(folder / "preprocessor_config.json").write_text(json.dumps(published | {"processor_class": "SmolVLMProcessor"}))
opened = SmolVLMVideoProcessor.from_pretrained(folder)
print("as published: longest edge", opened.size["longest_edge"])
del published["size"]
alone = SmolVLMVideoProcessor(**published)
print("without size: longest edge", alone.size["longest_edge"])
SmolVLMVideoProcessor(size={"longest_edge": 2048}, **published)
print("the caller's video_size:", sampling["video_size"])

frames = np.random.default_rng(0).integers(0, 256, (2, 480, 640, 3), np.uint8)
shown = [processor(frames, return_tensors="pt")["pixel_values"] for processor in (opened, alone)]
print("shapes alike", shown[0].shape == shown[1].shape, "pixels alike", bool((shown[0] == shown[1]).all()))
PYTHON
expected="as published: longest edge 2048
without size: longest edge 512
the caller's video_size: {'longest_edge': 2048}
shapes alike True pixels alike False"
found="$("$dir/venv/bin/python" "$dir/show.py" "$dir" 2>/dev/null)"
echo "$found"
diff <(echo "$expected") <(echo "$found") && echo "transformers 5.23.0 behaves as described"
