"""Builds and runs one rank's program for one step with stand-ins for its partners (dry until it is called)."""

import resource
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from mindmoe.config.run import RunConfig
from mindmoe.data.loader import Batch
from mindmoe.host.env import Place, quiet_mindspore, usable_cores
from mindmoe.parallel.ledger import Call, recording


@dataclass(frozen=True, kw_only=True, slots=True)
class Executed:
    """What a step of a rank was.

    Attributes:
        calls: its collectives in order.
        parameters: trainable elements of the model on this rank.
        state_bytes: weights, master copies, moments and selection biases.
        peak: most memory of this process [bytes].
        build_s, step_s: to build, and to run the step [s].
        finite: whether loss and gradient norm were numbers.
    """

    calls: list[Call]
    parameters: int
    state_bytes: int
    peak: int
    build_s: float
    step_s: float
    finite: bool


def execute(config: RunConfig, world: int, rank: int) -> Executed:
    """Runs one step of a rank on random tokens.

    Args:
        config: the run, resolved on its ranks, op by op on the CPU.
        world: number of ranks.
        rank: which.
    """
    quiet_mindspore(usable_cores())
    from mindmoe.train.setup import build_trainer, start_device

    place = Place(rank=rank, world=world, local_world=1)
    started = perf_counter()
    start_device(config, place, stand_in=True)
    trainer = build_trainer(config, place, stand_in=True)
    built = perf_counter()
    train = config.train
    count = train.global_batch_size // (train.micro_batch_size * trainer.mesh.dp)
    batches = [random_batch(config, seed) for seed in range(count)]
    with recording() as calls:
        result = trainer.step.run(0, batches, trainer.step.count_valid(batches), config.optim.lr, False)
    ended = perf_counter()
    model = [tensor for net in trainer.nets for tensor in net.tensors]
    updated = [tensor.param for part in trainer.step.parts for tensor in part.owned.tensors]
    state = [tensor.param for tensor in model]
    own = {id(param) for param in state}
    state += [param for param in updated if id(param) not in own]
    state += [param for moments in trainer.optimizer.moments.values() for param in moments]
    return Executed(
        calls=calls,
        parameters=sum(tensor.param.size for tensor in model if tensor.spec.trainable),
        state_bytes=sum(param.size * param.itemsize for param in state),
        peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        build_s=built - started,
        step_s=ended - built,
        finite=result.finite,
    )


def random_batch(config: RunConfig, seed: int) -> Batch:
    """A micro-batch of random tokens, each of which counts, in one document."""
    shape = (config.train.micro_batch_size, config.train.seq_length)
    ids = np.random.default_rng(seed).integers(0, config.model.vocab_size, (shape[0], shape[1] + 1), dtype=np.int32)
    return Batch(
        input_ids=np.ascontiguousarray(ids[:, :-1]),
        labels=np.ascontiguousarray(ids[:, 1:]),
        loss_mask=np.ones(shape, np.float32),
        segment_ids=np.zeros(shape, np.int32),
        domains=np.zeros(shape[0], np.int32),
    )
