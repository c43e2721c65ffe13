"""Ask and tell: which settings to try next, from what was measured so far (dry).

Every solver gets the same first points, so that a comparison of solvers compares what they make of them.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from mindmoe.host.errors import UserError
from mindmoe.lab.tune.breaker import Breaker
from mindmoe.lab.tune.config import SearchConfig
from mindmoe.lab.tune.qubo import Qubo, fit_quadratic, to_qubo
from mindmoe.lab.tune.side import SideSolver
from mindmoe.lab.tune.space import Levels, Space

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Trial:
    """A measured point."""

    levels: Levels
    value: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposal:
    """What to try next.

    Attributes:
        levels: the point.
        source: who proposed it: `initial`, `mindquantum`, `numpy`, `exhaustive`, `tpe`, `random` or `incumbent`.
        seconds: how long that took [s].
        gap: surrogate of the point less the smallest surrogate among points not yet tried, as a share of the range
            of the surrogate; 0 is the exhaustive optimum. None where no surrogate was asked.
    """

    levels: Levels
    source: str
    seconds: float
    gap: float | None = None


class Tuner:
    """Proposes points within a time limit, whatever happens to the solver.

    Args:
        config: solver and limits.
        incumbent: the point to start from and to stay at when nobody can propose.
        side: the side process, started from the config where it is needed and not given.
    """

    def __init__(self, config: SearchConfig, incumbent: Levels, side: SideSolver | None = None):
        self.config, self.incumbent = config, incumbent
        self.space = Space.of(config.space)
        self.breaker = Breaker(config.trip, config.cooldown)
        self.side = side
        quantum = config.solver in ("auto", "mindquantum", "numpy")
        if quantum and side is None:
            self.side = SideSolver(config.solver, config.python)
        self.optuna = _import_optuna(required=config.solver == "tpe") if quantum or config.solver == "tpe" else None
        self.first = _initial_points(self.space, incumbent, config.initial, config.seed)

    def ask(self, trials: Sequence[Trial]) -> Proposal:
        """The next point after `trials`; a function of them and of the seed, except for who was in time."""
        started = perf_counter()
        if len(trials) < len(self.first):
            return Proposal(levels=self.first[len(trials)], source="initial", seconds=0.0)
        rng = np.random.default_rng([self.config.seed, len(trials)])
        gap = None
        if self.config.solver == "random":
            levels, source = self.space.levels_of(int(rng.integers(self.space.size))), "random"
        elif self.config.solver == "tpe":
            levels, source = self._tpe(trials), "tpe"
        else:
            levels, source, gap = self._surrogate(trials, started)
        return Proposal(levels=levels, source=source, seconds=perf_counter() - started, gap=gap)

    def close(self) -> None:
        """Ends the side process."""
        if self.side is not None:
            self.side.close()

    def surrogate(self, trials: Sequence[Trial]) -> Qubo:
        """The quadratic fitted to the trials, over the bits of the space."""
        points = np.stack([self.space.unit(trial.levels) for trial in trials])
        return to_qubo(fit_quadratic(points, np.array([trial.value for trial in trials])), self.space.matrix)

    def _surrogate(self, trials: Sequence[Trial], started: float) -> tuple[Levels, str, float | None]:
        """A point of low surrogate: by enumeration, by QAOA in time, or by the classical fallback."""
        qubo = self.surrogate(trials)
        energies = qubo.energies()
        tried = {self.space.state_of(trial.levels) for trial in trials}
        fresh = np.array([state not in tried for state in range(len(energies))])
        allowed = np.where(fresh, energies, np.inf) if fresh.any() else energies
        if self.config.solver == "exhaustive":
            state, source = int(np.argmin(allowed)), "exhaustive"
        else:
            states = self._sampled(qubo, len(trials), started)
            if states is None:
                return self._fallback(trials)
            assert self.side is not None
            state, source = min(states, key=lambda state: allowed[state]), self.side.backend
            if np.isinf(allowed[state]):  # every sample was tried before
                state = min(states, key=lambda state: energies[state])
        spread = float(energies.max() - energies.min()) or 1.0
        gap = float(energies[state] - allowed.min()) / spread
        return self.space.levels_of(state), source, max(0.0, gap)

    def _sampled(self, qubo: Qubo, number: int, started: float) -> list[int] | None:
        """States from the side process within what is left of the latency; None if there are none."""
        assert self.side is not None
        if not self.breaker.allows():
            return None
        states = None
        if self.side.submit(qubo, self.config.depth, self.config.shots, self.config.seed + number):
            states = self.side.collect(self.config.latency - (perf_counter() - started))
        self.breaker.record(success=states is not None)
        if states is None:
            log.warning("QAOA gave no proposal (%s): the classical fallback proposes", self.side.problem or "starting")
        return states

    def _fallback(self, trials: Sequence[Trial]) -> tuple[Levels, str, float | None]:
        if self.optuna is not None:
            return self._tpe(trials), "tpe", None
        best = min(trials, key=lambda trial: trial.value)
        return best.levels, "incumbent", None

    def _tpe(self, trials: Sequence[Trial]) -> Levels:
        """Optuna's tree-structured Parzen estimator over the numbers of the levels."""
        optuna = self.optuna
        assert optuna is not None
        top = {key: len(values) - 1 for key, values in self.space.variables}
        distributions = {key: optuna.distributions.IntDistribution(0, high) for key, high in top.items()}
        sampler = optuna.samplers.TPESampler(seed=self.config.seed + len(trials), n_startup_trials=1, multivariate=True)
        study = optuna.create_study(sampler=sampler)
        for trial in trials:
            params = dict(zip(top, trial.levels, strict=True))
            study.add_trial(
                optuna.trial.create_trial(params=params, distributions=distributions, value=float(trial.value))
            )
        asked = study.ask(distributions)
        return tuple(int(asked.params[key]) for key in top)


def _initial_points(space: Space, incumbent: Levels, count: int, seed: int) -> list[Levels]:
    """The incumbent, then distinct points drawn uniformly; fewer if the space is smaller."""
    rng = np.random.default_rng(seed)
    start = space.state_of(incumbent)
    others = [int(state) for state in rng.permutation(space.size) if state != start]
    return [space.levels_of(state) for state in [start, *others][:count]]


def _import_optuna(required: bool):  # type: ignore[no-untyped-def]  # a module
    try:
        import optuna
    except ImportError:
        if required:
            raise UserError(
                "solver=tpe needs Optuna, which is not installed", "pip install 'mindmoe[tune]', or choose exhaustive"
            ) from None
        log.warning("Optuna is not installed: without QAOA the tuner stays at its best point so far")
        return None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
