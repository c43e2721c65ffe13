"""`mindmoe ablate FILE`: tunes, trains, judges, and writes a report; whatever is there already is taken up (dry)."""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mindmoe.config.load import load_section
from mindmoe.config.schema import StoredRecord
from mindmoe.host.errors import UserError
from mindmoe.host.files import open_append, shown
from mindmoe.lab.ablate import jobs
from mindmoe.lab.ablate.config import AblateConfig
from mindmoe.lab.ablate.cost import training_flops
from mindmoe.lab.ablate.jobs import Measured, Plan
from mindmoe.lab.ablate.statistics import Look, ScalingFit, fit_scaling
from mindmoe.lab.ablate.verdict import GO, ArmResult, DecisionRule, Verdict, decide
from mindmoe.lab.tune.log import read_log
from mindmoe.lab.tune.search import Trial, Tuner
from mindmoe.lab.tune.space import Space

T = TypeVar("T")
QUICK_SEEDS, QUICK_SHARE = 2, 0.25
QUICK = (
    "2 seeds of a quarter of the steps, no search and no runs at other budgets show that the arms train and what "
    "differs grossly; this is no verdict"
)


class TrialRecord(StoredRecord):
    """A line of the log of a search; `load_cv` is None in a dense model."""

    levels: list[int]
    settings: dict[str, float]
    value: float
    loss: float
    load_cv: float | None
    source: str
    seconds: float
    gap: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class AblationOutcome:
    """Everything that a report tells.

    Attributes:
        runs: finished complete runs by arm and seed.
        trials: by tuned arm, records in order.
        settings: what the search of each tuned arm chose.
        fit: of the baseline, None until its runs at other budgets are done.
        verdict: None as long as there is no fit.
        missing: complete runs that the plan still asks for.
    """

    ablation: AblateConfig
    runs: dict[str, dict[int, Measured]]
    trials: dict[str, list[TrialRecord]]
    settings: dict[str, dict[str, float]]
    results: dict[str, ArmResult]
    fit: ScalingFit | None
    problem: str
    verdict: Verdict | None
    missing: int


def main(path: Path, words: Sequence[str], report_only: bool, configs_only: bool = False, quick: bool = False) -> int:
    """Runs what is missing of an ablation, or only judges what is there; returns the exit code.

    With `configs_only` it writes the configs of the complete runs, for a cluster whose scheduler starts them. With
    `quick` it is a small comparison in a folder of its own, which gives no verdict.

    Raises:
        UserError: a config is wrong, or a run failed.
    """
    ablation = load_section(AblateConfig, words, path)
    plan = Plan(ablation, path.resolve().parent)
    if quick:
        plan = _quick(plan)
        ablation = plan.ablation
    for arm in ablation.arms:  # every arm's config is checked before the first run
        plan.job(arm, ablation.seeds[0])
    plan.out.mkdir(parents=True, exist_ok=True)
    if configs_only:
        return _write_configs(plan)
    if not report_only:
        _run_all(plan)
    outcome = judge(plan)
    from mindmoe.lab.ablate.report import write_report

    written = write_report(outcome, plan.out / "report.html")
    if quick:
        print(outcome.problem + (f" ({outcome.missing} runs are missing)" if outcome.missing else ""))
        for line in _differences(outcome):
            print(f"  {line}")
    elif outcome.verdict is None:
        print(f"no verdict yet: {outcome.problem}; {outcome.missing} runs are missing")
    else:
        print(f"{outcome.verdict.answer}" + (f" ({outcome.missing} runs are missing)" if outcome.missing else ""))
        for reason in outcome.verdict.reasons:
            print(f"  {reason}")
    print(f"wrote {written}")
    return 0


