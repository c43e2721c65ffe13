"""Ask and tell: determinism, paired first points, and that every solver finds an easy optimum."""

import builtins

import numpy as np
import pytest

from mindmoe.host.errors import UserError
from mindmoe.lab.tune.config import TuneConfig
from mindmoe.lab.tune.search import Trial, Tuner
from mindmoe.lab.tune.space import Space

SPACE = {"moe.router.tau": [0.5, 0.7, 1.0, 1.4], "moe.balance.aux_coef": [0.0, 1e-4, 1e-3, 1e-2], "c": [0.0, 1.0]}
BEST = (2, 1, 1)


def value(levels: tuple[int, ...]) -> float:
    return sum((level - best) ** 2 for level, best in zip(levels, BEST, strict=True)) / 4.0


def search(solver: str, count: int = 20) -> list[Trial]:
    tuner = Tuner(TuneConfig(solver=solver, space=SPACE, trials=count, latency=30.0), (0, 0, 0))
    if tuner.side is not None:
        assert tuner.side.wait_until_ready(60.0)
    found: list[Trial] = []
    for _ in range(count):
        levels = tuner.ask(found).levels
        found.append(Trial(levels, value(levels)))
    tuner.close()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["exhaustive", "numpy", "tpe"])
def test_every_solver_finds_an_easy_optimum_and_repeats_itself(solver):
    first = search(solver)
    assert min(trial.value for trial in first) == 0.0
    assert search(solver) == first


def test_first_points_are_shared_and_start_from_the_incumbent():
    starts = {tuple(trial.levels for trial in search(solver, 6)) for solver in ("exhaustive", "random", "tpe")}
    assert len(starts) == 1
    (start,) = starts
    assert start[0] == (0, 0, 0) and len(set(start)) == 6


def test_a_point_survives_its_encodings():
    space = Space.of(SPACE)
    assert space.size == 32
    for state in range(space.size):
        levels = space.levels_of(state)
        assert space.state_of(levels) == state
        assert space.nearest(space.settings(levels)) == levels
        bits = (state >> np.arange(5)) & 1
        np.testing.assert_allclose(space.matrix @ bits, space.unit(levels))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"a": [1.0, 2.0, 3.0]}}, "space=a must have 2, 4, 8"),
        ({"space": {"a": [1.0, 1.0]}}, "distinct"),
        ({"space": {str(n): [0.0, 1.0] for n in range(17)}}, "17 bits"),
        ({"space": {"a": [0.0, 1.0]}, "trials": 2, "initial": 3}, "initial=3 must be at most trials=2"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TuneConfig.model_validate(changes)


def test_tpe_without_optuna_is_an_error(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name == "optuna":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="needs Optuna"):
        Tuner(TuneConfig(solver="tpe", space=SPACE), (0, 0, 0))
    tuner = Tuner(TuneConfig(solver="numpy", space=SPACE, python="no-such-python", initial=1), (0, 0, 0))
    assert tuner.ask([Trial((1, 1, 1), 0.5)]).source == "incumbent"
