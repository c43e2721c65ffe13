"""AdamW with decoupled decay (arXiv 1711.05101) over a list of parameters, in place."""

import math
from collections.abc import Sequence

import mindspore as ms
from mindspore import Tensor, ops

from mindmoe.ops.contract import AdamWOp, BuildAdamW, OpShape, SquareSumOp


def build_adamw(shape: OpShape) -> BuildAdamW:
    """AdamW for lists of parameters."""
    return _adamw


def _adamw(decays: Sequence[bool], *, beta1: float, beta2: float, eps: float, weight_decay: float) -> AdamWOp:
    """AdamW of one list of parameters.

    MindSpore's fused op has no bias correction. With c1 = 1 - beta1^t and c2 = 1 - beta2^t, correcting
    m / c1 / (sqrt(v / c2) + eps) + decay * w equals the uncorrected update at rate lr * sqrt(c2) / c1, with
    eps * sqrt(c2) and decay * c1 / sqrt(c2).
    """
    fused = ops.operations.AdamWeightDecay()
    first_rate, second_rate = Tensor(beta1, ms.float32), Tensor(beta2, ms.float32)
    # For beta = 0 a number whose exponential is 0: the correction is then 1.
    log1, log2 = math.log(beta1) if beta1 else -1e30, math.log(beta2) if beta2 else -1e30
    none = Tensor(0.0, ms.float32)
    decayed = tuple(decays)

    def adamw(
        params: tuple, first: tuple, second: tuple, grads: tuple, lr: Tensor, scale: Tensor, step: Tensor
    ) -> Tensor:
        # 1 - beta^t by expm1: with beta near 1 and few steps the difference would cancel in fp32.
        c1, root2 = -ops.expm1(step * log1), ops.sqrt(-ops.expm1(step * log2))
        rate, epsilon, decay = lr * root2 / c1, eps * root2, weight_decay * c1 / root2
        # Each update hangs on the result, or a graph drops what nobody reads.
        done = step
        for i in range(len(params)):
            updated = fused(
                params[i],
                first[i],
                second[i],
                rate,
                first_rate,
                second_rate,
                epsilon,
                decay if decayed[i] else none,
                grads[i] * scale,
            )
            done = ops.depend(done, updated)
        return done

    return adamw


def build_square_sum(shape: OpShape) -> SquareSumOp:
    """Sums of products."""

    def square_sum(tensors: tuple[Tensor, ...]) -> Tensor:
        total = (tensors[0] * tensors[0]).sum()
        for tensor in tensors[1:]:
            total = total + (tensor * tensor).sum()
        return total

    return square_sum
