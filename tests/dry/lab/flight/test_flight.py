"""The flight recorder: files put together, what-ifs against loops, and a checkpoint with its experts placed."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mindmoe.checkpoint import store
from mindmoe.checkpoint.chunks import Chunk
from mindmoe.checkpoint.manifest import Meta
from mindmoe.checkpoint.retention import Retention
from mindmoe.cli.main import main
from mindmoe.config.load import dump_config
from mindmoe.config.run import RunConfig
from mindmoe.host.errors import UserError
from mindmoe.lab.flight import trace as recorder
from mindmoe.lab.flight.placement import predict, renumbered
from mindmoe.lab.flight.trace import FOLDER, Trace, read_traces, write_trace
from mindmoe.lab.flight.what_if import balance, check_same, dropped, noise_of, placed
from mindmoe.parallel.box import Box

L, B, S, K, E = 3, 4, 96, 3, 8
CONFIG = {
    "name": "run",
    "model": {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": L, "num_attention_heads": 2,
              "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 16, "max_position_embeddings": 128,
              "rope_scaling": None},
    "moe": {"num_experts": E, "num_experts_per_tok": 2},
    "train": {"steps": 4, "seq_length": S, "global_batch_size": B, "micro_batch_size": B},
    "optim": {"warmup_steps": 1},
    "data": {"sources": "unused"},
}  # fmt: skip


def decisions(seed: int) -> np.ndarray:
    """(L, B, S, K) distinct experts, the third place often unused; experts of one half like each other."""
    rng = np.random.default_rng(seed)
    half = rng.integers(0, 2, (L, B, S, 1))
    own = np.argsort(rng.random((L, B, S, E // 2)), -1)[..., :K]
    ids = 2 * own + half  # even experts together, odd experts together: the worst for slices in order
    ids[..., 2] = np.where(rng.random((L, B, S)) < 0.5, ids[..., 2], E)
    return ids


def record(run: Path, step: int, ids: np.ndarray) -> None:
    """As two stages of two sequence ranks would."""
    for rank in range(4):
        layers = range(0, 2) if rank < 2 else range(2, 3)
        positions = np.arange(S).reshape(2, -1)[rank % 2][::-1]
        rows = ids[layers.start : layers.stop][:, :, positions].reshape(len(layers), -1, K)
        write_trace(run, step, rank, [(layers, rows)], positions, (L, S, E))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with a config and eight records."""
    folder = tmp_path / "run"
    folder.mkdir()
    config = RunConfig.model_validate(CONFIG | {"output_dir": str(tmp_path)})
    (folder / "config.yaml").write_text(dump_config(config))
    for step in range(1, 9):
        record(folder, step, decisions(step))
    return folder


def test_ranks_put_together_are_the_whole_decision(run):
    traces = read_traces(run)
    assert [trace.step for trace in traces] == list(range(1, 9))
    for trace in traces:
        np.testing.assert_array_equal(trace.ids, decisions(trace.step))
        assert trace.num_experts == E and trace.ids.dtype == np.uint16
    assert [trace.step for trace in read_traces(run, last=3)] == [6, 7, 8]


def test_a_step_that_a_rank_did_not_finish_is_left_out_and_a_damaged_file_named(run):
    (run / FOLDER / "step-00000008-rank-00002.npz").unlink()
    assert read_traces(run)[-1].step == 7
    (run / FOLDER / "step-00000007-rank-00000.npz").write_bytes(b"PK nonsense")
    with pytest.raises(UserError, match="step-00000007-rank-00000.npz is damaged"):
        read_traces(run)


def arrays(**changed) -> Callable[[Path], None]:
    """What a rank's file of one layer holds, with some arrays replaced, or left out where they are None."""
    usual = {"sizes": np.array((1, S, E)), "positions": np.arange(S, dtype=np.int32)}
    usual |= {"layer-0": np.zeros((B, S, K), np.uint16)} | changed
    return lambda path: np.savez(path, **{name: value for name, value in usual.items() if value is not None})


