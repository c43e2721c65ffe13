"""Runs a few steps under one layout and writes what this rank saw: losses, gradients, weights, routing, bytes sent."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from mindmoe.config import RunConfig
from mindmoe.data.loader import TokenBatches
from mindmoe.env import Place
from mindmoe.optim.schedule import learning_rate
from mindmoe.parallel import ledger
from mindmoe.parallel.sequence import token_positions
from mindmoe.parallel.sharding import Shard
from mindmoe.train.setup import Trainer, build_trainer


def trace(config: RunConfig, place: Place, batches: TokenBatches, out: Path) -> None:
    """Trains all steps of a run and writes `rank-R.npz` and `sent-R.json`.

    Keys: `loss` (steps, 4) loss, aux, z and norm; `g.STEP|NAME|OFFSET` and `p|NAME|OFFSET` boxes of gradients after
    reduction and of the weights at the end; `r.STEP.LAYER|ROW` (S, K) chosen experts, -1 where another rank knows.
    The bytes are those that this rank sent in the last step, by axis and collective; op by op only.
    """
    trainer = build_trainer(config, place, record_routing=config.moe is not None)
    record: dict[str, np.ndarray] = {}
    losses = []
    for step in range(config.train.steps):
        rows = _rows(config, trainer)
        micro = [batches.batch(step, start, start + config.train.micro_batch_size) for start in rows]
        valid = float(config.train.global_batch_size * config.train.seq_length)
        if config.data.document_attention:
            whole = batches.batch(step, 0, config.train.global_batch_size)
            valid = float(whole.loss_mask.sum())
        with ledger.recording() as calls:
            grads, reports = trainer.step.gradients(micro, valid)
        owned = [part.owned for part in trainer.step.parts]
        boxes = [pair for each in owned for pair in zip(each.placements, each.shards, strict=True)]
        for (placement, shard), grad in zip(boxes, grads, strict=True):
            record[_key(f"g.{step}", placement.spec.name, shard)] = grad.asnumpy()
        if config.moe is not None:
            _routing(record, trainer, config, step, list(rows), reports)
        lr = learning_rate(config.optim, step, config.train.steps)
        with ledger.recording() as later:
            result = trainer.step.finish(step, grads, reports, valid, lr, stop=False)
        losses.append([result.loss, result.aux_loss, result.z_loss, result.grad_norm])
    for held in trainer.state:
        record[_key("p", held.name, held.shard)] = held.param.asnumpy()
    record["loss"] = np.array(losses)
    out.mkdir(parents=True, exist_ok=True)
    np.savez(out / f"rank-{place.rank}.npz", **record)
    sent = json.dumps(_sent([*calls, *later]), indent=1)
    (out / f"sent-{place.rank}.json").write_text(sent, encoding="utf-8")


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


def _key(kind: str, name: str, shard: Shard) -> str:
    return f"{kind}|{name}|{'_'.join(map(str, shard.offset))}"


def _routing(
    record: dict[str, np.ndarray], trainer: Trainer, config: RunConfig, step: int, rows: list[int], reports: list[Any]
) -> None:
    """Adds the chosen experts of this rank's tokens."""
    assert config.moe is not None
    length, k = config.train.seq_length, config.moe.router.slots(config.moe)
    positions = token_positions(length, trainer.mesh, trainer.place.rank)
    for part, of_part in zip(trainer.step.parts, reports, strict=True):
        for first, report in zip(rows, of_part, strict=True):
            ids = np.asarray(report[-1]).reshape(len(part.layers), -1, positions.size, k)
            for layer, of_layer in zip(part.layers, ids, strict=True):
                for row, of_row in enumerate(of_layer):
                    key = f"r.{step}.{layer}|{first + row}"
                    known = record.setdefault(key, np.full((length, k), -1, np.int32))
                    known[positions] = of_row
