#!/usr/bin/env bash
# Resolves the tested set anew in a throw-away environment and writes it to requirements/lock-py311.txt.
# The local part of a version (torch 2.13.0+cpu) is dropped: it names a build, and `==2.13.0` accepts any build.
set -euo pipefail
cd "$(dirname "$0")/.."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

python3.11 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet --editable '.[dev,hf,parquet,s3,tiktoken,tune,zstd]' mindspore==2.9.0 numpy==1.26.4
"$scratch/venv/bin/pip" check
{
    echo "# The tested set: Python 3.11, every extra but mindformers. Written by scripts/lock.sh; used by make with pip -c."
    "$scratch/venv/bin/pip" freeze --exclude-editable | sed -E 's/\+[a-z0-9.]+$//'
} > "$scratch/lock.txt"
mv "$scratch/lock.txt" requirements/lock-py311.txt
