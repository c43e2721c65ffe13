"""Loads the compiled pack and makes ops of its entry points.

Example:
    pack = load()                     # the best instruction set of this machine, compiled at first use
    pack.set_threads(2)
    double = pack.op("entry_point", lambda x: x, lambda x: x)
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import mindspore as ms
import numpy as np
from mindspore import ops

from mindmoe.errors import UserError
from mindmoe.ops.cpu.build import Isa, fast_bf16, library, supported_isas

Precision = Literal["fp32", "bf16"]
Gemm = Literal["onednn", "onednn_widened", "own"]
Outputs = tuple[ms.Tensor, ...]
STORAGE = {"fp32": ms.float32, "bf16": ms.bfloat16}


@dataclass(frozen=True)
class Pack:
    """One loaded library, with the source of its matrix products."""

    isa: Isa
    path: Path
    gemm: Gemm

    def op(self, name: str, shape: Callable[..., Any], dtype: Callable[..., Any], variant: object = "") -> ops.Custom:
        """The entry point `name` as a primitive without gradient.

        Args:
            name: exported by the library.
            shape: infers the shapes of the outputs from those of the inputs.
            dtype: likewise the dtypes.
            variant: whatever `shape` and `dtype` close over. MindSpore reuses what it inferred for a primitive of equal
                name and attributes, so two ops that infer differently must differ here.
        """
        primitive = ops.Custom(f"{self.path}:{name}", out_shape=shape, out_dtype=dtype, func_type="aot")
        primitive.add_prim_attr("variant", str(variant))
        return primitive

    def set_threads(self, count: int) -> None:
        """Threads of the pack's ops from now on. Results do not depend on it, to the last bit."""
        if count < 1:
            raise UserError(f"threads={count} must be at least 1", "give the number of cores of this rank")
        self._library().mindmoe_set_threads(count)

    def threads(self) -> int:
        """Threads in use; all CPUs this process may run on, until `set_threads` is called."""
        return int(self._library().mindmoe_threads())

    def _library(self) -> ctypes.CDLL:
        return ctypes.CDLL(str(self.path))


@lru_cache
def load(isa: Isa | None = None, gemm: Gemm | None = None) -> Pack:
    """Builds if needed, loads, and connects the pack to MindSpore's oneDNN.

    Args:
        isa: an instruction set, by default the best of this machine.
        gemm: where matrix products come from: `onednn`, `onednn_widened` (bf16 operands go through its fp32 product,
            with equal rounding), or `own`. By default oneDNN where MindSpore ships it, widened where the CPU multiplies
            bf16 no faster than fp32. One library has one setting: the last call's.

    Returns:
        The pack; the same one for the same arguments.

    Raises:
        UserError: this machine cannot run `isa`, there is no compiler, or `gemm` is not available.
    """
    supported = supported_isas()
    isa = isa or supported[0]
    if isa not in supported:
        raise UserError(f"isa={isa} does not run on this machine", f"use one of {', '.join(supported)}")
    path = library(isa)
    wanted = gemm or ("onednn" if fast_bf16() else "onednn_widened")
    connect = ctypes.CDLL(str(path)).mindmoe_use_onednn
    candidates = [] if wanted == "own" else sorted((Path(ms.__file__).parent / "lib").glob("libdnnl.so*"))
    found = any(connect(str(file).encode(), wanted == "onednn") for file in candidates) or bool(connect(b"", False))
    if gemm not in (None, "own") and not found:
        raise UserError(f"gemm={gemm}: MindSpore carries no oneDNN with dnnl_sgemm here", "leave gemm unset")
    return Pack(isa, path, wanted if found else "own")


def settings(*values: float) -> ms.Tensor:
    """Constants of an op, as the float64 tensor its entry point expects last among the inputs."""
    return ms.Tensor(np.array(values, np.float64))


def lead(shape: Sequence[int], last: int) -> tuple[int, ...]:
    """`shape` with its last axis replaced."""
    return (*shape[:-1], last)


def absent() -> ms.Tensor:
    """Stands for an optional input that was not given; its gradient is one zero."""
    return ms.Tensor(np.zeros(1, np.float32))


def no_gradient(x: ms.Tensor) -> ms.Tensor:
    """The zero that a backward pass returns for an input it does not differentiate."""
    return ops.zeros_like(x)
