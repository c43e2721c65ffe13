"""Compiles the C++ pack with the system compiler at first use, into a per-user cache.

The library's folder is named after a digest of the sources, the compiler's version and the flags, so a changed source
or compiler is a new library and nothing is ever rebuilt in place. Concurrent ranks wait on one file lock; the finished
folder appears by one atomic rename.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Literal, get_args

from mindmoe.env import user_cache
from mindmoe.errors import UserError

Isa = Literal["amx", "avx512_bf16", "avx512", "avx2", "portable"]

# -ffp-contract=fast lets a*b+c become one fused operation; sums are never reordered.
BASE_FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-signed-zeros",
    "-ffp-contract=fast",
    "-Wno-psabi",
)
_AVX2 = ("-mavx2", "-mfma", "-mf16c", "-mbmi2")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
_AVX512_BF16 = (*_AVX512, "-mavx512bf16")
ISA_FLAGS: dict[Isa, tuple[str, ...]] = {
    "amx": (*_AVX512_BF16, "-mamx-tile", "-mamx-bf16"),
    "avx512_bf16": _AVX512_BF16,
    "avx512": _AVX512,
    "avx2": _AVX2,
    "portable": (),
}
# CPU features (as /proc/cpuinfo names them) that each instruction set needs.
_NEEDS_AVX2 = {"avx2", "fma", "f16c", "bmi2"}
_NEEDS_AVX512 = _NEEDS_AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
_NEEDS: dict[Isa, set[str]] = {
    "amx": _NEEDS_AVX512 | {"avx512_bf16", "amx_tile", "amx_bf16"},
    "avx512_bf16": _NEEDS_AVX512 | {"avx512_bf16"},
    "avx512": _NEEDS_AVX512,
    "avx2": _NEEDS_AVX2,
    "portable": set(),
}


def supported_isas() -> list[Isa]:
    """Instruction sets this machine can run, best first; the last is always `portable`."""
    features = _cpu_features()
    return [isa for isa in get_args(Isa) if _NEEDS[isa] <= features]


def best_isa() -> Isa:
    """The best instruction set that this machine runs and its compiler knows (g++ knows AMX from version 11 on)."""
    compiler = find_compiler()
    for isa in supported_isas():
        asked = [compiler, *ISA_FLAGS[isa], "-E", "-x", "c++", os.devnull]
        if subprocess.run(asked, capture_output=True, check=False).returncode == 0:
            return isa
    return "portable"


def fast_bf16() -> bool:
    """Whether this CPU multiplies bf16 faster than fp32: with AMX, or AMD's AVX512-BF16.

    Intel's AVX512-BF16 alone does not: 85 GFLOP/s a core against 170 in fp32, measured on Emerald Rapids.
    """
    features = _cpu_features()
    return "amx_bf16" in features or {"avx512_bf16", "AuthenticAMD"} <= features


def source_folder() -> Path:
    """The folder of the C++ sources: inside the installed package, else `kernels/cpu/src` of the repository.

    Raises:
        UserError: the installation carries no sources.
    """
    packaged = Path(str(resources.files("mindmoe"))) / "_kernels" / "cpu"
    in_repository = Path(__file__).resolve().parents[3] / "kernels" / "cpu" / "src"
    for folder in (packaged, in_repository):
        if (folder / "custom.h").is_file():
            return folder
    raise UserError(
        f"the sources of the CPU pack are neither in {packaged} nor in {in_repository}",
        "reinstall mindmoe, or use the reference ops",
    )


def library(isa: Isa) -> Path:
    """The compiled pack for one instruction set, building it if the cache lacks it.

    Args:
        isa: one of `supported_isas()` (another one compiles, but cannot run here).

    Returns:
        Path of the shared library.

    Raises:
        UserError: no compiler, a failed compilation, or a cache folder that cannot be written.
    """
    compiler, sources, flags = find_compiler(), source_folder(), (*BASE_FLAGS, *ISA_FLAGS[isa])
    target = _target(isa, compiler, sources, flags)
    folder = target.parent
    if target.is_file():
        return target
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.is_file():
                _build(compiler, sources, flags, folder)
    except OSError as error:
        raise UserError(
            f"cannot write the CPU pack into {folder.parent}: {error}", "set XDG_CACHE_HOME to a writable folder"
        ) from error
    return target


def built(isa: Isa) -> Path | None:
    """The compiled pack where the cache holds it, else None.

    Raises:
        UserError: there is no compiler, or there are no sources, to tell which library it would be.
    """
    target = _target(isa, find_compiler(), source_folder(), (*BASE_FLAGS, *ISA_FLAGS[isa]))
    return target if target.is_file() else None


def find_compiler() -> str:
    """Path of the C++ compiler: $CXX, else c++, g++ or clang++.

    Raises:
        UserError: there is none.
    """
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise UserError(
        "the CPU pack needs a C++17 compiler and found none of $CXX, c++, g++, clang++",
        "install g++, or use the reference ops",
    )


def cache_folder() -> Path:
    """Where compiled packs are kept: `$XDG_CACHE_HOME/mindmoe/cpu`, by default under `~/.cache`."""
    return user_cache() / "cpu"


def _cpu_features() -> set[str]:
    """Features and vendor of the first CPU; empty where they are not needed (not x86-64) or not known."""
    cpuinfo = Path("/proc/cpuinfo")
    if platform.machine() not in ("x86_64", "AMD64") or not cpuinfo.is_file():
        return set()
    first, _, _ = cpuinfo.read_text().partition("\n\n")
    lines = (line.partition(":") for line in first.splitlines())
    return {word for key, _, value in lines if key.strip() in ("flags", "vendor_id") for word in value.split()}


def _target(isa: Isa, compiler: str, sources: Path, flags: tuple[str, ...]) -> Path:
    return cache_folder() / f"{isa}-{_digest(sources, compiler, flags)}" / "libmindmoe_cpu.so"


def _digest(sources: Path, compiler: str, flags: tuple[str, ...]) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    digest = hashlib.sha256("\0".join((compiler, version, *flags)).encode())
    for file in sorted(sources.glob("*.[ch]*")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def _build(compiler: str, sources: Path, flags: tuple[str, ...], folder: Path) -> None:
    """Compiles every .cc of `sources` in parallel and links them in `folder`, which appears complete or not at all."""
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        files = sorted(sources.glob("*.cc"), key=lambda file: -file.stat().st_size)
        objects = [str(scratch / f"{file.stem}.o") for file in files]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as workers:
            list(
                workers.map(
                    lambda pair: _run([compiler, *flags, "-c", str(pair[0]), "-o", pair[1]]),
                    zip(files, objects, strict=True),
                )
            )
        _run([compiler, "-shared", *objects, "-o", str(scratch / "libmindmoe_cpu.so"), "-ldl", "-lpthread"])
        for item in objects:
            Path(item).unlink()
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(
            f"the CPU pack does not compile: `{' '.join(command)}` said\n{done.stderr.strip()[-2000:]}",
            "use a compiler with C++17 (g++ 9 or newer), or the reference ops",
        )
