"""A comparison of configurations, fixed before its first run."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mindmoe.config.schema import INT32_MAX, Coefficient, PositiveInt32, Section, Seed, Threads
from mindmoe.lab.ablate.statistics import LOOKS
from mindmoe.lab.ablate.verdict import Role
from mindmoe.lab.tune.config import TuneConfig


class ArmConfig(Section):
    """One configuration: the base, or a `config` of its own, with a `preset` over it and `set` over both.

    `role`: `baseline` (exactly one), `placebo`, `candidate`, `control` (reported, decides nothing), `tuned` and
    `tuned_rival` (their settings are searched first, with the same budget). Paths are relative to the ablation's file.
    """

    role: Role
    config: str | None = None
    preset: str | None = None
    set: dict[str, Any] = {}
    tune: TuneConfig | None = None


class LookConfig(Section):
    """A planned analysis after so many seeds, one-sided at level `alpha`."""

    seeds: int = Field(ge=2, le=INT32_MAX)
    alpha: float = Field(ge=1e-12, lt=0.5)


class ScalingConfig(Section):
    """Complete runs of the baseline at other budgets, for the slope of its loss; `seeds` of them for each budget."""

    budgets: list[Annotated[float, Field(ge=1e-3, le=1e3)]] = [0.8, 1.25]
    seeds: PositiveInt32 = 2


class AblateConfig(Section):
    """`mindmoe ablate FILE`: arms by seeds, and a verdict by a rule that is written down here.

    `workers` runs at once, `threads` each, 0 for as many as the machine has. `basis`: what costs count in the decision,
    `iso_flop` on a CPU, whose clock says nothing about other hardware, `iso_wall_clock` on the target.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)
    output_dir: str = Field("runs", min_length=1)
    base: str = Field(min_length=1)
    arms: dict[str, ArmConfig] = Field(min_length=2)
    seeds: list[Seed] = Field(min_length=2)
    looks: list[LookConfig] = [LookConfig(seeds=look.seeds, alpha=look.alpha) for look in LOOKS]
    scaling: ScalingConfig = ScalingConfig()
    threshold: Coefficient = 0.03
    basis: Literal["iso_flop", "iso_wall_clock"] = "iso_flop"
    workers: Threads = Field(1, gt=0)
    threads: Threads = 1

    @model_validator(mode="after")
    def _check(self) -> "AblateConfig":
        problems = []
        baselines = [name for name, arm in self.arms.items() if arm.role == "baseline"]
        if len(baselines) != 1:
            problems.append(f"arms={len(baselines)} baselines must be exactly 1: give one arm role: baseline")
        for name, arm in self.arms.items():
            if (arm.role in ("tuned", "tuned_rival")) != (arm.tune is not None):
                problems.append(
                    f"arms.{name}.role={arm.role} must go with a tune section if and only if it is tuned or "
                    f"tuned_rival: change arms.{name}"
                )
        budgets = {(arm.tune.trials, arm.tune.steps) for arm in self.arms.values() if arm.tune}
        if len(budgets) > 1:
            problems.append("arms=tuned ones must have equal trials and steps: give all the same budget")
        if len(set(self.seeds)) < len(self.seeds):
            problems.append("seeds=repeated ones must be distinct: each seed is one pair")
        last = 0
        for look in self.looks:
            if not last < look.seeds <= len(self.seeds):
                problems.append(
                    f"looks={look.seeds} seeds must rise and be at most the {len(self.seeds)} of seeds: change looks"
                )
            last = look.seeds
        if self.scaling.seeds > len(self.seeds):
            problems.append(f"scaling.seeds={self.scaling.seeds} must be at most {len(self.seeds)}: lower it")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def baseline(self) -> str:
        """The name of the arm that others are compared with."""
        return next(name for name, arm in self.arms.items() if arm.role == "baseline")
