"""From a layout to the run that trains under it; `parallel: auto` takes the planner's first choice at launch."""

import sys
from typing import Any

from mindmoe.config.run import RunConfig, resolve
from mindmoe.host.errors import UserError
from mindmoe.parallel.config import ParallelConfig
from mindmoe.plan.architecture import from_config
from mindmoe.plan.hardware import load_hardware
from mindmoe.plan.layout import CONFIG_RECOMPUTE, Layout, Recompute
from mindmoe.plan.routing import imbalance_bound
from mindmoe.plan.search import search
from mindmoe.plan.step import CostModel, Estimate, Workload

GIB = 2.0**30


def workload_of(config: RunConfig) -> Workload:
    """What a run trains, as the planner sees it."""
    return Workload(
        architecture=from_config(config.name, config.model, config.moe),
        seq_length=config.train.seq_length,
        global_batch_size=config.train.global_batch_size,
        precision=config.train.precision,
        max_imbalance=imbalance_bound(config.moe),
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
    sections = layout_sections(config, model, layout)
    parallel = ParallelConfig.model_validate(sections["parallel"])
    train = config.train.model_copy(update=sections["train"])
    return resolve(config.model_copy(update={"parallel": parallel, "train": train}), layout.cards)


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
    best = search(config, model, cards).best[0]
    run = laid_out(config, model, best.layout)
    for line in reasons(run, best):
        print(line, file=sys.stderr, flush=True)
    return run


def reasons(run: RunConfig, best: Estimate) -> list[str]:
    """The layout of a run and why the planner chose it."""
    hardware, parallel = best.hardware, run.parallel
    return [
        f"parallel: auto on {best.layout.cards} {hardware.name}: {best.layout.describe()}, zero {parallel.zero}, "
        f"recompute {parallel.recompute}, {parallel.schedule} x{parallel.chunks}, dispatcher {parallel.dispatcher}, "
        f"micro-batch {run.train.micro_batch_size}, {run.train.mode}",
        f"  because it is the fastest that fits: {best.step_s:.3g} s a step, "
        f"{best.tokens_per_s:,.0f} tokens/s, {best.memory.total / GIB:.1f} of {hardware.memory_gib:.1f} GiB; "
        f"most time beside products: {best.limiter}",
    ]
