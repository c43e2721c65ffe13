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
from typing import Any, Literal, get_args

import mindspore as ms
import numpy as np
from mindspore import ops

from mindmoe.errors import UserError
from mindmoe.ops.cpu.build import Isa, fast_bf16, library, supported_isas

Precision = Literal["fp32", "bf16"]
Gemm = Literal["own", "onednn_widened", "onednn"]  # in the order of their numbers in gemm.h
Outputs = tuple[ms.Tensor, ...]
STORAGE = {"fp32": ms.float32, "bf16": ms.bfloat16}


@dataclass(frozen=True)
class Pack:
    """One loaded library. Its settings hold for the whole process."""

    isa: Isa
    path: Path

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

    @property
    def threads(self) -> int:
        """Threads in use; all CPUs this process may run on, until `set_threads` is called."""
        return int(self._library().mindmoe_threads())

    def set_threads(self, count: int) -> None:
        """Threads of the pack's ops from now on. Results do not depend on it, to the last bit."""
        if count < 1:
            raise UserError(f"threads={count} must be at least 1", "give the number of cores of this rank")
        self._library().mindmoe_set_threads(count)

    @property
    def gemm(self) -> Gemm:
        """Where matrix products come from."""
        return get_args(Gemm)[self._library().mindmoe_gemm()]

    def set_gemm(self, gemm: Gemm | None = None) -> None:
        """Takes matrix products from `onednn`, `onednn_widened` or `own` from now on.

        Args:
            gemm: `onednn_widened` sends bf16 operands through oneDNN's fp32 product, with equal rounding. By default
                oneDNN where MindSpore ships it, widened where the CPU multiplies bf16 no faster than fp32, else `own`.

        Raises:
            UserError: MindSpore ships no oneDNN here and it was asked for.
        """
        wanted = gemm or ("onednn" if fast_bf16() else "onednn_widened")
        candidates = [] if wanted == "own" else sorted((Path(ms.__file__).parent / "lib").glob("libdnnl.so*"))
        connect = self._library().mindmoe_use_onednn
        found = any(connect(str(file).encode(), wanted == "onednn") for file in candidates)
        if not found:
            connect(b"", False)
        if gemm not in (None, "own") and not found:
            raise UserError(f"gemm={gemm}: MindSpore carries no oneDNN with dnnl_sgemm here", "leave gemm unset")

    def _library(self) -> ctypes.CDLL:
        return ctypes.CDLL(str(self.path))


@lru_cache
def load(isa: Isa | None = None) -> Pack:
    """Builds if needed, loads, and connects the pack to MindSpore's oneDNN.

    Args:
        isa: an instruction set, by default the best of this machine.

    Returns:
        The pack; the same one for the same argument.

    Raises:
        UserError: this machine cannot run `isa`, or there is no compiler.
    """
    supported = supported_isas()
    isa = isa or supported[0]
    if isa not in supported:
        raise UserError(f"isa={isa} does not run on this machine", f"use one of {', '.join(supported)}")
    pack = Pack(isa, library(isa))
    pack.set_gemm()
    return pack


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
