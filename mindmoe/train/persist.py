"""Between the training state and the checkpoint store."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor

from mindmoe.checkpoint import store
from mindmoe.checkpoint.agree import Agreement, from_rank_0
from mindmoe.checkpoint.identity import DTYPE, MOMENTS, WEIGHTS_ONLY, check_identity, run_meta
from mindmoe.checkpoint.manifest import ChunkRecord
from mindmoe.checkpoint.objects import SCHEME, ObjectStore
from mindmoe.checkpoint.reader import Checkpoint
from mindmoe.checkpoint.retention import SCORE, Retention
from mindmoe.checkpoint.tier import Copied, Tier, folder_copier
from mindmoe.checkpoint.writer import Outcome, SavePolicy, Writer
from mindmoe.config.run import RunConfig
from mindmoe.host.env import Place
from mindmoe.host.errors import CheckpointError
from mindmoe.models.gpt_oss.parameters import param_specs
from mindmoe.parallel.collectives import host_sum
from mindmoe.parallel.groups import Group
from mindmoe.parallel.unit import ShardedTensor
from mindmoe.train.folder import RunFolder

log = logging.getLogger(__name__)
_TEXT = 1024  # longest text that rank 0 can share [bytes]


class RankAgreement(Agreement):
    """Agreement through collectives of the host."""

    def __init__(self, group: Group):
        self.group, self.rank = group, group.index

    def share(self, text: str) -> str:
        """The text of rank 0, cut to 1 KiB."""
        # A text as a sum: rank 0 contributes its bytes, everybody else zeros. Below 256, they are exact in fp32.
        codes = np.zeros(_TEXT)
        if self.rank == 0:
            raw = text.encode()[:_TEXT]
            codes[: len(raw)] = list(raw)
        return bytes(host_sum(codes, self.group).astype(np.uint8)).rstrip(b"\0").decode(errors="replace")

    def worst(self, level: int) -> int:
        """The greatest level of any rank."""
        # A maximum made of a sum: every rank raises the flag of its level, and the last raised one is the greatest.
        return int(np.flatnonzero(host_sum(np.eye(3)[level], self.group))[-1])


class Saver:
    """Writes checkpoints of this rank's part of a run. A collective: every rank makes one and calls it alike.

    Args:
        config: the resolved run.
        held: what this rank holds of the training state.
        at: this process among the others.
        agree: between all ranks.
        data: the identity of what the run reads.

    Raises:
        CheckpointError: the checkpoint folder cannot be used.
    """

    def __init__(
        self,
        config: RunConfig,
        held: Sequence[ShardedTensor],
        at: Place,
        agree: Agreement,
        data: Mapping[str, Any] | None = None,
    ):
        root, rules = RunFolder.of(config).checkpoints, config.checkpoint
        self.held = {item.spec.name: item for item in held}
        self.agree, self.stops, self.background = agree, rules.on_failure == "stop", rules.background
        self.failed: CheckpointError | None = None
        # Copies are made by the rank that publishes.
        self.tier = second_tier(config) if at.rank == 0 else None
        self.writer = Writer(
            root,
            {item.spec.name: ChunkRecord.of(DTYPE, item.spec.shape, item.box) for item in held},
            rank=at.rank,
            world=at.world,
            # One claim for all ranks: a second one would take the folder from the first.
            meta=run_meta(config, at.world, from_rank_0(agree, lambda: store.claim(root)), data),
            policy=SavePolicy(
                retention=Retention.of(rules),
                min_free=rules.min_free,
                timeout=rules.timeout,
            ),
            tier=self.tier,
        )

    def save(self, step: int, eval_loss: float | None) -> None:
        """Starts to save the state of a step; `outcomes` tells how it went.

        Args:
            step: completed optimizer steps; also the data cursor.
            eval_loss: held-out loss at this step, if it was measured [nats per token].
        """
        self.writer.save(
            step,
            # Called for the boxes that this rank writes, before `save` returns: the next step may change the
            # parameters.
            lambda name: self.held[name].param.asnumpy(),
            {"data_cursor": step} | ({SCORE: eval_loss} if eval_loss is not None else {}),
        )

    def outcomes(self, wait: bool = False) -> list[Outcome]:
        """How saves ended since this was last asked; all of them if `wait`."""
        done = self.writer.wait() if wait or not self.background else self.writer.poll()
        for outcome in done:
            # A save that worked clears what an earlier one left.
            self.failed = outcome.error
        return done

    def copies(self, wait: bool = False) -> list[Copied]:
        """How copies to the second place ended since this was last asked; all of them if `wait`."""
        if self.tier is None:
            return []
        if wait:
            self.tier.join()
        return self.tier.poll()

    def bring_newer(self, config: RunConfig) -> None:
        """Fetches a step from the run's object store if it holds a newer one, as when the local disk was lost."""
        # Rank 0 fetches for all; a failure there is raised on every rank by `from_rank_0`.
        objects = object_store(config) if self.writer.rank == 0 else None

        def bring() -> str:
            path = objects.bring(self.writer.root, self.writer.meta.generation) if objects else None
            return path.name if path else ""

        if name := from_rank_0(self.agree, bring):
            log.info("fetched %s from the second place", name)

    def close(self) -> None:
        """Waits for a save under way, but not for ever."""
        self.writer.close()


