#!/usr/bin/env bash
# transformers 5.23.0, Cosmos 3 Edge: what its processor returns for a prompt with a picture lacks `mm_token_type_ids`, which it lists in
# `model_input_names` and without which the model refuses the picture, in the words that the processor returns it. It comes with
# `return_mm_token_type_ids=True`. The processor of Qwen3-VL, which it is like, returns it unasked.
# Ends with an error if it behaves otherwise today. Needs Python 3.10 or later; installs into a temporary folder (3 GB with PyTorch).
set -euo pipefail
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 torch==2.15.0 torchvision==0.29.2
cat >"$dir/show.py" <<'PYTHON'
import numpy as np
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

IDS = "mm_token_type_ids"
markup = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
words = {word: i for i, word in enumerate(["?", "look", *markup])}
tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, unk_token="?", additional_special_tokens=markup
)
template = "{% for part in messages[0].content %}"
template += "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %} {{ part.text }}{% endif %}"
template += "{% endfor %}"
picture = np.zeros((64, 64, 3), np.uint8)
content = [{"type": "image", "image": picture}, {"type": "text", "text": "look"}]
prompt = "<|vision_start|><|image_pad|><|vision_end|> look"

for name, images, videos in (
    ("Qwen3VL", "Qwen2VL", "Qwen3VL"),
    ("Cosmos3Edge", "Cosmos3Edge", "Cosmos3Edge"),
):
    parts = {
        "image_processor": getattr(transformers, f"{images}ImageProcessor")(),
        "video_processor": getattr(transformers, f"{videos}VideoProcessor")(),
        "tokenizer": tokenizer,
        "chat_template": template,
    }
    processor = getattr(transformers, f"{name}Processor")(**parts)
    called = processor(text=[prompt], images=[picture])
    asked = processor(text=[prompt], images=[picture], return_mm_token_type_ids=True)
    chat = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=True, return_dict=True)
    listed = IDS in processor.model_input_names
    print(f"{name}: listed {listed}, called {IDS in called}, as a chat {IDS in chat}, asked for {IDS in asked}")
PYTHON
expected="Qwen3VL: listed True, called True, as a chat True, asked for True
Cosmos3Edge: listed True, called False, as a chat False, asked for True"
found="$("$dir/venv/bin/python" "$dir/show.py" 2>/dev/null)"
echo "$found"
diff <(echo "$expected") <(echo "$found") && echo "transformers 5.23.0 behaves as described"
