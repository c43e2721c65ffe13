"""`mindmoe ckpt place`: a checkpoint whose experts are renumbered so that even slices are a better placement (dry).

The model computes the same function: router rows, biases, weights and moments of an expert move together. It needs
recorded routing (observe.routing_every).
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from mindmoe.checkpoint import disk, store
from mindmoe.checkpoint.chunks import Chunk, Staging, write_shard
from mindmoe.checkpoint.commands import cut, step_folder
from mindmoe.checkpoint.folder import shard_name
from mindmoe.checkpoint.manifest import ChunkRecord
from mindmoe.checkpoint.reader import Checkpoint
from mindmoe.host.errors import UserError
from mindmoe.lab.flight.placement import expert_axis, permutation, renumbered
from mindmoe.lab.flight.trace import read_traces
from mindmoe.lab.flight.what_if import Placed, check_same, placed
from mindmoe.parallel.box import Box
from mindmoe.train.folder import RunFolder


def place(run: Path, step: int | None, num_ranks: int, out: Path) -> int:
    """Writes a step with its experts placed for `num_ranks` ranks, and prints the predicted gain; returns 0.

    Where no placement is predicted to be better than the experts in order, it says so and writes nothing.

    Args:
        run: folder of the run.
        step: which checkpoint, by default the newest.
        num_ranks: ranks that share the experts.
        out: checkpoint folder to write to.

    Raises:
        UserError: nothing was recorded, or renumbering experts would change what the router does.
    """
    config = RunFolder(run).load_config()
    if config.moe is None:
        raise UserError(f"{run} is a dense model", "name a run with a moe section")
    if config.moe.router.expert_groups > 1:
        raise UserError(
            f"moe.router of {run} has groups of consecutive experts: renumbering experts would change its function",
            "place experts of routers without groups",
        )
    traces = read_traces(run)
    check_same(traces)
    before, *_, after = placed(traces, num_ranks, 2.0 * config.model.hidden_size)
    if not after.moved:
        print(f"experts stay in order: no placement on {num_ranks} ranks is predicted to be better, nothing is written")
        return 0
    orders = [permutation(placement) for placement in after.placements]
    published = _write(step_folder(run, step), out, orders)
    print(f"{published}: experts of {after.moved} of {len(orders)} layers placed for {num_ranks} ranks")
    for name, figure in (("busiest rank / mean", "imbalance"), ("bytes a token, one direction", "bytes_per_token")):
        print(f"  predicted {name}: {_change(before, after, figure)}")
    return 0


def _change(before: Placed, after: Placed, figure: str) -> str:
    was, now = before.mean(figure), after.mean(figure)
    return f"{was:,.4g} -> {now:,.4g} ({now / max(was, 1e-30) - 1.0:+.1%})"


def _write(folder: Path, out: Path, orders: list[np.ndarray]) -> Path:
    """A step with renumbered experts, shard by shard; in memory are one shard and one tensor."""
    with store.open_step(folder) as source:
        shards = max(1, len(source.manifest.shards))
        generation = store.claim(out)
        staging_folder = store.begin(out, source.manifest.step, generation)
        staging, records = Staging(), []
        for rank, share in enumerate(cut(source, shards)):
            chunks = {name: _chunk(source, name, record, orders) for name, record in share.items()}
            with disk.reported(f"write the checkpoint in {out}"):
                records.append(write_shard(staging_folder / shard_name(rank), chunks, staging))
        meta = replace(source.manifest.meta, generation=generation)
        manifest = replace(source.manifest, meta=meta, shards=tuple(records))
        return store.commit(out, staging_folder, manifest)


def _chunk(source: Checkpoint, name: str, record: ChunkRecord, orders: list[np.ndarray]) -> Chunk:
    """A box of a tensor as it is after renumbering."""
    if expert_axis(name, record.global_shape, len(orders[0])) is None:
        with store.reading(source.path):
            array = source.read({name: record.box})[name]
    else:
        with store.reading(source.path):
            whole = source.read({name: Box.whole(record.global_shape)})[name]
        array = np.ascontiguousarray(renumbered(name, whole, orders)[record.box.index])
    return Chunk(array, record.dtype, record.global_shape, record.offset)
