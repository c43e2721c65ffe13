"""What a tuner may change, who proposes, and within which limits."""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from mindmoe.schema import Section
from mindmoe.tune.qubo import MAX_BITS

SolverName = Literal["auto", "mindquantum", "numpy", "exhaustive", "tpe", "random"]


class TuneConfig(Section):
    """A search over a grid of settings, trial by trial.

    `solver`: `auto` takes QAOA by MindQuantum, or by NumPy where that is not installed; `exhaustive` the surrogate's
    optimum; `tpe` Optuna's estimator; `random` a uniform draw. `space` maps config keys to 2, 4, 8 .. levels in
    ascending order of their meaning. `python` is the interpreter of the side process that runs QAOA, for a MindQuantum
    that lives in an environment of its own. A miss is a proposal that did not come within `latency`; after `trip` of
    them in a row the side process is left alone for `cooldown` proposals.
    """

    solver: SolverName = "auto"
    space: dict[str, list[float]] = Field(min_length=1)
    trials: PositiveInt = 16
    initial: PositiveInt = 6
    steps: PositiveInt = 100
    seed: NonNegativeInt = 1000
    depth: int = Field(3, ge=1, le=5)
    shots: PositiveInt = 256
    latency: PositiveFloat = 2.0
    trip: PositiveInt = 3
    cooldown: PositiveInt = 20
    cv_max: PositiveFloat = 0.5
    cv_weight: PositiveFloat = 10.0
    python: str | None = None

    @model_validator(mode="after")
    def _check(self) -> "TuneConfig":
        problems = []
        for key, levels in self.space.items():
            if len(levels) < 2 or len(levels) & (len(levels) - 1):
                problems.append(f"space={key} must have 2, 4, 8 .. levels, it has {len(levels)}: add or remove some")
            elif len(set(levels)) < len(levels):
                problems.append(f"space={key} must have distinct levels: remove the repeated one")
        bits = sum(max(1, len(levels) - 1).bit_length() for levels in self.space.values())
        if bits > MAX_BITS:
            problems.append(f"space={bits} bits must be at most {MAX_BITS}: use fewer keys or levels")
        if self.initial > self.trials:
            problems.append(f"initial={self.initial} must be at most trials={self.trials}: raise trials")
        if problems:
            raise ValueError("\n".join(problems))
        return self
