"""Rules that keep the kernel sources compilable by the device compiler, which never sees them here."""

import json
import os
import re
import subprocess

import pytest
from host_model import ROOT

from mindmoe.ops.ascend.roofline import Shape, work

KERNELS = ROOT / "kernels"
DEVICE = sorted([*(KERNELS / "op_kernel").glob("*.h"), *(KERNELS / "op_kernel").glob("*.cpp")])
OPS = sorted(path.stem for path in (KERNELS / "op_kernel").glob("*.cpp"))
TOOLKIT_HEADERS = {"kernel_operator.h", "lib/matmul_intf.h", "lib/matmul/matmul_intf.h"}
DATA_HEADERS = {"cstdint", "kernel_tiling/kernel_tiling.h"}
FORBIDDEN = (
    r"std::|\bnew\b|\bdelete\b|\bvirtual\b|\bdouble\b|\bthrow\b|\btry\b|\bstatic_assert\b"
    r"|__linux__|HOST_MODEL|host_model"
)
# Names of AscendC that exist in CANN 8.1 and 9.x with the same signature (reference documentation of both).
VECTOR_API = set(
    re.findall(
        r"\w+",
        """
    Add Adds Axpy BlockReduceMax BlockReduceSum Brcb Cast CompareScalar CreateVecIndex DataCopy DataCopyPad Div
    Duplicate Exp Gather GatherMask Ln Max Maxs Mins MrgSort Mul Muls Select ShiftRight Sort32 Sub
    WholeReduceMax WholeReduceSum""",
    )
)
SYNC_API = {"PipeBarrier", "SetFlag", "WaitFlag", "SyncAll", "GetBlockIdx", "GetTPipePtr"}
SYNC_API |= {"GetUserWorkspace", "GetSysWorkSpacePtr"}


def code(path):
    """The source without comments."""
    return re.sub(r"//[^\n]*", "", path.read_text())


@pytest.mark.parametrize("path", DEVICE, ids=lambda p: p.name)
def test_a_kernel_uses_only_what_the_device_compiler_has(path):
    text = code(path)
    own = {p.name for p in DEVICE}
    included = set(re.findall(r'#include ["<]([^">]+)[">]', text))
    assert included <= own | DATA_HEADERS | (TOOLKIT_HEADERS if path.name == "compat.h" else set())
    assert not re.search(FORBIDDEN, text), re.search(FORBIDDEN, text)
    assert not re.search(r"#if.*(gcc|GNUC|x86|CPU)", text, re.IGNORECASE)


@pytest.mark.parametrize("path", DEVICE, ids=lambda p: p.name)
def test_every_free_function_called_is_ours_or_in_both_cann_releases(path):
    everything = "".join(code(p) for p in DEVICE)
    declared = r"__aicore__ inline (?:[\w:<>]+ )+?(\w+)\("
    ours = set(re.findall(declared, everything)) | set(OPS) | set(re.findall(r"(?:class|struct) (\w+)", everything))
    # A call that follows neither a dot nor a member selection; constructed parameters end in Params, Info or List.
    text = code(path).replace(".template ", ".")
    called = set(re.findall(r"(?<![\w.>])([A-Z]\w+)(?:<[\w:, ]+>)?\(", text))
    macros = {"REGISTER_TILING_DEFAULT", "GET_TILING_DATA", "KERNEL_TASK_TYPE_DEFAULT", "REGIST_MATMUL_OBJ"}
    variables = set(re.findall(r"(?:Params|Info|List)(?:<\w+>)? (\w+)\(", text))
    constructed = {name for name in called if re.search(r"(Params|Info|List)$", name)}
    assert called - constructed - ours - macros - variables - VECTOR_API - SYNC_API == set()


