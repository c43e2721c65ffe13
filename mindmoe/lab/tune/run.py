"""Applies online tuning to a run: rank 0 decides at the ends of windows, and all ranks change the same settings.

Proposals come from a thread of rank 0 that asks the side process; a step never waits for it. Every change is a line of
`qea.jsonl` in the run folder, from which a run can be replayed without a solver.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor, ops

from mindmoe.config.run import RunConfig
from mindmoe.config.schema import StoredRecord
from mindmoe.host.errors import UserError
from mindmoe.host.files import open_append, replace_file
from mindmoe.lab.dmr.config import Dmr
from mindmoe.lab.dmr.control import ALPHA_SHIFT, LOGIT_SHIFT
from mindmoe.lab.tune.config import ALPHA, AUX, BIAS, TAU, OnlineConfig
from mindmoe.lab.tune.log import read_log
from mindmoe.lab.tune.online import Decision, OnlineTuner, Window
from mindmoe.lab.tune.search import Proposal, Trial, Tuner
from mindmoe.lab.tune.space import Levels, Space
from mindmoe.parallel.collectives import host_sum
from mindmoe.parallel.groups import Groups
from mindmoe.train.folder import RunFolder
from mindmoe.train.step import TrainStep

log = logging.getLogger(__name__)


def configured(config: RunConfig, keys: Sequence[str]) -> dict[str, float]:
    """What the run's config says of live settings."""
    assert config.moe is not None
    router = config.moe.router
    values = {TAU: router.tau, AUX: config.moe.balance.aux_coef, BIAS: config.moe.balance.bias_rate}
    if isinstance(router, Dmr):
        values[ALPHA] = router.features.alpha
    return {key: values[key] for key in keys}


def active_steps(config: RunConfig) -> range:
    """The steps of constant rate, after the static warm-up of the router."""
    assert config.moe is not None
    router, total = config.moe.router, config.train.steps
    first = max(config.optim.warmup_steps, router.budget.warmup_steps if isinstance(router, Dmr) else 0)
    last = total
    if config.optim.schedule == "wsd":
        last = total - max(1, round(config.optim.decay_fraction * total))
    return range(min(first, last), last)


class Proposals:
    """The tuner's answers, asked for in the background; rank 0 only."""

    def __init__(self, config: OnlineConfig, incumbent: Levels):
        self.tuner = Tuner(config, incumbent)
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="qea")
        self.asked: Future[Proposal] | None = None

    def __call__(self, trials: list[Trial]) -> Proposal | None:
        """The answer to an earlier call if it is there, else None; asks if nothing is under way."""
        if self.asked is None:
            self.asked = self.pool.submit(self.tuner.ask, list(trials))
            return None
        if not self.asked.done():
            return None
        asked, self.asked = self.asked, None
        return asked.result()

    def close(self) -> None:
        """Ends thread and side process."""
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.tuner.close()


class Change(StoredRecord):
    """A line of `qea.jsonl`: what a window begins with, and what was decided of the candidate before it, if anything.

    `value` is the candidate's objective relative to the first incumbent, `gain` to the present one.
    """

    step: int
    settings: dict[str, float]
    exploring: bool = False
    incumbent: list[int] = []
    levels: list[int] | None = None
    accepted: bool | None = None
    value: float | None = None
    gain: float | None = None
    z: float | None = None
    source: str | None = None
    latency: float | None = None
    gap_to_exhaustive: float | None = None


