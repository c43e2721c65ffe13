"""Loads the compiled pack and makes ops of its entry points.

An op is built once, with its constants, and called with tensors; it runs and differentiates in a graph (`ms.jit`, graph
mode) and in PyNative alike. A decoder layer and its loss from the pack:

    pack = load()                                   # the best instruction set here, compiled at first use
    pack.set_threads(2)
    norm, linear, add = RmsNorm(1e-5), Linear("bf16"), Linear("bf16")
    attention = Attention(scale=64**-0.5, window=128, precision="bf16")
    router, route, experts = Linear("fp32"), Route(k=4), Experts("bf16")
    loss = CrossEntropy("bf16")

    def layer(x):                                   # (B, S, D), the residual stream
        y = norm(x, w.norm1)
        q, k, v = linear(y, w.q, w.q_bias), linear(y, w.k, w.k_bias), linear(y, w.v, w.v_bias)
        o = attention(q, k, v, cos, sin, w.sinks, segment_ids)
        x = add(o, w.o, w.o_bias, x)                # + residual
        y = norm(x, w.norm2).reshape(-1, D)
        gates, ids = route(router(y, w.router, w.router_bias), selection_bias)
        return x + experts(y, gates, ids, w.gate_up, w.gate_up_bias, w.down, w.down_bias).reshape(x.shape)

    total = loss(norm(x, w.norm), w.head, labels, mask / mask.sum())
    adamw = FusedAdamW(decay=[p.ndim > 1 for p in params])
    norm = ops.sqrt(SquareSum()(gradients))
    adamw(params, first, second, gradients, lr, ops.minimum(1.0 / norm, 1.0), step)
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

from mindmoe.host.errors import UserError
from mindmoe.ops.cpu.build import Isa, best_isa, fast_bf16, library, supported_isas
from mindmoe.ops.zeros import zeros_like

Precision = Literal["fp32", "bf16"]
Gemm = Literal["own", "onednn_widened", "onednn", "amx"]  # in the order of their numbers in gemm.h
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
        # `aot`: a function of a shared library with MindSpore's calling convention (kernels/cpu/src/custom.h).
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
        """Takes matrix products from `amx`, `onednn`, `onednn_widened` or `own` from now on.

        Args:
            gemm: `amx` sends bf16 operands to the tile unit, fp32 ones to oneDNN if there; `onednn_widened` sends bf16
                operands through oneDNN's fp32 product, with equal rounding. By default `amx` where the CPU has it, else
                oneDNN where MindSpore ships it, widened where the CPU multiplies bf16 no faster than fp32, else `own`.

        Raises:
            UserError: it was asked for and is not there.
        """
        # Tiles first, for bf16; what serves fp32 is chosen below in any case.
        tiles = bool(self._library().mindmoe_use_tiles(gemm in (None, "amx")))
        if gemm == "amx" and not tiles:
            raise UserError("gemm=amx: this CPU or kernel lends no tile unit", "leave gemm unset")
        wanted = gemm or ("onednn" if fast_bf16() else "onednn_widened")
        # MindSpore's wheel carries oneDNN under a name with its version.
        candidates = [] if wanted == "own" else sorted((Path(ms.__file__).parent / "lib").glob("libdnnl.so*"))
        connect = self._library().mindmoe_use_onednn
        found = any(connect(str(file).encode(), wanted != "onednn_widened") for file in candidates)
        # Undoes an earlier connection: settings hold for the process.
        if not found:
            connect(b"", False)
        if gemm not in (None, "own", "amx") and not found:
            raise UserError(f"gemm={gemm}: MindSpore carries no oneDNN with dnnl_sgemm here", "leave gemm unset")

    def _library(self) -> ctypes.CDLL:
        # Loading a path again gives the library that is loaded already.
        return ctypes.CDLL(str(self.path))


@lru_cache
def load(isa: Isa | None = None) -> Pack:
    """Builds if needed, loads, and connects the pack to MindSpore's oneDNN.

    Args:
        isa: an instruction set, by default the best of this machine and its compiler.

    Returns:
        The pack; the same one for the same argument.

    Raises:
        UserError: this machine cannot run `isa`, or there is no compiler.
    """
    supported = supported_isas()
    if isa is not None and isa not in supported:
        raise UserError(f"isa={isa} does not run on this machine", f"use one of {', '.join(supported)}")
    isa = isa or best_isa()
    pack = Pack(isa, library(isa))
    pack.set_gemm()
    return pack


def settings(*values: float) -> ms.Tensor:
    """Constants of an op, as the float64 tensor its entry point expects last among the inputs."""
    # One type for all constants of all ops; an entry point reads flags and numbers alike from it.
    return ms.Tensor(np.array(values, np.float64))


def lead(shape: Sequence[int], last: int) -> tuple[int, ...]:
    """`shape` with its last axis replaced."""
    return (*shape[:-1], last)


def absent() -> ms.Tensor:
    """Stands for an optional input that was not given; its gradient is one zero."""
    return ms.Tensor(np.zeros(1, np.float32))


def no_gradient(x: ms.Tensor) -> ms.Tensor:
    """The zero that a backward pass returns for an input it does not differentiate."""
    return zeros_like(x)
