#!/usr/bin/env bash
# Usage: scripts/setup.sh VENV EXTRAS
# Installs mindmoe with EXTRAS (such as '[dev,hf]', or '') into VENV, creating it when it is missing or broken.
# Python 3.11 is preferred: it is the tested one. PYTHON names another interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1 extras=$2

fail() { printf 'setup: %s\n' "$@" >&2; exit 1; }

supported() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3 python3.12 python3.10}; do
        if supported "$candidate"; then echo "$candidate"; return; fi
    done
    fail "mindmoe needs Python 3.10, 3.11 or 3.12 and none of ${PYTHON:-python3.11 python3 python3.12 python3.10} is one." \
         "Install Python 3.11, or name an interpreter: make setup PYTHON=path/to/python3.11"
}

if ! supported "$venv/bin/python" || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    echo "==> creating $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv" || fail "$python cannot create a virtual environment." \
        "On Debian and Ubuntu: apt install $(basename "$python")-venv"
fi

version=$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
constraint=(--constraint requirements/lock-py311.txt)
if [ "$version" = 3.10 ]; then
    echo "==> Python 3.10: the lock is for 3.11 and 3.12, so versions come from the ranges in pyproject.toml"
    constraint=()
fi
quiet=(--quiet)
if [ -t 1 ]; then quiet=(); fi

echo "==> installing mindmoe$extras into $venv (the first time this downloads MindSpore and takes minutes)"
"$venv/bin/python" -m pip install --disable-pip-version-check "${quiet[@]}" "${constraint[@]}" --editable ".$extras"
"$venv/bin/python" -m pip check