class Online:
    """Tunes a run, or replays a log.

    Args:
        config: the run, with its `qea` section.
        step: what the settings are applied to.
        groups: of this rank.
        start: step that training goes on from; settings of the log before it are taken up again.
    """

    def __init__(self, config: RunConfig, step: TrainStep, groups: Groups, start: int):
        assert isinstance(config.qea, OnlineConfig) and config.moe is not None
        self.qea, self.moe, self.step, self.groups = config.qea, config.moe, step, groups
        self.active, self.leader = active_steps(config), groups.rank == 0
        self.space = Space.of(self.qea.space)
        self.base = configured(config, list(self.qea.space))
        self.log = RunFolder.of(config).path / "qea.jsonl"
        self.levels = self.space.nearest(self.base)
        self.exploring, self.next_window = False, max(start, self.active.start)
        self.measured: list[tuple[float, float, float]] = []
        self.proposals: Proposals | None = None
        self.tuner: OnlineTuner | None = None
        self.replayed = _replayed(Path(self.qea.replay)) if self.qea.replay else None
        before: list[Change] = []
        if self.replayed is None:  # a replay leaves every log as it is, its own among them
            before = _cut(self.log, start) if self.leader else _lines(self.log, start)
        if before:
            self.levels = tuple(before[-1].incumbent)
        if self.leader and self.replayed is None:
            self.proposals = Proposals(self.qea, self.levels)
            self.tuner = OnlineTuner(self.qea, self.levels, self.proposals)
            self.tuner.trials += [
                Trial(tuple(line.levels), line.value)
                for line in before
                if line.levels is not None and line.value is not None
            ]
        if self.replayed is not None:
            past = [step for step in self.replayed if step < start]
            if past:
                self.apply(self.replayed[max(past)])
        elif before:
            self.apply(self.space.settings(self.levels))

    def before(self, step: int) -> None:
        """What must happen before a step (from 0): the settings of the window that begins with it."""
        if self.replayed is not None:
            if step in self.replayed:
                self.apply(self.replayed[step])
            return
        if step == self.active.stop and self.exploring:
            self._to(step, None, freeze=True)
        if step not in self.active or step < self.next_window:
            return
        decision = None
        if self.tuner is not None and self.measured:
            decision = self.tuner.tell(Window.of(self.measured))
        self._to(step, decision)

    def after(self, step: int, loss: float, cv: float, seconds: float) -> None:
        """Takes note of a step; every rank calls it with equal loss and cv. A dangerous candidate ends at once."""
        if self.replayed is not None or step not in self.active:
            return
        into = step - (self.next_window - self.qea.window_steps)
        if into >= self.qea.burn_in:
            self.measured.append((loss, cv, seconds))
        if not self.exploring:
            return
        danger = float(self.tuner is not None and self.tuner.endangered(self.measured))
        if host_sum(np.array([danger]), self.groups["world"])[0]:
            self._to(step + 1, self.tuner.revert() if self.tuner is not None else None)

    def apply(self, settings: Mapping[str, float]) -> None:
        """Changes settings of the running step, on this rank."""
        for key, value in settings.items():
            if key == BIAS:
                self.step.bias_rate = value
            elif key == AUX:
                self.step.set_aux_coef(value)
            else:
                router = self.moe.router
                assert isinstance(router, Dmr), "a rule of the config"
                if key == ALPHA:
                    self._shift(ALPHA_SHIFT, value - router.features.alpha)
                else:
                    self._shift(LOGIT_SHIFT, router.tau / value - 1.0)

    def _shift(self, place: int, value: float) -> None:
        """Sets a place of the control vector of every layer."""
        assert self.step.states is not None
        for state in self.step.states.layers.values():
            control = state["control"].asnumpy().copy()
            control[place] = value
            ops.assign(state["control"], Tensor(control))  # in place: a compiled step would not see a new tensor

    def close(self) -> None:
        """Ends what runs beside training."""
        if self.proposals is not None:
            self.proposals.close()

    def _to(self, step: int, decision: Decision | None, freeze: bool = False) -> None:
        """Begins a window: rank 0's settings become everybody's."""
        word = np.zeros(len(self.levels) + 1)
        if self.tuner is not None:
            levels = self.tuner.incumbent if freeze else self.tuner.levels
            word[:] = [*levels, float(levels != self.tuner.incumbent)]
        heard = host_sum(word, self.groups["world"])
        levels, self.exploring = tuple(int(round(level)) for level in heard[:-1]), bool(heard[-1] > 0.5)
        self.next_window, self.measured = step + self.qea.window_steps, []
        changed = levels != self.levels
        self.levels = levels
        if changed:
            self.apply(self.space.settings(levels))
        if self.tuner is not None and (changed or decision is not None):
            self._write(step, decision)

    def _write(self, step: int, decision: Decision | None) -> None:
        assert self.tuner is not None
        record: dict[str, Any] = {"step": step, "settings": self.space.settings(self.levels)}
        record |= {"exploring": self.exploring, "incumbent": list(self.tuner.incumbent)}
        if decision is not None:
            finite = bool(np.isfinite(decision.value))
            record |= {"levels": list(decision.levels), "accepted": decision.accepted}
            record |= {"value": self.tuner.trials[-1].value, "gain": decision.value if finite else None}
            record |= {"z": decision.z if np.isfinite(decision.z) else None}
        proposal = decision.proposal if decision else self.tuner.test.proposal if self.tuner.test else None
        if proposal is not None:
            record |= {"source": proposal.source, "latency": proposal.seconds, "gap_to_exhaustive": proposal.gap}
        with open_append(self.log) as out:
            out.write(json.dumps(record).encode() + b"\n")
        log.info("qea: %s", record)


def _lines(path: Path, start: int) -> list[Change]:
    """Records of a log of steps before `start`; a line torn by a kill is left out.

    Raises:
        UserError: a whole line is damaged.
    """
    return [record for record in read_log(path, Change) if record.step < start]


def _cut(path: Path, start: int) -> list[Change]:
    """The same, and cuts the file to it: what came later will be run again."""
    kept = _lines(path, start)
    if path.exists():
        lines = [record.model_dump_json(exclude_unset=True) + "\n" for record in kept]
        replace_file(path, "".join(lines))  # other ranks may be reading it
    return kept


def _replayed(path: Path) -> dict[int, dict[str, float]]:
    """Settings by the step that they are applied before.

    Raises:
        UserError: it is no such log.
    """
    records = read_log(path, Change, follow=True)
    if not records:
        raise UserError(f"qea.replay={path} holds no change of a setting", "name the qea.jsonl of a run")
    return {record.step: record.settings for record in records}
