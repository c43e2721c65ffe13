"""Runs both kernels in Triton's interpreter, without a device, and compares them with NumPy in float64."""

import os

os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported

import numpy as np  # noqa: E402
import triton  # noqa: E402
from swiglu import BLOCK, swiglu_grad_kernel, swiglu_kernel  # noqa: E402

ALPHA, LIMIT = 1.702, 7.0


class Host:
    """An array in place of a device's tensor: what the interpreter asks of one."""

    device = "cpu"

    def __init__(self, array: np.ndarray):
        self.array, self.dtype, self.data = array, array.dtype, self

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    def cpu(self) -> "Host":
        return self

    def to(self, device: str) -> "Host":
        return self

    def copy_(self, other: "Host") -> None:
        """The interpreter worked in place."""


def main() -> None:
    for rows, columns in ((1, 1), (3, 300), (2, 2 * BLOCK)):
        rng = np.random.default_rng(rows)
        shapes = ((rows, 2 * columns), (rows,), (rows, columns))
        h, weight, dout = (5 * rng.standard_normal(shape).astype(np.float32) for shape in shapes)
        out, dh, dweight = np.full_like(dout, np.nan), np.full_like(h, np.nan), np.full_like(weight, np.nan)
        constants = (columns, ALPHA, LIMIT)
        swiglu_kernel[(rows, triton.cdiv(columns, BLOCK))](Host(h), Host(weight), Host(out), *constants, BLOCK=BLOCK)
        tensors = map(Host, (dout, h, weight, dh, dweight))
        swiglu_grad_kernel[(rows,)](*tensors, *constants, BLOCK=BLOCK)

        x, w, d = h.astype(np.float64), weight.astype(np.float64)[:, None], dout.astype(np.float64)
        gate, up = np.minimum(x[:, ::2], LIMIT), np.clip(x[:, 1::2], -LIMIT, LIMIT)
        s = 1 / (1 + np.exp(-ALPHA * gate))
        want_dh = np.empty_like(x)
        want_dh[:, ::2] = w * d * (up + 1) * s * (1 + ALPHA * gate * (1 - s)) * (x[:, ::2] <= LIMIT)
        want_dh[:, 1::2] = w * d * gate * s * (np.abs(x[:, 1::2]) <= LIMIT)
        for got, want in ((out, w * (up + 1) * gate * s), (dh, want_dh), (dweight, ((up + 1) * gate * s * d).sum(1))):
            np.testing.assert_allclose(got, want, rtol=5e-6, atol=1e-6 * np.abs(want).max())
        print(f"{rows} x {columns}: forward and backward equal NumPy")


if __name__ == "__main__":
    main()
