"""Dynamic routing in the training step: reduction to static, start, causality in labels, budget, state, inference."""

from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops

from mindmoe.checkpoint import store
from mindmoe.data.loader import Batch
from mindmoe.host.env import Place
from mindmoe.lab.dmr.control import DYNAMIC, LEVEL, SEEN
from mindmoe.lab.dmr.difficulty import bigram_rows
from mindmoe.models.reads import reads_of
from mindmoe.train.folder import RunFolder
from mindmoe.train.persist import RankAgreement, Saver, reader_of, restore
from mindmoe.train.setup import Trainer, build_trainer

try:
    from mindspore.graph import api as graphs
except ImportError:  # where older versions keep it
    from mindspore.common import api as graphs

ALONE = Place(rank=0, world=1, local_world=1)
OFF = {"alpha": 0.0, "difficulty_head": False, "grad_ema": False}
ON = {"alpha": 0.5, "difficulty_head": True, "grad_ema": True}
BOTH = ON | {"bigram": True, "buckets": 4096}


def router(features: dict, **budget) -> dict:
    limits = {"k_min": 1, "k_max": 4, "warmup_steps": 0, "slot_slack": None} | budget
    return {"type": "dmr", "score": "sigmoid", "budget": limits, "features": features}


def moe(section: dict) -> dict:
    return {"moe": {"router": section, "balance": {"aux_coef": 0.02, "z_coef": 1e-3, "bias_rate": 1e-3}}}


def trace(trainer: Trainer, batches, lr: float = 3e-3, start: int = 0) -> list[tuple[float, float]]:
    found = []
    for step, rows in enumerate(batches, start):
        result = trainer.step.run(step, [rows], float(rows.loss_mask.sum()), lr, False)
        found.append((result.loss, result.grad_norm))
    return found


def chosen(trainer: Trainer, rows: Batch) -> np.ndarray:
    """The experts of each token (layers, B, S, K)."""
    one = Tensor(1.0)
    x, labels, mask, segments, token_weight, _, *read = trainer.step.arguments(rows, one, one)
    told = trainer.nets[0](x, labels, mask, segments, token_weight, *read)[1]
    return told["ids"].asnumpy().reshape(2, *rows.input_ids.shape, -1)


def params(trainer: Trainer) -> dict[str, np.ndarray]:
    return {
        tensor.spec.name: tensor.param.asnumpy() for part in trainer.step.parts for tensor in part.objective.net.tensors
    }


def test_a_fixed_k_is_static_routing_to_the_bit_over_50_steps(tiny_run, batch):
    batches = [batch(4, seed) for seed in range(50)]
    static = {"type": "static", "score": "sigmoid"}
    traces, ends = [], []
    for section in (static, router(OFF, k_min=2, k_max=2)):
        trainer = build_trainer(tiny_run(**moe(section), train={"mode": "pynative", "kernels": "reference"}), ALONE)
        traces.append(trace(trainer, batches))
        ends.append(params(trainer))
    assert traces[0] == traces[1]
    for name, value in ends[0].items():
        np.testing.assert_array_equal(value, ends[1][name])


def test_features_that_weigh_nothing_change_nothing_at_the_first_step(tiny_run, batch):
    rows = replace(batch(4), domains=np.array([1, 2, 0, 1], np.int32))
    losses = [
        trace(build_trainer(tiny_run(**moe(router(features, warmup_steps=0))), ALONE), [rows])[0][0]
        for features in (OFF, BOTH | {"alpha": 0.0, "domain": True})
    ]
    assert losses[0] == losses[1]


