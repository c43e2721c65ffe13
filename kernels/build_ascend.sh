#!/usr/bin/env bash
# Builds and installs the custom operator package on a host with CANN 8.1 or newer (Atlas A2, ascend910b).
#
#   kernels/build_ascend.sh [install folder]      default: build/ascend/opp
#
# SOC (default Ascend910B1) names the chip for msopgen. Never run without hardware by the authors: see README.md.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
build="$here/../build/ascend"
install=${1:-"$build/opp"}
soc=${SOC:-Ascend910B1}

if [[ -z "${ASCEND_HOME_PATH:-}" ]]; then
    for candidate in /usr/local/Ascend/cann/set_env.sh /usr/local/Ascend/ascend-toolkit/set_env.sh; do
        if [[ -f "$candidate" ]]; then
            set +u  # the toolkit's script reads unset variables
            # shellcheck disable=SC1090
            source "$candidate"
            set -u
            break
        fi
    done
fi
if [[ -z "${ASCEND_HOME_PATH:-}" ]]; then
    echo "skipped: no CANN toolkit (set ASCEND_HOME_PATH or source its set_env.sh); the kernels were not built" >&2
    exit 0
fi

msopgen=$(command -v msopgen || true)
[[ -n "$msopgen" ]] || msopgen="$ASCEND_HOME_PATH/python/site-packages/bin/msopgen"
[[ -x "$msopgen" ]] || { echo "msopgen is not in PATH nor at $msopgen: install the toolkit's op development tools" >&2; exit 2; }

mkdir -p "$build" "$install"
build=$(cd "$build" && pwd)
install=$(cd "$install" && pwd)
rm -rf "$build/project"

# msopgen lays out the project from a seed; the operators themselves are registered in op_host.
cat > "$build/seed.json" <<'JSON'
[{"op": "Swiglu",
  "input_desc": [{"name": "x", "param_type": "required", "format": ["ND", "ND"], "type": ["float", "bf16"]}],
  "output_desc": [{"name": "out", "param_type": "required", "format": ["ND", "ND"], "type": ["float", "bf16"]}]}]
JSON
"$msopgen" gen -i "$build/seed.json" -c "ai_core-$soc" -lan cpp -out "$build/project"

project="$build/project"
rm -f "$project"/op_host/*.cpp "$project"/op_host/*.h "$project"/op_kernel/*.cpp "$project"/op_kernel/*.h
cp "$here"/op_host/*.cpp "$here"/op_host/*.h "$project/op_host/"
cp "$here"/op_kernel/*.cpp "$here"/op_kernel/*.h "$project/op_kernel/"
mkdir -p "$project/tiling"
cp "$here"/tiling/*.h "$project/tiling/"

python3 - "$project/CMakePresets.json" "$ASCEND_HOME_PATH" <<'PY'
import json
import sys

path, toolkit = sys.argv[1:]
with open(path) as file:
    presets = json.load(file)
values = presets["configurePresets"][0]["cacheVariables"]
wanted = {"ASCEND_COMPUTE_UNIT": "ascend910b", "vendor_name": "mindmoe", "ASCEND_CANN_PACKAGE_PATH": toolkit}
for name, value in wanted.items():
    if name not in values:
        sys.exit(f"{path} has no {name}: this CANN release lays out its project differently, see kernels/README.md")
    values[name]["value"] = value
with open(path, "w") as file:
    json.dump(presets, file, indent=4)
PY

(cd "$project" && bash build.sh)
package=$(ls -t "$project"/build_out/custom_opp_*.run | head -n 1)
bash "$package" --quiet --install-path="$install"

echo "installed; before starting MindSpore:"
echo "  export ASCEND_CUSTOM_OPP_PATH=$install/vendors/mindmoe:\$ASCEND_CUSTOM_OPP_PATH"
