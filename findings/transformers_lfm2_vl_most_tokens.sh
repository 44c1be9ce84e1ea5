#!/usr/bin/env bash
# transformers 5.23.0, LFM2-VL: an image that is not cut may have more tokens than `max_image_tokens` and fewer than `min_image_tokens`, though
# smart_resize says that the pixels come to lie between both. Of a strip whose shorter side is less than a token (32 pixels) that side is
# rounded up, and the longer one is "shrunk" by a factor below one: 325 tokens of at most 256, where rounding alone gives 259. And where both
# limits are the same, as whoever wants pictures of one length sets them, rows and columns are rounded down or up and miss it either way.
# Ends with an error if it behaves otherwise today. Needs Python 3.10 or later; installs into a temporary folder (3 GB with PyTorch).
set -euo pipefail
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 torch==2.15.0 torchvision==0.29.2
cat >"$dir/show.py" <<'PYTHON'
import numpy as np
from transformers import Lfm2VlImageProcessor

for width, height, least, most in (
    (640, 480, 64, 256),
    (8300, 20, 64, 256),
    (2100, 20, 16, 64),
    (320, 240, 64, 64),
    (200, 100, 100, 100),
):
    processor = Lfm2VlImageProcessor(min_image_tokens=least, max_image_tokens=most, do_image_splitting=False)
    shown = processor(np.zeros((height, width, 3), np.uint8), return_tensors="pt")
    rows, columns = (int(patches) // 2 for patches in shown["spatial_shapes"][0])
    print(f"{width} x {height}, {least} to {most} tokens: {columns} x {rows}, {columns * rows}")
PYTHON
expected="640 x 480, 64 to 256 tokens: 18 x 13, 234
8300 x 20, 64 to 256 tokens: 325 x 1, 325
2100 x 20, 16 to 64 tokens: 81 x 1, 81
320 x 240, 64 to 64 tokens: 9 x 6, 54
200 x 100, 100 to 100 tokens: 15 x 8, 120"
found="$("$dir/venv/bin/python" "$dir/show.py" 2>/dev/null)"
echo "$found"
diff <(echo "$expected") <(echo "$found") && echo "transformers 5.23.0 behaves as described"