def test_state_moves_and_mean_k_is_held(tiny_run, batch):
    config = tiny_run(**moe(router(ON, warmup_steps=5)))
    trainer, means = build_trainer(config, ALONE), []
    for step in range(60):
        rows = batch(4, step)
        result = trainer.step.run(step, [rows], float(rows.loss_mask.sum()), 3e-3, False)
        means.append(result.routing.counts.sum(1) / rows.input_ids.size)
    means = np.array(means)
    assert (means[:5] == 2.0).all() and means[10:].std() > 0
    assert means[30:].mean(0) == pytest.approx(2.0, rel=0.06)  # 64 tokens a step: the mean of 30 has 3% of noise
    state = params(trainer)
    for layer in range(2):
        assert state[f"model.layers.{layer}.mlp.router.control"][DYNAMIC] == 1.0
        assert np.abs(state[f"model.layers.{layer}.mlp.router.difficulty.weight"]).max() > 0
    table = state["model.token_table"]
    seen = np.zeros(len(table), bool)
    for step in range(60):
        seen[np.unique(batch(4, step).input_ids)] = True
    np.testing.assert_array_equal(table[:, SEEN] > 0, seen)
    assert table[seen, LEVEL].std() > 0


def test_a_varying_number_of_experts_compiles_nothing_anew(tiny_run, batch):
    trainer = build_trainer(tiny_run(**moe(router(BOTH, warmup_steps=5)), train={"mode": "graph"}), ALONE)
    trace(trainer, [batch(4)])
    compiled, kept = set(graphs.ms_compile_cache), set()
    assert compiled
    for step in range(1, 200):
        rows = batch(4, step)
        result = trainer.step.run(step, [rows], float(rows.loss_mask.sum()), 3e-3, False)
        kept.add(tuple(result.routing.counts.sum(1)))
    assert len(kept) > 50 and graphs.ms_compile_cache == compiled


def test_the_state_of_routing_survives_a_checkpoint_to_the_bit(tiny_run, batch):
    config = tiny_run(**moe(router(BOTH | {"domain": True})))
    trainer, again = build_trainer(config, ALONE), build_trainer(config, ALONE)
    trace(trainer, [batch(4, seed) for seed in range(3)])
    RunFolder.of(config).path.mkdir(parents=True)
    saver = Saver(config, trainer.state, ALONE, RankAgreement(trainer.groups["world"]))
    saver.save(3, None)
    assert [outcome.error for outcome in saver.outcomes(wait=True)] == [None]
    saver.close()
    found = store.newest_valid(RunFolder.of(config).checkpoints, reader_of(config, again.state))
    restore(found.tensors, again.state)
    again.publish()
    saved = params(trainer)
    assert (saved["model.bigram_table"][:, SEEN] > 0).any()
    assert {"model.token_table", "model.layers.0.mlp.router.control"} <= saved.keys()
    for name, value in params(again).items():
        np.testing.assert_array_equal(value, saved[name])
    later = [batch(4, seed) for seed in range(3, 6)]
    assert trace(trainer, later, start=3) == trace(again, later, start=3)


@pytest.mark.parametrize("features", [ON, BOTH | {"grad_ema": False}], ids=["token", "pair"])
def test_labels_of_a_step_do_not_reach_its_routing_and_later_tokens_not_earlier_ones(tiny_run, batch, features):
    trainer = build_trainer(tiny_run(**moe(router(features))), ALONE)
    trace(trainer, [batch(4, seed) for seed in range(8)])
    rows = batch(4, 99)

    def routing(rows) -> np.ndarray:
        return chosen(trainer, rows)

    other_labels = replace(rows, labels=np.roll(rows.labels, 3, 1))
    np.testing.assert_array_equal(routing(rows), routing(other_labels))
    cut = rows.input_ids.shape[1] // 2
    ids = rows.input_ids.copy()
    ids[:, cut:] = (ids[:, cut:] + 1) % 96
    before, after = routing(rows), routing(replace(rows, input_ids=ids))
    np.testing.assert_array_equal(before[:, :, :cut], after[:, :, :cut])
    assert (before[:, :, cut:] != after[:, :, cut:]).any()


