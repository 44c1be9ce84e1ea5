#!/usr/bin/env bash
# jinja2 3.1.6 and minijinja 3.1.0: expressions look like Python's and bind otherwise, in both alike:
# - `~` (joins texts) binds more than + and -, less than * and /: 'step ' ~ 3 - 1 takes 1 from a text, an error;
# - ** goes from left to right, and a sign in front of it binds more: 2 ** 3 ** 2 is 64 (Python: 512), -2 ** 2 is 4 (Python: -4);
# - a sign binds more than a filter: -7 | abs is 7;
# - the argument of a test is one value, and what stands behind it goes on with its truth: 3 is eq 1 + 2 is (3 is eq 1) + 2, which is 2.
# Ends with an error if it behaves otherwise today. Needs python3 with venv.
set -euo pipefail
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check jinja2==3.1.6 minijinja==3.1.0
cat >"$dir/show.py" <<'PYTHON'
import jinja2
import minijinja

ENGINES = (
    lambda text: jinja2.Environment().from_string(text).render(),
    lambda text: minijinja.Environment().render_str(text),
)


def value(render, expression):
    try:
        return render("{{ " + expression + " }}")
    except (TypeError, minijinja.TemplateError):
        return "error"


for expression in ("'step ' ~ 3 * 2", "'step ' ~ 3 - 1", "'step ' ~ (3 - 1)", "2 ** 3 ** 2", "-2 ** 2", "-7 | abs", "3 is eq 1 + 2"):
    print(f"{expression}:", *(value(render, expression) for render in ENGINES), sep=" | ")
PYTHON
expected="'step ' ~ 3 * 2: | step 6 | step 6
'step ' ~ 3 - 1: | error | error
'step ' ~ (3 - 1): | step 2 | step 2
2 ** 3 ** 2: | 64 | 64
-2 ** 2: | 4 | 4
-7 | abs: | 7 | 7
3 is eq 1 + 2: | 2 | 2"
found="$("$dir/venv/bin/python" "$dir/show.py")"
echo "$found"
diff <(echo "$expected") <(echo "$found") && echo "jinja2 3.1.6 and minijinja 3.1.0 behave as described"
