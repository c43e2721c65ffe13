"""Everything that can be refused before a process is started or MindSpore imported (dry)."""

from mindmoe.config import RunConfig
from mindmoe.data.loader import TokenBatches
from mindmoe.errors import UserError
from mindmoe.parallel.mesh import Mesh
from mindmoe.train.folder import RunFolder

_NOT_YET = ("tp", "pp", "ep", "cp")


def preflight(config: RunConfig, world: int) -> tuple[TokenBatches, TokenBatches]:
    """Checks a resolved config against the data and the run folder; returns the training and held-out batches.

    Raises:
        UserError: the first thing that cannot work, with its remedy.
    """
    Mesh.build(config.parallel, world)
    for axis in _NOT_YET:
        if getattr(config.parallel, axis) > 1:
            raise UserError(f"parallel.{axis}={getattr(config.parallel, axis)} cannot be trained by this version, "
                            "which has data parallelism only", f"set parallel.{axis}=1")
    RunFolder.of(config).check_continues(config)
    return open_batches(config, "train"), open_batches(config, "valid")


def open_batches(config: RunConfig, split: str) -> TokenBatches:
    """The batches of a split as the run sees them."""
    return TokenBatches(config.data, split, config.train.seq_length, config.train.global_batch_size,
                        config.model.vocab_size)
