"""What the checkpoints of a run belong to: a table of parameters. All else that a checkpoint records is told by it.

Two configurations describe the same model if they ask for tensors of the same names, shapes and dtypes. So a key that
did not exist when a checkpoint was written never makes it that of another model.
"""

import hashlib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import xxhash
from pydantic import JsonValue

from mindmoe.checkpoint.manifest import Manifest, Meta, TensorRecord
from mindmoe.config.load import dump_config, flat
from mindmoe.config.run import RunConfig
from mindmoe.host.errors import CheckpointError
from mindmoe.host.files import shown
from mindmoe.models.gpt_oss.parameters import param_specs

WEIGHTS_ONLY = "weights_only"  # key of Meta.state: imported weights, so the optimizer starts from nothing
PARAMETERS = "parameters"  # key of Meta.model: the digest of the table
MOMENTS = ("adam_m.", "adam_v.")  # what names of the state of the optimizer begin with
DTYPE = "F32"  # of every parameter
_NAMED = 5  # differences that an error names

Table = dict[str, tuple[str, tuple[int, ...]]]
"""Dtype and shape of parameters by name."""


def table_of(config: RunConfig) -> Table:
    """The parameters of a model."""
    return {spec.name: (DTYPE, spec.shape) for spec in param_specs(config.model, config.moe).values()}


def stored_table(tensors: Mapping[str, TensorRecord]) -> Table:
    """The parameters among stored tensors."""
    return {name: (t.dtype, t.shape) for name, t in tensors.items() if not name.startswith(MOMENTS)}


def table_digest(table: Table) -> str:
    """One word for a table of parameters: equal for the same model, whatever the values."""
    lines = (f"{name} {dtype} {'x'.join(map(str, shape))}\n" for name, (dtype, shape) in sorted(table.items()))
    return xxhash.xxh3_128_hexdigest("".join(lines).encode())


def run_meta(config: RunConfig, world: int, generation: str, data: Mapping[str, Any] | None = None) -> Meta:
    """What the checkpoints of a run belong to. All randomness of a run follows from its seed and the step.

    Args:
        config: the resolved run.
        world: number of ranks.
        generation: of the writer.
        data: what the run reads, from `data_identity`; None if it has not trained.
    """
    return Meta(
        model={PARAMETERS: table_digest(table_of(config))},
        topology={**config.parallel.model_dump(), "world": world},
        config_digest=hashlib.sha256(dump_config(config).encode()).hexdigest(),
        generation=generation,
        state={"seed": config.seed},
        config=config.model_dump(mode="json"),
        data=dict(data or {}),
        versions=versions(),
    )


def versions() -> dict[str, JsonValue]:
    """What decides how a run computes: versions of mindmoe and MindSpore."""
    found: dict[str, JsonValue] = {}
    for package in ("mindmoe", "mindspore"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found


def check_identity(path: Path, manifest: Manifest, config: RunConfig) -> None:
    """Refuses a checkpoint of another model.

    Args:
        path: of the checkpoint, for the message.
        manifest: of the checkpoint.
        config: the run that would continue it.

    Raises:
        CheckpointError: names keys and parameters that differ.
    """
    there, here = stored_table(manifest.tensors()), table_of(config)
    if table_digest(there) == table_digest(here):
        return
    # Keys of the config are what a user can act on; the parameters behind them say what is really different.
    recorded, ours = flat(manifest.meta.config or manifest.meta.model), flat(config.model_dump(mode="json"))
    differ = [
        f"{key}: {shown(str(recorded[key]))} there, {shown(str(ours[key]))} here"
        for key in sorted(recorded.keys() & ours.keys())
        if key.startswith(("model.", "moe.")) and recorded[key] != ours[key]
    ] + [
        f"{shown(name, 200)}: {_entry(there, name)} there, {_entry(here, name)} here"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]
    more = f"; {len(differ) - _NAMED} more" if len(differ) > _NAMED else ""
    raise CheckpointError(
        f"{path} is a checkpoint of another model ({'; '.join(differ[:_NAMED])}{more})",
        "continue it with its own config, or choose another name",
    )


def _entry(table: Table, name: str) -> str:
    if name not in table:
        return "none"
    dtype, shape = table[name]
    return f"{dtype} {list(shape)}"
