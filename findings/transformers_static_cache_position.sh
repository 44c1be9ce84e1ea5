#!/usr/bin/env bash
# transformers 5.23.0, StaticCache: `cache_position` is taken by a model's forward and by StaticCache.update, and has no effect. The cache
# counts for itself how much it has been given, and writes behind that: whoever goes back to an earlier place, to take a token again or to
# drop the last ones, gets it appended, with no word, and the logits are those of the longer text. With `position_ids` as well it is turned
# as for the earlier place and still stands behind the others, which is neither of both.
# Ends with an error if it behaves otherwise today. Needs Python 3.10 or later; installs into a temporary folder (3 GB with PyTorch).
set -euo pipefail
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet transformers==5.23.0 torch==2.15.0
cat >"$dir/show.py" <<'PYTHON'
import torch
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=16,
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=64,
)
model = LlamaForCausalLM(config).eval()


@torch.no_grad()
def last_logits(tokens, **options):
    return model(torch.tensor([tokens]), **options).logits[0, -1]


def same(one, other):
    return torch.allclose(one, other, atol=1e-5)


fifth_in_the_third_place = last_logits([1, 2, 5])
fifth_at_the_end = last_logits([1, 2, 3, 4, 5])
for name, options in {
    "cache_position": {},
    "cache_position and position_ids": {"position_ids": torch.tensor([[2]])},
}.items():
    cache = StaticCache(config=config, max_cache_len=8)
    last_logits([1, 2, 3, 4], past_key_values=cache, cache_position=torch.arange(4))
    logits = last_logits([5], past_key_values=cache, cache_position=torch.tensor([2]), **options)
    print(f"{name}: as 1 2 5 {same(logits, fifth_in_the_third_place)}, as 1 2 3 4 5 {same(logits, fifth_at_the_end)}, ", end="")
    print(f"length {int(cache.get_seq_length())}")

rows = StaticCache(config=config, max_cache_len=6)
for value, places in (1.0, [0, 1, 2]), (2.0, [1]):
    new = torch.full((1, 2, len(places), 16), value)
    keys, _ = rows.update(new, new, 0, {"cache_position": torch.tensor(places)})
print("three rows, then place 1 again:", *(int(row) for row in keys[0, 0, :, 0]))
PYTHON
expected="cache_position: as 1 2 5 False, as 1 2 3 4 5 True, length 5
cache_position and position_ids: as 1 2 5 False, as 1 2 3 4 5 False, length 5
three rows, then place 1 again: 1 1 1 2 0 0"
found="$("$dir/venv/bin/python" "$dir/show.py" 2>/dev/null)"
echo "$found"
diff <(echo "$expected") <(echo "$found") && echo "transformers 5.23.0 behaves as described"
