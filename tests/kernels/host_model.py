"""Builds the host-model drivers with g++ and launches kernels on NumPy arrays."""

import ctypes
import hashlib
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "kernels"
FLAGS = ("-std=c++17", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-pthread")
UNOPTIMISED = {"model", "op_host"}  # drivers that execute too little to repay the optimiser


class KernelError(Exception):
    """The tiling refused the request or the model found a violation."""


def compile_shared(source: Path, target: Path, kernels: Path = ROOT / "kernels", flags: Sequence[str] = FLAGS) -> None:
    """Compiles one driver against the kernels in a folder (mutants pass a copy)."""
    folders = [kernels, kernels / "host_model", kernels / "op_kernel", source.parent, source.parent / "cann"]
    includes = [f"-I{folder}" for folder in folders]
    done = subprocess.run(["g++", *flags, *includes, str(source), "-o", str(target)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{source.name} does not compile:\n{done.stderr}")


def build(driver: str) -> Path:
    """The shared library of `drive_<driver>.cpp`, compiled once per state of the sources."""
    source = Path(__file__).parent / f"drive_{driver}.cpp"
    flags = (*FLAGS, "-O0" if driver in UNOPTIMISED else "-O1", *os.environ.get("MINDMOE_KERNEL_CXXFLAGS", "").split())
    digest = hashlib.sha256(" ".join(flags).encode())
    files = [*(ROOT / "kernels").rglob("*.h"), *(ROOT / "kernels").rglob("*.cpp"), *Path(__file__).parent.rglob("*.h")]
    for path in [source, *sorted(files)]:
        digest.update(path.read_bytes())
    target = BUILD / f"{driver}-{digest.hexdigest()[:16]}.so"
    if not target.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        fresh = BUILD / f"{driver}-{os.getpid()}.so"
        compile_shared(source, fresh, flags=flags)
        fresh.replace(target)  # atomic: another test process may build the same file
    return target


class Driver:
    """One compiled driver."""

    def __init__(self, library: Path) -> None:
        self._run = ctypes.CDLL(str(library)).run_kernel

    def __call__(
        self,
        kernel: str,
        inputs: Sequence[np.ndarray | None],
        outputs: Sequence[np.ndarray | None],
        ints: Sequence[int],
        reals: Sequence[float] = (),
        *,
        bf16: bool = False,
        cores: int = 4,
        seed: int = 0,
    ) -> None:
        """Launches a kernel in three orders of its cores, which must agree in every bit; writes `outputs` in place.

        Raises:
            KernelError: with the rule of the tiling or the violation that the model found.
        """
        before = [None if out is None else out.copy() for out in outputs]
        self._launch(kernel, inputs, outputs, ints, reals, bf16, cores, seed)
        for other in (seed + 1, seed + 2) if cores > 1 and not kernel.startswith("plan ") else ():
            again = [None if out is None else out.copy() for out in before]
            self._launch(kernel, inputs, again, ints, reals, bf16, cores, other)
            for a, b in zip(outputs, again, strict=True):
                assert a is None or a.tobytes() == b.tobytes(), f"{kernel}: the order of the cores changes the result"

    def _launch(
        self,
        kernel: str,
        inputs: Sequence[np.ndarray | None],
        outputs: Sequence[np.ndarray | None],
        ints: Sequence[int],
        reals: Sequence[float],
        bf16: bool,
        cores: int,
        seed: int,
    ) -> None:
        arrays = [*inputs, *outputs]
        assert all(a is None or a.flags.c_contiguous for a in arrays)
        pointers = (ctypes.c_void_p * len(arrays))(*[None if a is None else a.ctypes.data for a in arrays])
        sizes = (ctypes.c_uint64 * len(arrays))(*[0 if a is None else a.nbytes for a in arrays])
        message = ctypes.create_string_buffer(4096)
        failed = self._run(
            kernel.encode(),
            int(bf16),
            (ctypes.c_int64 * max(1, len(ints)))(*ints),
            (ctypes.c_double * max(1, len(reals)))(*reals),
            pointers,
            sizes,
            len(inputs),
            len(outputs),
            cores,
            seed,
            message,
            len(message),
        )
        if failed:
            raise KernelError(message.value.decode())


def to_bf16(x: np.ndarray) -> np.ndarray:
    """Bits of bfloat16, rounded to nearest even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits: np.ndarray) -> np.ndarray:
    """float32 values of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def store(x: np.ndarray, bf16: bool) -> np.ndarray:
    """x as a kernel stores it: float32, or the bits of bfloat16."""
    return to_bf16(x) if bf16 else np.ascontiguousarray(x, np.float32)


def value(x: np.ndarray, bf16: bool) -> np.ndarray:
    """float32 values of what a kernel stored."""
    return from_bf16(x) if bf16 else x


def garbage(shape: Sequence[int], bf16: bool = False) -> np.ndarray:
    """An output array of NaN, so that an element never written shows."""
    return np.full(shape, 0xFFFF, np.uint16) if bf16 else np.full(shape, np.nan, np.float32)


def close(kernel: str, got: np.ndarray, want: np.ndarray, bf16: bool, *, rtol: float = 0.0, atol: float) -> None:
    """Holds what a kernel stored to its float64 oracle.

    With MINDMOE_KERNEL_ERRORS=FILE the largest error is also added to that file, for errors.py.
    """
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)
    file = os.environ.get("MINDMOE_KERNEL_ERRORS")
    if file and got.size:
        largest = float(np.abs(want).max())
        error = float(np.abs(got.astype(np.float64) - want).max())
        row = {"kernel": kernel, "bf16": bf16, "shape": got.shape, "error": error, "largest": largest}
        with Path(file).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")
