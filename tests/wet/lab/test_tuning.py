"""Online tuning of a real run: settings reach the step in both modes, nothing waits, and a log replays to the bit."""

import json
import threading

import numpy as np
import pytest

from mindmoe.host.env import Place
from mindmoe.lab.dmr.control import ALPHA_SHIFT, LOGIT_SHIFT
from mindmoe.lab.tune.run import Online, active_steps
from mindmoe.train.folder import RunFolder
from mindmoe.train.setup import build_trainer

ALONE = Place(rank=0, world=1, local_world=1)
STEPS = 24
ROUTER = {
    "type": "dmr",
    "budget": {"k_min": 1, "k_max": 4, "warmup_steps": 0, "slot_slack": None},
    "features": {"alpha": 0.5, "difficulty_head": True},
}
SPACE = {
    "moe.router.tau": [0.5, 1.0],
    "moe.router.features.alpha": [0.0, 0.5],
    "moe.balance.aux_coef": [0.02, 0.2],
    "moe.balance.bias_rate": [1e-3, 1e-2],
}
QEA = {"space": SPACE, "solver": "random", "window_steps": 2, "burn_in": 0, "switchbacks": 2, "explore_share": 0.5}


@pytest.fixture
def tuned_run(tiny_run):
    """A tiny run at constant rate with a qea section."""

    def build(mode="pynative", **qea):
        balance = {"aux_coef": 0.02, "z_coef": 1e-3, "bias_rate": 1e-3}
        config = tiny_run(
            moe={"router": ROUTER, "balance": balance},
            train={"mode": mode, "steps": STEPS},
            optim={"schedule": "constant", "warmup_steps": 1},
        )
        return type(config).model_validate(config.model_dump() | {"qea": QEA | qea})

    return build


def train(config, batch, steps=STEPS, start=0, answered=False) -> tuple[list[float], Online, object]:
    trainer = build_trainer(config, ALONE)
    RunFolder.of(config).path.mkdir(parents=True, exist_ok=True)
    online, losses = Online(config, trainer.step, trainer.groups, start), []
    for step in range(start, steps):
        if answered and online.proposals.asked is not None:
            online.proposals.asked.result()  # a step itself never waits for a proposal
        online.before(step)
        rows = batch(4, step)
        result = trainer.step.run(step, [rows], float(rows.loss_mask.sum()), 3e-3, False)
        online.after(step, result.loss, 0.3, 0.1)
        losses.append(result.loss)
    online.close()
    return losses, online, trainer


def records(config) -> list[dict]:
    return [json.loads(line) for line in (RunFolder.of(config).path / "qea.jsonl").read_text().splitlines()]


def test_a_log_is_replayed_to_the_bit_without_a_solver(tuned_run, batch):
    config = tuned_run()
    losses, _, _ = train(config, batch, answered=True)
    log = records(config)
    assert any(line["exploring"] for line in log) and any("accepted" in line for line in log)
    assert {line["source"] for line in log if "source" in line} <= {"initial", "random"}
    assert all(line["step"] in active_steps(config) for line in log)
    path = RunFolder.of(config).path / "qea.jsonl"
    again, online, _ = train(tuned_run(replay=str(path)), batch)
    assert online.proposals is None and again == losses
    plain = config.model_copy(update={"qea": None})
    trainer, off = build_trainer(plain, ALONE), []
    for step in range(STEPS):
        rows = batch(4, step)
        off.append(trainer.step.run(step, [rows], float(rows.loss_mask.sum()), 3e-3, False).loss)
    first = log[0]["step"]
    assert off[:first] == losses[:first] and off[first:] != losses[first:]


def test_no_step_waits_for_a_proposal(tuned_run):
    """The solver answers after ten steps: until then the incumbent trains on, and no call lasts."""
    asked, answer = threading.Event(), threading.Event()
    config = tuned_run(window_steps=1)
    trainer = build_trainer(config, ALONE)
    RunFolder.of(config).path.mkdir(parents=True, exist_ok=True)
    online = Online(config, trainer.step, trainer.groups, 0)
    ask = online.proposals.tuner.ask

    def slow(trials):
        asked.set()
        answer.wait()
        return ask(trials)

    online.proposals.tuner.ask = slow
    explored = []
    for step in range(STEPS):
        if step == 12:
            answer.set()
            online.proposals.asked.result()
        online.before(step)  # a wait before step 12 would never end
        online.after(step, 4.0, 0.3, 0.1)
        explored.append(online.exploring)
    online.close()
    assert asked.is_set() and not any(explored[:12]) and any(explored[12:])


@pytest.mark.parametrize("mode", ["pynative", "graph"])
def test_settings_that_change_under_way_equal_settings_from_the_start(tuned_run, batch, mode):
    """After `apply` a step computes what a run computes that was configured so: the next two losses and norms."""
    wanted = {"moe.router.tau": 0.5, "moe.router.features.alpha": 0.0, "moe.balance.aux_coef": 0.2}
    config = tuned_run(mode)
    raw = config.model_dump()
    raw["moe"]["router"] |= {"tau": 0.5}
    raw["moe"]["router"]["features"] |= {"alpha": 0.0}
    raw["moe"]["balance"] |= {"aux_coef": 0.2}
    configured = type(config).model_validate(raw | {"qea": None})
    traces = []
    for run in (config, configured):
        trainer, trace = build_trainer(run, ALONE), []
        if run.qea is not None:
            rows = batch(4, 99)
            trainer.step.gradients([rows], float(rows.loss_mask.sum()))  # compiled before anything changes
            online = Online(run, trainer.step, trainer.groups, 0)
            online.apply(wanted)
            online.close()
            control = next(iter(trainer.step.states.layers.values()))["control"].asnumpy()
            assert control[ALPHA_SHIFT] == -0.5 and control[LOGIT_SHIFT] == 1.0
        for step in range(2):
            rows = batch(4, step)
            result = trainer.step.run(step, [rows], float(rows.loss_mask.sum()), 3e-3, False)
            trace.append((result.loss, result.grad_norm))
        traces.append(trace)
    np.testing.assert_allclose(*traces, rtol=1e-5)


def test_a_continued_run_takes_up_the_log_and_drops_what_is_run_again(tuned_run, batch):
    config = tuned_run()
    train(config, batch, answered=True)
    before = records(config)
    cut = before[-2]["step"]
    trainer = build_trainer(config, ALONE)
    online = Online(config, trainer.step, trainer.groups, cut)
    kept = [line for line in before if line["step"] < cut]
    assert records(config) == kept
    assert list(online.levels) == kept[-1]["incumbent"]
    assert len(online.tuner.trials) == 1 + sum("value" in line for line in kept)
    online.close()
