"""Rules that keep the kernel sources compilable by the device compiler, which never sees them here."""

import os
import re
import shutil
import subprocess

import pytest
from host_model import ROOT

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


def test_the_build_script_skips_clearly_without_the_toolkit(tmp_path):
    if os.environ.get("ASCEND_HOME_PATH") or os.path.isdir("/usr/local/Ascend"):
        pytest.skip("this host has the toolkit")
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    done = subprocess.run(["bash", str(KERNELS / "build_ascend.sh"), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.startswith("skipped: no CANN toolkit")
