"""Update rules and their state."""

from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, ops

from mindmoe.ops.contract import OpSet
from mindmoe.optim.config import OptimConfig

Update = Callable[..., Tensor]


class AdamW:
    """AdamW: two moments of every parameter.

    Args:
        params: what is updated.
        decays: for each, whether weight decay applies.
        config: rates.
        kernels: holds the update op.
    """

    def __init__(self, params: list[Parameter], decays: list[bool], config: OptimConfig, kernels: OpSet):
        self.config = config
        self.params = ms.ParameterTuple(params)
        self.moments = {
            prefix: ms.ParameterTuple([_zeros_like(param, prefix) for param in params])
            for prefix in ("adam_m", "adam_v")
        }
        self._adamw = kernels.adamw(
            decays, beta1=config.beta1, beta2=config.beta2, eps=config.eps, weight_decay=config.weight_decay
        )

    def build_update(self) -> Update:
        """Returns update(lr, scale, step, *grads) -> step, to be compiled or run as it is.

        Gradients are separate arguments because a graph bakes a tuple of tensors in as constants.
        """
        adamw, params, first, second = self._adamw, self.params, self.moments["adam_m"], self.moments["adam_v"]

        def update(lr: Tensor, scale: Tensor, step: Tensor, *grads: Tensor) -> Tensor:
            return adamw(params, first, second, grads, lr, scale, step)

        return update


class Sgd:
    """Gradient descent with decoupled decay and no state: an update as smooth as its gradient, for comparisons."""

    def __init__(self, params: list[Parameter], decays: list[bool], config: OptimConfig, kernels: OpSet):
        self.config = config
        self.params = ms.ParameterTuple(params)
        self.moments: dict[str, ms.ParameterTuple] = {}
        self._decay = tuple(config.weight_decay if decay else 0.0 for decay in decays)

    def build_update(self) -> Update:
        """Returns update(lr, scale, step, *grads) -> step."""
        params, decay = self.params, self._decay

        def update(lr: Tensor, scale: Tensor, step: Tensor, *grads: Tensor) -> Tensor:
            done = step
            for i in range(len(params)):
                change = lr * (scale * grads[i] + decay[i] * params[i])
                # the step returned depends on every assignment: whoever waits for it waits for them all
                done = ops.depend(done, ops.assign_sub(params[i], change))
            return done

        return update


Optimizer = AdamW | Sgd


def build_optimizer(params: list[Parameter], decays: list[bool], config: OptimConfig, kernels: OpSet) -> Optimizer:
    """The update rule of a run."""
    return (AdamW if config.type == "adamw" else Sgd)(params, decays, config, kernels)


def _zeros_like(param: Parameter, prefix: str) -> Parameter:
    return Parameter(Tensor(np.zeros(param.shape, np.float32)), name=f"{prefix}.{param.name}", requires_grad=False)


def clip_scale(norm: float, clip_norm: float) -> float:
    """Factor that brings a gradient of this norm to at most `clip_norm`; 0 switches clipping off."""
    # a norm of NaN compares as false and makes the factor NaN: clipping hides nothing
    return 1.0 if not clip_norm or norm <= clip_norm else clip_norm / norm
