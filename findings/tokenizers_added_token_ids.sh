#!/usr/bin/env bash
# tokenizers 0.23.3: the `id` that tokenizer.json gives an added token is not read. Added tokens are numbered in their order from the size of
# the model's vocabulary on, unless the vocabulary has them. A file whose vocabulary grew by an entry moves all its control tokens by one,
# one with a gap in front of them closes it, without a word; saved again, it has the new numbers.
# Ends with an error if it behaves otherwise today. Needs Python 3.9 or later; installs into a temporary folder (30 MB).
set -euo pipefail
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3
cat >"$dir/show.py" <<'PYTHON'
import json

from tokenizers import Tokenizer

PLAIN = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized"], False)


def show(what: str, words: list[str], first: int) -> None:
    marks = [PLAIN | {"id": first + i, "content": mark, "special": True} for i, mark in enumerate(["<user>", "<robot>"])]
    model = {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": words[0]}
    parts = dict.fromkeys(["truncation", "padding", "normalizer", "post_processor", "decoder"])
    file = parts | {"version": "1.0", "added_tokens": marks, "pre_tokenizer": {"type": "Whitespace"}, "model": model}
    tokenizer = Tokenizer.from_str(json.dumps(file))
    saved = [token["id"] for token in json.loads(tokenizer.to_str())["added_tokens"]]
    print(f"{what}: in the file {first}, {first + 1}; ids {tokenizer.encode('<user> <robot>').ids}; saved as {saved}")


show("behind the vocabulary", ["left", "right"], 2)
show("a word more", ["left", "right", "ahead"], 2)
show("behind a gap", ["left", "right"], 5)
PYTHON
expected="behind the vocabulary: in the file 2, 3; ids [2, 3]; saved as [2, 3]
a word more: in the file 2, 3; ids [3, 4]; saved as [3, 4]
behind a gap: in the file 5, 6; ids [2, 3]; saved as [2, 3]"
found="$("$dir/venv/bin/python" "$dir/show.py")"
echo "$found"
diff <(echo "$expected") <(echo "$found") && echo "tokenizers 0.23.3 behaves as described"