def test_inference_reads_the_state_and_moves_nothing(tiny_run, batch):
    trainer = build_trainer(tiny_run(**moe(router(ON))), ALONE)
    trace(trainer, [batch(4, seed) for seed in range(4)])
    before = params(trainer)
    rows = batch(2, 5)
    net = trainer.step.parts[0].objective.net
    logits = net.logits(Tensor(rows.input_ids), Tensor(rows.segment_ids)).asnumpy()
    trainer.step.evaluate(rows)
    assert np.isfinite(logits).all()
    for name, value in params(trainer).items():
        np.testing.assert_array_equal(value, before[name])


def test_an_unknown_domain_costs_little(tiny_run, batch):
    """Two sources of unlike tokens, a fifth of the labels hidden as the loader does; held-out rows with and without."""
    trainer = build_trainer(tiny_run(**moe(router(OFF | {"domain": True}))), ALONE)

    def mixed(seed: int, hidden: float) -> Batch:
        rows, rng = batch(4, seed), np.random.default_rng(seed)
        source = rng.integers(0, 2, 4).astype(np.int32)
        tokens = (rows.input_ids % 40) + 40 * source[:, None]
        domains = np.where(rng.random(4) < hidden, 0, source + 1).astype(np.int32)
        return replace(rows, input_ids=tokens, labels=np.roll(tokens, -1, 1), domains=domains)

    trace(trainer, [mixed(seed, 0.2) for seed in range(80)], lr=1e-2)
    assert np.abs(params(trainer)["model.layers.0.mlp.router.domain"][[1, 2]]).max() > 0.01
    held_out, loss = [mixed(1000 + seed, 0.0) for seed in range(16)], {}
    for known in (True, False):
        batches = held_out if known else [replace(rows, domains=np.zeros(4, np.int32)) for rows in held_out]
        loss[known] = sum(trainer.step.evaluate(rows) for rows in batches) / sum(rows.labels.size for rows in batches)
    assert loss[True] < np.log(60)  # it has learned the sources apart
    assert loss[False] - loss[True] <= 0.03


def test_graph_equals_pynative(tiny_run, batch):
    batches = [batch(4, seed) for seed in range(4)]
    traces = [
        np.array(trace(build_trainer(tiny_run(**moe(router(ON)), train={"mode": mode}), ALONE), batches))
        for mode in ("pynative", "graph")
    ]
    np.testing.assert_allclose(traces[0], traces[1], rtol=2e-5)


def test_the_tap_measures_the_gradient_at_the_embedding(tiny_run, batch):
    """Against finite differences of the whole loss: the embedding row of a token that occurs once is its activation."""
    features = ON | {"grad_source": "tap", "alpha": 0.0, "difficulty_head": False}
    config = tiny_run(**moe(router(features, k_min=2, k_max=2)), train={"global_batch_size": 1, "micro_batch_size": 1})
    trainer, rows = build_trainer(config, ALONE), batch(1, 4)
    seen, counts = np.unique(rows.input_ids, return_counts=True)
    once = seen[counts == 1][:3]
    count = float(rows.loss_mask.sum())
    grads, _ = trainer.step.gradients([rows], count)
    occurred, sums = trainer.step.tapped[0]["norms"]
    np.testing.assert_array_equal(np.flatnonzero(occurred), seen)
    np.testing.assert_array_equal(occurred[seen], counts)
    names = [tensor.spec.name for tensor in trainer.step.parts[0].owned.tensors]
    by_row = grads[names.index("model.embed_tokens.weight")].asnumpy() * count
    for token in once:
        assert np.exp(sums[token]) == pytest.approx(np.linalg.norm(by_row[token]), rel=1e-4)
    table = trainer.nets[0].embed.params[0]
    value, step = table.asnumpy().copy(), 1e-2

    def loss() -> float:
        grads, reports = trainer.step.gradients([rows], count)
        report, balance = reports[0][0], config.moe.balance
        weighted = balance.aux_coef * report["aux"][0] + balance.z_coef * report["z"][0]
        return float(report["cross_entropy"][0]) + count * float(weighted)

    direction = by_row[once[0]] / np.linalg.norm(by_row[once[0]])
    ends = []
    for sign in (1, -1):
        moved = value.copy()
        moved[once[0]] += sign * step * direction
        ops.assign(table, Tensor(moved))
        ends.append(loss())
    assert np.exp(sums[once[0]]) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=0.01)


