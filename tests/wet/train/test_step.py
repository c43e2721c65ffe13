"""The optimizer step: accumulation, execution modes, kernels, and steps that are not finite."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from mindspore import Tensor

from mindmoe.data.loader import Batch
from mindmoe.host.env import Place
from mindmoe.train.loop import Loop
from mindmoe.train.setup import Trainer, build_trainer

ALONE = Place(rank=0, world=1, local_world=1)


def run(trainer: Trainer, batches: list[list[Batch]]) -> list[float]:
    losses = []
    for step, micro_batches in enumerate(batches):
        valid = sum(float(batch.loss_mask.sum()) for batch in micro_batches)
        result = trainer.step.run(step, micro_batches, valid, 1e-2, False)
        losses += [result.loss, result.grad_norm, result.aux_loss, result.z_loss]
    return losses


def values(trainer: Trainer) -> dict[str, np.ndarray]:
    return {param.name: param.asnumpy().copy() for net in trainer.nets for param in net.get_parameters()}


def halves(batch: Batch) -> list[Batch]:
    parts = (batch.input_ids, batch.labels, batch.loss_mask, batch.segment_ids, batch.domains)
    return [Batch(*(part[rows] for part in parts)) for rows in (slice(0, 2), slice(2, 4))]


@pytest.mark.parametrize("mode", ["pynative", "graph"])
def test_masked_labels_never_count(tiny_run, batch, mode):
    """The loss is the mean over the labels that count, however many of them a micro-batch has; by NumPy from logits."""
    trainer, rows = build_trainer(tiny_run(train={"mode": mode}), ALONE), batch(4, masked=0.4)
    rows.loss_mask[:2, 3:] = 0.0  # most of the first micro-batch
    logits = trainer.nets[0].logits(Tensor(rows.input_ids)).asnumpy().astype(np.float64)
    log_sums = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    losses = log_sums - np.take_along_axis(logits, rows.labels[..., None], -1)[..., 0]
    wanted = losses[rows.loss_mask > 0].mean()

    class Rows:
        """The training set: one global batch."""

        def batch(self, step: int, start: int, stop: int) -> Batch:
            parts = (rows.input_ids, rows.labels, rows.loss_mask, rows.segment_ids, rows.domains)
            return Batch(*(part[start:stop] for part in parts))

    loop: Any = Loop(trainer, Rows(), None, None, sink=lambda record: None)
    result = loop.step(0, False)
    assert result.loss == pytest.approx(wanted, rel=1e-5)


def test_accumulation_equals_one_large_micro_batch(tiny_run, batch):
    """Only the load-balancing loss, which is not linear in the batch, depends on the cut: it is off here."""
    balance = {"moe": {"balance": {"aux_coef": 0.0, "z_coef": 1e-3}}}
    steps = [batch(4, seed, masked=0.3) for seed in range(3)]
    whole, split = (build_trainer(tiny_run(**balance), ALONE) for _ in range(2))
    first = run(whole, [[step] for step in steps])
    second = run(split, [halves(step) for step in steps])
    assert np.delete(first, slice(2, None, 4)) == pytest.approx(np.delete(second, slice(2, None, 4)), rel=2e-6)


def test_the_balance_of_sequences_does_not_depend_on_the_cut_into_micro_batches(tiny_run, batch):
    """A sequence is balanced by itself, so the mean over them is linear in the batch; weighted so that it is felt."""
    balance = {"aux_coef": 0.0, "seq_aux_coef": 0.5, "z_coef": 0.0}
    steps, runs = [batch(4, seed) for seed in range(3)], {}
    for mode in ("pynative", "graph"):
        for cut in (lambda rows: [rows], halves):
            trainer = build_trainer(tiny_run(moe={"balance": balance}, train={"mode": mode}), ALONE)
            runs[mode, cut is halves] = run(trainer, [cut(rows) for rows in steps])
            result = trainer.step.run(3, cut(batch(4, 9)), 64.0, 1e-2, False)
            runs[mode, cut is halves].append(result.seq_aux_loss)
    first = runs["pynative", False]
    assert first[-1] > 1.0  # 1 when each sequence is balanced
    for other in runs.values():
        assert np.delete(other, slice(2, 12, 4)) == pytest.approx(np.delete(first, slice(2, 12, 4)), rel=5e-6)
    without = tiny_run(moe={"balance": balance | {"seq_aux_coef": 0.0}})
    plain = run(build_trainer(without, ALONE), [[rows] for rows in steps])
    assert plain[0] == pytest.approx(first[0], rel=1e-6) and abs(plain[1] / first[1] - 1) > 1e-3  # the gradient's norm


def test_graph_equals_pynative(tiny_run, batch):
    steps = [halves(batch(4, seed)) for seed in range(3)]
    traces = [run(build_trainer(tiny_run(train={"mode": mode}), ALONE), steps) for mode in ("pynative", "graph")]
    assert traces[0] == pytest.approx(traces[1], rel=2e-6)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-5), ("bf16", 1e-2)])
def test_cpu_pack_equals_reference(tiny_run, batch, precision, tolerance):
    """bf16 keeps 8 bits, and the two sides round at different places: 1e-2 of loss and norm after three steps."""
    steps = [[batch(4, seed)] for seed in range(3)]
    traces = [
        run(build_trainer(tiny_run(train={"kernels": kernels, "precision": precision}), ALONE), steps)
        for kernels in ("reference", "cpu")
    ]
    assert traces[0] == pytest.approx(traces[1], rel=tolerance)


@pytest.mark.parametrize(
    "rule",
    [
        {"score": "softmax", "norm_topk": False, "route_scale": 1.5},
        {"score": "sigmoid", "num_groups": 3, "topk_groups": 2},
        {"score": "softmax_after_topk", "linear_bias": False},
    ],
)
def test_routers_of_the_pack_equal_the_composed_ones(tiny_run, batch, rule):
    """The pack takes scores, selection and statistics in one; losses and balancing terms must not tell."""
    steps = [[batch(4, seed)] for seed in range(3)]
    moe = {"router": rule}
    traces = [
        run(build_trainer(tiny_run(moe=moe, train={"kernels": kernels}), ALONE), steps)
        for kernels in ("reference", "cpu")
    ]
    assert traces[0] == pytest.approx(traces[1], rel=2e-5)


@pytest.mark.parametrize("documents", [False, True])
def test_kernels_agree_on_documents(tiny_run, batch, documents):
    whole = batch(4)
    cut = replace(whole, segment_ids=np.repeat(np.arange(4, dtype=np.int32), 4)[None].repeat(4, 0))
    losses = {}
    for kernels in ("reference", "cpu"):
        config = tiny_run(train={"kernels": kernels}, data={"document_attention": documents})
        losses[kernels] = [run(build_trainer(config, ALONE), [[rows]])[0] for rows in (whole, cut)]
    assert losses["reference"] == pytest.approx(losses["cpu"], rel=2e-5)
    assert (losses["cpu"][0] == losses["cpu"][1]) is not documents


def test_dense_twin_trains(tiny_run, batch):
    trainer = build_trainer(tiny_run(moe=None), ALONE)
    result = trainer.step.run(0, [batch(4)], 64.0, 1e-2, False)
    assert result.routing is None and result.finite
    losses = run(trainer, [[batch(4)]] * 8)[::4]
    assert losses[-1] < losses[0] - 0.5


def test_repetition_is_bitwise(tiny_run, batch):
    steps = [halves(batch(4, seed)) for seed in range(2)]
    runs = []
    for _ in range(2):
        trainer = build_trainer(tiny_run(), ALONE)
        runs.append((run(trainer, steps), values(trainer)))
    assert runs[0][0] == runs[1][0]
    assert all(np.array_equal(runs[0][1][name], runs[1][1][name]) for name in runs[0][1])


@pytest.mark.parametrize("kernels", ["reference", "cpu"])
def test_a_step_that_is_not_finite_changes_nothing(tiny_run, batch, kernels):
    trainer = build_trainer(tiny_run(train={"kernels": kernels}), ALONE)
    norm = next(param for net in trainer.nets for param in net.get_parameters() if param.name == "model.norm.weight")
    norm.set_data(Tensor(np.full(norm.shape, np.nan, np.float32)))
    before = values(trainer)
    result = trainer.step.run(0, [batch(4)], 64.0, 1e-2, False)
    assert not result.finite
    after = values(trainer)
    assert all(np.array_equal(before[name], after[name], equal_nan=True) for name in before)


def test_selection_bias_moves_towards_balance(tiny_run, batch):
    trainer = build_trainer(tiny_run(), ALONE)
    result = trainer.step.run(0, [batch(4)], 64.0, 1e-2, False)
    biases = {name: value for name, value in values(trainer).items() if name.endswith("selection_bias")}
    assert len(biases) == 2
    for bias, counts in zip(biases.values(), result.routing.counts, strict=True):
        assert bias[counts.argmin()] > bias[counts.argmax()]


def test_capacity_drops_are_counted(tiny_run, batch):
    dispatch = {"moe": {"dispatch": {"kind": "capacity", "capacity_factor": 0.5}}}
    result = build_trainer(tiny_run(**dispatch), ALONE).step.run(0, [batch(4)], 64.0, 1e-2, False)
    assert (result.routing.dropped >= 64 * 2 / 2 - 6).all()  # at least what exceeds half of all slots
    assert result.finite


def test_shared_experts_and_sigmoid_scores_learn(tiny_run, batch):
    moe = {"moe": {"num_shared_experts": 1, "router": {"score": "sigmoid", "num_groups": 3, "topk_groups": 2}}}
    losses = run(build_trainer(tiny_run(**moe), ALONE), [[batch(4)]] * 8)[::4]
    assert losses[-1] < losses[0] - 0.5
