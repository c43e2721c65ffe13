"""The sum of several readers' gradients."""

import mindspore as ms
import numpy as np
import pytest

from mindmoe.ops.cpu.fork import Fork


@pytest.mark.parametrize("readers", [2, 5])
def test_gradients_add_up(case, rng, readers):
    x = rng.standard_normal((37, 70))
    douts = [rng.standard_normal(x.shape) for _ in range(readers)]
    outs, (dx,) = case.run(Fork(readers, case.pack), [x], douts, (0,))
    assert all(np.array_equal(out, x.astype(np.float32)) for out in outs)
    np.testing.assert_allclose(dx, sum(douts), atol=1e-5)


def test_bf16_gradients_are_added_in_fp32(case):
    """1 + 2^-8 + 2^-8 is 1 in bf16 sums, which round each time to even, and 1 + 2^-7 in one sum of fp32."""
    fork = Fork(3, case.pack)

    def loss(x):
        a, b, c = fork(x.astype(ms.bfloat16))
        total = (a.astype(ms.float32) + b.astype(ms.float32) * 2**-8 + c.astype(ms.float32) * 2**-8).sum()
        return total

    gradient = ms.grad(loss)(ms.Tensor(np.ones((3, 5), np.float32)))
    np.testing.assert_array_equal(gradient.asnumpy(), 1 + 2**-7)
