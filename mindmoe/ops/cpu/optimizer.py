"""The optimizer's ops of the CPU pack: one call over all parameters."""

from collections.abc import Sequence

from mindspore import Tensor, float32, nn

from mindmoe.ops.contract import BuildAdamW, OpShape
from mindmoe.ops.cpu.pack import Pack, load, settings


class SquareSum(nn.Cell):
    """The sum of squares of a list of tensors: ranks add theirs up before the root of a global norm."""

    def __init__(self, pack: Pack | None = None):
        super().__init__()
        # An inferred shape () would make a Python scalar of the result in a graph, hence (1,).
        self.forward = (pack or load()).op("square_sum", lambda *_: (1,), lambda *_: float32)

    def construct(self, tensors: tuple[Tensor, ...]) -> Tensor:
        """() fp32 of a tuple of fp32 tensors."""
        return self.forward(*tensors).reshape(())


class FusedAdamW(nn.Cell):
    """Decoupled, bias-corrected FusedAdamW (arXiv 1711.05101) on all parameters, in place.

    Args:
        decay: for each parameter, whether weight decay applies.
        beta1, beta2, eps, weight_decay: as usual.
        pack: the library, by default the best of this machine.
    """

    def __init__(
        self,
        decay: Sequence[bool],
        beta1: float = 0.9,
        beta2: float = 0.95,
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        pack: Pack | None = None,
    ):
        super().__init__()
        self.settings = settings(beta1, beta2, eps, weight_decay, *decay)
        # MindSpore sees no output but a copy of `step`: the op writes its inputs, which is what `in place` means here.
        self.update = (pack or load()).op("adamw", lambda *_: (1,), lambda *_: float32)

    def construct(
        self,
        params: tuple[Tensor, ...],
        first: tuple[Tensor, ...],
        second: tuple[Tensor, ...],
        grads: tuple[Tensor, ...],
        lr: Tensor,
        scale: Tensor,
        step: Tensor,
    ) -> Tensor:
        """Updates params and both moments; use the result, or the update is dropped from a graph.

        Args:
            params, first, second, grads: tuples of equal length and shapes, all fp32.
            lr: () fp32.
            scale: () fp32, factor of all gradients (the clipping factor).
            step: () fp32, number of this update, from 1.

        Returns:
            step.
        """
        done = self.update(*params, *first, *second, *grads, lr, scale, step, self.settings)
        return done.reshape(())


def build_adamw(shape: OpShape, pack: Pack) -> BuildAdamW:
    """FusedAdamW for lists of parameters."""

    def adamw(decays: Sequence[bool], *, beta1: float, beta2: float, eps: float, weight_decay: float) -> FusedAdamW:
        return FusedAdamW(decays, beta1, beta2, eps, weight_decay, pack)

    return adamw


def build_square_sum(shape: OpShape, pack: Pack) -> SquareSum:
    """All tensors in one call."""
    return SquareSum(pack)
