"""Runs a few steps under one layout and writes what this rank saw: losses, gradients, weights, routing, bytes sent.

A token whose experts rounding decides may go either way under another layout, and from there on two right runs part. So
the process alone, which every layout is compared with, notes such tokens and keeps its state after each step with one;
a layout that went the other way goes on from that state, and each later step is comparable again.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor, ops

from mindmoe.config.run import RunConfig
from mindmoe.data.loader import TokenBatches
from mindmoe.host.env import Place
from mindmoe.moe.ties import undecided
from mindmoe.optim.schedule import learning_rate
from mindmoe.parallel import ledger
from mindmoe.parallel.collectives import host_sum
from mindmoe.parallel.sequence import token_positions
from mindmoe.parallel.unit import ShardedTensor
from mindmoe.train.setup import Trainer, build_trainer


def trace(
    config: RunConfig, place: Place, batches: TokenBatches, out: Path, *, alone: Path | None, rounding: float
) -> None:
    """Trains all steps of a run and writes `rank-R.npz` and `sent-R.json`.

    Keys: `ops`, the name of the op set; `loss` (steps, 4) loss, aux, z and norm; `g.STEP|NAME|OFFSET` and
    `p|NAME|OFFSET` boxes of gradients after reduction and of the weights at the end; `r.STEP.LAYER|ROW` (S, K) chosen
    experts, -1 where another rank knows; and of the process alone `u.STEP.LAYER|ROW` (S, E), which experts of a token
    rounding decides, where it decides any. The bytes are those that this rank sent in the last step, by axis and
    collective; op by op only.

    Args:
        config: the resolved run.
        place: this process.
        batches: its data.
        out: where to write.
        alone: the folder that the process alone wrote; None for that process itself.
        rounding: how far it may move a logit, relative to the root mean square of the logits of a token.
    """
    trainer = build_trainer(config, place, record_routing=config.moe is not None)
    out.mkdir(parents=True, exist_ok=True)
    watched = _Watched(trainer, config, out) if alone is None and config.moe is not None else None
    record: dict[str, np.ndarray] = {"ops": np.array(trainer.kernels.name)}
    losses, parted = [], False
    for step in range(config.train.steps):
        # The step before went another right way: it is compared up to there, and both go on from one state.
        if alone is not None and parted:
            _go_on_from(alone / f"state-{step}.npz", trainer)
        rows = _rows(config, trainer)
        micro = [batches.batch(step, start, start + config.train.micro_batch_size) for start in rows]
        with ledger.recording() as calls:
            # `TrainStep.run` in two halves, since the gradients are wanted in between.
            valid = trainer.step.count_valid(micro)
            grads, reports = trainer.step.gradients(micro, valid)
        owned = [tensor for part in trainer.step.parts for tensor in part.owned.tensors]
        for tensor, grad in zip(owned, grads, strict=True):
            record[_key(f"g.{step}", tensor)] = grad.asnumpy()
        if config.moe is not None:
            _routing(record, trainer, config, step, list(rows), reports)
        # Before the update: the routers are asked again with the weights of this step.
        ties = {} if watched is None else dict(watched.ties(step, rows, rounding))
        lr = learning_rate(config.optim, step, config.train.steps)
        with ledger.recording() as later:
            result = trainer.step.finish(step, grads, reports, valid, lr, stop=False)
        losses.append([result.loss, result.aux_loss, result.z_loss, result.grad_norm])
        parted = alone is not None and _parted(record, step, trainer, alone)
        if ties:
            record |= ties
            # The state after this step, of which the process alone holds every tensor whole.
            np.savez(out / f"state-{step + 1}.npz", **{held.spec.name: held.param.asnumpy() for held in trainer.state})
    for held in trainer.state:
        record[_key("p", held)] = held.param.asnumpy()
    record["loss"] = np.array(losses)
    np.savez(out / f"rank-{place.rank}.npz", **record)
    # Of the last step: both names still hold its calls.
    sent = json.dumps(_sent([*calls, *later]), indent=1)
    (out / f"sent-{place.rank}.json").write_text(sent, encoding="utf-8")


class _Watched:
    """What the layers of a process alone were given in a step, to ask their routers again.

    Args:
        trainer: of the process alone, which runs op by op.
        config: its run.
        out: its folder, which is cleared of states that an earlier comparison left.
    """

    def __init__(self, trainer: Trainer, config: RunConfig, out: Path):
        for old in out.glob("state-*.npz"):
            old.unlink()
        assert config.moe is not None
        self.given: list[tuple[Any, Any]] = []
        self.length, self.layers = config.train.seq_length, []
        if config.moe.router.causal:  # where tokens compete with each other, no token has a tie of its own
            self.layers = [block.ffn.moe for block in trainer.nets[0].layers]
        for layer in self.layers:
            layer.register_forward_pre_hook(lambda _, given: self.given.append(given))

    def ties(self, step: int, rows: range, rounding: float) -> Iterator[tuple[str, np.ndarray]]:
        """Keys and values of `u.STEP.LAYER|ROW` for the step that was run last; `rows` begin its micro-batches."""
        given, self.given = self.given, []
        last = given[-len(rows) * len(self.layers) :]  # passes that only count come first, and are given the same
        for place, (x, weights) in enumerate(last):  # by micro-batch, then by layer
            micro, number = divmod(place, len(self.layers))
            layer = self.layers[number]
            found = undecided(layer.route, layer.deciding(x, weights), rounding)
            for row, of_row in enumerate(found.reshape(-1, self.length, found.shape[1])):
                if of_row.any():
                    yield f"u.{step}.{number}|{rows[micro] + row}", of_row


def _parted(record: dict[str, np.ndarray], step: int, trainer: Trainer, alone: Path) -> bool:
    """Whether some rank chose other experts than the process alone in a step with tokens that rounding decides."""
    if not (alone / f"state-{step + 1}.npz").exists():
        return False
    other = False
    with np.load(alone / "rank-0.npz", allow_pickle=False) as file:
        for key in (key for key in record if key.startswith(f"r.{step}.")):
            # Rows of tokens that another rank routed are -1.
            known = (record[key] >= 0).all(1)
            # Which experts, not in which order: among equal scores the order says nothing.
            other |= not np.array_equal(np.sort(record[key][known], 1), np.sort(file[key][known], 1))
    # One rank that parted takes all of them back to the common state.
    return host_sum(np.array([float(other)]), trainer.groups["world"])[0] > 0


def _go_on_from(state: Path, trainer: Trainer) -> None:
    """Sets what this rank holds to the state that the process alone left."""
    with np.load(state, allow_pickle=False) as file:
        for held in trainer.state:
            if held.box.size:
                # In place: a compiled step would not see a new tensor.
                ops.assign(held.param, Tensor(np.ascontiguousarray(file[held.spec.name][held.box.index])))
    trainer.publish()


def _sent(calls: list[ledger.Call]) -> dict[str, dict[str, float]]:
    """Bytes by axis and collective."""
    sent: dict[str, dict[str, float]] = {}
    for call in calls:
        kinds = sent.setdefault(call.axis, {})
        kinds[call.kind] = kinds.get(call.kind, 0.0) + call.sent
    return sent


def _rows(config: RunConfig, trainer: Trainer) -> range:
    """First rows of this rank's micro-batches in the global batch."""
    micro, dp = config.train.micro_batch_size, trainer.mesh.dp
    return range(trainer.at.dp * micro, config.train.global_batch_size, dp * micro)


def _key(kind: str, tensor: ShardedTensor) -> str:
    return f"{kind}|{tensor.spec.name}|{'_'.join(map(str, tensor.box.offset))}"


def _routing(
    record: dict[str, np.ndarray], trainer: Trainer, config: RunConfig, step: int, rows: list[int], reports: list[Any]
) -> None:
    """Adds the chosen experts of this rank's tokens."""
    assert config.moe is not None
    length, k = config.train.seq_length, config.moe.router.slots(config.moe)
    positions = token_positions(length, trainer.mesh, trainer.place.rank)
    for part, of_part in zip(trainer.step.parts, reports, strict=True):
        for first, report in zip(rows, of_part, strict=True):
            # (L, T, K) -> (L, rows of the micro-batch, tokens of a row on this rank, K)
            ids = np.asarray(report["ids"]).reshape(len(part.layers), -1, positions.size, k)
            for layer, of_layer in zip(part.layers, ids, strict=True):
                for row, of_row in enumerate(of_layer):
                    key = f"r.{step}.{layer}|{first + row}"
                    known = record.setdefault(key, np.full((length, k), -1, np.int32))
                    # Tokens of this rank go to their global positions in the row.
                    known[positions] = of_row
