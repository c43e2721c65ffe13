"""What a tuner may change, who proposes, and within which limits."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from mindmoe.config.plugins import Beside, Companion
from mindmoe.config.schema import INT32_MAX, Coefficient, Fp32, NonNegativeInt32, PositiveInt32, Scale, Section, Share
from mindmoe.lab.dmr.config import Dmr
from mindmoe.lab.tune.qubo import MAX_BITS
from mindmoe.moe.config import MoeConfig
from mindmoe.optim.config import OptimConfig

TAU, ALPHA, AUX, BIAS = LIVE = (
    "moe.router.tau",
    "moe.router.features.alpha",
    "moe.balance.aux_coef",
    "moe.balance.bias_rate",
)
"""Settings that a running step reads anew."""

LEVELS: Mapping[str, TypeAdapter[float]] = {
    TAU: TypeAdapter(Scale),
    ALPHA: TypeAdapter(Coefficient),
    AUX: TypeAdapter(Coefficient),
    BIAS: TypeAdapter(Coefficient),
}
"""What each of them may be."""

SolverName = Literal["auto", "mindquantum", "numpy", "exhaustive", "tpe", "random"]


class SearchConfig(Section):
    """Who proposes settings, from which grid, and within which limits.

    `solver`: `auto` takes QAOA by MindQuantum, or by NumPy where that is not installed; `exhaustive` the surrogate's
    optimum; `tpe` Optuna's estimator; `random` a uniform draw. `space` maps config keys to 2, 4, 8 .. levels in
    ascending order of their meaning. `python` is the interpreter of the side process that runs QAOA, for a MindQuantum
    that lives in an environment of its own. A miss is a proposal that did not come within `latency`; after `trip` of
    them in a row the side process is left alone for `cooldown` proposals. The objective has a penalty of `cv_weight`
    times the square of what the load CV has beyond `cv_max`.
    """

    solver: SolverName = "auto"
    space: dict[str, list[Fp32]] = Field(min_length=1)
    initial: PositiveInt32 = 6
    seed: NonNegativeInt32 = 1000
    depth: int = Field(3, ge=1, le=5)
    shots: int = Field(256, gt=0, le=1_000_000)
    latency: float = Field(2.0, ge=1e-3, le=86400.0)
    trip: PositiveInt32 = 3
    cooldown: PositiveInt32 = 20
    cv_max: Scale = 0.5
    cv_weight: Scale = 10.0
    python: str | None = None

    @model_validator(mode="after")
    def _check(self) -> "SearchConfig":
        problems = []
        for key, levels in self.space.items():
            if len(levels) < 2 or len(levels) & (len(levels) - 1):
                problems.append(f"space={key} must have 2, 4, 8 .. levels, it has {len(levels)}: add or remove some")
            elif len(set(levels)) < len(levels):
                problems.append(f"space={key} must have distinct levels: remove the repeated one")
        bits = sum(max(1, len(levels) - 1).bit_length() for levels in self.space.values())
        if bits > MAX_BITS:
            problems.append(f"space={bits} bits must be at most {MAX_BITS}: use fewer keys or levels")
        problems += self.more_problems()
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def more_problems(self) -> Iterator[str]:
        """What else does not fit."""
        yield from ()


class TuneConfig(SearchConfig):
    """A search by short complete runs of `steps` steps, `trials` of them, the first `initial` drawn."""

    trials: PositiveInt32 = 16
    steps: PositiveInt32 = 100

    def more_problems(self) -> Iterator[str]:
        """More first points than trials."""
        if self.initial > self.trials:
            yield f"initial={self.initial} must be at most trials={self.trials}: raise trials"


class OnlineConfig(SearchConfig, Companion):
    """Tuning while the run goes on, in its phase of constant learning rate.

    Windows of `window_steps` steps, of which the first `burn_in` are not measured, alternate between the incumbent and
    a candidate `switchbacks` times; at most `explore_share` of the windows run a candidate. `slope` is what the loss
    loses per factor e of compute [nats], from a scaling fit such as that of `mindmoe ablate`. `replay` names the log of
    an earlier run (qea.jsonl) whose settings are applied at the same steps, without a solver.
    """

    window_steps: PositiveInt32 = 200
    burn_in: NonNegativeInt32 = 100
    switchbacks: int = Field(4, ge=2, le=INT32_MAX)
    explore_share: Share = Field(0.10, le=0.5)
    slope: Scale = 0.1
    replay: str | None = Field(None, min_length=1)

    def more_problems(self) -> Iterator[str]:
        """Windows without a measured step, and settings that cannot change while a run goes on."""
        if self.burn_in >= self.window_steps:
            yield f"burn_in={self.burn_in} must be below window_steps={self.window_steps}: lower burn_in"
        for key in self.space:
            if key not in LIVE:
                yield f"space={key} cannot change while a run goes on: use {', '.join(LIVE)}"

    def changes(self, key: str) -> bool:
        """Whether a key of the run file is tuned."""
        return key in self.space

    def run_problems(self, moe: MoeConfig | None, optim: OptimConfig) -> Iterator[str]:
        """Rates that are not constant, and levels that the run does not begin at or cannot have."""
        if optim.schedule not in ("wsd", "constant"):
            yield (
                f"optim.schedule={optim.schedule} must be wsd or constant with qea, which compares windows at a "
                "constant rate: set optim.schedule=wsd"
            )
        if moe is None:
            yield "qea must have experts to route to: add a moe section"
            return
        router, tau, alpha = moe.router, None, None
        if isinstance(router, Dmr):
            tau, alpha = router.tau, router.features.alpha if router.uses_difficulty else None
        now = {TAU: tau, ALPHA: alpha, AUX: moe.balance.aux_coef, BIAS: moe.balance.bias_rate}
        for key, levels in self.space.items():
            value = now[key]
            if value is None:
                yield f"qea.space={key} must be a setting of moe.router.type=dmr with difficulty: remove it"
            elif value == 0 and key in (AUX, BIAS):
                yield f"{key}=0.0 must be above 0 to be tuned with qea: set it to one of the levels"
            elif value not in levels:
                yield f"{key}={value} must be one of the levels {levels} of qea.space: add it or change {key}"
            for level in levels:
                try:
                    LEVELS[key].validate_python(level)
                except ValidationError as error:
                    said = error.errors(include_url=False)[0]["msg"].removeprefix("Input should ")
                    yield f"qea.space={key} cannot be {level}, which must {said}: change that level"

    def start(self, config: Any, step: Any, groups: Any, start: int) -> Beside:
        """Tunes the run, or replays a log."""
        from mindmoe.lab.tune.run import Online

        return Online(config, step, groups, start)
