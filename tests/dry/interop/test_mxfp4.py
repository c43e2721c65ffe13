"""MXFP4 against the definition, element by element, and against idempotence."""

import numpy as np
import pytest

from mindmoe.host.errors import UserError
from mindmoe.interop.mxfp4 import dequantize, packed_shapes, quantize

GRID = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def by_definition(block: np.ndarray) -> tuple[list[int], int]:
    """Codes and scale of 32 values, one by one: OCP MX 1.0 section 6.3 with rounding to nearest, ties to even."""
    peak = max(abs(float(v)) for v in block)
    scale = -127 if peak == 0 else max(-127, int(np.floor(np.log2(np.float64(peak)))) - 2)
    codes = []
    for value in block:
        magnitude = abs(float(value)) / 2.0**scale
        best = min(range(8), key=lambda code: (abs(GRID[code] - magnitude), code % 2))
        codes.append(best + 8 * bool(np.signbit(value)))
    return codes, scale + 127


@pytest.mark.parametrize("seed", range(8))
def test_quantize_is_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    experts = rng.standard_normal((2, 64, 3)).astype(np.float32) * np.float32(2.0) ** rng.integers(-40, 40, (2, 64, 3))
    experts[0, :32, 0] = 0
    experts[0, :8, 1] = [-0.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]  # ties, at scale 1
    experts[0, 8:32, 1] = 4.0
    blocks, scales = quantize(experts)
    assert (blocks.shape, scales.shape) == packed_shapes(experts.shape) == ((2, 3, 2, 16), (2, 3, 2))
    for expert, column, group in np.ndindex(2, 3, 2):
        codes, scale = by_definition(experts[expert, 32 * group : 32 * group + 32, column])
        packed = [codes[2 * n] | codes[2 * n + 1] << 4 for n in range(16)]
        assert blocks[expert, column, group].tolist() == packed and scales[expert, column, group] == scale


def test_every_byte_and_scale_comes_back() -> None:
    """Blocks in the form that quantising gives (a code above 5) survive exactly, at every scale that fp32 can hold."""
    rng = np.random.default_rng(9)
    blocks = rng.integers(0, 256, (2, 128, 4, 16), dtype=np.uint8)
    blocks[..., 0] = blocks[..., 0] & 0xF8 | 6 + rng.integers(0, 2, blocks.shape[:-1])
    scales = np.resize(np.arange(0, 252, dtype=np.uint8), (2, 128, 4))
    again = quantize(dequantize(blocks, scales))
    assert np.array_equal(again[0], blocks) and np.array_equal(again[1], scales)


def test_any_block_keeps_its_values() -> None:
    """A foreign writer may have chosen a larger scale than needed: then the bytes change, the values do not."""
    rng = np.random.default_rng(10)
    blocks = rng.integers(0, 256, (1, 512, 2, 16), dtype=np.uint8) & 0x99  # codes 0 and 1, and their negatives
    scales = rng.integers(100, 150, (1, 512, 2), dtype=np.uint8)
    values = dequantize(blocks, scales)
    assert dequantize(*quantize(values)).tobytes() == values.tobytes()


def test_the_error_is_bounded() -> None:
    values = np.random.default_rng(11).standard_normal((4, 320, 40)).astype(np.float32)
    error = np.abs(dequantize(*quantize(values)) - values).reshape(4, 10, 32, 40)
    peak = np.abs(values).reshape(4, 10, 32, 40).max(axis=2, keepdims=True)
    assert (error <= peak * 0.25).all()  # 8 is cut to 6; all else rounds by at most 1 in 6
    assert np.sqrt((error**2).mean() / (values**2).mean()) < 0.13


def test_what_cannot_be_packed_is_refused() -> None:
    with pytest.raises(UserError, match="multiple of 32"):
        packed_shapes((8, 24, 32))
    with pytest.raises(UserError, match="not finite"):
        quantize(np.full((1, 32, 1), np.inf, np.float32))