@pytest.mark.parametrize("op", OPS)
def test_every_kernel_is_registered_and_launched_by_a_test(op):
    camel = "".join(word.title() for word in op.split("_"))
    registered = "".join(p.read_text() for p in (KERNELS / "op_host").glob("*.cpp"))
    assert f"OP_ADD({camel});" in registered
    assert f'extern "C" __global__ __aicore__ void {op}(' in (KERNELS / "op_kernel" / f"{op}.cpp").read_text()
    drivers = "".join(p.read_text() for p in (ROOT / "tests" / "kernels").glob("drive_*.cpp"))
    assert f'{{"{op}", ' in drivers
    assert f"`{op}`" in (KERNELS / "README.md").read_text()


@pytest.mark.parametrize("script", ["build_ascend.sh", "run_ascend.sh"])
def test_a_script_skips_clearly_without_the_toolkit(tmp_path, script):
    if os.environ.get("ASCEND_HOME_PATH") or os.path.isdir("/usr/local/Ascend"):
        pytest.skip("this host has the toolkit")
    done = subprocess.run([KERNELS / script, tmp_path / "opp"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.startswith("skipped: no CANN toolkit") and not done.stdout


MSOPGEN = """#!/bin/bash
while [[ $1 != -out ]]; do shift; done
mkdir -p "$2/op_host" "$2/op_kernel"
touch "$2/op_host/swiglu.cpp" "$2/op_host/swiglu_tiling.h" "$2/op_kernel/stub.cpp"
echo '{"configurePresets": [{"cacheVariables": VARIABLES}]}' > "$2/CMakePresets.json"
cat > "$2/build.sh" <<'END'
mkdir -p build_out
cat > build_out/custom_opp_x.run <<'RUN'
mkdir -p "${2#*=}/vendors/mindmoe" && cp -r "$(dirname "$0")/.." "${2#*=}/vendors/mindmoe/project"
RUN
END
"""


def build_with(tmp_path, variables):
    """Runs the build script with a toolkit that only lays out and copies; CMakePresets.json holds `variables`."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "msopgen").write_text(MSOPGEN.replace("VARIABLES", json.dumps(variables)))
    (tools / "msopgen").chmod(0o755)
    environment = os.environ | {"ASCEND_HOME_PATH": str(tmp_path), "PATH": f"{tools}:{os.environ['PATH']}"}
    command = [KERNELS / "build_ascend.sh", tmp_path / "opp"]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_the_build_script_packs_our_sources_and_says_what_to_export(tmp_path):
    names = ("ASCEND_COMPUTE_UNIT", "vendor_name", "ASCEND_CANN_PACKAGE_PATH")
    done = build_with(tmp_path, {name: {"type": "STRING", "value": "other"} for name in names})
    assert done.returncode == 0, done.stderr
    vendor = tmp_path / "opp" / "vendors" / "mindmoe"
    assert f"export ASCEND_CUSTOM_OPP_PATH={vendor}:" in done.stdout
    for folder in ("op_host", "op_kernel", "tiling"):
        ours = {path.name: path.read_bytes() for path in (KERNELS / folder).iterdir()}
        assert {path.name: path.read_bytes() for path in (vendor / "project" / folder).iterdir()} == ours
    presets = json.loads((vendor / "project" / "CMakePresets.json").read_text())
    values = presets["configurePresets"][0]["cacheVariables"]
    assert [values[name]["value"] for name in names] == ["ascend910b", "mindmoe", str(tmp_path)]


def test_the_build_script_refuses_a_layout_it_does_not_know(tmp_path):
    done = build_with(tmp_path, {})
    assert done.returncode != 0 and "ASCEND_COMPUTE_UNIT" in done.stderr


def test_the_readme_prints_the_counted_bounds():
    readme = (KERNELS / "README.md").read_text().splitlines()
    for kernel, counted in work(Shape()).items():
        row = next(line for line in readme if line.startswith(f"| `{kernel}` |") and line.rstrip(" |").endswith("us"))
        assert f"{counted.bytes / 1e6:.1f} MB" in row and f"{counted.bound * 1e6:.1f} us" in row, row
        assert not counted.flops or f"{counted.flops / 1e9:.0f} GFLOP" in row, row
