"""From a layout to the run that trains under it; `parallel: auto` takes the planner's first choice at launch."""

import sys
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from mindmoe.config import RunConfig, resolve
from mindmoe.errors import ConfigError, UserError
from mindmoe.planner.architecture import from_config
from mindmoe.planner.hardware import load_hardware
from mindmoe.planner.layout import CONFIG_RECOMPUTE, Layout, Recompute
from mindmoe.planner.routing import imbalance_bound
from mindmoe.planner.search import SearchResult, search
from mindmoe.planner.step import CostModel, Estimate, Workload

GIB = 2.0**30


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the planner chose.

    Attributes:
        run: the run under it, resolved on its cards.
        estimate: of the layout.
        passed_over: faster layouts that the run cannot have, each with the reason.
    """

    run: RunConfig
    estimate: Estimate
    passed_over: list[str]


def workload_of(config: RunConfig) -> Workload:
    """What a run trains, as the planner sees it."""
    return Workload(
        architecture=from_config(config.name, config.model, config.moe),
        seq_length=config.train.seq_length,
        global_batch_size=config.train.global_batch_size,
        precision=config.train.precision,
        max_imbalance=imbalance_bound(config.moe),
        moe=config.moe,
        ours=True,
    )


def planner_layout(config: RunConfig, cards: int) -> Layout:
    """The layout that a resolved run has on its cards."""
    parallel, train = config.parallel, config.train
    dp = cards // (parallel.tp * parallel.pp * parallel.cp)
    back: dict[str, Recompute] = {value: key for key, value in CONFIG_RECOMPUTE.items()}
    return Layout(
        **{axis: getattr(parallel, axis) for axis in ("tp", "pp", "ep", "cp", "zero", "schedule", "chunks")},
        dp=dp,
        etp=parallel.expert_tp,
        recompute=back[parallel.recompute],
        dispatcher=parallel.chosen_dispatcher,
        micro_batch_size=train.micro_batch_size,
        split="even",
    )


def layout_sections(config: RunConfig, model: CostModel, layout: Layout) -> dict[str, dict[str, Any]]:
    """A layout as the keys and values of a run's config.

    Args:
        config: the run that it is for.
        model: knows the layers of each piece.
        layout: one that mindmoe can train.
    """
    parallel: dict[str, Any] = {axis: getattr(layout, axis) for axis in ("dp", "tp", "pp", "ep", "cp", "etp", "zero")}
    parallel["recompute"] = CONFIG_RECOMPUTE[layout.recompute]
    parallel |= {"schedule": layout.schedule, "chunks": layout.chunks}
    parallel["split"] = list(model.split(layout)) if layout.pp > 1 else "even"
    parallel["dispatcher"] = layout.dispatcher if layout.ep * layout.etp > 1 else "auto"
    if layout.ep > 1 and layout.dispatcher == "two_hop":
        parallel["node_size"] = model.hardware.cards_per_node
    train: dict[str, Any] = {"micro_batch_size": layout.micro_batch_size}
    if model.hardware.host is not None:  # it was measured op by op
        train["mode"] = "pynative"
    return {"parallel": parallel, "train": train}


def laid_out(config: RunConfig, model: CostModel, layout: Layout) -> RunConfig:
    """The run under a layout, resolved.

    Raises:
        ConfigError: the run cannot have it.
    """
    raw = config.model_dump()
    sections = layout_sections(config, model, layout)
    raw["parallel"] = sections["parallel"]
    raw["train"] |= sections["train"]
    try:
        return resolve(RunConfig.model_validate(raw), layout.cards)
    except ValidationError as error:
        raise ConfigError([problem["msg"].removeprefix("Value error, ") for problem in error.errors()]) from None


def first_that_runs(config: RunConfig, model: CostModel, result: SearchResult) -> Choice:
    """The fastest layout of a search that the run can have.

    Raises:
        UserError: it can have none.
    """
    passed_over: list[str] = []
    for estimate in result.best:
        try:
            run = laid_out(config, model, estimate.layout)
        except ConfigError as error:
            passed_over.append(f"{estimate.layout.describe()}: {error.problems[0]}")
            continue
        return Choice(run=run, estimate=estimate, passed_over=passed_over)
    raise UserError(
        f"none of the {len(passed_over)} fastest layouts can train this run; the first: {passed_over[0]}",
        "set parallel by hand",
    )


def planned(config: RunConfig, cards: int) -> RunConfig:
    """The run on a number of cards; with `parallel: auto` under the planner's choice, which is printed.

    Raises:
        UserError: nothing fits, or the run is not valid on these cards.
    """
    if not config.parallel.planned:
        return resolve(config, cards)
    if config.train.device == "cpu" and config.launch.hardware == "ascend-910b2":
        raise UserError(
            "parallel: auto plans for launch.hardware=ascend-910b2 but train.device=cpu",
            "set train.device=ascend, or launch.hardware to `this machine`, which `mindmoe doctor --measure` measures, "
            "or write the degrees instead of auto",
        )
    model = CostModel(load_hardware(config.launch.hardware).shared_by(cards), workload_of(config))
    choice = first_that_runs(config, model, search(model, cards))
    for line in reasons(choice, cards):
        print(line, file=sys.stderr, flush=True)
    return choice.run


def reasons(choice: Choice, cards: int) -> list[str]:
    """The choice and why."""
    estimate, parallel = choice.estimate, choice.run.parallel
    hardware = estimate.hardware
    lines = [
        f"parallel: auto on {cards} {hardware.name}: {estimate.layout.describe()}, zero {parallel.zero}, "
        f"recompute {parallel.recompute}, {parallel.schedule} x{parallel.chunks}, dispatcher {parallel.dispatcher}, "
        f"micro-batch {choice.run.train.micro_batch_size}, {choice.run.train.mode}",
        f"  because it is the fastest that fits: {estimate.step_s:.3g} s a step, "
        f"{estimate.tokens_per_s:,.0f} tokens/s, {estimate.memory.total / GIB:.1f} of {hardware.memory_gib:.1f} GiB; "
        f"most time beside products: {estimate.limiter}",
    ]
    return lines + [f"  passed over, {text}" for text in choice.passed_over]
