"""The clamped SwiGLU with a weight for each row, and its gradients, in Triton."""

import triton
import triton.language as tl

BLOCK = 256  # columns of one program


@triton.jit
def swiglu_kernel(h, weight, out, columns, alpha, limit, BLOCK: tl.constexpr):
    """out[r, c] = weight[r] * (up + 1) * gate * sigmoid(alpha * gate) for interleaved pairs of h (N, 2F)."""
    row, column = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    pair = h + row * 2 * columns + 2 * column
    gate = tl.minimum(tl.load(pair, mask=inside, other=0.0).to(tl.float32), limit)
    up = tl.load(pair + 1, mask=inside, other=0.0).to(tl.float32)
    up = tl.minimum(tl.maximum(up, -limit), limit)
    y = tl.load(weight + row) * (up + 1.0) * gate / (1.0 + tl.exp(-alpha * gate))
    tl.store(out + row * columns + column, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def swiglu_grad_kernel(dout, h, weight, dh, dweight, columns, alpha, limit, BLOCK: tl.constexpr):
    """dh (N, 2F), zero where a value was clamped, and dweight (N): one program a row, so sums have one order."""
    row = tl.program_id(0)
    w = tl.load(weight + row)
    total = 0.0
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < columns
        pair = h + row * 2 * columns + 2 * column
        d = tl.load(dout + row * columns + column, mask=inside, other=0.0).to(tl.float32)
        raw_gate = tl.load(pair, mask=inside, other=0.0).to(tl.float32)
        raw_up = tl.load(pair + 1, mask=inside, other=0.0).to(tl.float32)
        gate = tl.minimum(raw_gate, limit)
        up = tl.minimum(tl.maximum(raw_up, -limit), limit)
        s = 1.0 / (1.0 + tl.exp(-alpha * gate))
        total += tl.sum(d * (up + 1.0) * gate * s, 0)
        dgate = tl.where(raw_gate <= limit, w * d * (up + 1.0) * s * (1.0 + alpha * gate * (1.0 - s)), 0.0)
        dup = tl.where(tl.abs(raw_up) <= limit, w * d * gate * s, 0.0)
        # One contiguous store of interleaved pairs: Triton-Ascend aborts on two masked stores of stride 2.
        both = tl.reshape(tl.join(dgate, dup), (2 * BLOCK,))
        place = 2 * start + tl.arange(0, 2 * BLOCK)
        tl.store(dh + row * 2 * columns + place, both.to(dh.dtype.element_ty), mask=place < 2 * columns)
    tl.store(dweight + row, total)
