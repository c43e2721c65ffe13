"""`mindmoe train`: one process of a run. Alone it is the whole run; under msrun it is one rank of it."""

import logging
import sys
from contextlib import ExitStack
from typing import Any

from mindmoe.checkpoint import store
from mindmoe.config.run import RunConfig
from mindmoe.data.identity import data_identity
from mindmoe.host.env import Place, place, quiet_mindspore, threads_per_rank
from mindmoe.host.errors import UserError
from mindmoe.host.lasting import lasting_output
from mindmoe.host.position import during
from mindmoe.observe.environment import describe
from mindmoe.observe.metrics import MetricsLog
from mindmoe.observe.progress import Progress
from mindmoe.plan.auto import planned
from mindmoe.train.folder import RunFolder
from mindmoe.train.guard import StopRequest
from mindmoe.train.live import joined
from mindmoe.train.preflight import finished_steps, preflight
from mindmoe.train.resume import Event, changes

log = logging.getLogger(__name__)


@lasting_output()
def train(config: RunConfig, takeover: bool = False) -> int:
    """Trains a run to its last step, resuming from its newest valid checkpoint; returns the exit code.

    Args:
        config: the run.
        takeover: end whoever runs in the folder, rather than refuse.

    Raises:
        UserError: the config, the data or the run folder do not fit, or somebody else runs in it.
    """
    at = place()
    logging.basicConfig(  # a rank among others has nothing but its log; a process alone shows its events
        level=logging.INFO if at.world > 1 else logging.WARNING,
        stream=sys.stderr,
        format=f"%(asctime)s rank {at.rank} %(levelname)s %(name)s: %(message)s",
    )
    # Every rank resolves, checks and plans for itself: the same inputs give the same answer, without a word exchanged.
    config = planned(config, at.world)
    batches, held_out = preflight(config, at.local_world)
    data = data_identity(config.data)
    folder = RunFolder.of(config)
    if (done := finished_steps(config)) >= config.train.steps:
        print(
            f"nothing to do: {done} of {config.train.steps} steps of {folder.path} are done; "
            "raise train.steps to continue"
        )
        return 0
    # Read before `create` replaces it: what changed since then is told as events.
    before = folder.recorded()
    with StopRequest() as stop, joined(folder.path, config.launch, at, takeover) as stop.watch:
        if at.rank == 0:
            folder.create(config)
            folder.write_environment(describe())
        # The variables that this sets are read when MindSpore is imported, and everything below imports it.
        quiet_mindspore(threads_per_rank(config.launch.threads, at.local_world))
        from mindmoe.parallel.collectives import barrier
        from mindmoe.train.evaluate import Evaluator
        from mindmoe.train.loop import Loop
        from mindmoe.train.persist import RankAgreement, Saver
        from mindmoe.train.setup import build_trainer, start_device

        with during("joining the cluster", range(at.world)):
            start_device(config, at)
        with during("building the model"):
            recorded = config.moe is not None and config.observe.routing_every > 0
            trainer = build_trainer(config, at, recorded)
        held, agree = trainer.state, RankAgreement(trainer.groups["world"])
        saver = Saver(config, held, at, agree, data)
        # Before the search for the newest checkpoint, so that one from the object store is found like any other.
        saver.bring_newer(config)
        found = load_newest(config, held, agree, cached=at.local_world > 1)
        start = found.manifest.step if found is not None else 0
        changed = told_of(found, config, data, before) if found is not None else []
        # Loading fills what this rank updates; under ZeRO 1 and 2 the model's own parameters follow from that. Also
        # without a checkpoint: a collective that every rank takes part in.
        trainer.publish()
        # Closed in reverse order: first what runs beside training, then the sinks, the saver last.
        with ExitStack() as stack:
            stack.callback(saver.close)
            sink = open_sinks(config, at, start, stack)
            evaluator = Evaluator(trainer.step, config, held_out, trainer.mesh, trainer.at)
            loop = Loop(trainer, batches, evaluator, saver, sink)
            loop.event(
                start,
                "resume" if start else "start",
                f"resuming from step {start}" if start else f"starting {config.name} on {at.world} processes",
            )
            for event, message in changed:
                loop.event(start, event, message)
            stack.callback(loop.close)
            code = loop.run(start, stop)
            # All ranks leave together.
            barrier(trainer.groups["world"])
            return code


def load_newest(config: RunConfig, held: Any, agree: Any, cached: bool) -> store.Found | None:
    """Loads the newest valid checkpoint into what this rank holds, whatever layout wrote it; None if there is none."""
    from mindmoe.train.persist import names_of_run, reader_of, restore, second_root

    read = reader_of(config, held, names_of_run(config), cached)
    with during("loading"):
        found = store.newest_valid(RunFolder.of(config).checkpoints, read, agree, second_root(config))
    if found is not None:
        restore(found.tensors, held)
    return found


def told_of(found: store.Found, config: RunConfig, data: dict[str, Any], before: RunConfig | None) -> list[Event]:
    """What the run tells of the checkpoint that it continues, as events.

    Raises:
        UserError: it may not be continued like this; what was set aside on the way to it is logged then.
    """
    try:
        changed = changes(found.manifest, config, data, before)
    except UserError:
        for bad in found.quarantined:
            log.error("%s", bad)
        raise
    return [*(("quarantine", str(bad)) for bad in found.quarantined), *changed]


def open_sinks(config: RunConfig, at: Place, start: int, stack: ExitStack) -> Any:
    """The function that takes records: metrics file, TensorBoard and the console, which in a launch is the log."""
    if at.rank != 0:
        return lambda record: None
    folder = RunFolder.of(config)
    sinks: list[Any] = [MetricsLog(folder.metrics, start)]
    if config.observe.tensorboard:
        # MindSpore selects protobuf's Python implementation as it is imported, and fails if another is in use.
        from mindmoe.observe.tensorboard import TensorBoardLog

        sinks.append(TensorBoardLog(folder.tensorboard, start))
    for sink in sinks:
        stack.callback(sink.close)
    show = stack.enter_context(Progress(config.train.steps, start, config.name))

    def take(record: dict[str, Any]) -> None:
        for sink in sinks:
            sink.write(record)
        show.update(record)

    return take
