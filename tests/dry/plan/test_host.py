"""A machine whose ranks share its cores: rates from timings, the file, and what the planner makes of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from mindmoe.config.load import load_config
from mindmoe.host.errors import UserError
from mindmoe.plan.auto import planned, workload_of
from mindmoe.plan.hardware import Hardware, load_hardware
from mindmoe.plan.host import Count, OpName, Rate
from mindmoe.plan.host_terms import Machine, crowded
from mindmoe.plan.layout import Layout
from mindmoe.plan.search import search
from mindmoe.plan.step import CostModel
from mindmoe.proof.measure.fit import around_ops, counted, describe, fit_rate
from mindmoe.proof.measure.main import measure, write
from mindmoe.proof.measure.steps import RUNS

US, GFLOPS, GB_S = 20.0, 100.0, 10.0


def seconds(flops: float, moved: float) -> float:
    return 1e-6 * US + flops / (GFLOPS * 1e9) + moved / (GB_S * 1e9)


@pytest.fixture(scope="module")
def machine() -> Hardware:
    """A file made of timings of ops that all have the same rates, on two cores."""
    works = [(1e9, 1e6), (2e9, 8e6), (5e8, 4e6), (1e8, 1e7)]
    rows = [
        (precision, op, direction, flops, moved, seconds(flops, moved))
        for precision in ("bf16", "fp32")
        for op in get_args(OpName)
        for direction in ("forward", "backward")
        for flops, moved in works
    ]
    kernels = {"isa": "avx2", "gemm": "own", "cores": 2, "rows": rows, "scaling": 1.0}
    groups = [(2, 2), (4, 4), (4, 2)]
    verbs = [
        (verb, ranks, size, passed, 1e-3 * ranks + passed * ranks / 1e9)
        for verb in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "message")
        for ranks, size in groups
        for passed in (4096, 1 << 20)
    ]
    steps = {"rows": [(*run, 1.0) for run in RUNS], "process_bytes": 2**29}
    return describe(kernels, verbs, steps, {"processor": "a CPU", "memory": 2**34, "disk": 1e9})


RUN = load_config("configs/quickstart.yaml", ["train.precision=bf16"])


def model(machine: Hardware, ranks: int) -> CostModel:
    return CostModel(machine.shared_by(ranks), workload_of(RUN))


def test_rates_are_found_again_and_never_negative() -> None:
    rng = np.random.default_rng(0)
    works = [(float(f), float(b)) for f, b in zip(rng.uniform(0, 1e9, 8), rng.uniform(0, 1e8, 8), strict=True)]
    rate = fit_rate([(flops, moved, seconds(flops, moved)) for flops, moved in works])
    assert (rate.us, rate.gflops, rate.gb_s) == (
        pytest.approx(US, rel=0.01),
        pytest.approx(GFLOPS, rel=0.01),
        pytest.approx(GB_S, rel=0.01),
    )
    falling = fit_rate([(0.0, 1e6, 2e-3), (0.0, 2e6, 1e-3)])  # the larger one is faster: only the call is left
    assert falling.gb_s is None and falling.us > 0
    assert Rate(us=5.0).seconds(Count(1e12, 1e12)) == pytest.approx(5e-6)


def test_the_file_is_read_back_under_its_path_and_its_name(
    machine: Hardware, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match="doctor --measure"):
        load_hardware("this machine")
    path = tmp_path / "mindmoe" / "this-machine.yaml"
    write(machine, path)
    assert load_hardware("This Machine") == load_hardware(str(path)) == machine
    for figure in ("peak_tflops", "memory_gib", "hbm_tb_s", "link", "power_w", "storage_gb_s", "efficiency", "host"):
        assert machine.sources[figure].startswith("[")
    with pytest.raises(UserError, match="--out"):
        write(machine, path / "below" / "a-file.yaml")


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: object) -> str:
        raise AssertionError("something was measured")

    monkeypatch.setattr("mindmoe.proof.measure.main._run", measured)
    (tmp_path / "file").touch()
    for target in (tmp_path, tmp_path / "file" / "below.yaml"):
        with pytest.raises(UserError, match="cannot write"):
            measure(target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_ranks_share_cores_and_memory(machine: Hardware) -> None:
    four = machine.shared_by(4)
    assert four.memory_gib == machine.memory_gib / 4 and four.peak() == machine.peak() / 4
    product = Count(1e9, 0.0), Count(1e9, 0.0)
    one, two, many = (Machine(machine.shared_by(ranks), "bf16").op("linear", product)[0] for ranks in (1, 2, 4))
    assert two == pytest.approx(2 * one) and many == pytest.approx(4 * one)
    plain = [Machine(machine.shared_by(ranks), "bf16").plain(1e6) for ranks in (1, 2, 4)]
    assert plain[0] == plain[1] == pytest.approx(plain[2] / 2)  # one thread makes it, however many cores there are
    accelerator = load_hardware("ascend-910b2")
    assert accelerator.shared_by(8) is accelerator


def test_collectives_take_the_nearest_measurement(machine: Hardware) -> None:
    two, four = Machine(machine.shared_by(2), "bf16"), Machine(machine.shared_by(4), "bf16")
    assert two.verb("all_reduce", 1, 1e6) == 0.0
    assert two.verb("all_reduce", 2, 1e6) == pytest.approx(2e-3 + 2e-3, rel=0.01)
    assert four.verb("all_reduce", 4, 1e6) == pytest.approx(4e-3 + 4e-3, rel=0.01)
    assert two.message(4 * 2.0**20) == pytest.approx(4 * 2e-3 + 8.39e-3, rel=0.01)  # cut in four


def test_idle_stages_leave_their_cores_to_others(machine: Hardware) -> None:
    running, busy = np.array(8.0), np.array(3.0)
    assert crowded(machine.shared_by(2), running, busy) == 8.0
    assert crowded(machine.shared_by(4), running, busy) == 4.0
    assert crowded(machine.shared_by(4), running, np.array(6.0)) == 6.0
    assert crowded(load_hardware("h100"), running, busy) == 8.0


def test_what_surrounds_ops_is_the_rest_of_small_steps(machine: Hardware) -> None:
    assert machine.host is not None
    nothing = {"layer_us": 0.0, "micro_batch_us": 0.0, "step_us": 0.0}
    bare = machine.model_copy(update={"host": machine.host.model_copy(update=nothing)})
    assert around_ops(bare, [(*run, 0.0) for run in RUNS]) == (0.0, 0.0, 0.0)  # ops that take longer than the step
    layer, micro_batch, step = 0.01, 0.02, 0.03
    rest = [step + count * (micro_batch + layers * layer) for layers, count in RUNS]
    rows = [(*run, counted(bare, *run) + seconds) for run, seconds in zip(RUNS, rest, strict=True)]
    assert around_ops(bare, rows) == pytest.approx((1e4, 2e4, 3e4))


@pytest.mark.parametrize("change", [{"ep": 2}, {"pp": 2, "dp": 1}, {"tp": 2, "etp": 2, "dp": 1}])
def test_splitting_weights_saves_memory_and_costs_time(machine: Hardware, change: dict[str, Any]) -> None:
    costs = model(machine, 2)
    whole = Layout(dp=2, zero=0, micro_batch_size=1)
    split = replace(whole, **change)
    for part in ("weights", "gradients", "optimizer"):
        assert getattr(costs.memory(split)[0], part) < getattr(costs.memory(whole)[0], part)
    assert sum(costs.estimate(split).parts.values()) == pytest.approx(costs.estimate(split).step_s, rel=0.05)
    assert costs.memory(whole)[0].reserved == 2**29


def test_recomputation_trades_time_for_memory(machine: Hardware) -> None:
    costs = model(machine, 1)
    kept, full = (costs.estimate(Layout(zero=0, recompute=policy)) for policy in ("none", "full"))
    assert full.step_s > kept.step_s and full.memory.activations < kept.memory.activations


def test_zero_cuts_states_between_ranks(machine: Hardware) -> None:
    costs = model(machine, 2)
    stages = [costs.memory(Layout(dp=2, zero=zero))[0] for zero in (0, 1, 3)]
    assert stages[1].optimizer < stages[0].optimizer and stages[2].weights < stages[0].weights


def test_a_run_is_laid_out_for_this_machine(machine: Hardware, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "machine.yaml"
    write(machine, path)
    result = search(RUN, model(machine, 2), 2)
    assert result.best[0].layout.cards == 2 and len(result.points)
    auto = [f"launch.hardware={path}", "parallel=auto", "train.device=cpu"]
    run = planned(load_config("configs/quickstart.yaml", auto), 2)
    assert run.train.mode == "pynative" and "this machine" in capsys.readouterr().err