HOSTILE = {
    "empty": lambda path: path.write_bytes(b""),
    "no archive": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)),
    "one array": lambda path: path.write_bytes(b"\x93NUMPY\x01\x00"),
    "pickle": lambda path: np.savez(path, sizes=np.array([{}], object)),
    "pipe": lambda path: os.mkfifo(path),
    "link": lambda path: path.symlink_to("/dev/zero"),
    "folder": lambda path: path.mkdir(),
    "no sizes": arrays(sizes=None),
    "no positions": arrays(positions=None),
    "sizes of another kind": arrays(sizes=np.array(["a", "b", "c"])),
    "four sizes": arrays(sizes=np.array((1, S, E, 1))),
    "negative sizes": arrays(sizes=np.array((1, -S, E))),
    "huge sizes": arrays(sizes=np.array((2**40, 2**40, E))),
    "positions beyond the sequence": arrays(positions=np.arange(S) + 1),
    "negative positions": arrays(positions=-np.arange(S)),
    "positions of floats": arrays(positions=np.arange(S) + 0.5),
    "a layer beyond the last": arrays(**{"layer-1": np.zeros((B, S, K), np.uint16)}),
    "a negative layer": arrays(**{"layer--1": np.zeros((B, S, K), np.uint16)}),
    "a layer of words": arrays(**{"layer-x\x1b[2J": np.zeros((B, S, K), np.uint16)}),
    "experts beyond the last": arrays(**{"layer-0": np.full((B, S, K), E + 1, np.uint16)}),
    "experts of floats": arrays(**{"layer-0": np.zeros((B, S, K))}),
    "too few tokens": arrays(**{"layer-0": np.zeros((B, S - 1, K), np.uint16)}),
    "no token": arrays(**{"layer-0": np.zeros((0, S, K), np.uint16)}),
    "two dimensions": arrays(**{"layer-0": np.zeros((S, K), np.uint16)}),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_whatever_a_record_holds_the_answer_is_a_sentence(tmp_path, kind):
    (tmp_path / FOLDER).mkdir()
    HOSTILE[kind](tmp_path / FOLDER / "step-00000001-rank-00000.npz")
    with pytest.raises(UserError) as caught:
        read_traces(tmp_path)
    assert "step-00000001-rank-00000.npz" in str(caught.value) and str(caught.value).isprintable()


def test_what_unpacks_to_more_than_a_report_can_hold_is_refused(run, monkeypatch):
    monkeypatch.setattr(recorder, "_MOST", B * S * K)
    with pytest.raises(UserError, match="unpacked are too many"):
        read_traces(run)


def test_a_truncated_or_flipped_record_is_named(run):
    path = run / FOLDER / "step-00000008-rank-00000.npz"
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for cut in rng.integers(0, len(whole), 20):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match="step-00000008-rank-00000.npz"):
            read_traces(run)
    for at in rng.integers(0, len(whole), 60):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            read_traces(run)
        except UserError as error:
            assert "step-00000008-rank-00000.npz" in str(error)


