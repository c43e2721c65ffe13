"""A finished or running run, opened for use on one process."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mindmoe.checkpoint import store
from mindmoe.config.run import RunConfig, resolve
from mindmoe.host.env import Place, quiet_mindspore, usable_cores
from mindmoe.host.errors import UserError
from mindmoe.parallel.config import ParallelConfig
from mindmoe.train.folder import RunFolder

if TYPE_CHECKING:
    from mindmoe.models.decoder import CausalLM
    from mindmoe.train.setup import Trainer

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedRun:
    """The model of the newest valid checkpoint, on one process."""

    config: RunConfig
    trainer: "Trainer"
    step: int

    @property
    def net(self) -> "CausalLM":
        """The model."""
        return self.trainer.nets[0]


def open_run(run: Path) -> OpenedRun:
    """Builds the model of a run and loads its newest valid checkpoint.

    Raises:
        UserError: no run or no checkpoint is there.
    """
    # One process, whatever layout wrote the checkpoint: any box can be read from any.
    config = resolve(RunFolder(run).load_config().model_copy(update={"parallel": ParallelConfig()}), 1)
    config = config.model_copy(update={"optim": config.optim.model_copy(update={"type": "sgd"})})  # needs no moments
    if config.moe is not None:
        moe = config.moe.model_copy(update={"router": config.moe.router.unbounded})
        config = config.model_copy(update={"moe": moe})
    # It must come before MindSpore is imported, which the next lines do.
    quiet_mindspore(usable_cores())
    from mindmoe.train.persist import reader_of, restore
    from mindmoe.train.setup import build_trainer, start_device

    alone_here = Place(rank=0, world=1, local_world=1)
    start_device(config, alone_here)
    trainer = build_trainer(config, alone_here)
    found = store.newest_valid(RunFolder(run).checkpoints, reader_of(config, trainer.state))
    if found is None:
        raise UserError(f"{run} has no checkpoint yet", "train it first, or wait for its first checkpoint")
    for bad in found.quarantined:
        _log.error("%s", bad)
    restore(found.tensors, trainer.state)
    return OpenedRun(config=config, trainer=trainer, step=found.manifest.step)
