"""The three definitions of the load-balancing loss: which micro-batches an expert's share of the load is of."""

import numpy as np
import pytest
from mindspore import Tensor

from mindmoe.data.loader import Batch
from mindmoe.host.env import Place
from mindmoe.train.setup import Trainer, build_trainer

ALONE = Place(rank=0, world=1, local_world=1)
OVER = ("micro", "running", "exact")


@pytest.fixture
def build(tiny_run):
    def built(over: str, coef: float = 0.5, mode: str = "pynative", **changes: dict) -> Trainer:
        moe = {"balance": {"aux_coef": coef, "aux_over": over, "z_coef": 1e-3}}
        return build_trainer(tiny_run(moe=moe, train={"mode": mode}, **changes), ALONE)

    return built


def pieces(batch: Batch, rows: int) -> list[Batch]:
    """The same rows in micro-batches of `rows`."""
    parts = (batch.input_ids, batch.labels, batch.loss_mask, batch.segment_ids, batch.domains)
    return [Batch(*(part[at : at + rows] for part in parts)) for at in range(0, len(batch.domains), rows)]


def skewed(batch: Batch) -> Batch:
    """Rows of few tokens first, so that micro-batches choose other experts than the batch does."""
    for row, tokens in enumerate(batch.input_ids):
        tokens[:] = tokens % (row + 1)
    return batch


def weights(trainer: Trainer) -> dict[str, np.ndarray]:
    return {param.name: param.asnumpy().copy() for net in trainer.nets for param in net.get_parameters()}


def by_definition(over: str, counts: np.ndarray, probabilities: np.ndarray, tokens: int, slots: int) -> float:
    """E * sum_e f_e P_e by NumPy, averaged over micro-batches and layers.

    Args:
        over: the definition.
        counts, probabilities: sums over the tokens of each micro-batch, (M, L, E).
        tokens: of a micro-batch.
        slots: experts of a token.
    """
    number = np.arange(1, len(counts) + 1)[:, None, None]
    mean = {"micro": counts, "running": counts.cumsum(0) / number, "exact": counts.mean(0, keepdims=True)}[over]
    losses = counts.shape[-1] * (mean / (tokens * slots) * probabilities / tokens).sum(-1)
    return float(losses.mean())


@pytest.mark.parametrize("mode", ["pynative", "graph"])
def test_the_loss_is_the_one_defined(build, batch, mode):
    rows, told = pieces(skewed(batch(6)), 2), {}
    for over in OVER:
        trainer = build(over, mode=mode)
        sums = []
        for one in rows:
            ids, labels, mask, segments = map(Tensor, (one.input_ids, one.labels, one.loss_mask, one.segment_ids))
            _, seen = trainer.nets[0](ids, labels, mask, segments)
            sums.append([seen[name].asnumpy().astype(np.float64) for name in ("counts", "probs")])
        counts, probabilities = np.array(sums).swapaxes(0, 1)
        told[over] = trainer.step.run(0, rows, 96.0, 1e-2, False).aux_loss
        assert told[over] == pytest.approx(by_definition(over, counts, probabilities, 32, 2), rel=2e-6)
    assert np.diff(sorted(told.values())).min() > 1e-3  # the data tell the definitions apart


@pytest.mark.parametrize(("optim", "mode"), [("sgd", "pynative"), ("adamw", "pynative"), ("sgd", "graph")])
def test_exact_weights_do_not_depend_on_the_cut_into_micro_batches(build, batch, optim, mode):
    """AdamW with an epsilon above the rounding of gradients, which its first step would else blow up to full size."""
    rows, apart = skewed(batch(8)), {}
    changes = {"optim": {"type": optim, "lr": 1e-2} | ({"eps": 1e-4} if optim == "adamw" else {})}
    for over in ("exact", "micro"):
        after = []
        for size in (8, 1):
            trainer = build(over, mode=mode, **changes)
            start = weights(trainer)
            trainer.step.run(0, pieces(rows, size), 128.0, 1e-2, False)
            after.append(weights(trainer))
        assert max(np.abs(after[0][name] - start[name]).max() for name in start) > 1e-3
        apart[over] = max(np.abs(after[0][name] - after[1][name]).max() for name in start)
    assert apart["exact"] < 1e-6 < 1e-5 < apart["micro"]


def test_gradients_flow_through_the_probabilities_of_each_micro_batch(build, batch):
    """Of two micro-batches in both orders, `running` takes each once by itself and once with the other's counts."""
    first, second = pieces(skewed(batch(4)), 2)

    def gradients(over: str, *rows: Batch) -> list[np.ndarray]:
        return [grad.asnumpy() for grad in build(over).step.gradients(list(rows), 64.0)[0]]

    both = zip(gradients("running", first, second), gradients("running", second, first), strict=True)
    ends = zip(gradients("micro", first, second), gradients("exact", first, second), strict=True)
    for running, other in zip(both, ends, strict=True):
        np.testing.assert_allclose(sum(running), sum(other), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("over", OVER)
def test_a_step_of_one_micro_batch_is_the_same_by_every_definition(build, batch, over):
    trainer, plain = build(over), build("micro")
    results = [one.step.run(0, [batch(4)], 64.0, 1e-2, False) for one in (trainer, plain)]
    assert results[0].aux_loss == results[1].aux_loss
    assert all(np.array_equal(value, weights(plain)[name]) for name, value in weights(trainer).items())


def test_nothing_is_counted_first_without_a_weight(build, batch):
    """Null weight, no second forward pass."""
    executor = build("exact", coef=0.0).step.executor
    assert not executor.counts_first and build("exact").step.executor.counts_first
