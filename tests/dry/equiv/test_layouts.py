"""Layouts as words, and the comparison of traces on arrays made up here."""

from pathlib import Path

import numpy as np
import pytest

from mindmoe.config.load import load_config
from mindmoe.equiv.compare import compare
from mindmoe.equiv.layouts import parse_layout
from mindmoe.host.errors import UserError

CONFIG = load_config(Path(__file__).resolve().parents[3] / "configs" / "equiv.yaml")


def test_words_become_a_run():
    layout = parse_layout("tp2,pp2,interleaved,chunks2", CONFIG)
    assert layout.world == 4
    assert (layout.config.parallel.tp, layout.config.parallel.chunks) == (2, 2)
    assert layout.baseline.parallel.tp == 1 and layout.baseline.train.mode == "pynative"


def test_layers_of_pieces_and_of_recomputation():
    assert parse_layout("pp2,split1+3", CONFIG).config.parallel.split == [1, 3]
    assert parse_layout("dp2,full,recompute_layers2", CONFIG).config.parallel.recompute_layers == 2


def test_data_ranks_share_the_micro_batch():
    layout = parse_layout("dp4", CONFIG)
    assert layout.config.train.micro_batch_size == 1
    assert layout.baseline.train.micro_batch_size == 4
    assert layout.baseline_key == parse_layout("tp2", CONFIG).baseline_key
    assert layout.baseline_key != parse_layout("dp4,capacity", CONFIG).baseline_key


@pytest.mark.parametrize(
    ("text", "expected"),
    [("dp2,warp3", "'warp3'"), ("dp3", "dp=3"), ("tp3", "parallel.tp=3"), ("ep2", "parallel.ep=2")],
)
def test_mistakes(text, expected):
    with pytest.raises(UserError) as caught:
        parse_layout(text, CONFIG)
    assert expected in str(caught.value)


@pytest.fixture
def traces(tmp_path: Path):
    """Writes one process and two ranks that hold halves; keyword arguments spoil what rank 1 wrote."""
    rng = np.random.default_rng(0)
    grad, weight = rng.standard_normal((4, 3)).astype(np.float32), rng.standard_normal((4, 3)).astype(np.float32)
    ids = np.arange(12, dtype=np.int32).reshape(6, 2)
    loss = np.ones((2, 4))

    def build(**spoilt):
        (tmp_path / "one").mkdir(exist_ok=True)
        (tmp_path / "two").mkdir(exist_ok=True)
        np.savez(
            tmp_path / "one" / "rank-0.npz", **{"loss": loss, "g.0|w|0_0": grad, "p|w|0_0": weight, "r.0.0|0": ids}
        )
        for rank in (0, 1):
            rows = slice(2 * rank, 2 * rank + 2)
            known = np.full_like(ids, -1)
            known[3 * rank : 3 * rank + 3] = ids[3 * rank : 3 * rank + 3]
            wrote = {
                "loss": loss,
                f"g.0|w|{2 * rank}_0": grad[rows],
                f"p|w|{2 * rank}_0": weight[rows],
                "r.0.0|0": known,
            }
            if rank == 1:
                wrote = {
                    key: value + spoilt.get(key[0], 0)
                    for key, value in wrote.items()
                    if key[0] not in spoilt.get("drop", "")
                }
            np.savez(tmp_path / "two" / f"rank-{rank}.npz", **wrote)
        return compare(tmp_path / "one", tmp_path / "two", 2, 0.02)

    return build


def test_equal_traces(traces):
    found = traces()
    assert found.equal and found.loss == found.gradient == found.weight == 0.0


@pytest.mark.parametrize(
    "spoilt",
    [{"g": 1e-3}, {"p": 1e-3}, {"l": 1e-3}, {"r": 1}, {"drop": "g"}, {"drop": "r"}]
    + [{kind: number} for kind in "gpl" for number in (np.nan, np.inf)],
)
def test_what_differs_is_seen(traces, spoilt):
    assert not traces(**spoilt).equal


def test_the_furthest_element_is_told(traces):
    found = traces(p=np.array([[1e-7, 0, 0], [0, 0, 0]], np.float32))
    assert found.equal and found.element > 2 * found.weight > 0.0


@pytest.mark.parametrize(("off", "equal"), [(1e-6, True), (1e-4, False)])
def test_a_bias_of_one_number_is_measured_with_its_weight(tmp_path, off, equal):
    loss, ids, weight = np.ones((1, 4)), np.zeros((2, 1), np.int32), np.ones((1, 3), np.float32)
    for folder, bias in (("one", 1e-5), ("two", 1e-5 + off)):
        (tmp_path / folder).mkdir()
        grads = {"g.0|head.weight|0_0": weight, "g.0|head.bias|0": np.array([bias], np.float32)}
        np.savez(tmp_path / folder / "rank-0.npz", **{"loss": loss, "p|w|0_0": weight, "r.0.0|0": ids}, **grads)
    found = compare(tmp_path / "one", tmp_path / "two", 1, 0.02)
    assert found.equal == equal
    assert found.gradient == pytest.approx(off / 3**0.5, rel=1e-2)


