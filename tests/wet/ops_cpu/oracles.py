"""The ops in plain NumPy, fp64, with their gradients written out. Each returns its outputs, then a backward function.

`test_oracles.py` holds the gradients to complex-step differences, so that an oracle cannot be wrong as an op is.
"""

import numpy as np

Array = np.ndarray


def rms_norm(x, weight, eps):
    r = 1 / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps)
    n = x * r

    def backward(dy):
        g = dy * weight
        dx = r * (g - n * np.mean(g * n, -1, keepdims=True))
        return dx, (dy * n).reshape(-1, x.shape[-1]).sum(0)

    return n * weight, backward


def linear(x, w, bias, residual):
    y = x @ w.T + (0 if bias is None else bias) + (0 if residual is None else residual)

    def backward(dy):
        flat = dy.reshape(-1, w.shape[0])
        return dy @ w, flat.T @ x.reshape(-1, w.shape[1]), flat.sum(0), dy

    return y, backward


def rotate(x, cos, sin):
    """Rotate-half RoPE of x (B, S, H, hd) by cos, sin (S, hd/2)."""
    first, second = np.split(x, 2, -1)
    c, s = cos[None, :, None], sin[None, :, None]
    return np.concatenate([first * c - second * s, second * c + first * s], -1)


def visible(segments, window):
    """(B, S, S): whether query i sees key j."""
    i, j = np.indices((segments.shape[1],) * 2)
    mask = (j <= i) & ((window == 0) | (j > i - window))
    return mask[None] & (segments[:, :, None] == segments[:, None, :])


def attention(q, k, v, cos, sin, sinks, segments, window, scale):
    batch, length, hd = q.shape[0], q.shape[1], 2 * cos.shape[1]
    heads, kv = q.shape[2] // hd, k.shape[2] // hd
    group = heads // kv
    qr = rotate(q.reshape(batch, length, heads, hd), cos, sin)
    kr = np.repeat(rotate(k.reshape(batch, length, kv, hd), cos, sin), group, 2)
    vr = np.repeat(v.reshape(batch, length, kv, hd), group, 2)
    scores = np.where(visible(segments, window)[:, None], np.einsum("bihd,bjhd->bhij", qr, kr) * scale, -np.inf)
    sink = np.full((1, heads, 1, 1), -np.inf) if sinks is None else sinks[None, :, None, None]
    top = np.maximum(scores.real.max(-1, keepdims=True), sink.real)
    weights, rest = np.exp(scores - top), np.exp(sink - top)
    total = weights.sum(-1, keepdims=True) + rest
    p, p_sink = weights / total, rest / total
    out = np.einsum("bhij,bjhd->bihd", p, vr).reshape(q.shape)

    def backward(dout):
        d = dout.reshape(batch, length, heads, hd)
        dp = np.einsum("bihd,bjhd->bhij", d, vr)
        delta = (dp * p).sum(-1, keepdims=True)
        ds = p * (dp - delta) * scale
        dq = rotate(np.einsum("bhij,bjhd->bihd", ds, kr), cos, -sin)
        dk = rotate(np.einsum("bhij,bihd->bjhd", ds, qr).reshape(batch, length, kv, group, hd).sum(3), cos, -sin)
        dv = np.einsum("bhij,bihd->bjhd", p, d).reshape(batch, length, kv, group, hd).sum(3)
        return dq.reshape(q.shape), dk.reshape(k.shape), dv.reshape(k.shape), -(p_sink * delta).sum((0, 2, 3))

    return out, backward


def expert(x, w1, b1, w2, b2, alpha, limit):
    hidden = x @ w1 + b1
    gate, up = hidden[:, ::2], hidden[:, 1::2]
    g = np.where(gate.real <= limit, gate, limit)
    u = np.where(up.real > limit, limit, np.where(up.real < -limit, -limit, up))
    s = 1 / (1 + np.exp(-alpha * g))
    activated = (u + 1) * g * s

    def backward(dy):
        da = dy @ w2.T
        dhidden = np.zeros_like(hidden)
        dhidden[:, ::2] = da * (u + 1) * s * (1 + alpha * g * (1 - s)) * (gate <= limit)
        dhidden[:, 1::2] = da * g * s * (np.abs(up) <= limit)
        return dhidden @ w1.T, x.T @ dhidden, dhidden.sum(0), activated.T @ dy, dy.sum(0)

    return activated @ w2 + b2, backward


