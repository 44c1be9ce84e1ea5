#!/usr/bin/env bash
# transformers 5.23.0, Cosmos 3 Edge: a checkpoint that is loaded and saved anew has other names of tensors. The published file names the
# products of its decoder as diffusers does (`layers.0.self_attn.to_q`) and those of its tower as transformers does
# (`model.visual.encoder.layers.0.self_attn.q_proj`). The rules that rename the decoder when it is loaded stand for any part of the model, so
# their reverse renames the tower too when it is saved: `model.visual.encoder.layers.0.self_attn.to_q`. transformers reads either; what
# knows the published names does not find the tower.
# Ends with an error if it behaves otherwise today. Needs Python 3.10 or later; installs into a temporary folder (3 GB with PyTorch).
set -euo pipefail
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 torch==2.15.0
cat >"$dir/show.py" <<'PYTHON'
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import Cosmos3EdgeConfig, Cosmos3EdgeForConditionalGeneration

published, again = Path(sys.argv[1], "published"), Path(sys.argv[1], "again")
rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
text = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": 64,
    "rope_parameters": rope,
}
vision = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "patch_size": 4,
    "num_patches": 16,
}
model = Cosmos3EdgeForConditionalGeneration(Cosmos3EdgeConfig(text_config=text, vision_config=vision))
model.save_pretrained(published)
# The hub's names: those of diffusers for the decoder, those of the model for the rest.
tensors = load_file(published / "model.safetensors")
tower = {name: tensor for name, tensor in model.state_dict().items() if ".visual." in name}
tensors = {name: tensor for name, tensor in tensors.items() if ".visual." not in name} | tower
save_file(tensors, published / "model.safetensors", metadata={"format": "pt"})

loaded, report = Cosmos3EdgeForConditionalGeneration.from_pretrained(published, output_loading_info=True)
print("loaded: missing", len(report["missing_keys"]), "unexpected", len(report["unexpected_keys"]))
loaded.save_pretrained(again)
saved = load_file(again / "model.safetensors")
for name in ("layers.0.self_attn.to_q.weight", "model.visual.encoder.layers.0.self_attn.q_proj.weight"):
    print(f"{name}: published {name in tensors}, saved {name in saved}")
new = sorted(set(saved) - set(tensors))
print("new names:", len(new), "all of the tower:", all(name.startswith("model.visual.") for name in new))
for name in new:
    print(" ", name)
PYTHON
expected="loaded: missing 0 unexpected 0
layers.0.self_attn.to_q.weight: published True, saved True
model.visual.encoder.layers.0.self_attn.q_proj.weight: published True, saved False
new names: 10 all of the tower: True
  model.visual.encoder.layers.0.mlp.down_proj.bias
  model.visual.encoder.layers.0.mlp.down_proj.weight
  model.visual.encoder.layers.0.mlp.up_proj.bias
  model.visual.encoder.layers.0.mlp.up_proj.weight
  model.visual.encoder.layers.0.self_attn.to_k.bias
  model.visual.encoder.layers.0.self_attn.to_k.weight
  model.visual.encoder.layers.0.self_attn.to_q.bias
  model.visual.encoder.layers.0.self_attn.to_q.weight
  model.visual.encoder.layers.0.self_attn.to_v.bias
  model.visual.encoder.layers.0.self_attn.to_v.weight"
found="$("$dir/venv/bin/python" "$dir/show.py" "$dir" 2>/dev/null)"
echo "$found"
diff <(echo "$expected") <(echo "$found") && echo "transformers 5.23.0 behaves as described"
