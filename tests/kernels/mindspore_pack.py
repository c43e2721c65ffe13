"""The Ascend C kernels as MindSpore ops on a CPU: compiled with the host model, behind the interface of a Pack."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
from host_model import build
from mindspore import Tensor, ops


@dataclasses.dataclass(frozen=True)
class HostModelPack:
    """Attributes travel as a float64 tensor behind the inputs; tests/kernels/drive_mindspore.cpp is the other end."""

    library: Path

    def op(self, name: str, shape: Callable, dtype: Callable, *attributes: float) -> tuple:
        """See mindmoe.ops.ascend.pack.Pack."""
        primitive = ops.Custom(f"{self.library}:{name}", out_shape=shape, out_dtype=dtype, func_type="aot")
        primitive.add_prim_attr("variant", str(attributes))
        return primitive, (Tensor(np.array(attributes or (0,), np.float64)),)


@functools.cache
def host_model_pack() -> HostModelPack:
    return HostModelPack(build("mindspore"))
