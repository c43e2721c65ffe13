"""AdamW with decoupled decay (arXiv 1711.05101) over all parameters in one compiled call."""

import math

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from mindmoe.model.shapes import ParamSpec
from mindmoe.optim.config import OptimConfig


class AdamW(nn.Cell):
    """Holds both moments and updates parameters in place.

    MindSpore's fused op has no bias correction. With c1 = 1 - beta1^t and c2 = 1 - beta2^t, correcting
    m / c1 / (sqrt(v / c2) + eps) + decay * w equals the uncorrected update at rate lr * sqrt(c2) / c1, with
    eps * sqrt(c2) and decay * c1 / sqrt(c2); those three scalars come from `scalars`.
    """

    def __init__(self, params: list[Parameter], specs: dict[str, ParamSpec], config: OptimConfig):
        super().__init__(auto_prefix=False)
        self.config = config
        self.params = ms.ParameterTuple(params)
        self.first = ms.ParameterTuple([_zeros_like(param, "adam_m") for param in params])
        self.second = ms.ParameterTuple([_zeros_like(param, "adam_v") for param in params])
        self.decays = tuple(specs[param.name].decay for param in params)
        self.update = ops.operations.AdamWeightDecay()
        self.beta1, self.beta2 = Tensor(config.beta1, ms.float32), Tensor(config.beta2, ms.float32)
        self.no_decay = Tensor(0.0, ms.float32)

    def scalars(self, step: int, lr: float) -> tuple[Tensor, Tensor, Tensor]:
        """Rate, epsilon and decay of the fused op with the bias correction folded in; `step` counts from 0."""
        c1 = 1.0 - self.config.beta1 ** (step + 1)
        c2 = 1.0 - self.config.beta2 ** (step + 1)
        values = (lr * math.sqrt(c2) / c1, self.config.eps * math.sqrt(c2),
                  self.config.weight_decay * c1 / math.sqrt(c2))
        return tuple(Tensor(np.float32(value)) for value in values)

    def construct(self, grads: tuple[Tensor, ...], scale: Tensor, lr: Tensor, eps: Tensor, decay: Tensor) -> Tensor:
        """Applies `scale * grads`; returns a scalar that depends on every update, so that none is optimised away."""
        done = self.no_decay
        for i in range(len(self.params)):
            updated = self.update(self.params[i], self.first[i], self.second[i], lr, self.beta1, self.beta2, eps,
                                  decay if self.decays[i] else self.no_decay, grads[i] * scale)
            done = ops.depend(done, updated)
        return done


def _zeros_like(param: Parameter, prefix: str) -> Parameter:
    return Parameter(Tensor(np.zeros(param.shape, np.float32)), name=f"{prefix}.{param.name}", requires_grad=False)


def squared_norm(grads: tuple[Tensor, ...]) -> Tensor:
    """Sum of squares over all gradients, fp32 scalar."""
    total = (grads[0] * grads[0]).sum()
    for grad in grads[1:]:
        total = total + (grad * grad).sum()
    return total


def clip_scale(norm: float, clip_norm: float) -> float:
    """Factor that brings a gradient of this norm to at most `clip_norm`; 0 switches clipping off."""
    return 1.0 if not clip_norm or norm <= clip_norm else clip_norm / norm
