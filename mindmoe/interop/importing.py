"""Hugging Face weights as the first checkpoint of a run, one shard in memory at a time."""

from collections.abc import Iterator
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np

from mindmoe.checkpoint import disk, store
from mindmoe.checkpoint.chunks import Chunk, Staging, write_shard
from mindmoe.checkpoint.folder import list_steps, shard_name
from mindmoe.checkpoint.identity import WEIGHTS_ONLY, run_meta
from mindmoe.checkpoint.manifest import Manifest, ShardRecord
from mindmoe.checkpoint.retention import Retention, require_space
from mindmoe.config.run import RunConfig
from mindmoe.host.errors import UserError
from mindmoe.host.files import shown
from mindmoe.interop.export import BIAS, check_names, weight_shapes
from mindmoe.interop.hf_config import layer_types, read_config, routing_differences
from mindmoe.interop.source import Source
from mindmoe.models.gpt_oss.config import ModelConfig
from mindmoe.models.gpt_oss.parameters import param_specs

_SHARD = 2**30  # [bytes] of fp32 weights in a shard, or one row
_NOT_COMPARED = ("max_position_embeddings", "initializer_range", "layer_types", "attention_sinks")


def check_same_model(folder: Path, run: RunConfig) -> list[str]:
    """Refuses a folder whose config.json is another model than the run's.

    Returns:
        what the run computes otherwise with the same weights, in sentences.

    Raises:
        UserError: names the keys that differ, with both values.
    """
    model, moe = read_config(folder)
    pairs = {f"model.{key}": (value, getattr(run.model, key)) for key, value in _compared(model)}
    pairs["model.layer_types"] = (layer_types(model), layer_types(run.model))
    for key in ("num_experts", "num_experts_per_tok"):
        pairs[f"moe.{key}"] = (getattr(moe, key), getattr(run.moe, key) if run.moe else None)
    differ = [f"{key}: {there} there, {here} here" for key, (there, here) in pairs.items() if there != here]
    if differ:
        raise UserError(
            f"{shown(str(folder), 300)} holds another model than the config ({'; '.join(differ)})", "make them equal"
        )
    other = routing_differences(run.moe) if run.moe else []
    told = f"with {', '.join(other)} the run routes otherwise than GptOss: it starts as another model"
    return [told] if other else []


def _compared(model: ModelConfig) -> Iterator[tuple[str, object]]:
    return ((key, getattr(model, key)) for key in type(model).model_fields if key not in _NOT_COMPARED)


def import_weights(source: Source, root: Path, run: RunConfig) -> Path:
    """Publishes weights as step 0 of a run; training then starts from them, with an optimizer that starts from zero.

    Args:
        source: the weights.
        root: the checkpoint folder of the run, without checkpoints.
        run: resolved; selection biases that it has begin at zero.

    Returns:
        the published folder.

    Raises:
        UserError: tensors do not fit the model, or the run has checkpoints.
    """
    if list_steps(root):
        raise UserError(f"{root} already holds checkpoints", "give the run another name")
    check_names(source.shapes, weight_shapes(run.model, run.moe), "the folder")
    shapes = {name: spec.shape for name, spec in param_specs(run.model, run.moe).items()}
    require_space(root.parent, 4 * sum(map(prod, shapes.values())), run.checkpoint.min_free, Retention())
    generation = store.claim(root)
    meta = run_meta(run, 1, generation)
    meta = replace(meta, state={**meta.state, "data_cursor": 0, WEIGHTS_ONLY: True})
    folder = store.begin(root, 0, generation)
    staging = Staging()
    records: list[ShardRecord] = []
    for chunks in _shards(source, shapes):
        with disk.reported(f"write the checkpoint in {root}"):
            records.append(write_shard(folder / shard_name(len(records)), chunks, staging))
    return store.commit(root, folder, Manifest(step=0, meta=meta, shards=tuple(records)))


def _shards(source: Source, shapes: dict[str, tuple[int, ...]]) -> Iterator[dict[str, Chunk]]:
    """Chunks of whole rows, in shards of bounded size."""
    shard: dict[str, Chunk] = {}
    held = 0
    for name, shape in shapes.items():
        row = 4 * prod(shape[1:])
        start = 0
        while start < shape[0]:
            room = max(1, (_SHARD - held) // row)
            if shard and held + row > _SHARD or name in shard:
                yield shard
                shard, held = {}, 0
                continue
            stop = min(shape[0], start + room)
            known = name in source.shapes and not name.endswith(BIAS)
            values = source.rows(name, start, stop) if known else np.zeros((stop - start, *shape[1:]), np.float32)
            shard[name] = Chunk(values, "", shape, (start,) + (0,) * (len(shape) - 1))
            held += values.nbytes
            start = stop
    if shard:
        yield shard
