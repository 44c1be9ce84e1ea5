#!/usr/bin/env bash
# tokenizers 0.23.2: bytes that a vocabulary with byte fallback spells <0xNN> are decoded run by run, all or none. One that does not fit
# takes the whole characters in front of it along:
# - decode of the three bytes of one character and a fourth byte gives four U+FFFD, not the character and one U+FFFD;
# - DecodeStream, which has handed out the character by then, ends with an error at the token that follows.
# Every id is one of the vocabulary, as a model may sample it. Ends with an error if it behaves otherwise today. Needs python3 with venv
# (the wheel holds the same Rust code).
set -euo pipefail
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.2
cat >"$dir/show.py" <<'PYTHON'
from tokenizers import Tokenizer, decoders, models
from tokenizers.decoders import DecodeStream

vocabulary = {"<unk>": 0, "a": 1} | {f"<0x{byte:02X}>": 2 + byte for byte in range(256)}
tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
character = [2 + byte for byte in "中".encode()]
ids = [*character, 2 + 0xFF, 1]
print("the character:", tokenizer.decode(character))
print("all at once:", tokenizer.decode(ids))
stream = DecodeStream(skip_special_tokens=True)
try:
    print("one by one:", [stream.step(tokenizer, id) for id in ids])
except Exception as error:
    print("one by one:", str(error).split(".")[0])
PYTHON
expected="the character: 中
all at once: ����a
one by one: Invalid prefix encountered while decoding stream"
found="$("$dir/venv/bin/python" "$dir/show.py")"
echo "$found"
diff <(echo "$expected") <(echo "$found") && echo "tokenizers 0.23.2 behaves as described"
