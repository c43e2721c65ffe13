"""AdamW and its learning-rate schedule."""

from typing import Literal

from pydantic import model_validator

from mindmoe.config.schema import (
    Decay,
    Epsilon,
    Fraction,
    NonNegativeFp32,
    NonNegativeInt32,
    PositiveFp32,
    Section,
    Share,
)


class OptimConfig(Section):
    """AdamW with decoupled decay (arXiv 1711.05101), or plain `sgd`, which is for comparisons: it has no state.

    Norms, biases, sinks and embeddings are never decayed.

    `schedule` after a linear warm-up: `cosine` or `linear` to `min_lr_ratio * lr` at the last step, `wsd`
    (constant, then linear over the last `decay_fraction` of the steps), or `constant`.

    `on_jump` says what happens where a continued run would make the rate jump, as when a decayed run gets more steps:
    `refuse` it, or `accept` it.
    """

    type: Literal["adamw", "sgd"] = "adamw"
    lr: PositiveFp32 = 3e-4
    min_lr_ratio: Fraction = 0.1
    warmup_steps: NonNegativeInt32 = 100
    schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    decay_fraction: Share = 0.2
    beta1: Decay = 0.9
    beta2: Decay = 0.95
    eps: Epsilon = 1e-8
    weight_decay: NonNegativeFp32 = 0.1
    clip_norm: NonNegativeFp32 = 1.0
    on_jump: Literal["refuse", "accept"] = "refuse"

    @model_validator(mode="after")
    def _check(self) -> "OptimConfig":
        if self.lr > 1.0:
            raise ValueError(f"lr={self.lr} must be at most 1: AdamW rates are usually 1e-5 to 1e-2")
        # decoupled decay multiplies a weight by 1 - lr * weight_decay
        if self.lr * self.weight_decay > 1.0:
            raise ValueError(
                f"weight_decay={self.weight_decay} times lr={self.lr} must be at most 1, or a step takes more from a "
                "weight than there is: lower weight_decay"
            )
        return self
