"""Flash attention forward and backward against a float64 oracle."""

import dataclasses

import numpy as np
import pytest
from host_model import KernelError, close, garbage, store, value


@dataclasses.dataclass(frozen=True)
class Case:
    """Shapes and masks; documents are the lengths of the packed documents, sinks one logit per head."""

    batch: int
    heads: int
    kv_heads: int
    seq: int
    head_dim: int = 64
    window: int = 0
    sinks: bool = False
    documents: tuple[int, ...] = ()
    cores: int = 2

    @property
    def ints(self):
        return [self.batch, self.heads, self.kv_heads, self.seq, self.head_dim, self.window]

    @property
    def scale(self):
        return self.head_dim**-0.5


CASES = [
    Case(1, 1, 1, 1),  # one token
    Case(1, 1, 1, 64, sinks=True, cores=4),  # more cores than work
    Case(2, 4, 2, 130, sinks=True, cores=6),  # tails, grouped heads
    Case(1, 4, 1, 200, window=50, sinks=True, cores=3),  # gpt-oss shape in small
    Case(1, 2, 2, 150, window=1),  # each query sees itself only
    Case(1, 2, 1, 190, documents=(3, 70, 64, 53), sinks=True),
    Case(2, 1, 1, 140, window=90, documents=(100, 40), cores=4),
    Case(1, 2, 1, 70, head_dim=128, sinks=True),
    Case(1, 1, 1, 66, head_dim=80),
    Case(1, 1, 1, 60, head_dim=16),  # a first block that ends within its last group of 8 rows
    Case(1, 1, 1, 128, head_dim=16),  # whole blocks only
]


def document_starts(case):
    """int32 (batch, seq): where the document of each position starts."""
    lengths = np.array(case.documents)
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.ascontiguousarray(np.broadcast_to(starts, (case.batch, case.seq)), np.int32)


def visible(case):
    i, j = np.arange(case.seq)[:, None], np.arange(case.seq)[None]
    seen = (j <= i) & ((j > i - case.window) if case.window else True)
    return seen & (j >= document_starts(case)[0][:, None]) if case.documents else seen


def tensors(case, bf16, extra=0):
    """q, k, v, sinks or None, documents or None, then `extra` tensors shaped as q."""
    rng = np.random.default_rng(case.seq)
    heads = [case.heads, case.kv_heads, case.kv_heads] + [case.heads] * extra
    x = [rng.standard_normal((case.batch, h, case.seq, case.head_dim)) for h in heads]
    x = [value(store(a, bf16), bf16) for a in x]
    sinks = (rng.standard_normal(case.heads) * 2).astype(np.float32) if case.sinks else None
    return [*x[:3], sinks, document_starts(case) if case.documents else None, *x[3:]]


def reference(case, q, k, v, sinks):
    """float64 probabilities (B, H, S, S), out, lse."""
    group = case.heads // case.kv_heads
    q, k, v = q.astype(np.float64), np.repeat(k, group, 1).astype(np.float64), np.repeat(v, group, 1).astype(np.float64)
    s = np.where(visible(case), q @ k.swapaxes(2, 3) * case.scale, -np.inf)
    m = s.max(-1, keepdims=True)
    sink = None if sinks is None else sinks.astype(np.float64)[None, :, None, None]
    m = m if sink is None else np.maximum(m, sink)
    total = np.exp(s - m).sum(-1, keepdims=True) + (0 if sink is None else np.exp(sink - m))
    p = np.exp(s - m) / total
    return p, p @ v, (m + np.log(total))[..., 0]


def launch_forward(run, case, q, k, v, sinks, documents, bf16, seed=0):
    out, lse = garbage(q.shape, bf16), garbage(q.shape[:3])
    run(
        "attention",
        [store(q, bf16), store(k, bf16), store(v, bf16), sinks, documents],
        [out, lse],
        case.ints,
        [case.scale],
        bf16=bf16,
        cores=case.cores,
        seed=seed,
    )
    return value(out, bf16), lse


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_equals_the_float64_oracle(driver, case, bf16):
    q, k, v, sinks, documents = tensors(case, bf16)
    out, lse = launch_forward(driver("attention"), case, q, k, v, sinks, documents, bf16)
    _, want, want_lse = reference(case, q, k, v, sinks)
    close("attention", out, want, bf16, atol=2e-2 if bf16 else 3e-6)
    close("attention, lse", lse, want_lse, bf16, atol=3e-6)


