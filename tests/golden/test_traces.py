"""Short runs compute what they computed when their traces were written.

A trace that fails here is renewed by `python tests/golden/renew.py NAME`, in a commit of its own that says why.
"""

from dataclasses import replace

import numpy as np
import pytest
import runs
import traces
from traces import Trace

pytestmark = pytest.mark.timeout(1200)  # [s], of all runs together, on a busy machine


def need(name: str) -> None:
    """Skips a test whose run this machine cannot run."""
    if not runs.runnable(name):
        pytest.skip("the C++ pack needs a compiler")


@pytest.mark.parametrize("name", runs.RUNS)
def test_a_run_is_what_its_trace_says(seen: dict[str, Trace], name: str) -> None:
    need(name)
    found = traces.differences(traces.read(runs.HERE / "traces" / f"{name}.json"), seen[name])
    assert not found, "\n".join(found)


def test_every_trace_has_its_run() -> None:
    assert {path.stem for path in (runs.HERE / "traces").iterdir()} == set(runs.RUNS)


def test_a_run_does_not_depend_on_what_ran_before(seen: dict[str, Trace]) -> None:
    assert not traces.differences(seen["dense"], seen["dense+again"], exactly=True)


@pytest.mark.parametrize("name", ["static-softmax", "pack-static-bf16"])
def test_other_code_for_the_same_sums_stays_within_the_bounds(seen: dict[str, Trace], name: str) -> None:
    """oneDNN as on a processor without AVX-512, which sums in another order."""
    need(name)
    bounds = traces.read(runs.HERE / "traces" / f"{name}.json").bounds
    found = traces.differences(replace(seen[name], bounds=bounds), seen[f"{name}+avx2"], exactly=False)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", ["dense", "static-sigmoid", "pack-static-bf16"])
def test_one_ulp_of_one_weight_shows(seen: dict[str, Trace], name: str) -> None:
    need(name)
    found = traces.differences(seen[name], seen[f"{name}+ulp"], exactly=True)
    assert any("before the first step: other bits" in line for line in found)
    assert any("other bits at the end" in line for line in found)


@pytest.mark.parametrize("name", ["dense+rate", "static-softmax+aux", "pack-static-bf16+rate"])
def test_a_setting_that_is_a_little_off_is_out_of_bounds(seen: dict[str, Trace], name: str) -> None:
    """Some percent of a learning rate or a coefficient: no other processor differs by as much."""
    run = name.partition("+")[0]
    need(run)
    bounds = traces.read(runs.HERE / "traces" / f"{run}.json").bounds
    assert traces.differences(replace(seen[run], bounds=bounds), seen[name], exactly=False)


@pytest.mark.parametrize("name", ["dense", "dmr", "pack-static-bf16", "tp2"])
def test_bounds_hold_each_figure(name: str) -> None:
    kept = traces.read(runs.HERE / "traces" / f"{name}.json")
    assert not traces.differences(kept, kept, exactly=True)
    for key in traces.SERIES:
        for share, wrong in ((0.9, False), (1.1, True)):
            moved = np.array(kept.series[key])
            moved[7] += share * kept.bounds[key][7]
            off = replace(kept, series={**kept.series, key: moved.tolist()})
            found = traces.differences(kept, off, exactly=False)
            assert [line.split(":")[0] for line in found] == ([f"{key} of step 8"] if wrong else [])
            assert traces.differences(kept, off, exactly=True)
    off = replace(kept, series={**kept.series, "loss": [float("nan")] * 20})
    assert traces.differences(kept, off, exactly=False)
    tensor = next(name for name in kept.state if not name.startswith("adam_"))
    for part in ("rms", "probe"):
        bound = kept.bounds[f"{tensor}.{part}"][0]
        off_state = replace(kept.state[tensor], **{part: getattr(kept.state[tensor], part) + 1.1 * bound})
        off = replace(kept, state={**kept.state, tensor: off_state})
        assert [line.split(":")[0] for line in traces.differences(kept, off, exactly=False)] == [f"{tensor}.{part}"]
    assert traces.differences(kept, replace(kept, state={}), exactly=False)


def test_counts_are_held_by_assignments() -> None:
    """A tie may fall the other way; the loss of that step and of later ones may follow a little."""
    kept = traces.read(runs.HERE / "traces" / "moge.json")
    loss = np.array(kept.series["loss"])
    for moved, changed, at, wrong in ((1, 0.0, 5, False), (60, 0.0, 5, True), (1, 0.1, 5, False), (1, 0.1, 4, True),
                                      (1, 0.4, 5, True), (0, 0.1, 5, True)):  # fmt: skip
        counts, series = (
            np.array(kept.counts),
            {**kept.series, "loss": (loss + changed * (np.arange(20) == at)).tolist()},
        )
        counts[5, 0, :2] += moved, -moved
        off = replace(kept, counts=counts.tolist(), series=series)
        assert bool(traces.differences(kept, off, exactly=False)) == wrong, (moved, changed, at)
        assert traces.differences(kept, off, exactly=True)


def test_the_mode_follows_from_where_both_were_made() -> None:
    kept = traces.read(runs.HERE / "traces" / "dense.json")
    near = replace(kept, eval_loss=kept.eval_loss + 0.5 * kept.bounds["eval_loss"][0])
    assert traces.differences(kept, near)
    for key in kept.made_on:
        assert not traces.differences(kept, replace(near, made_on={**kept.made_on, key: "another"}))
