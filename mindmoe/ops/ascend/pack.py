"""Finds the installed package of Ascend C kernels (kernels/build_ascend.sh) and makes ops of them.

An op is a primitive without gradient and the attributes that follow its inputs in a call. The tests put the same
kernels behind another `Pack`, which runs them on the host model; on a card nothing here has been executed.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import mindspore as ms
from mindspore import ops

from mindmoe.host.errors import UserError

Op = tuple[ops.Custom, tuple]
"""A primitive, and what its calls end with."""


class Pack(Protocol):
    """Where ops come from."""

    def op(self, name: str, shape: Callable[..., Any], dtype: Callable[..., Any], *attributes: float) -> Op:
        """The kernel `name`, as registered in kernels/op_host.

        Args:
            name: in camel case.
            shape: infers the shapes of the outputs from those of all arguments.
            dtype: likewise the dtypes.
            attributes: in the order of registration, each of the registered type.
        """
        ...


class InstalledPack:
    """The package that CANN finds through ASCEND_CUSTOM_OPP_PATH."""

    def op(self, name: str, shape: Callable[..., Any], dtype: Callable[..., Any], *attributes: float) -> Op:
        """See `Pack`; MindSpore reads types and attributes from the description that was installed with the kernel."""
        primitive = ops.Custom(f"aclnn{name}", out_shape=shape, out_dtype=dtype, func_type="aot")
        primitive.add_prim_attr("variant", str(attributes))  # or MindSpore reuses what it inferred for an equal one
        return primitive, attributes


def load() -> InstalledPack:
    """The installed package.

    Raises:
        UserError: MindSpore does not run on Ascend, or the package is not installed.
    """
    target = ms.get_context("device_target")
    if target != "Ascend":
        raise UserError(f"the Ascend C kernels do not run on {target}", "set train.kernels=auto")
    folders = os.environ.get("ASCEND_CUSTOM_OPP_PATH", "")
    # Any file of the package would do: one of the headers that it installs.
    headers = [Path(folder) / "op_api" / "include" / "aclnn_moe_gating.h" for folder in folders.split(":") if folder]
    if not any(header.is_file() for header in headers):
        raise UserError(
            f"ASCEND_CUSTOM_OPP_PATH={folders!r} holds no mindmoe kernels",
            "run kernels/build_ascend.sh and export the path it prints",
        )
    return InstalledPack()