def _quick(full: Plan) -> Plan:
    """The small comparison: the arms without a search, on the first seeds, at a share of the steps.

    Raises:
        UserError: without its searches the ablation has nothing to compare.
    """
    ablation = full.ablation
    arms = {name: arm for name, arm in ablation.arms.items() if arm.tune is None}
    if len(arms) < 2:
        raise UserError(
            "--quick leaves searched arms out, and no arm but the baseline is left", "run it without --quick"
        )
    small = {"name": f"{ablation.name}-quick", "arms": arms, "seeds": ablation.seeds[:QUICK_SEEDS], "looks": []}
    scaling = ablation.scaling.model_copy(update={"budgets": []})
    plan = Plan(ablation.model_copy(update={**small, "scaling": scaling}), full.folder, QUICK_SHARE)
    runs, steps = len(arms) * QUICK_SEEDS, plan.job(ablation.baseline, ablation.seeds[0]).config.train.steps
    whole = len(ablation.arms) * len(ablation.seeds) + len(_scaling_jobs(full))
    trials = sum(arm.tune.trials for arm in ablation.arms.values() if arm.tune is not None)
    of_full = full.job(ablation.baseline, ablation.seeds[0]).config.train.steps
    print(
        f"quick: {runs} runs of {steps} steps, {plan.ablation.workers} at a time; the whole plan is {whole} runs of "
        f"{of_full} steps and {trials} trials of searches",
        flush=True,
    )
    return plan


def _differences(outcome: AblationOutcome) -> Iterator[str]:
    """Held-out loss of each arm, and how far it is from the baseline's over the seeds that both have."""
    baseline = outcome.runs[outcome.ablation.baseline]
    for name, runs in outcome.runs.items():
        pairs = [runs[seed].loss - baseline[seed].loss for seed in runs if seed in baseline]
        loss = f"{np.mean([run.loss for run in runs.values()]):.4f}" if runs else "none yet"
        apart = f", {np.mean(pairs):+.4f} from {outcome.ablation.baseline} over {len(pairs)} pairs" if pairs else ""
        yield f"{name}: held-out loss {loss}" + (apart if name != outcome.ablation.baseline else "")


def _run_all(plan: Plan) -> None:
    """Complete runs seed by seed, so that an interruption leaves whole pairs; stops at an early GO.

    Searches come after the first seeds of the arms that need none.
    """
    ablation = plan.ablation
    tuned = [name for name, arm in ablation.arms.items() if arm.tune is not None]
    untuned = [name for name in ablation.arms if name not in tuned]
    settings: dict[str, dict[str, float]] = {}
    done = 0
    for look in [*(look.seeds for look in ablation.looks), len(ablation.seeds)]:
        seeds, done = ablation.seeds[done:look], max(done, look)
        planned = [plan.job(arm, seed) for seed in seeds for arm in untuned]
        _complete(plan, [*planned, *(job for job in _scaling_jobs(plan) if job.config.seed in seeds)])
        if not settings:
            found = _parallel(ablation.workers, [partial(search, plan, name) for name in tuned])
            settings = dict(zip(tuned, found, strict=True))
        _complete(plan, [plan.job(arm, seed, settings=settings[arm]) for seed in seeds for arm in tuned])
        outcome = judge(plan)
        if outcome.verdict is not None and outcome.verdict.answer == GO:
            print(f"stopping at the look after {look} seeds: {GO}", flush=True)
            return


def _write_configs(plan: Plan) -> int:
    """Writes the configs of the complete runs, seed by seed; those of tuned arms are known once a search has run."""
    ablation = plan.ablation
    tuned = [name for name, arm in ablation.arms.items() if arm.tune is not None]
    planned = [plan.job(arm, seed) for seed in ablation.seeds for arm in ablation.arms if arm not in tuned]
    planned += _scaling_jobs(plan)
    for job in planned:
        print(jobs.write_config(job))
    print(f"{len(planned)} runs; `mindmoe launch` each, then `mindmoe ablate FILE --report`")
    if tuned:
        print(f"not among them, as their settings are searched first: {', '.join(tuned)}")
    return 0


def _complete(plan: Plan, planned: Sequence[jobs.RunJob]) -> None:
    """Runs those of the jobs that are not done."""
    _parallel(plan.ablation.workers, [partial(_run, job, plan.ablation.threads) for job in planned])


