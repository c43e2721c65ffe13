"""Online tuning: windows, the rule of acceptance and of reversion, and the share of exploring windows."""

import math
from pathlib import Path

import numpy as np
import pytest

from mindmoe.config.load import load_config
from mindmoe.config.run import RunConfig
from mindmoe.host.errors import ConfigError
from mindmoe.lab.tune.config import OnlineConfig
from mindmoe.lab.tune.online import OnlineTuner, Window
from mindmoe.lab.tune.search import Proposal

CONFIGS = Path(__file__).resolve().parents[4] / "configs"
SPACE = {"moe.router.tau": [0.5, 1.0, 1.5, 2.0], "moe.balance.aux_coef": [0.001, 0.01]}


def online(**values) -> OnlineConfig:
    return OnlineConfig.model_validate({"space": SPACE, "slope": 0.5} | values)


def proposal(levels) -> Proposal:
    return Proposal(levels=levels, source="random", seconds=0.0)


def window(loss: float, cv: float = 0.2, seconds: float = 1.0) -> Window:
    return Window(loss=loss, deviation=0.1, cv=cv, seconds=seconds)


def run(tuner: OnlineTuner, windows: int, gain, seed: int = 0, trend: float = 0.01, noise: float = 0.002):
    """Windows of a run whose loss falls; `gain` maps levels to what they take off it."""
    rng, decisions, explored = np.random.default_rng(seed), [], 0
    for number in range(windows):
        explored += tuner.exploring
        loss = 4.0 - trend * number - gain(tuner.levels) + noise * rng.standard_normal()
        decision = tuner.tell(window(loss))
        decisions += [decision] if decision else []
    return decisions, explored


def test_a_better_setting_is_found_in_steps_of_one_level_and_exploring_is_rare():
    config = online(switchbacks=4, explore_share=0.1)
    tuner = OnlineTuner(config, (0, 0), lambda trials: proposal((3, 0)))
    decisions, explored = run(tuner, 400, lambda levels: 0.05 * levels[0])
    assert [decision.levels for decision in decisions[:3]] == [(1, 0), (2, 0), (3, 0)]
    assert all(decision.accepted and decision.z < -1.645 for decision in decisions[:3])
    assert tuner.incumbent == (3, 0) and explored <= 0.1 * 400
    assert decisions[0].value == pytest.approx(-0.05 / 0.5, rel=0.1)  # nats over the slope; the trend is taken out
    assert tuner.trials[-1].value == pytest.approx(-3 * 0.05 / 0.5, rel=0.1)


def test_equal_settings_are_rarely_accepted():
    accepted = 0
    for seed in range(300):
        tuner = OnlineTuner(online(explore_share=0.5, switchbacks=4), (0, 0), lambda trials: proposal((0, 1)))
        decisions, _ = run(tuner, 12, lambda levels: 0.0, seed)
        accepted += decisions[0].accepted
    assert accepted / 300 < 0.12  # a z test on 4 differences that share windows, nominal 5%


def test_a_faster_loss_bought_with_imbalance_is_worth_nothing():
    tuner = OnlineTuner(online(cv_max=0.3), (0, 0), lambda trials: None)
    even, uneven = window(4.0), window(3.9, cv=0.8)
    assert tuner.objective(uneven, even, even) == pytest.approx(-0.1 / 0.5 + 10 * 0.5**2)
    assert tuner.objective(window(4.0, seconds=2.0), even, even) == pytest.approx(math.log(2.0))


def test_a_dangerous_candidate_is_given_up():
    tuner = OnlineTuner(online(explore_share=0.5, switchbacks=2), (0, 0), lambda trials: proposal((1, 1)))
    tuner.tell(window(4.0))
    assert not tuner.exploring
    tuner.tell(window(4.0))
    assert tuner.exploring and tuner.levels == (1, 1)
    calm, rising, uneven = [(4.02, 0.2, 1.0)] * 20, [(4.2, 0.2, 1.0)] * 20, [(4.0, 0.5, 1.0)] * 20
    assert not tuner.endangered(calm) and not tuner.endangered(rising[:5])
    assert tuner.endangered(rising) and tuner.endangered(uneven)
    decision = tuner.revert()
    assert not decision.accepted and tuner.levels == (0, 0) and not tuner.exploring
    assert math.isfinite(tuner.trials[-1].value) and tuner.trials[-1].value > 0


def test_while_nobody_proposes_the_incumbent_goes_on():
    tuner = OnlineTuner(online(explore_share=0.5), (2, 1), lambda trials: None)
    decisions, explored = run(tuner, 50, lambda levels: 0.0)
    assert not decisions and not explored and tuner.levels == (2, 1)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["qea={space: {optim.lr: [1e-3, 2e-3]}}"], ["optim.lr", "moe.balance.aux_coef"]),
        (["qea={space: {moe.balance.aux_coef: [0.1, 0.2]}, burn_in: 200}"], ["burn_in=200", "window_steps=200"]),
        (["qea={space: {moe.balance.aux_coef: [0.1, 0.2]}}"], ["optim.schedule=cosine", "wsd"]),
        (["optim.schedule=wsd", "qea={space: {moe.balance.aux_coef: [0.1, 0.2]}}"], ["aux_coef", "one of the levels"]),
        (
            ["optim.schedule=wsd", "moe.balance.bias_rate=0", "qea={space: {moe.balance.bias_rate: [0.1, 0.2]}}"],
            ["bias_rate=0.0", "above 0"],
        ),
        (["optim.schedule=wsd", "qea={space: {moe.router.tau: [1, 2]}}"], ["tau", "type=dmr"]),
    ],
)
def test_mistakes_are_named(words, expected):
    with pytest.raises(ConfigError) as caught:
        load_config(CONFIGS / "quickstart.yaml", words)
    assert all(word in str(caught.value) for word in expected), str(caught.value)


def test_a_valid_section():
    words = ["optim.schedule=wsd", "moe.router={type: dmr, features: {alpha: 0.5}}"]
    words += ["qea={space: {moe.router.features.alpha: [0, 0.5, 1, 2], moe.router.tau: [0.5, 1]}}"]
    assert isinstance(load_config(CONFIGS / "quickstart.yaml", words), RunConfig)
