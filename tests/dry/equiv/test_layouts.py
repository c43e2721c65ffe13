"""Layouts as words, and the comparison of traces on arrays made up here."""

from pathlib import Path

import numpy as np
import pytest

from mindmoe.equiv.compare import compare
from mindmoe.equiv.layouts import parse_layout
from mindmoe.errors import UserError
from mindmoe.load import load_config

CONFIG = load_config(Path(__file__).resolve().parents[3] / "configs" / "equiv.yaml")


def test_words_become_a_run():
    layout = parse_layout("tp2,pp2,interleaved,chunks2,graph", CONFIG)
    assert layout.world == 4
    assert (layout.config.parallel.tp, layout.config.parallel.chunks) == (2, 2)
    assert layout.config.train.mode == "graph" and layout.baseline.train.mode == "pynative"
    assert layout.baseline.parallel.tp == 1


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


@pytest.mark.parametrize("spoilt", [{"g": 1e-3}, {"p": 1e-3}, {"l": 1e-3}, {"r": 1}, {"drop": "g"}, {"drop": "r"}])
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