@pytest.mark.parametrize("mode", ["pynative", "graph"])
def test_the_tap_feeds_the_table_and_the_heads_learn_from_it(tiny_run, batch, mode):
    section = router(BOTH | {"grad_source": "tap"}) | {"difficulty": {"target": "table"}}
    trainer = build_trainer(tiny_run(**moe(section), train={"mode": mode}), ALONE)
    batches = [batch(4, seed) for seed in range(6)]
    trace(trainer, batches)
    table = params(trainer)["model.token_table"]
    seen = np.unique(np.concatenate([rows.input_ids for rows in batches]))
    np.testing.assert_array_equal(np.flatnonzero(table[:, SEEN]), seen)
    assert np.isfinite(table).all() and table[seen, LEVEL].std() > 0.05
    assert np.abs(params(trainer)["model.layers.1.mlp.router.difficulty.weight"]).max() > 0
    assert_pairs_of(batches, params(trainer)["model.bigram_table"])


def assert_pairs_of(batches: list[Batch], table: np.ndarray) -> None:
    """The rows in use are those of the pairs that occurred, each row of a batch behind its sentinel."""
    before = [np.pad(rows.input_ids[:, :-1], ((0, 0), (1, 0)), constant_values=-1) for rows in batches]
    ids = Tensor(np.concatenate([rows.input_ids for rows in batches]))
    seen = np.unique(bigram_rows(ids, Tensor(np.concatenate(before), ms.int32), len(table)).asnumpy())
    np.testing.assert_array_equal(np.flatnonzero(table[:, SEEN]), seen)


def test_documents_of_a_row_begin_with_the_sentinel_and_a_context_rank_knows_the_token_before_its_part(tiny_run, batch):
    trainer, rows = build_trainer(tiny_run(**moe(router(BOTH))), ALONE), batch(2)
    rows.segment_ids[:, 6:] = 1

    def read() -> dict[str, np.ndarray]:
        given = trainer.step.arguments(rows, Tensor(1.0), Tensor(1.0))[6:]
        return {name: value.asnumpy() for name, value in zip(trainer.step.reads, given, strict=True)}

    found, ids = read(), rows.input_ids
    assert set(found) == {"token_id", "previous"}
    np.testing.assert_array_equal(found["token_id"], ids)
    np.testing.assert_array_equal(found["previous"][:, 1:6], ids[:, :5])
    np.testing.assert_array_equal(found["previous"][:, 7:], ids[:, 6:-1])
    assert (found["previous"][:, [0, 6]] == -1).all()
    names = ("token_id", "position", "previous", "domain")
    for name, inferred in reads_of(names, Tensor(ids), Tensor(rows.segment_ids)).items():
        np.testing.assert_array_equal(rows.read(name), inferred.asnumpy())
    trainer.step.positions = np.array([4, 5, 6, 7, 8])
    np.testing.assert_array_equal(read()["previous"], found["previous"][:, 4:9])


def test_a_domain_moves_the_routing_of_its_rows_alone(tiny_run, batch):
    trainer = build_trainer(tiny_run(**moe(router(OFF | {"domain": True}))), ALONE)
    rows = batch(4)
    labelled = replace(rows, domains=np.array([0, 1, 2, 1], np.int32))

    def routing(rows) -> np.ndarray:
        return chosen(trainer, rows)

    np.testing.assert_array_equal(routing(rows), routing(labelled))  # zeros at the start
    trace(trainer, [labelled] * 3, lr=0.3)
    bias = params(trainer)["model.layers.0.mlp.router.domain"]
    assert (np.abs(bias[[0, 1, 2]]).max(1) > 0).all() and (bias[3:] == 0).all()
    known, unknown = routing(labelled), routing(rows)
    np.testing.assert_array_equal(known[:, 0], unknown[:, 0])
    assert all((known[:, row] != unknown[:, row]).any() for row in (1, 2, 3))
