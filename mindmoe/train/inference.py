"""A finished or running run, opened for use on one process."""

from dataclasses import dataclass
from pathlib import Path

from mindmoe.checkpoint import store
from mindmoe.config import RunConfig, resolve
from mindmoe.env import Place, quiet_mindspore, usable_cores
from mindmoe.errors import UserError
from mindmoe.model.decoder import CausalLM
from mindmoe.parallel.config import ParallelConfig
from mindmoe.parallel.groups import Group, alone
from mindmoe.train.folder import RunFolder


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedRun:
    """The model of the newest valid checkpoint, on one process."""

    config: RunConfig
    net: CausalLM
    step: int
    group: Group


def open_run(run: Path) -> OpenedRun:
    """Builds the model of a run and loads its newest valid checkpoint.

    Raises:
        UserError: no run or no checkpoint is there.
    """
    config = resolve(RunFolder(run).load_config().model_copy(update={"parallel": ParallelConfig()}), 1)
    quiet_mindspore(usable_cores())
    from mindmoe.parallel.mesh import Mesh
    from mindmoe.train.persist import reader_of, restore, whole
    from mindmoe.train.setup import build_kernels, build_model, start_device

    alone_here = Place(rank=0, world=1, local_world=1)
    start_device(config, alone_here)
    net = build_model(config, build_kernels(config, alone_here), Mesh(), 0)
    held = [whole(param) for param in net.get_parameters()]
    found = store.newest_valid(RunFolder(run).checkpoints, reader_of(config, held, partial=True))
    if found is None:
        raise UserError(f"{run} has no checkpoint yet", "train it first, or wait for its first checkpoint")
    restore(found.tensors, held)
    return OpenedRun(config=config, net=net, step=found.manifest.step, group=alone())