def _run(job: jobs.RunJob, threads: int) -> Measured:
    known = jobs.measured(job) is not None
    result = jobs.run(job, threads)
    if not known:
        print(f"{job.name}: held-out loss {result.loss:.4f}, mean k {result.mean_k:.3f}", flush=True)
    return result


def _scaling_jobs(plan: Plan) -> list[jobs.RunJob]:
    scaling, ablation = plan.ablation.scaling, plan.ablation
    seeds = ablation.seeds[: scaling.seeds]
    return [plan.job(ablation.baseline, seed, budget) for seed in seeds for budget in scaling.budgets]


def _parallel(workers: int, tasks: Iterable[Callable[[], T]]) -> list[T]:
    """Results of tasks in order, `workers` at a time; the first failure cancels those not yet begun."""
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(task) for task in tasks]
        try:
            finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
        except KeyboardInterrupt:
            for future in futures:
                future.cancel()
            raise
        if any(future.exception() for future in finished if not future.cancelled()):
            for future in futures:
                future.cancel()
        return [future.result() for future in futures if not future.cancelled()]


def search(plan: Plan, arm: str) -> dict[str, float]:
    """The settings that a tuned arm's trials chose: the point of lowest objective; trials on disk are not repeated.

    The objective is the held-out loss of a short complete run from the common start, plus a penalty of the load's CV
    beyond `cv_max`: short runs alone would favour no balancing at all.
    """
    config = plan.ablation.arms[arm].tune
    assert config is not None
    log = plan.out / "tune" / f"{arm}.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    space = Space.of(config.space)
    records = _read_trials(log, space, cut=True)
    tuner = Tuner(config, _incumbent(plan, arm, space))
    try:
        while len(records) < config.trials:
            proposal = tuner.ask([Trial(tuple(record.levels), record.value) for record in records])
            settings = space.settings(proposal.levels)
            result = jobs.run(plan.trial(arm, settings), plan.ablation.threads)
            value = result.loss + config.cv_weight * max(0.0, result.load_cv - config.cv_max) ** 2
            records.append(
                TrialRecord(
                    levels=list(proposal.levels),
                    settings=settings,
                    value=value,
                    loss=result.loss,
                    load_cv=result.load_cv if math.isfinite(result.load_cv) else None,
                    source=proposal.source,
                    seconds=proposal.seconds,
                    gap=proposal.gap,
                )
            )
            with open_append(log) as out:
                out.write(records[-1].model_dump_json().encode() + b"\n")
                os.fsync(out.fileno())
            print(f"{arm} trial {len(records)}: {proposal.source}, {value:.4f} at {settings}", flush=True)
    finally:
        tuner.close()
    return min(records, key=lambda record: record.value).settings


def _read_trials(log: Path, space: Space, cut: bool = False) -> list[TrialRecord]:
    """Trials of a log; a line torn by a kill is left out, with `cut` of the file too.

    Raises:
        UserError: a line is damaged, or a trial is of another space.
    """
    records = read_log(log, TrialRecord, cut=cut)
    for number, record in enumerate(records, 1):
        counts = [len(values) for _, values in space.variables]
        fits = len(record.levels) == len(counts) and set(record.settings) == {key for key, _ in space.variables}
        if not fits or any(not 0 <= level < count for level, count in zip(record.levels, counts, strict=True)):
            raise UserError(
                f"{log}:{number}: levels {shown(str(record.levels))} lie outside the space of the search",
                "restore the space that the log was written with, or remove the log",
            )
    return records


def _incumbent(plan: Plan, arm: str, space: Space) -> tuple[int, ...]:
    """The grid point nearest to what the arm is set to without a search.

    Raises:
        UserError: a key of the space is none of the config, or not a number.
    """
    flat: Any = plan.job(arm, plan.ablation.seeds[0]).config.model_dump()
    values = {}
    for key, _ in space.variables:
        node = flat
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        if not isinstance(node, (int, float)):
            raise UserError(f"arms.{arm}.tune.space: {key} is no number of the arm's config", "name a numeric key")
        values[key] = float(node)
    return space.nearest(values)


