"""What the checkpoints of a run belong to."""

import hashlib
from typing import Any

from mindmoe.checkpoint.manifest import Meta
from mindmoe.checkpoint.reader import Checkpoint
from mindmoe.config import RunConfig
from mindmoe.errors import CheckpointError
from mindmoe.load import dump_config

WEIGHTS_ONLY = "weights_only"  # key of Meta.state: imported weights, so the optimizer starts from nothing


def model_identity(config: RunConfig) -> dict[str, Any]:
    """What must be equal for a checkpoint to belong to a model."""
    return {"model": config.model.model_dump(), "moe": config.moe.model_dump() if config.moe else None}


def run_meta(config: RunConfig, world: int, generation: str) -> Meta:
    """What the checkpoints of a run belong to. All randomness of a run follows from its seed and the step."""
    return Meta(
        model=model_identity(config),
        topology={**config.parallel.model_dump(), "world": world},
        config_digest=hashlib.sha256(dump_config(config).encode()).hexdigest(),
        generation=generation,
        state={"seed": config.seed},
    )


def check_identity(checkpoint: Checkpoint, config: RunConfig) -> None:
    """Refuses a checkpoint of another model.

    Raises:
        CheckpointError: names the keys that differ.
    """
    theirs: dict[str, Any] = checkpoint.manifest.meta.model
    ours = model_identity(config)
    if theirs == ours:
        return
    differ = []
    for section, values in ours.items():
        there, here = theirs.get(section) or {}, values or {}
        differ += [f"{section}.{key}" for key in sorted(there.keys() | here.keys()) if there.get(key) != here.get(key)]
    raise CheckpointError(
        f"{checkpoint.path} is a checkpoint of another model ({', '.join(differ)} differ)",
        "continue it with its own config, or choose another name",
    )
