#!/usr/bin/env bash
# `tojson`, with which chat templates write tools into a prompt, is three filters:
# - jinja2 3.1.6: keys are sorted, and < > & ' and all that is not ASCII is escaped (for HTML);
# - minijinja 3.1.0: keys stay in their order, < > & ' are escaped, the rest is not;
# - transformers 5.24.0, for which the templates are written: keys stay in their order, nothing but JSON's own is escaped.
# So a template that is rendered with jinja2 or minijinja as they come gives a model other tokens than it was trained on, and no error.
# Ends with an error if it behaves otherwise today. Needs python3 with venv.
set -euo pipefail
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check jinja2==3.1.6 minijinja==3.1.0 transformers==5.24.0 tokenizers==0.23.3
cat >"$dir/show.py" <<'PYTHON'
import jinja2
import minijinja
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

TEMPLATE = "{{ messages[0].content | tojson }}"
MESSAGES = [{"role": "user", "content": {"type": "<b>'n' & é", "name": "x"}}]
tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), chat_template=TEMPLATE)
print("jinja2:", jinja2.Environment().from_string(TEMPLATE).render(messages=MESSAGES))
print("minijinja:", minijinja.Environment().render_str(TEMPLATE, messages=MESSAGES))
print("transformers:", tokenizer.apply_chat_template(MESSAGES, tokenize=False))
PYTHON
expected="$(
    cat <<'TEXT'
jinja2: {"name": "x", "type": "\u003cb\u003e\u0027n\u0027 \u0026 \u00e9"}
minijinja: {"type": "\u003cb\u003e\u0027n\u0027 \u0026 é", "name": "x"}
transformers: {"type": "<b>'n' & é", "name": "x"}
TEXT
)"
found="$("$dir/venv/bin/python" "$dir/show.py" 2>/dev/null)"
echo "$found"
diff <(echo "$expected") <(echo "$found") && echo "jinja2 3.1.6, minijinja 3.1.0 and transformers 5.24.0 behave as described"