def second_root(config: RunConfig) -> Path | None:
    """The checkpoint folder of a run in its second place, if that is a folder."""
    durable = config.checkpoint.durable
    return Path(durable.path) / config.name if durable and not durable.path.startswith(SCHEME) else None


def object_store(config: RunConfig) -> ObjectStore | None:
    """The second place of a run, if that is an object store."""
    durable = config.checkpoint.durable
    if durable is None or not durable.path.startswith(SCHEME):
        return None
    return ObjectStore(f"{durable.path.rstrip('/')}/{config.name}", durable.endpoint, durable.keep_last)


def second_tier(config: RunConfig) -> Tier | None:
    """What copies steps of a run to its second place, if it has one."""
    durable, root, objects = config.checkpoint.durable, second_root(config), object_store(config)
    if durable is None:
        return None
    if objects is not None:
        return Tier(objects.put, durable.every)
    assert root is not None
    rule = Retention(keep_last=durable.keep_last)
    return Tier(folder_copier(root, rule, config.checkpoint.min_free), durable.every)


def names_of_run(config: RunConfig) -> set[str]:
    """The names of every tensor of the training state, over all ranks."""
    specs = param_specs(config.model, config.moe).values()
    moments = MOMENTS if config.optim.type == "adamw" else ()
    return {spec.name for spec in specs} | {
        f"{prefix}{spec.name}" for prefix in moments for spec in specs if spec.trainable
    }


def reader_of(
    config: RunConfig, held: Sequence[ShardedTensor], expected: Collection[str] | None = None, cached: bool = False
) -> Callable[[Checkpoint], store.Tensors]:
    """Returns read(checkpoint) -> the boxes that this rank holds, whatever layout wrote them; nothing is assigned.

    Args:
        config: the run.
        held: what is wanted.
        expected: every name that the checkpoint may hold, None for any, as when only weights are wanted.
        cached: several ranks of this machine read, and share what comes into the page cache.

    It raises CheckpointError if the model, names, shapes or dtypes differ, and names all of them.
    """

    def read(checkpoint: Checkpoint) -> store.Tensors:
        check_identity(checkpoint.path, checkpoint.manifest, config)
        there = checkpoint.tensors
        wanted = {item.spec.name: item for item in held}
        # Imported weights: the moments keep the zeros that they were made with.
        if checkpoint.manifest.meta.state.get(WEIGHTS_ONLY):
            wanted = {name: item for name, item in wanted.items() if not name.startswith(MOMENTS)}
        # Every difference is collected, because one at a time would take as many starts to find them.
        wrong = [f"missing {name}" for name in wanted.keys() - there.keys()]
        wrong += [f"unexpected {name}" for name in there.keys() - set(expected)] if expected is not None else []
        for name in wanted.keys() & there.keys():
            shape = wanted[name].spec.shape
            if (there[name].shape, there[name].dtype) != (shape, DTYPE):
                found = f"{there[name].dtype} {there[name].shape}"
                wrong.append(f"{name} is {found}, expected {DTYPE} {shape}")
        if wrong:
            raise CheckpointError(
                f"{checkpoint.path} does not fit the model: {'; '.join(sorted(wrong))}",
                "continue it with its own config",
            )
        return checkpoint.read({name: item.box for name, item in wanted.items()}, cached)

    return read


def restore(tensors: store.Tensors, held: Sequence[ShardedTensor]) -> None:
    """Sets parameters from verified boxes and empties `tensors`, so that no second copy of the state stays.

    Args:
        tensors: what `reader_of` read.
        held: the same as there.
    """
    for item in held:
        # Popped one by one, so that each box is freed as soon as its parameter has it.
        values = tensors.pop(item.spec.name, None)
        if values is not None and values.size:
            item.param.set_data(Tensor(values))