def judge(plan: Plan) -> AblationOutcome:
    """What the finished runs say."""
    ablation = plan.ablation
    trials = {
        name: _read_trials(plan.out / "tune" / f"{name}.jsonl", Space.of(arm.tune.space))
        for name, arm in ablation.arms.items()
        if arm.tune
    }
    settings = {}
    for name, records in trials.items():
        tune = ablation.arms[name].tune
        if tune is not None and len(records) >= tune.trials:
            settings[name] = min(records[: tune.trials], key=lambda record: record.value).settings
    runs: dict[str, dict[int, Measured]] = {name: {} for name in ablation.arms}
    for name, arm in ablation.arms.items():
        if arm.tune is not None and name not in settings:
            continue
        for seed in ablation.seeds:
            found = jobs.measured(plan.job(name, seed, settings=settings.get(name)))
            if found is not None:
                runs[name][seed] = found
    results = {name: _result(plan, name, found, settings.get(name)) for name, found in runs.items() if found}
    fit, problem = (None, QUICK) if plan.share != 1.0 else _fit(plan, runs[ablation.baseline])
    rule = DecisionRule(
        seeds=tuple(ablation.seeds),
        looks=tuple(Look(look.seeds, look.alpha) for look in ablation.looks),
        threshold=ablation.threshold,
        basis=ablation.basis,
    )
    verdict = None
    if fit is not None and ablation.baseline in results:
        absent = [name for name in ablation.arms if name not in results]
        empty = {name: ArmResult(role=ablation.arms[name].role, losses={}, flops=1.0, seconds=1.0) for name in absent}
        verdict = decide({**results, **empty}, rule, fit)
    planned = len(ablation.seeds) * len(ablation.arms) + len(_scaling_jobs(plan))
    finished = sum(map(len, runs.values())) + sum(jobs.measured(job) is not None for job in _scaling_jobs(plan))
    return AblationOutcome(
        ablation=ablation,
        runs=runs,
        trials=trials,
        settings=settings,
        results=results,
        fit=fit,
        problem=problem,
        verdict=verdict,
        missing=planned - finished,
    )


def _result(plan: Plan, name: str, found: dict[int, Measured], settings: dict[str, float] | None) -> ArmResult:
    """An arm's runs in the terms of the verdict; a search is charged in full to the arm that needed it."""
    arm = plan.ablation.arms[name]
    config = plan.job(name, plan.ablation.seeds[0], settings=settings).config
    mean_k = float(np.mean([run.mean_k for run in found.values()]))
    flops = training_flops(config, mean_k)
    seconds = float(np.median([run.seconds for run in found.values()]))
    if arm.tune is not None:
        share = arm.tune.trials * arm.tune.steps / config.train.steps
        flops, seconds = flops * (1.0 + share), seconds * (1.0 + share)
    health = {}
    if config.moe is not None:
        health = {
            "load_cv": float(np.mean([run.load_cv for run in found.values()])),
            "overflow": float(np.mean([run.dropped for run in found.values()])),
            "mean_k": mean_k,
            "target_k": float(config.moe.num_experts_per_tok),
        }
    losses = {seed: run.loss for seed, run in found.items()}
    return ArmResult(role=arm.role, losses=losses, flops=flops, seconds=seconds, health=health)


def _fit(plan: Plan, baseline: dict[int, Measured]) -> tuple[ScalingFit | None, str]:
    """The slope of the baseline's loss over compute, or why there is none yet."""
    points = []
    for seed in plan.ablation.seeds[: plan.ablation.scaling.seeds]:
        if seed in baseline:
            points.append((1.0, baseline[seed].loss, seed))
    for job in _scaling_jobs(plan):
        found = jobs.measured(job)
        if found is not None:
            full = plan.job(plan.ablation.baseline, job.config.seed).config.train.steps
            points.append((job.config.train.steps / full, found.loss, job.config.seed))
    if len(points) < 3:
        return None, f"{len(points)} runs of the baseline at several budgets are there"
    try:
        return fit_scaling(*zip(*points, strict=True)), ""
    except UserError as error:
        return None, str(error)
