"""Operand precision of matrix products on backends without a bf16 GEMM.

Rounding both operands to bf16 and multiplying in fp32 computes what a bf16 GEMM with fp32 accumulation computes,
so the reference ops follow the same policy as the fast ones, at fp32 speed. The cast's own backward rounds the
gradient to bf16 as well, as it is on a device that stores activations in bf16.
"""

import mindspore as ms
from mindspore import Tensor


def to_bf16(x: Tensor) -> Tensor:
    """x rounded to bf16, as fp32."""
    return x.astype(ms.bfloat16).astype(ms.float32)


def keep(x: Tensor) -> Tensor:
    """x as it is."""
    return x


ROUND = {"fp32": keep, "bf16": to_bf16}
