"""swiglu and swiglu_grad against float64 and finite differences."""

import numpy as np
import pytest
from host_model import KernelError, close, garbage, store, value

ALPHA, LIMIT = 1.702, 7.0


def forward(x):
    """float64 result (N, F) of interleaved pairs (N, 2F)."""
    gate, up = np.minimum(x[:, ::2], LIMIT), np.clip(x[:, 1::2], -LIMIT, LIMIT)
    return (up + 1) * gate / (1 + np.exp(-ALPHA * gate))


def backward(x, grad):
    """float64 gradient of sum(grad * forward(x)); the closed form, checked below by finite differences."""
    gate, up = np.minimum(x[:, ::2], LIMIT), np.clip(x[:, 1::2], -LIMIT, LIMIT)
    s = 1 / (1 + np.exp(-ALPHA * gate))
    out = np.empty_like(x)
    out[:, ::2] = grad * (up + 1) * s * (1 + ALPHA * gate * (1 - s)) * (x[:, ::2] <= LIMIT)
    out[:, 1::2] = grad * gate * s * (np.abs(x[:, 1::2]) <= LIMIT)
    return out


def inputs(rows, columns, bf16):
    """Both clamps are hit, from both sides and exactly, that of the ups by the last pair as well."""
    rng = np.random.default_rng(rows)
    x = (rng.standard_normal((rows, 2 * columns)) * 6).astype(np.float32)
    x.ravel()[::7] = LIMIT
    x.ravel()[3::11] = -LIMIT
    x.ravel()[5::13] = -60
    x.ravel()[-2:] = 3, 9
    x = value(store(x, bf16), bf16)
    return x, value(store(rng.standard_normal((rows, columns)), bf16), bf16)


CASES = [(1, 1, 1), (1, 5, 3), (3, 2880, 2), (7, 100, 48), (2, 6000, 1), (40, 64, 5)]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("rows, columns, cores", CASES)
def test_forward(driver, rows, columns, cores, bf16):
    x, _ = inputs(rows, columns, bf16)
    out = garbage((rows, columns), bf16)
    driver("swiglu")("swiglu", [store(x, bf16)], [out], [out.size], [ALPHA, LIMIT], bf16=bf16, cores=cores)
    want = forward(x.astype(np.float64))
    close("swiglu", value(out, bf16), want, bf16, rtol=4e-3 if bf16 else 1e-6, atol=1e-6)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("rows, columns, cores", CASES)
def test_backward(driver, rows, columns, cores, bf16):
    x, grad = inputs(rows, columns, bf16)
    out = garbage(x.shape, bf16)
    driver("swiglu")(
        "swiglu_grad",
        [store(grad, bf16), store(x, bf16)],
        [out],
        [grad.size],
        [ALPHA, LIMIT],
        bf16=bf16,
        cores=cores,
        seed=rows,
    )
    want = backward(x.astype(np.float64), grad.astype(np.float64))
    close("swiglu_grad", value(out, bf16), want, bf16, rtol=4e-3 if bf16 else 3e-6, atol=5e-6)


def test_the_closed_form_is_the_derivative():
    x, grad = inputs(3, 20, False)
    x = x.astype(np.float64) + 1e-3  # off the corners
    step = 1e-6
    numeric = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i] += step
        down[i] -= step
        numeric[i] = ((forward(up) - forward(down)) * grad).sum() / (2 * step)
    np.testing.assert_allclose(backward(x, grad), numeric, atol=1e-7)


@pytest.mark.parametrize("elements, limit", [(0, 7.0), (4, 0.0)])
def test_the_tiling_refuses_with_the_rule(driver, elements, limit):
    with pytest.raises(KernelError, match="limit must be positive"):
        driver("swiglu")("swiglu", [None], [], [elements], [ALPHA, limit])
