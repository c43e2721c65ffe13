"""RunConfig: one run, composed of each package's section, with the checks that span sections."""

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from mindmoe.checkpoint.config import CheckpointConfig
from mindmoe.config.plugins import ONLINE_TUNING, Companion, Named
from mindmoe.config.schema import INT32_MAX, Section, Seed
from mindmoe.data.config import DataConfig
from mindmoe.host.errors import ConfigError
from mindmoe.launch.config import LaunchConfig
from mindmoe.models.gpt_oss.config import ModelConfig
from mindmoe.models.gpt_oss.parameters import layer_specs
from mindmoe.moe.config import MoeConfig
from mindmoe.observe.config import ObserveConfig
from mindmoe.optim.config import OptimConfig
from mindmoe.parallel import legality
from mindmoe.parallel.config import ParallelConfig
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
    qea: Annotated[Companion, Named(ONLINE_TUNING)] | None = None

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


def _sources(moe: MoeConfig | None, data: DataConfig) -> Iterator[str]:
    if moe is not None:
        yield from moe.router.data_problems(len(data.sources))


def _companion(qea: Companion | None, moe: MoeConfig | None, optim: OptimConfig) -> Iterator[str]:
    if qea is not None:
        yield from qea.run_problems(moe, optim)


_CHECKS: tuple[tuple[Callable[..., Iterator[str]], tuple[str, ...]], ...] = (
    (_sequence, ("model", "train")),
    (_sizes, ("model", "moe", "train")),
    (_schedule, ("optim", "train")),
    (_sources, ("moe", "data")),
    (_companion, ("qea", "moe", "optim")),
)
