"""RunConfig: one run, composed of each package's section, with the checks that span sections."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from mindmoe.checkpoint.config import CheckpointConfig
from mindmoe.data.config import DataConfig
from mindmoe.errors import ConfigError
from mindmoe.lab.tune.config import ALPHA, AUX, BIAS, TAU, OnlineConfig
from mindmoe.launch.config import LaunchConfig
from mindmoe.model.config import ModelConfig
from mindmoe.model.shapes import layer_specs
from mindmoe.moe.config import DmrConfig, MoeConfig
from mindmoe.observe.config import ObserveConfig
from mindmoe.optim.config import OptimConfig
from mindmoe.parallel import legality
from mindmoe.parallel.config import ParallelConfig
from mindmoe.schema import INT32_MAX, Coefficient, Scale, Section, Seed
from mindmoe.train.config import TrainConfig

MAX_PARAMS = 10**15
"""Parameters of a model, a thousand times those of any there is."""


class RunConfig(Section):
    """Everything that defines a run; saved resolved in the run folder, it alone reproduces the run.

    The run folder is `output_dir`/`name`. With `moe` absent or null the model is dense; with `qea` settings of the
    router are tuned while it trains.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    output_dir: str = Field("runs", min_length=1)
    seed: Seed = 0
    model: ModelConfig
    moe: MoeConfig | None = None
    parallel: ParallelConfig = ParallelConfig()
    train: TrainConfig
    optim: OptimConfig = OptimConfig()
    data: DataConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    observe: ObserveConfig = ObserveConfig()
    launch: LaunchConfig = LaunchConfig()
    qea: OnlineConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> "RunConfig":
        if problems := cross_problems(dict(self)):
            raise ValueError("\n".join(problems))
        return self


def resolve(run: RunConfig, cards: int) -> RunConfig:
    """The run on a number of cards, with `parallel.dp: auto` filled in.

    Args:
        run: a valid run.
        cards: how many devices it will have.

    Raises:
        ConfigError: the degrees do not fit the cards, or the batch and the experts do not fit the degrees.
    """
    if problems := legality.problems(legality.facts(dict(run), cards=cards)):
        raise ConfigError(problems)
    degrees = run.parallel
    dp = cards // (degrees.tp * degrees.pp * degrees.cp)
    resolved = run.model_copy(update={"parallel": degrees.model_copy(update={"dp": dp})})
    if problems := legality.problems(legality.facts(dict(resolved), cards=cards)):
        raise ConfigError(problems)
    return resolved


def cross_problems(sections: Mapping[str, Any]) -> list[str]:
    """What is wrong between sections; checks whose sections are not all given are left out.

    Args:
        sections: valid values of RunConfig's fields, by name.
    """
    between = [
        problem
        for check, needs in _CHECKS
        if all(name in sections for name in needs)
        for problem in check(*(sections[name] for name in needs))
    ]
    return between + legality.problems(legality.facts(sections))


def _sequence(model: ModelConfig, train: TrainConfig) -> Iterator[str]:
    if train.seq_length > model.max_position_embeddings:
        yield (
            f"train.seq_length={train.seq_length} must be at most "
            f"model.max_position_embeddings={model.max_position_embeddings}: lower train.seq_length"
        )


def _sizes(model: ModelConfig, moe: MoeConfig | None, train: TrainConfig) -> Iterator[str]:
    """Products that no device and no counter holds."""
    layer = sum(spec.size for spec in layer_specs(model, moe, 0))
    params = model.num_hidden_layers * layer + 2 * model.vocab_size * model.hidden_size
    if params > MAX_PARAMS:
        yield (
            f"model.hidden_size={model.hidden_size} must make, with the other sizes, at most {MAX_PARAMS:.2g} "
            f"parameters, not {params:.2g}: lower model.hidden_size, model.intermediate_size or moe.num_experts"
        )
    length, batch = train.seq_length, train.global_batch_size
    if batch * length > INT32_MAX:
        yield (
            f"train.global_batch_size={batch} must be, times train.seq_length={length}, at most {INT32_MAX} tokens: "
            "lower one of them"
        )


def _schedule(optim: OptimConfig, train: TrainConfig) -> Iterator[str]:
    if optim.warmup_steps > train.steps:
        yield (
            f"optim.warmup_steps={optim.warmup_steps} must be at most train.steps={train.steps}: "
            "lower optim.warmup_steps or raise train.steps"
        )
    elif optim.schedule == "wsd" and optim.warmup_steps + optim.decay_fraction * train.steps > train.steps:
        yield (
            f"optim.decay_fraction={optim.decay_fraction} of train.steps={train.steps} must leave room for "
            f"optim.warmup_steps={optim.warmup_steps}: lower optim.decay_fraction or optim.warmup_steps"
        )


def _domains(moe: MoeConfig | None, data: DataConfig) -> Iterator[str]:
    if moe is None or not isinstance(moe.router, DmrConfig) or not moe.router.features.domain:
        return
    if len(data.sources) > moe.router.domain.num:
        yield (
            f"data.sources={len(data.sources)} sources must be at most moe.router.domain.num={moe.router.domain.num}: "
            "raise moe.router.domain.num"
        )


def _online(qea: OnlineConfig | None, moe: MoeConfig | None, optim: OptimConfig) -> Iterator[str]:
    if qea is None:
        return
    if optim.schedule not in ("wsd", "constant"):
        yield (
            f"optim.schedule={optim.schedule} must be wsd or constant with qea, which compares windows at a constant "
            "rate: set optim.schedule=wsd"
        )
    if moe is None:
        yield "qea must have experts to route to: add a moe section"
        return
    router, dynamic = moe.router, isinstance(moe.router, DmrConfig)
    alpha = router.features.alpha if isinstance(router, DmrConfig) and router.uses_difficulty else None
    now = {TAU: router.tau if dynamic else None, ALPHA: alpha, AUX: moe.balance.aux_coef, BIAS: moe.balance.bias_rate}
    for key, levels in qea.space.items():
        value = now[key]
        if value is None:
            yield f"qea.space={key} must be a setting of moe.router.type=dmr with difficulty: remove it"
        elif value == 0 and key in (AUX, BIAS):
            yield f"{key}=0.0 must be above 0 to be tuned with qea: set it to one of the levels"
        elif value not in levels:
            yield f"{key}={value} must be one of the levels {levels} of qea.space: add it or change {key}"
        for level in levels:
            try:
                _LEVELS[key].validate_python(level)
            except ValidationError as error:
                said = error.errors(include_url=False)[0]["msg"].removeprefix("Input should ")
                yield f"qea.space={key} cannot be {level}, which must {said}: change that level"


_LEVELS: Mapping[str, TypeAdapter[float]] = {
    TAU: TypeAdapter(Scale),
    ALPHA: TypeAdapter(Coefficient),
    AUX: TypeAdapter(Coefficient),
    BIAS: TypeAdapter(Coefficient),
}
"""What each setting that a running step reads anew may be."""

_CHECKS: tuple[tuple[Callable[..., Iterator[str]], tuple[str, ...]], ...] = (
    (_sequence, ("model", "train")),
    (_sizes, ("model", "moe", "train")),
    (_schedule, ("optim", "train")),
    (_domains, ("moe", "data")),
    (_online, ("qea", "moe", "optim")),
)