def experts(x, ids, gates, w1, b1, w2, b2, alpha=1.702, limit=7.0):
    y = np.zeros(x.shape, np.result_type(x, gates, w1))
    parts = []
    for e in range(len(w1)):
        token, choice = np.nonzero(ids == e)
        out, back = expert(x[token], w1[e], b1[e], w2[e], b2[e], alpha, limit)
        np.add.at(y, token, gates[token, choice][:, None] * out)
        parts.append((token, choice, out, back))

    def backward(dy):
        dx, dgates = np.zeros_like(x), np.zeros_like(gates)
        dweights = [np.zeros_like(w) for w in (w1, b1, w2, b2)]
        for e, (token, choice, out, back) in enumerate(parts):
            dgates[token, choice] = (dy[token] * out).sum(-1)
            drows, *own = back(dy[token] * gates[token, choice][:, None])
            np.add.at(dx, token, drows)
            for total, part in zip(dweights, own, strict=True):
                total[e] = part
        return dx, dgates, *dweights

    return y, backward


def cross_entropy(x, w, labels, mask):
    logits = x @ w.T
    top = logits.real.max(-1, keepdims=True)
    lse = top[:, 0] + np.log(np.exp(logits - top).sum(-1))
    rows = np.arange(len(labels))
    valid = (labels >= 0) & (labels < len(w))
    safe = np.where(valid, labels, 0)
    nll = np.where(valid, lse - logits[rows, safe], 0)

    def backward(dsum, dnll):
        d = np.exp(logits - lse[:, None])
        d[rows, safe] -= 1
        d *= ((dsum * mask + dnll) * valid)[:, None]
        return d @ w, d.T @ x

    return (mask * nll).sum(), nll, backward


def select(logits, bias, k, score, groups, topk_groups):
    """Scores (T, E) and chosen ids (T, K): largest of score + bias first, ties to the lowest number."""
    if score == "softmax_after_topk":
        scores = logits
    elif score == "softmax":
        e = np.exp(logits - logits.real.max(-1, keepdims=True))
        scores = e / e.sum(-1, keepdims=True)
    else:
        scores = 1 / (1 + np.exp(-logits))
    choice = (scores + bias).real.copy()
    if groups > 1:
        grouped = choice.reshape(len(choice), groups, -1)
        worth = np.sort(grouped, -1)[..., -2:].sum(-1)
        best = np.argsort(-worth, axis=-1, kind="stable")[:, :topk_groups]
        out = np.ones_like(worth, bool)
        np.put_along_axis(out, best, False, -1)
        choice = np.where(out[..., None], -np.inf, grouped).reshape(choice.shape)
    return scores, np.argsort(-choice, axis=-1, kind="stable")[:, :k]


def route(logits, bias, k, score, norm_topk, scale, groups=1, topk_groups=1):
    scores, ids = select(logits, bias, k, score, groups, topk_groups)
    chosen = np.take_along_axis(scores, ids, -1)
    if score == "softmax_after_topk":
        e = np.exp(chosen - chosen.real.max(-1, keepdims=True))
        gates = e / e.sum(-1, keepdims=True)
    else:
        gates = chosen / (chosen.sum(-1, keepdims=True) + 1e-20) if norm_topk else chosen

    def backward(dgates):
        d = dgates * scale
        if score == "softmax_after_topk":
            d = gates * (d - (d * gates).sum(-1, keepdims=True))
        elif norm_topk:
            d = (d - (d * gates).sum(-1, keepdims=True)) / chosen.sum(-1, keepdims=True)
        dscores = np.zeros_like(logits)
        np.put_along_axis(dscores, ids, d, -1)
        if score == "softmax":
            return scores * (dscores - (dscores * scores).sum(-1, keepdims=True))
        return dscores * scores * (1 - scores) if score == "sigmoid" else dscores

    return gates * scale, ids, backward


def adamw(p, m, v, g, lr, beta1, beta2, eps, weight_decay, step):
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    p = p * (1 - lr * weight_decay) - lr * (m / (1 - beta1**step)) / (np.sqrt(v / (1 - beta2**step)) + eps)
    return p, m, v
