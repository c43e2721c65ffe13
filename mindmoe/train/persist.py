"""Between the training state and the checkpoint store."""

import hashlib
from typing import Any

import numpy as np
from mindspore import Tensor

from mindmoe.checkpoint import store
from mindmoe.checkpoint.manifest import Meta
from mindmoe.config import RunConfig
from mindmoe.errors import CheckpointError
from mindmoe.load import dump_config
from mindmoe.parallel.held import Held
from mindmoe.train.folder import RunFolder


def model_identity(config: RunConfig) -> dict[str, Any]:
    """What must be equal for a checkpoint to belong to a model."""
    return {"model": config.model.model_dump(), "moe": config.moe.model_dump() if config.moe else None}


class Saver:
    """Writes checkpoints of one process into the run folder.

    Args:
        config: the resolved run.
        world: number of ranks, recorded for information.
    """

    def __init__(self, config: RunConfig, world: int):
        self.root = RunFolder.of(config).checkpoints
        self.policy = config.checkpoint
        self.meta = Meta(
            model=model_identity(config),
            topology={**config.parallel.model_dump(), "world": world},
            config_digest=hashlib.sha256(dump_config(config).encode()).hexdigest(),
            generation=store.claim(self.root),
        )

    def save(self, step: int, state: list[Held]) -> None:
        """Saves every tensor of the training state; returns once the step is durable.

        Raises:
            CheckpointError: it was not saved; earlier steps are untouched.
        """
        tensors = {held.name: held.param.asnumpy() for held in state}
        store.save(self.root, step, tensors, self.meta, self.policy.keep_last, self.policy.min_free)


def check_identity(found: store.Found, config: RunConfig) -> None:
    """Refuses a checkpoint of another model.

    Raises:
        CheckpointError: names the keys that differ.
    """
    theirs: dict[str, Any] = found.manifest.meta.model
    ours = model_identity(config)
    if theirs == ours:
        return
    differ = []
    for section, values in ours.items():
        there, here = theirs.get(section) or {}, values or {}
        differ += [f"{section}.{key}" for key in sorted(there.keys() | here.keys()) if there.get(key) != here.get(key)]
    raise CheckpointError(
        f"{found.path} is a checkpoint of another model ({', '.join(differ)} differ)",
        "continue it with its own config, or choose another name",
    )


def restore(found: store.Found, state: list[Held], partial: bool = False) -> None:
    """Sets parameters from a verified checkpoint.

    Args:
        found: the checkpoint.
        state: what to set.
        partial: whether the checkpoint may hold more, as when only weights are wanted.

    Raises:
        CheckpointError: names or shapes differ; nothing is assigned then.
    """
    tensors: dict[str, np.ndarray] = found.tensors
    names = {held.name for held in state}
    wrong = [f"missing {name}" for name in names - tensors.keys()]
    wrong += [] if partial else [f"unexpected {name}" for name in tensors.keys() - names]
    wrong += [
        f"{held.name} has shape {tensors[held.name].shape}, expected {held.shape}"
        for held in state
        if held.name in tensors and tensors[held.name].shape != held.shape
    ]
    if wrong:
        raise CheckpointError(
            f"{found.path} does not fit the model: {'; '.join(sorted(wrong))}", "continue it with its own config"
        )
    for held in state:
        held.param.set_data(Tensor(np.ascontiguousarray(tensors[held.name][held.shard.index])))
