"""Everything that can be refused before a process is started or MindSpore imported (dry)."""

from mindmoe.checkpoint.folder import list_steps, step_of
from mindmoe.config import RunConfig
from mindmoe.data.dataset import Split
from mindmoe.data.loader import TokenBatches
from mindmoe.errors import UserError
from mindmoe.moe.config import DmrConfig
from mindmoe.parallel.mesh import Mesh
from mindmoe.train.folder import RunFolder


def preflight(config: RunConfig, world: int) -> tuple[TokenBatches, TokenBatches]:
    """Checks a resolved config against the data and the run folder; returns the training and held-out batches.

    Raises:
        UserError: the first thing that cannot work, with its remedy.
    """
    Mesh.build(config.parallel, world)
    RunFolder.of(config).check_continues(config)
    return open_batches(config, "train"), open_held_out(config)


def open_batches(config: RunConfig, split: Split) -> TokenBatches:
    """The batches of a split as the run sees them."""
    router = config.moe.router if config.moe is not None else None
    hidden = router.domain.label_dropout if isinstance(router, DmrConfig) and router.features.domain else 0.0
    return TokenBatches(
        config.data, split, config.train.seq_length, config.train.global_batch_size, config.model.vocab_size, hidden
    )


def open_held_out(config: RunConfig) -> TokenBatches:
    """The held-out batches, at least one of them.

    Raises:
        UserError: the held-out set is shorter than a batch.
    """
    batches = open_batches(config, "valid")
    if batches.num_samples < config.train.global_batch_size:
        raise UserError(
            f"the held-out set has {batches.num_samples} sequences of train.seq_length={config.train.seq_length} "
            f"tokens, fewer than train.global_batch_size={config.train.global_batch_size}",
            "prepare more text, raise valid_fraction, or lower train.seq_length or the batch size",
        )
    return batches


def finished_steps(config: RunConfig) -> int:
    """The newest step that the run folder seems to hold; whether it is valid shows when it is loaded."""
    steps = list_steps(RunFolder.of(config).checkpoints)
    return step_of(steps[0]) if steps else 0