def gradients(case, q, k, v, sinks, grad):
    """float64 gradients of sum(grad * out): q, k, v, sinks, and delta."""
    p, out, lse = reference(case, q, k, v, sinks)
    group = case.heads // case.kv_heads
    grad, wide_k, wide_v = grad.astype(np.float64), np.repeat(k, group, 1), np.repeat(v, group, 1)
    delta = (grad * out).sum(-1)
    ds = p * (grad @ wide_v.swapaxes(2, 3) - delta[..., None]) * case.scale
    by_group = (case.batch, case.kv_heads, group, case.seq, case.head_dim)
    dk = (ds.swapaxes(2, 3) @ q).reshape(by_group).sum(2)
    dv = (p.swapaxes(2, 3) @ grad).reshape(by_group).sum(2)
    dsink = None if sinks is None else -(np.exp(sinks[None, :, None] - lse) * delta).sum((0, 2))
    return ds @ wide_k, dk, dv, dsink, delta


def test_the_oracle_is_the_derivative():
    case = Case(1, 2, 1, 7, head_dim=16, window=4, sinks=True, documents=(3, 4))
    q, k, v, sinks, _, grad = (None if x is None else x.astype(np.float64) for x in tensors(case, False, extra=1))
    want = gradients(case, q, k, v, sinks, grad)
    step = 1e-5
    for analytic, x in zip(want, (q, k, v, sinks), strict=False):
        for i in list(np.ndindex(x.shape))[::5]:
            kept, losses = x[i], []
            for x[i] in (kept + step, kept - step):
                losses.append((reference(case, q, k, v, sinks)[1] * grad).sum())
            x[i] = kept
            assert abs((losses[0] - losses[1]) / (2 * step) - analytic[i]) < 1e-8


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_backward_equals_the_float64_oracle(driver, case, bf16):
    run = driver("attention")
    q, k, v, sinks, documents, grad = tensors(case, bf16, extra=1)
    _, out, lse = reference(case, q, k, v, sinks)
    out = value(store(out, bf16), bf16)
    lse = lse.astype(np.float32)
    delta, grad_sinks = garbage(lse.shape), garbage((case.heads,)) if case.sinks else None
    shape = {"bf16": bf16, "cores": case.cores, "seed": case.seq}
    run(
        "attention_delta",
        [store(grad, bf16), store(out, bf16), lse, sinks],
        [delta, grad_sinks],
        case.ints,
        [case.scale],
        **shape,
    )
    inputs = [*(store(x, bf16) for x in (q, k, v, grad)), lse, delta, documents]
    dq, dk, dv = (garbage(x.shape, bf16) for x in (q, k, v))
    run("attention_grad_query", inputs, [dq], case.ints, [case.scale], **shape)
    run("attention_grad_key_value", inputs, [dk, dv], case.ints, [case.scale], **shape)
    want_q, want_k, want_v, want_sinks, want_delta = gradients(case, q, k, v, sinks, grad)
    for kernel, got, want in (
        ("attention_grad_query", dq, want_q),
        ("attention_grad_key_value", dk, want_k),
        ("attention_grad_key_value", dv, want_v),
    ):
        scale = max(1.0, np.abs(want).max())
        close(kernel, value(got, bf16) / scale, want / scale, bf16, atol=2e-2 if bf16 else 3e-6)
    close("attention_delta", delta, want_delta, bf16, atol=6e-2 if bf16 else 1e-5)
    if case.sinks:
        close("attention_delta, sinks", grad_sinks, want_sinks, bf16, atol=2e-1 if bf16 else 3e-5)