def test_ranks_of_two_models_in_one_step_are_refused(run):
    record(run, 8, decisions(8))
    write_trace(run, 8, 3, [(range(2, 3), np.zeros((1, B * S // 2, K), int))], np.arange(S // 2), (L, S, E + 1))
    with pytest.raises(UserError, match="of another model"):
        read_traces(run)


def test_nothing_recorded_says_how_to_record(tmp_path):
    with pytest.raises(UserError, match="routing_every"):
        read_traces(tmp_path)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_balance_of_a_smaller_k_equals_a_loop(run, k):
    traces = read_traces(run)
    counts = np.zeros((L, E))
    for trace in traces:
        for layer in range(L):
            for token in trace.ids[layer].reshape(-1, K):
                for expert in token[:k]:
                    if expert < E:
                        counts[layer, expert] += 1
    got = balance(traces, k)
    mean = counts.mean(1, keepdims=True)
    assert got.mean_k == pytest.approx(counts.sum() / (L * len(traces) * B * S))
    assert got.cv == pytest.approx((counts.std(1) / mean[:, 0]).mean())
    assert got.max_vio == pytest.approx((counts / mean).max() - 1)


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_dropped_equals_a_loop_over_sequences(run, factor):
    traces, lost, total = read_traces(run), np.zeros(L), np.zeros(L)
    room = int(np.ceil(factor * S * 2 / E))
    for trace in traces:
        for layer in range(L):
            for row in trace.ids[layer]:
                for expert in range(E):
                    count = int((row == expert).sum())
                    lost[layer] += max(0, count - room)
                    total[layer] += count
    np.testing.assert_allclose(dropped(traces, factor, 2.0).share, lost / total)
    assert factor > 0.5 or lost.min() > 0


def test_placement_finds_what_belongs_together_on_unseen_decisions(run):
    before, *made, after = placed(read_traces(run), 2, 100.0)
    assert [way.name for way in made] == ["packed by load", "packed and swapped"]
    assert (before.name, after.name, before.moved, after.moved) == ("in order", "proposed", 0, L)
    for placement in after.placements:
        assert {int(expert) % 2 for expert in placement.experts[0]} in ({0}, {1})
    assert after.mean("bytes_per_token") < 0.8 * before.mean("bytes_per_token")
    assert after.mean("ranks_per_token") == pytest.approx(1.0)


def traces_of(ids: np.ndarray) -> list[Trace]:
    """Eight records (8, L, B, S, K) of sixteen experts."""
    return [Trace(step=step, ids=part.astype(np.uint16), num_experts=16) for step, part in enumerate(ids)]


def themed(rng: np.random.Generator, themes: np.ndarray) -> np.ndarray:
    """Tokens that choose two experts of one theme; themes (8 or 1, G, 16 / G)."""
    theme = rng.integers(0, themes.shape[1], (8, L, B, S))
    own = np.argsort(rng.random((8, L, B, S, themes.shape[2])), -1)[..., :2]
    record = np.broadcast_to(np.arange(8).reshape(8, 1, 1, 1, 1), own.shape) % len(themes)
    return themes[record, theme[..., None], own]


def skewed(rng: np.random.Generator, heavy: np.ndarray) -> np.ndarray:
    """Tokens that choose the `heavy` experts of each record (8, H) more often."""
    wish = rng.gumbel(size=(8, L, B, S, 16))
    for record in range(8):
        wish[record][..., heavy[record]] += 1.5
    return np.argsort(-wish, -1)[..., :2]


ADVERSARIAL = {
    "no structure": lambda rng: np.argsort(rng.random((8, L, B, S, 16)), -1)[..., :2],
    "in order is best": lambda rng: themed(rng, np.arange(16).reshape(1, 4, 4)),
    "themes of the older half are torn apart in the newer": lambda rng: themed(
        rng, np.stack([np.arange(16).reshape(4, 4).T] * 4 + [np.arange(16).reshape(4, 4)] * 4)
    ),
    "other experts are heavy in the newer half": lambda rng: skewed(rng, np.array([[0, 1, 2]] * 4 + [[4, 8, 12]] * 4)),
    "one expert has everything": lambda rng: np.where(np.arange(2) == 0, 5, np.full((8, L, B, S, 2), 16)),
    "nothing was chosen": lambda rng: np.full((8, L, B, S, 2), 16),
}


@pytest.mark.parametrize("ranks", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("case", ADVERSARIAL)
def test_what_is_worse_than_in_order_is_never_proposed(case, ranks):
    traces = traces_of(ADVERSARIAL[case](np.random.default_rng(3)))
    before, *_, after = placed(traces, ranks, 100.0)
    for layer in range(L):
        noise = noise_of(sum(int((trace.ids[layer] < 16).sum()) for trace in traces[4:]), ranks)
        for part in (traces, traces[4:]):
            ids = np.concatenate([trace.ids[layer].reshape(-1, 2) for trace in part])
            was, now = (predict(way.placements[layer], ids, 16, 100.0) for way in (before, after))
            assert now.imbalance <= (1 + noise) * was.imbalance
            assert now.bytes_per_token <= (1 + noise) * was.bytes_per_token
            product = was.imbalance * was.bytes_per_token
            assert now == was or now.imbalance * now.bytes_per_token < (1 - noise) * product
    if case in ("in order is best", "nothing was chosen") or ranks == 1:
        assert not after.moved
        np.testing.assert_array_equal(after.placements[0].experts, before.placements[0].experts)


def test_the_noise_of_a_batch_is_that_of_its_counts():
    assert noise_of(40_000 * 4, 4) == 0.01 and noise_of(4 * 1600, 4) == pytest.approx(0.025) and noise_of(0, 4) == 0.05


def test_in_order_stays_where_nothing_is_better(run, tmp_path, capsys):
    for step in range(1, 9):
        record(run, step, np.argsort(np.random.default_rng(step).random((L, B, S, E)), -1)[..., :K])
    assert main(["report", str(run), "--routing", "--ranks", "2"]) == 0
    sentence = "experts stay in order: no placement is predicted to be better"
    assert sentence in capsys.readouterr().out and sentence in (run / "routing.html").read_text()
    assert main(["ckpt", "place", str(run), "--ranks", "2", "--out", str(tmp_path / "placed")]) == 0
    assert "experts stay in order" in capsys.readouterr().out and not (tmp_path / "placed").exists()


def test_records_of_two_models_are_refused(run):
    other = Trace(step=9, ids=np.zeros((L, B, S, K + 1), np.uint16), num_experts=E)
    with pytest.raises(UserError, match="older model"):
        check_same([*read_traces(run), other])


def test_the_report_holds_every_table(run, capsys):
    assert main(["report", str(run), "--routing", "--ranks", "4"]) == 0
    page = (run / "routing.html").read_text()
    assert "Placement on 4 ranks" in page and "packed and swapped" in page and "Capacity" in page and "<svg" in page
    out = capsys.readouterr().out
    assert "Fewer experts" in out and "3 of 3 layers gain by another placement" in out
    assert main(["report", str(run), "--routing", "--ranks", "3"]) == 2
    assert "3 ranks must divide 8 experts" in capsys.readouterr().err


def test_a_placed_checkpoint_is_the_same_model_with_other_numbers(run, tmp_path, capsys):
    rng = np.random.default_rng(0)
    tensors = {"model.norm.weight": rng.normal(size=E)}
    for layer in range(L):
        at = f"model.layers.{layer}.mlp"
        tensors |= {
            f"{at}.router.weight": rng.normal(size=(E, 16)),
            f"{at}.router.domain": rng.normal(size=(3, E)),
            f"{at}.router.control": rng.normal(size=3 + E),
            f"{at}.router.difficulty.weight": rng.normal(size=E),  # as long as there are experts, by chance
            f"{at}.experts.down_proj": rng.normal(size=(E, 4, 5)),
            f"adam_m.{at}.experts.down_proj": rng.normal(size=(E, 4, 5)),
        }
    tensors = {name: value.astype(np.float32) for name, value in tensors.items()}
    root = run / "checkpoints"
    meta = Meta(model={}, topology={}, config_digest="", generation=store.claim(root), state={})
    store.save(root, 4, {name: Chunk(value) for name, value in tensors.items()}, meta, Retention(), 0)
    assert main(["ckpt", "place", str(run), "--ranks", "2", "--out", str(tmp_path / "placed")]) == 0
    out = capsys.readouterr().out
    assert "bytes a token" in out and "-" in out
    with store.open_step(tmp_path / "placed" / "step-00000004") as step:
        boxes = {name: Box.whole(value.shape) for name, value in tensors.items()}
        moved = step.read(boxes)
    for layer in range(L):
        at = f"model.layers.{layer}.mlp"
        order = [int(np.flatnonzero((tensors[f"{at}.router.weight"] == row).all(1))[0])
                 for row in moved[f"{at}.router.weight"]]  # fmt: skip
        assert {expert % 2 for expert in order[:4]} in ({0}, {1}) and sorted(order) == list(range(E))
        orders = [np.array(order)] * L
        for name in tensors:
            if f".{layer}." in name:
                np.testing.assert_array_equal(moved[name], renumbered(name, tensors[name], orders))
        np.testing.assert_array_equal(moved[f"{at}.router.control"][3:], tensors[f"{at}.router.control"][3:][order])
        np.testing.assert_array_equal(
            moved[f"{at}.router.difficulty.weight"], tensors[f"{at}.router.difficulty.weight"]
        )
        np.testing.assert_array_equal(moved[f"{at}.router.domain"], tensors[f"{at}.router.domain"][:, order])
    np.testing.assert_array_equal(moved["model.norm.weight"], tensors["model.norm.weight"])


def test_groups_that_mean_something_are_not_torn_apart(run, tmp_path, capsys):
    config = CONFIG | {"output_dir": str(tmp_path)}
    config["moe"] = config["moe"] | {"router": {"type": "moge", "num_groups": 2}}
    (run / "config.yaml").write_text(dump_config(RunConfig.model_validate(config)))
    assert main(["ckpt", "place", str(run), "--ranks", "2", "--out", str(tmp_path / "placed")]) == 2
    assert "groups of consecutive experts" in capsys.readouterr().err
