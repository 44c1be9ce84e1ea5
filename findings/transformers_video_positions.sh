#!/usr/bin/env bash
# transformers 4.57.3 and 5.23.0, Qwen2-VL (and Qwen2.5-VL): the text behind a video that reaches farther in time than in rows and columns.
# Version 4, with which the checkpoints were published, goes on behind the largest position of the video on any of the three axes. Version 5 goes on
# behind its rows and columns, so that the text takes positions of the axis of time that frames of the video have, and the same prompt has
# other logits. A video of 10 steps of 2 x 2 patches (one token each step): text at 11 and 12, or at 2 and 3. Images are alike in both.
# Ends with an error if it behaves otherwise today. Needs Python 3.10 or later; installs into a temporary folder (3 GB with PyTorch).
set -euo pipefail
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 torch==2.15.0
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --target "$dir/four" \
  transformers==4.57.3 huggingface_hub==0.36.0 tokenizers==0.22.1
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check requests==2.32.5
cat >"$dir/show.py" <<'PYTHON'
import inspect

import torch
import transformers
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

VIDEO, IMAGE, START = 5, 6, 7
# Version 4 names it rope_scaling, version 5 rope_parameters.
rope = {"type": "mrope", "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
text = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "vocab_size": 32,
    "rope_scaling": rope,
}
vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 1, "mlp_ratio": 1}
special = {"video_token_id": VIDEO, "image_token_id": IMAGE, "vision_start_token_id": START}
config = Qwen2VLConfig(text_config=text, vision_config=vision, **special)
model = Qwen2VLForConditionalGeneration(config).model
for name, token, kind, count in (("video", VIDEO, 2, 10), ("image", IMAGE, 1, 1)):
    ids = torch.tensor([[START] + [token] * count + [1, 2]])
    grid = {f"{name}_grid_thw": torch.tensor([[count, 2, 2]])}
    if "mm_token_type_ids" in inspect.signature(model.get_rope_index).parameters:
        grid["mm_token_type_ids"] = (ids == token).int() * kind
    places, _ = model.get_rope_index(ids, **grid)
    print(f"transformers {transformers.__version__}, {name}: times", *places[0, 0].tolist())
PYTHON
expected="transformers 4.57.3, video: times 0 1 2 3 4 5 6 7 8 9 10 11 12
transformers 4.57.3, image: times 0 1 2 3
transformers 5.23.0, video: times 0 1 2 3 4 5 6 7 8 9 10 2 3
transformers 5.23.0, image: times 0 1 2 3"
found="$(for path in "$dir/four" ""; do PYTHONPATH="$path" "$dir/venv/bin/python" "$dir/show.py" 2>/dev/null; done)"
echo "$found"
diff <(echo "$expected") <(echo "$found") && echo "transformers 4.57.3 and 5.23.0 behave as described"