def test_backward_of_a_sink_with_as_many_partial_sums_as_are_loaded_at_once(driver):
    """256 blocks of 64 rows; rows, lse and sink are such that every sum is exact."""
    ones, zeros = np.ones((1, 1, 64 * 256, 16), np.float32), np.zeros((1, 1, 64 * 256), np.float32)
    delta, grad_sinks = garbage(zeros.shape), garbage((1,))
    inputs = [ones, ones, zeros, np.zeros(1, np.float32)]
    driver("attention")("attention_delta", inputs, [delta, grad_sinks], [1, 1, 1, zeros.size, 16, 0], [1.0], cores=1)
    assert (delta == 16).all() and grad_sinks == -16 * zeros.size


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("case", [case for case in CASES if case.sinks], ids=str)
def test_the_sink_epilogue_completes_stock_attention(driver, case, bf16):
    """Outputs, statistics and all gradients equal those of attention with sinks."""
    q, k, v, sinks, _ = tensors(case, bf16)
    _, plain, _ = reference(case, q, k, v, None)
    s = np.where(
        visible(case),
        q.astype(np.float64) @ np.repeat(k, case.heads // case.kv_heads, 1).swapaxes(2, 3) * case.scale,
        -np.inf,
    )
    top = s.max(-1)
    total = np.exp(s - top[..., None]).sum(-1)
    eight = [np.ascontiguousarray(np.repeat(x[..., None], 8, -1), np.float32) for x in (top, total)]
    out, lse = garbage(q.shape, bf16), garbage(top.shape)
    new_max, new_sum = garbage(eight[0].shape), garbage(eight[0].shape)
    driver("attention")(
        "attention_sink",
        [store(plain, bf16), *eight, sinks],
        [out, new_max, new_sum, lse],
        case.ints,
        [case.scale],
        bf16=bf16,
        cores=case.cores,
        seed=case.seq,
    )
    _, want, want_lse = reference(case, q, k, v, sinks)
    close("attention_sink", value(out, bf16), want, bf16, atol=2e-2 if bf16 else 3e-6)
    close("attention_sink, lse", lse, want_lse, bf16, atol=3e-6)
    # exp(s - max') / sum' is what the stock gradient op recomputes: it must be the probability with the sink.
    np.testing.assert_allclose(new_max[..., 0] + np.log(new_sum[..., 0]), want_lse, rtol=0, atol=3e-6)
    assert (new_max == new_max[..., :1]).all() and (new_sum == new_sum[..., :1]).all()
    grad = np.random.default_rng(2).standard_normal(q.shape)
    got = stock_gradients(case, q, k, v, grad, value(out, bf16), new_max[..., :1], new_sum[..., :1])
    for a, b in zip(got, gradients(case, q, k, v, sinks, grad)[:3], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=(2e-2 if bf16 else 3e-6) * max(1.0, np.abs(b).max()))


def stock_gradients(case, q, k, v, grad, out, top, total):
    """q, k and v gradients as the stock op computes them: from its own outputs, knowing nothing of sinks."""
    group = case.heads // case.kv_heads
    wide_k, wide_v = (np.repeat(x, group, 1).astype(np.float64) for x in (k, v))
    s = np.where(visible(case), q.astype(np.float64) @ wide_k.swapaxes(2, 3) * case.scale, -np.inf)
    p = np.exp(s - top) / total
    ds = p * (grad @ wide_v.swapaxes(2, 3) - (grad * out).sum(-1, keepdims=True)) * case.scale
    by_group = (case.batch, case.kv_heads, group, case.seq, case.head_dim)
    dk = (ds.swapaxes(2, 3) @ q).reshape(by_group).sum(2)
    return ds @ wide_k, dk, (p.swapaxes(2, 3) @ grad).reshape(by_group).sum(2)


def test_extreme_scores_stay_finite(driver):
    case = Case(1, 2, 1, 80, sinks=True)
    q, k, v, sinks, documents = tensors(case, False)
    q, k = q * 30, k * 30
    out, lse = launch_forward(driver("attention"), case, q, k, v, sinks, documents, False)
    _, want, want_lse = reference(case, q, k, v, sinks)
    np.testing.assert_allclose(out, want, rtol=0, atol=2e-3)  # scores of 1e4 carry 1e-3 of float32 rounding
    np.testing.assert_allclose(lse, want_lse, rtol=1e-6)


@pytest.mark.parametrize(
    "ints, rule",
    [
        ([0, 1, 1, 8, 64, 0], "batch"),
        ([1, 3, 2, 8, 64, 0], "multiple of key-value"),
        ([1, 1, 1, 8, 72, 0], "head_dim"),
        ([1, 1, 1, 8, 144, 0], "head_dim"),
    ],
)
def test_the_tiling_refuses_with_the_rule(driver, ints, rule):
    with pytest.raises(KernelError, match=rule):
        driver("attention")("attention", [None] * 5, [], ints, [1.0])
