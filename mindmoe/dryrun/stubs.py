"""Empty stand-ins for the accelerator libraries that MindSpore's GPU plugin links, so that it loads without them (dry).

Every function returns an error, but for the registration of kernels when a library is loaded: nothing can run on them.
They serve the compiler alone.
"""

import re
import shutil
import subprocess
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

from mindmoe.errors import UserError

_PLUGIN = "lib/plugin/libmindspore_gpu.so.11.6"
_KERNELS = "lib/plugin/gpu/libcuda_ops.so.11"
_TOOLS = ("gcc", "nm", "readelf")
_ERROR = 100  # cudaErrorNoDevice
_COMPILER = "#!/bin/sh\necho 'Cuda compilation tools, release 11.6, V11.6.124'\n"
_PREFIX = {
    "libcuda.so.1": r"cu[A-Z]",
    "libnvrtc": r"nvrtc",
    "libcudnn": r"cudnn",
    "libcurand": r"curand",
    "libcufft": r"cufft",
    "libcusparse": r"cusparse",
    "libcusolver": r"cusolver",
    "libcublas": r"cublas",
    "libcudart": r"(__)?cuda[A-Z_]",
}
"""What the names of a library's functions begin with, where the linker did not note the library."""


def environment(folder: Path) -> dict[str, str]:
    """Builds the libraries in a folder; returns the variables under which MindSpore's GPU plugin loads.

    Raises:
        UserError: a tool, or the plugin, is missing.
    """
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        raise UserError(f"the compile check needs {', '.join(missing)}", "install gcc and binutils")
    spec = find_spec("mindspore")
    site = Path(next(iter(spec.submodule_search_locations or [""]))) if spec else Path()
    libraries = [site / _PLUGIN, site / _KERNELS]
    if not all(path.is_file() for path in libraries):
        raise UserError(
            "the compile check needs MindSpore's GPU plugin, which this package of it does not carry",
            "use the x86 package of the tested version",
        )
    stubs = folder / "stubs"
    stubs.mkdir()
    _build(libraries, stubs)
    compiler = folder / "cuda" / "bin" / "nvcc"
    compiler.parent.mkdir(parents=True)
    compiler.write_text(_COMPILER, encoding="ascii")
    compiler.chmod(0o755)
    found = [stubs, site / "lib", site / "lib/plugin", site / "lib/plugin/gpu", site / "lib/plugin/gpu11.6"]
    return {"LD_LIBRARY_PATH": ":".join(map(str, found)), "CUDA_HOME": str(folder / "cuda")}


def _build(libraries: list[Path], out: Path) -> None:
    """Compiles one library for each that is needed, with the functions that are looked for in it."""
    needed: set[str] = set()
    wanted: dict[str, set[str]] = defaultdict(set)  # by the version that the linker noted, which is the library's name
    for library in libraries:
        needed |= set(re.findall(r"NEEDED.*\[(.+?)\]", _said("readelf", "-dW", str(library))))
        for line in _said("nm", "-D", "--undefined-only", str(library)).splitlines():
            name, _, version = line.split()[-1].partition("@")
            wanted[version.lstrip("@")].add(name)
    for name in sorted(needed):
        prefix = next((rule for start, rule in _PREFIX.items() if name.startswith(start)), None)
        if prefix is None:
            continue
        functions = wanted.get(name, set()) | {each for each in wanted[""] if re.match(prefix, each)}
        if name == "libcuda.so.1":
            functions |= {"cuInit", "cuDriverGetVersion", "cuDeviceGetCount"}
        source = out / f"{name}.c"
        lines = [f"int {each}(void){{return {0 if each.startswith('__cuda') else _ERROR};}}\n" for each in functions]
        source.write_text("".join(sorted(lines)), encoding="ascii")
        command = ["gcc", "-shared", "-fPIC", "-O0", "-w", f"-Wl,-soname,{name}", "-o", str(out / name), str(source)]
        if name in wanted:
            script = out / f"{name}.map"
            script.write_text(f"{name} {{ global: *; }};\n", encoding="ascii")
            command.append(f"-Wl,--version-script={script}")
        subprocess.run(command, check=True)


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
