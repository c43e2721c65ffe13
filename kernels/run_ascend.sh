#!/usr/bin/env bash
# On a host with CANN and a card: builds and installs the kernels, holds every sibling to its contract on the card, and
# times the kernels under msprof where it is installed. Says so and stops where there is no toolkit.
#
#   kernels/run_ascend.sh [install folder]      default: build/ascend/opp
#
# PYTHON (default python) is the interpreter with MindSpore. Never run without hardware by the authors: see README.md.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
install=${1:-"$here/../build/ascend/opp"}
python=${PYTHON:-python}

"$here/build_ascend.sh" "$install"
vendor="$install/vendors/mindmoe"
[[ -d "$vendor" ]] || exit 0  # build_ascend.sh said why
export ASCEND_CUSTOM_OPP_PATH="$vendor${ASCEND_CUSTOM_OPP_PATH:+:$ASCEND_CUSTOM_OPP_PATH}"

cd "$here/.."
MINDMOE_TEST_DEVICE=Ascend "$python" -m pytest -q tests/wet/ops/test_contract.py -k "card or reference"
if command -v msprof > /dev/null; then
    msprof --output="$here/../build/ascend/profile" --application="$python -m mindmoe.ops.ascend.timing"
else
    "$python" -m mindmoe.ops.ascend.timing
fi