def routed(folder: Path, layers: dict[str, list[list[int]]], far: dict[str, float] | None = None, **more) -> None:
    """A trace of two steps with the given experts of each token; `far` spoils the figures of a step."""
    far = far or {}
    folder.mkdir()
    figures = {f"g.{step}|w|0_0": np.full((2, 2), 1 + far.get(f"{step}", 0.0), np.float32) for step in range(2)}
    figures["p|w|0_0"] = np.full((2, 2), 1 + far.get("end", 0.0), np.float32)
    figures["loss"] = np.array([[1 + far.get(f"{step}", 0.0)] * 4 for step in range(2)])
    ids = {f"r.{place}|0": np.array(rows, np.int32) for place, rows in layers.items()}
    np.savez(folder / "rank-0.npz", **figures, **ids, **more)


ALONE = {f"{step}.{layer}": [[8, 1, 3], [0, 2, 9]] for step in range(2) for layer in range(3)}


def undecided(*experts: int) -> np.ndarray:
    """Of the first of two tokens; rounding decides on these of its twelve experts."""
    return np.array([[expert in experts for expert in range(12)], [False] * 12])


@pytest.mark.parametrize("rows", [[[8, 1, 3], [0, 2, 9]], [[1, 3, 8], [9, 2, 0]], [[3, 8, 1], [2, 0, 9]]])
def test_the_order_of_the_experts_of_a_token_is_no_difference(tmp_path, rows):
    routed(tmp_path / "one", ALONE)
    routed(tmp_path / "two", dict.fromkeys(ALONE, rows))
    found = compare(tmp_path / "one", tmp_path / "two", 1, 0.02)
    assert found.equal and (found.routing, found.ties, found.steps) == (0, 0, 2)


@pytest.mark.parametrize(
    ("rows", "routing"),
    [
        ([[8, 1, 4], [0, 2, 9]], 1),
        ([[8, 5, 4], [0, 2, 1]], 3),
        ([[8, 1, 12], [0, 2, 9]], 1),
        ([[8, 8, 3], [0, 2, 9]], 1),
    ],
)
def test_another_expert_is_a_difference_unless_rounding_decides(tmp_path, rows, routing):
    routed(tmp_path / "one", ALONE, **{"u.1.0|0": undecided(3, 4), "u.0.1|0": undecided(4, 7)})
    routed(tmp_path / "two", ALONE | {"0.1": rows})
    found = compare(tmp_path / "one", tmp_path / "two", 1, 0.02)
    assert (found.verdict, found.routing, found.ties, found.steps) == ("DIFFERS", routing, 0, 2)


@pytest.mark.parametrize(
    ("rows", "free"), [([8, 4, 1], (3, 4)), ([5, 4, 1], (3, 8, 4, 5)), ([1, 8, 12], (3,)), ([4, 5, 6], range(12))]
)
def test_a_tie_parts_its_step_from_its_layer_on(tmp_path, rows, free):
    """Deeper layers, the loss and the gradients of that step may be anything; all else is compared."""
    routed(tmp_path / "one", ALONE, **{"u.0.1|0": undecided(*free)})
    other = ALONE | {"0.1": [rows, [0, 2, 9]], "0.2": [[5, 6, 7], [7, 8, 9]]}
    routed(tmp_path / "two", other, {"0": 0.5})
    found = compare(tmp_path / "one", tmp_path / "two", 1, 0.02)
    assert (found.verdict, found.routing, found.ties, found.steps) == ("equal", 0, 1, 1)
    bad: list[tuple[dict, dict]] = [
        ({"0.0": [[8, 1, 4], [0, 2, 9]]}, {}),
        ({"1.2": [[8, 1, 4], [0, 2, 9]]}, {}),
        ({"0.1": [rows, [0, 2, 8]]}, {}),
        ({}, {"1": 0.5}),
        ({}, {"end": 0.5}),
    ]
    for number, (layers, far) in enumerate(bad):
        routed(tmp_path / f"bad{number}", other | layers, far)
        assert compare(tmp_path / "one", tmp_path / f"bad{number}", 1, 0.02).verdict == "DIFFERS"


def test_a_tie_in_the_last_step_leaves_the_weights_out_and_ties_in_all_steps_leave_nothing(tmp_path):
    routed(tmp_path / "one", ALONE, **{f"u.{step}.2|0": undecided(3, 4) for step in range(2)})
    routed(tmp_path / "last", ALONE | {"1.2": [[8, 1, 4], [0, 2, 9]]}, {"1": 0.5, "end": 0.5})
    found = compare(tmp_path / "one", tmp_path / "last", 1, 0.02)
    assert (found.verdict, found.steps, found.weight, found.element) == ("equal", 1, None, None)
    routed(tmp_path / "all", ALONE | {f"{step}.2": [[8, 1, 4], [0, 2, 9]] for step in range(2)})
    found = compare(tmp_path / "one", tmp_path / "all", 1, 0.02)
    assert (found.verdict, found.steps, found.ties, found.loss) == ("NOT COMPARED", 0, 2, None)
