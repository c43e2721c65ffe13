"""AdamW and its learning-rate schedule."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, model_validator

from mindmoe.schema import Section


class OptimConfig(Section):
    """AdamW with decoupled decay (arXiv 1711.05101), or plain `sgd`, which is for comparisons: it has no state.

    Norms, biases, sinks and embeddings are never decayed.

    `schedule` after a linear warm-up: `cosine` or `linear` to `min_lr_ratio * lr` at the last step, `wsd`
    (constant, then linear over the last `decay_fraction` of the steps), or `constant`.
    """

    type: Literal["adamw", "sgd"] = "adamw"
    lr: PositiveFloat = 3e-4
    min_lr_ratio: float = Field(0.1, ge=0.0, le=1.0)
    warmup_steps: NonNegativeInt = 100
    schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    decay_fraction: float = Field(0.2, gt=0.0, le=1.0)
    beta1: float = Field(0.9, ge=0.0, lt=1.0)
    beta2: float = Field(0.95, ge=0.0, lt=1.0)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1
    clip_norm: NonNegativeFloat = 1.0

    @model_validator(mode="after")
    def _check(self) -> "OptimConfig":
        if self.lr > 1.0:
            raise ValueError(f"lr={self.lr} must be at most 1: AdamW rates are usually 1e-5 to 1e-2")
        return self
