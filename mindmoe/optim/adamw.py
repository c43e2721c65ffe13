"""The optimizer's state: both moments of every trainable parameter."""

from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor

from mindmoe.model.shapes import ParamSpec
from mindmoe.ops.select import OpSet
from mindmoe.optim.config import OptimConfig


class AdamW:
    """AdamW over the parameters of this rank.

    Args:
        params: trainable parameters.
        specs: the table; it says which parameters decay.
        config: rates.
        kernels: holds the update op.
    """

    def __init__(self, params: list[Parameter], specs: dict[str, ParamSpec], config: OptimConfig, kernels: OpSet):
        self.config = config
        self.params = ms.ParameterTuple(params)
        self.first = ms.ParameterTuple([_zeros_like(param, "adam_m") for param in params])
        self.second = ms.ParameterTuple([_zeros_like(param, "adam_v") for param in params])
        self._adamw = kernels.adamw(
            [specs[param.name].decay for param in params],
            beta1=config.beta1,
            beta2=config.beta2,
            eps=config.eps,
            weight_decay=config.weight_decay,
        )

    def build_update(self) -> Callable[..., Tensor]:
        """Returns update(lr, scale, step, *grads) -> step, to be compiled or run as it is.

        Gradients are separate arguments because a graph bakes a tuple of tensors in as constants.
        """
        adamw, params, first, second = self._adamw, self.params, self.first, self.second

        def update(lr: Tensor, scale: Tensor, step: Tensor, *grads: Tensor) -> Tensor:
            return adamw(params, first, second, grads, lr, scale, step)

        return update


def _zeros_like(param: Parameter, prefix: str) -> Parameter:
    return Parameter(Tensor(np.zeros(param.shape, np.float32)), name=f"{prefix}.{param.name}", requires_grad=False)


def clip_scale(norm: float, clip_norm: float) -> float:
    """Factor that brings a gradient of this norm to at most `clip_norm`; 0 switches clipping off."""
    return 1.0 if not clip_norm or norm <= clip_norm else clip_norm / norm
