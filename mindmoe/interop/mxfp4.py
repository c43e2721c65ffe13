"""MXFP4: blocks of 32 values in 4 bits each (e2m1) that share a power of two in 8 bits (e8m0).

Source: OCP Microscaling Formats (MX) Specification v1.0, sections 5.3 and 6.3. The layout is the one in which gpt-oss
was released: (experts, in, out) is stored transposed, as blocks (experts, out, in / 32, 16) of bytes whose low half
is the even value, and scales (experts, out, in / 32).
"""

import numpy as np

from mindmoe.host.errors import UserError

BLOCK = 32
_BIAS = 127  # of e8m0
_E2M1 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], np.float32)
_LUT = np.concatenate([_E2M1, -_E2M1])  # bit 3 is the sign; -0 stays -0
# Midpoints between neighbours. A tie goes to the even code: upwards where the code above is even.
_MIDPOINTS = (_E2M1[1:] + _E2M1[:-1]) / 2
_TIE_UP = (False, True, False, True, False, True, False)


def packed_shapes(shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of blocks and scales of experts (E, in, out).

    Raises:
        UserError: `in` is no multiple of 32.
    """
    experts, inner, outer = shape
    if inner % BLOCK:
        raise UserError(
            f"experts of shape {shape} cannot be MXFP4: their input size {inner} must be a multiple of {BLOCK}",
            "export as bf16",
        )
    return (experts, outer, inner // BLOCK, BLOCK // 2), (experts, outer, inner // BLOCK)


def quantize(experts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Blocks and scales (u8) of experts (E, in, out) fp32.

    The scale is the power of two of the largest value of a block less the largest exponent of e2m1, so values up to 8
    times the scale occur and those above 6 saturate. Quantising what `dequantize` gives returns the same bytes.

    Raises:
        UserError: a value is not finite.
    """
    blocks_shape, scales_shape = packed_shapes(experts.shape)
    values = np.ascontiguousarray(experts.transpose(0, 2, 1)).reshape(*scales_shape, BLOCK)
    largest = np.abs(values).max(axis=-1)
    if not np.isfinite(largest).all():
        raise UserError("a weight is not finite", "export an earlier step")
    exponent = np.clip(np.frexp(largest)[1] - 3, -_BIAS, _BIAS)
    exponent[largest == 0] = -_BIAS
    magnitude = np.abs(np.ldexp(values, -exponent[..., None]))
    codes = np.signbit(values).astype(np.uint8) << 3
    for midpoint, up in zip(_MIDPOINTS, _TIE_UP, strict=True):
        codes += magnitude >= midpoint if up else magnitude > midpoint
    packed = codes[..., 0::2] | codes[..., 1::2] << 4
    return packed.reshape(blocks_shape), (exponent + _BIAS).astype(np.uint8)


def dequantize(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Experts (E, in, out) fp32 of blocks (E, out, in / 32, 16) and scales (E, out, in / 32), exactly."""
    codes = np.empty((*blocks.shape[:-1], BLOCK), np.uint8)
    codes[..., 0::2], codes[..., 1::2] = blocks & 15, blocks >> 4
    values = np.ldexp(_LUT[codes], scales.astype(np.int32)[..., None] - _BIAS)
    return np.ascontiguousarray(values.reshape(*blocks.shape[:2], -1).transpose(0, 2, 1))
