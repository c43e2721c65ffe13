"""Linear against x @ w^T + bias + residual."""

import numpy as np
import pytest

from mindmoe.ops.cpu.linear import Linear

TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2}


def oracle(x, w, bias, residual):
    y = x @ w.T + (0 if bias is None else bias) + (0 if residual is None else residual)

    def backward(dy):
        flat = dy.reshape(-1, w.shape[0])
        return dy @ w, flat.T @ x.reshape(-1, w.shape[1]), flat.sum(0), dy

    return (y,), backward


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("rows", "inner", "out"), [((3, 37), 50, 70), ((1,), 5, 3), ((700,), 33, 1100)])
def test_with_everything(case, rng, precision, rows, inner, out):
    inputs = [rng.standard_normal(s) for s in ((*rows, inner), (out, inner), (out,), (*rows, out))]
    case.check(Linear(precision, pack=case.pack), oracle, inputs, (0, 1, 2, 3), TOLERANCE[precision])


@pytest.mark.parametrize(("has_bias", "has_residual"), [(False, False), (True, False), (False, True)])
def test_optional_inputs(case, rng, has_bias, has_residual):
    x, w, bias, residual = (rng.standard_normal(s) for s in ((19, 21), (23, 21), (23,), (19, 23)))
    op = Linear(pack=case.pack)
    bias, residual = bias if has_bias else None, residual if has_residual else None

    def partial(x, w, *optional):
        return op(x, w, optional[0] if has_bias else None, optional[-1] if has_residual else None)

    def partial_oracle(x, w, *optional):
        y, backward = oracle(x, w, optional[0] if has_bias else None, optional[-1] if has_residual else None)
        wanted = [0, 1, *([2] if has_bias else []), *([3] if has_residual else [])]
        return y, lambda dy: [backward(dy)[i] for i in wanted]

    inputs = [x, w, *(value for value in (bias, residual) if value is not None)]
    case.check(partial, partial_oracle, inputs, range(len(inputs)), 1e-5)


def test_bf16_storage_is_the_rounded_result(case, rng):
    x, w = rng.standard_normal((40, 30)), rng.standard_normal((50, 30))
    op = Linear("fp32", "bf16", case.pack)

    def plain(x, w):
        return op(x, w)

    case.check_values(plain, lambda *a: oracle(*a, None, None), [x, w], 2**-8)


@pytest.mark.parametrize("gemm", ["own", "onednn_widened", "onednn", "amx"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_source_of_products(rng, case, precision, gemm):
    before = case.pack.gemm
    if gemm == "amx" and case.pack.isa != "amx":
        pytest.skip("a library, or a machine, without a tile unit")
    try:
        case.pack.set_gemm(gemm)
        assert case.pack.gemm == gemm
        for rows, inner, outer in ((130, 70, 90), (67, 1101, 33), (48, 64, 600), (1, 513, 17)):
            x, w = rng.standard_normal((rows, inner)), rng.standard_normal((outer, inner))
            op = Linear(precision, pack=case.pack)
            case.check(op, lambda *a: (oracle(*a, None, None)[0], lambda dy: oracle(*a, None, None)[1](dy)[:2]), [x, w],
                       (0, 1), TOLERANCE[precision])  # fmt: skip
    finally:
        case.pack.set_gemm(before)


def test_bf16_operands_are_rounded_to_nearest_even(case):
    ones = np.ones((1, 1))
    values = np.array([[1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-7 + 2**-20, 3.0e38, -1e-40]]).T
    op = Linear("bf16", pack=case.pack)
    (got,), _ = case.run(op, [values, ones], [values], (0,))
    np.testing.assert_array_equal(got[:4, 0], [1.0, 1.0, 1 + 2**-6, 1 + 2**-7])
    assert abs(got[5, 0]) < 1e-37
