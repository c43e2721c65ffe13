"""Layouts of every axis compute what one process computes; `make equiv` runs all of them."""

import json
import os

import numpy as np
import pytest

from mindmoe.equiv.compare import compare


@pytest.mark.parametrize(
    ("ranks", "layouts"),
    [
        (2, ["tp2,ep2,etp1,all_gather", "cp2,ep2,ring", "pp2,interleaved,chunks2", "dp2,ep2,capacity", "dp2,zero2"]),
        (4, ["tp2,pp2", "dp2,cp2,ep4,ulysses", "dp2,tp2,ep2,zero1", "pp2,dp2,zero3,full"]),
    ],
)
def test_layouts_equal_one_process(equiv, tmp_path, ranks, layouts):
    code, output, found = equiv(tmp_path / "traces", 2, layouts)
    assert code == 0, output
    assert (found["precision"], found["steps"]) == ("fp32", 2) and "fp32" in found["ops"]
    assert "steps in fp32, ops: " in output and "1 threads" in output
    assert [row["layout"] for row in found["layouts"]] == layouts
    assert all(row["equal"] and row["ranks"] == ranks for row in found["layouts"])


DMR = (
    "moe.router={type: dmr, score: sigmoid, budget: {k_min: 2, k_max: 8, warmup_steps: 1, slot_slack: null}, "
    "difficulty: {target: table}, features: {alpha: 0.5, difficulty_head: true, grad_ema: true, bigram: true, "
    "buckets: 512, domain: true}}"
)


MOGE = ["moe.router={type: moge, num_groups: 4}", "moe.balance.seq_aux_coef=0.02"]


@pytest.mark.parametrize(
    ("words", "layouts"),
    [([DMR], ["dp2,ep2", "tp2", "pp2"]), (MOGE, ["dp2,ep2", "tp2", "pp2", "cp2,ring"])],
    ids=["dmr", "moge"],
)
def test_routers_route_the_same_under_every_layout(equiv, tmp_path, words, layouts):
    code, output, found = equiv(tmp_path / "traces", 3, layouts, *words)
    assert code == 0, output
    assert all(row["equal"] and row["routing"] == 0 for row in found["layouts"])
    folder = tmp_path / "traces" / "dp2-ep2"
    ranks = [np.load(folder / f"rank-{rank}.npz") for rank in (0, 1)]
    for key in ranks[0].files:
        if key.startswith("p|") and ("table" in key or "control" in key):
            np.testing.assert_array_equal(ranks[0][key], ranks[1][key])
    # What travels is the slots in use whose expert is elsewhere: a rank sends its own rows and sends others' back.
    chosen = [np.concatenate([file[key].ravel() for key in file.files if key.startswith("r.2.")]) for file in ranks]
    remote = sum(int(((ids >= 0) & (ids < 16) & (ids // 8 != rank)).sum()) for rank, ids in enumerate(chosen))
    for rank in (0, 1):
        sent = json.loads((folder / f"sent-{rank}.json").read_text())
        assert sent["ep"]["all_to_all_v"] == 2 * remote * 48 * 4  # forward and backward, 48 numbers of fp32


def test_a_router_of_another_package_trains_under_expert_parallelism(equiv, tmp_path, router_package, monkeypatch):
    paths = [str(router_package), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    words = ["moe.router={type: min_p, score: softmax, tau: 0.1, p: 0.5, k_max: 4}"]
    code, output, found = equiv(tmp_path / "traces", 3, ["dp2,ep2"], *words)
    assert code == 0, output
    assert [(row["equal"], row["ranks"], row["routing"]) for row in found["layouts"]] == [(True, 2, 0)]
    with np.load(tmp_path / "traces" / "one-process-0" / "rank-0.npz") as file:
        used = np.concatenate([(file[key] < 16).sum(1) for key in file.files if key.startswith("r.")])
    assert set(used) == {1, 2, 3, 4}


@pytest.mark.parametrize(
    ("over", "layouts"),
    [
        ("running", ["dp2,ep2", "dp2", "cp2,ring", "pp2,zb_h1", "pp2,interleaved,chunks2"]),
        ("exact", ["dp2,ep2", "dp2", "tp2", "pp2,gpipe"]),
    ],
)
def test_the_balance_over_micro_batches_is_the_same_under_every_layout(equiv, tmp_path, over, layouts):
    """Four micro-batches a step, and a weight that is felt."""
    words = [f"moe.balance={{aux_coef: 0.3, aux_over: {over}, bias_rate: 0}}", "train.micro_batch_size=2"]
    code, output, found = equiv(tmp_path / "traces", 3, layouts, *words)
    assert code == 0, output
    assert all(row["equal"] and row["routing"] == 0 for row in found["layouts"])


def test_the_same_layout_twice_is_bitwise_equal(equiv, tmp_path):
    # The same layout under another name: one run of one process serves both.
    code, output, _ = equiv(tmp_path / "traces", 2, ["dp2,ep2", "ep2,dp2"])
    assert code == 0, output
    for rank in (0, 1):
        files = [np.load(tmp_path / "traces" / name / f"rank-{rank}.npz") for name in ("dp2-ep2", "ep2-dp2")]
        assert files[0].files == files[1].files
        assert all(np.array_equal(files[0][key], files[1][key]) for key in files[0].files)


def test_a_layout_that_goes_the_other_way_at_a_tie_goes_on_from_equal_weights(equiv, start_ranks, tmp_path):
    """One decision of the process alone is turned and called a tie: from its state after that step all is equal."""
    layouts, out = ["dp2,zero3", "tp2,ep2,etp1"], tmp_path / "traces"
    assert equiv(tmp_path / "short", 1, ["dp2"], "optim.warmup_steps=1")[0] == 0
    assert equiv(out, 3, layouts, "optim.warmup_steps=1")[0] == 0
    alone = out / "one-process-0"
    with np.load(tmp_path / "short" / "one-process-0" / "rank-0.npz") as file:
        state = {key.split("|")[1]: file[key] for key in file.files if key.startswith("p|")}
    with np.load(alone / "rank-0.npz") as file:
        figures = {key: file[key] for key in file.files}
    chosen = figures["r.0.1|0"]
    other = next(expert for expert in range(16) if expert not in chosen[0])
    figures["u.0.1|0"] = np.zeros((len(chosen), 16), bool)
    figures["u.0.1|0"][0, [chosen[0, 0], other]] = True
    chosen[0, 0] = other
    np.savez(alone / "rank-0.npz", **figures)

    def verdicts(state: dict[str, np.ndarray]) -> list[tuple[str, int, int]]:
        np.savez(alone / "state-1.npz", **state)
        start_ranks(
            "../../../mindmoe/equiv/worker.py", 2, str(out / "logs-2"), str(out / "logs-2" / "jobs.json"), "cpu"
        )
        found = [compare(alone, out / name.replace(",", "-"), 2, 0.02) for name in layouts]
        return [(at.verdict, at.ties, at.steps) for at in found]

    assert verdicts(state) == [("equal", 1, 2)] * 2
    state["model.norm.weight"] = 1.5 * state["model.norm.weight"]
    assert verdicts(state) == [("DIFFERS", 1, 2)] * 2
