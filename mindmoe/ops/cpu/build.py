"""Compiles the C++ pack with the system compiler at first use, into a per-user cache.

The library's folder is named after a digest of the sources, the compiler's version and the flags, so a changed source
or compiler is a new library and nothing is ever rebuilt in place. Concurrent ranks wait on one file lock; the finished
folder appears by one atomic rename.

A library runs as this user, so it is loaded only where nobody else can have put it: file and folders belong to this
user and may be written by nobody else, and no folder above them lets others put something in their place. A cache that
is not of this kind is passed over for a private folder among the temporary files.
"""

import fcntl
import grp
import hashlib
import logging
import os
import platform
import pwd
import shutil
import stat
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Literal, get_args

from mindmoe.host.env import user_cache
from mindmoe.host.errors import UserError

_log = logging.getLogger(__name__)
Isa = Literal["amx", "avx512_bf16", "avx512", "avx2", "portable"]  # best first

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
    # get_args gives them in the order of the declaration, best first.
    return [isa for isa in get_args(Isa) if _NEEDS[isa] <= features]


def best_isa() -> Isa:
    """The best instruction set that this machine runs and its compiler knows (g++ knows AMX from version 11 on)."""
    compiler = find_compiler()
    for isa in supported_isas():
        # Preprocessing nothing: an unknown flag is the only thing that can fail.
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
    try:
        target = _target(_safe_cache(), isa, compiler, sources, flags)
        folder = target.parent
        # Looked at before the lock, so that a finished cache needs none, and again inside it: another rank may have
        # built the library meanwhile.
        if not target.is_file() or exposed(target):
            with (folder.parent / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if target.is_file() and (why := exposed(target)):
                    _log.warning("%s: the CPU pack is built anew", why)
                    # Moved away whole before it is deleted: no rank finds half a folder.
                    aside = Path(tempfile.mkdtemp(prefix=".exposed-", dir=folder.parent))
                    folder.rename(aside / folder.name)
                    shutil.rmtree(aside, ignore_errors=True)
                if not target.is_file():
                    _build(compiler, sources, flags, folder)
    except OSError as error:
        raise UserError(
            f"cannot write the CPU pack into {cache_folder()}: {error}", "set XDG_CACHE_HOME to a writable folder"
        ) from error
    return target


def built(isa: Isa) -> Path | None:
    """The compiled pack where a cache that nobody else may write holds it, else None.

    Raises:
        UserError: there is no compiler, or there are no sources, to tell which library it would be.
    """
    compiler, sources, flags = find_compiler(), source_folder(), (*BASE_FLAGS, *ISA_FLAGS[isa])
    for root in (cache_folder(), _private_folder()):
        target = _target(root, isa, compiler, sources, flags)
        if target.is_file() and not exposed(target):
            return target
    return None


def exposed(path: Path, own: int = 4) -> str:
    """Why somebody else may decide what a path holds; empty if only this user (and root) does.

    What lies in this user's cache must be of this user, and writable by nobody else. Folders above may also be root's,
    and may be writable by others only with the sticky bit, under which nobody moves what belongs to another.

    Args:
        path: a library, or the folder of all.
        own: how many levels of it, upwards, lie in the cache.
    """
    user, real = os.geteuid(), Path(os.path.realpath(path))
    for place in (real, *real.parents):
        try:
            status = place.stat()
        except OSError as error:
            return f"{place} cannot be looked at: {error.strerror}"
        # The lowest `own` levels are the cache's; above them folders of root, or sticky ones, are fine too.
        ours = len(place.parts) > len(real.parts) - own
        # Writable by group or others, unless the sticky bit protects entries from strangers (above the cache only).
        shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not (status.st_mode & stat.S_ISVTX and not ours)
        if status.st_uid != user and (ours or status.st_uid != 0):
            return f"{place} belongs to another user"
        # A group of this user alone is nobody else.
        if shared and (status.st_mode & stat.S_IWOTH or not _is_private_group(status.st_gid)):
            return f"{place} may be written by others"
    return ""


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


def _safe_cache() -> Path:
    """The folder of compiled packs, made if missing: in this user's cache, or a private one if others may write there.

    Raises:
        OSError: it cannot be made.
        UserError: others may write into the private one too.
    """
    why = ""
    for folder in (cache_folder(), _private_folder()):
        # For others not even readable where this makes them; folders that exist keep their mode and are judged.
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.mkdir(exist_ok=True, mode=0o700)
        if not (exposure := exposed(folder, own=2)):
            if why:
                _log.warning("%s: the CPU pack is kept in %s; `chmod go-w` it to use it again", why, folder)
            return folder
        why = why or exposure
    raise UserError(
        f"{why}, and {exposure}: no library is loaded from there", "set XDG_CACHE_HOME to a folder of your own"
    )


def _private_folder() -> Path:
    """Where packs are kept when the cache is no place for them."""
    return Path(tempfile.gettempdir()) / f"mindmoe-{os.geteuid()}" / "cpu"


def _is_private_group(number: int) -> bool:
    """Whether a group is that of this user alone, as systems with an umask of 002 give each user one."""
    try:
        group, user = grp.getgrgid(number), pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return number == user.pw_gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


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


def _target(root: Path, isa: Isa, compiler: str, sources: Path, flags: tuple[str, ...]) -> Path:
    return root / f"{isa}-{_digest(sources, compiler, flags)}" / "libmindmoe_cpu.so"


def _digest(sources: Path, compiler: str, flags: tuple[str, ...]) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    digest = hashlib.sha256("\0".join((compiler, version, *flags)).encode())
    # Sorted, so that the digest does not depend on the order of the file system.
    for file in sorted(sources.glob("*.[ch]*")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def _build(compiler: str, sources: Path, flags: tuple[str, ...], folder: Path) -> None:
    """Compiles every .cc of `sources` in parallel and links them in `folder`, which appears complete or not at all."""
    # Beside its place, not where the system keeps temporary files: a rename is atomic within one file system only.
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        # The largest first: the last one to finish is then a short one.
        files = sorted(sources.glob("*.cc"), key=lambda file: -file.stat().st_size)
        objects = [str(scratch / f"{file.stem}.o") for file in files]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as workers:
            # `list` raises what a worker raised.
            list(
                workers.map(
                    lambda pair: _run([compiler, *flags, "-c", str(pair[0]), "-o", pair[1]]),
                    zip(files, objects, strict=True),
                )
            )
        _run([compiler, "-shared", *objects, "-o", str(scratch / "libmindmoe_cpu.so"), "-ldl", "-lpthread"])
        for item in objects:
            Path(item).unlink()
        # The linker follows the umask, which may leave it writable by a group that `exposed` refuses.
        (scratch / "libmindmoe_cpu.so").chmod(0o700)
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
