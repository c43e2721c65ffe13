"""`mindmoe launch` on this machine: starts the ranks through msrun, shows progress, restarts, and cleans up.

The launcher imports no MindSpore. It refuses a run that cannot work before any process starts, follows the
metrics file for the display, passes signals on, ends a run that a rank has failed or hangs in, and names that rank,
the place it was in and its last words.
"""

import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from mindmoe.config.run import RunConfig
from mindmoe.host.env import LAUNCH_FOLDER, threads_per_rank, worker_environment
from mindmoe.host.errors import UserError
from mindmoe.host.files import printable
from mindmoe.host.lasting import lasting_output
from mindmoe.launch.command import msrun_command
from mindmoe.launch.follow import follow
from mindmoe.launch.hang import HangWatch, hang_failure
from mindmoe.launch.local import EXIT_FAILED, Failure, LocalRanks, free_port, keep_logs
from mindmoe.launch.ranks import Rank
from mindmoe.launch.restart import STOPPED, Restarts
from mindmoe.observe.progress import Progress
from mindmoe.train.folder import RunFolder
from mindmoe.train.guard import stop_signals
from mindmoe.train.live import Hold
from mindmoe.train.preflight import finished_steps, preflight

_POLL = 0.2  # [s]
_LOOK = 1.0  # [s] between two looks at the positions of the ranks


@lasting_output()
def launch(config: RunConfig, cards: int, takeover: bool = False) -> int:
    """Runs a resolved config on `cards` processes of this machine; returns 0, or the code of the rank that failed.

    Args:
        config: the run.
        cards: its ranks.
        takeover: end whoever runs in the folder, rather than refuse.

    Raises:
        UserError: the run cannot work, somebody else runs in its folder, or the port is taken.
    """
    preflight(config, cards)
    folder = RunFolder.of(config)
    if (done := finished_steps(config)) >= config.train.steps:
        print(
            f"nothing to do: {done} of {config.train.steps} steps of {folder.path} are done; "
            "raise train.steps to continue"
        )
        return 0
    with Hold(folder.path, config.launch, "launch", takeover=takeover) as hold:
        folder.create(config)
        return _supervise(config, cards, hold)


def _supervise(config: RunConfig, cards: int, hold: Hold) -> int:
    """Starts the ranks, again and again if need be; returns the exit code."""
    folder, threads = RunFolder.of(config), threads_per_rank(config.launch.threads, cards)
    print(
        f"launching {config.name} on {cards} processes with {threads} threads each; logs in {folder.logs}", flush=True
    )
    env = worker_environment(threads, cards, str(Path(sys.executable).parent))
    env[LAUNCH_FOLDER] = str(folder.path.absolute())
    restarts = Restarts(config.launch, best_step=finished_steps(config))
    while True:
        port = config.launch.port or free_port("127.0.0.1")
        _require_free(port)
        command = msrun_command(config, cards=cards, cards_per_node=cards, master=("127.0.0.1", port), node_rank=0)
        ranks = LocalRanks(
            command,
            [Rank(number, folder.logs) for number in range(cards)],
            env,
            folder.logs / "msrun.log",
            f"{hold.session}:0",
        )
        failure = _attempt(ranks, config, folder, hold)
        if failure is None:
            return 0
        show_failure(failure)
        wait, why = restarts.again(hold.code or failure.code, finished_steps(config))
        if wait is None:
            if config.launch.restarts:
                print(f"mindmoe: no restart: {why}", file=sys.stderr)
            elif failure.code == EXIT_FAILED:
                print("mindmoe: the run was ended; launch again to resume from the newest checkpoint", file=sys.stderr)
            return hold.code or failure.code
        print(f"mindmoe: {why}, in {wait:.0f} s", file=sys.stderr, flush=True)
        time.sleep(wait)
        keep_logs(folder.logs)


def show_failure(failure: Failure) -> None:
    """Prints why a run has ended; a stop that was asked for is no complaint."""
    if failure.code in STOPPED:
        print(failure.message, flush=True)
        return
    print(f"mindmoe: {printable(failure.message)}", file=sys.stderr)
    if failure.details:
        print(printable(failure.details), file=sys.stderr, flush=True)


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(
                f"launch.port={port} cannot be used: {error.strerror}", "set launch.port=0 to take a free one"
            ) from None


def _attempt(ranks: LocalRanks, config: RunConfig, folder: RunFolder, hold: Hold) -> Failure | None:
    """Runs the ranks once, to their end; why they failed, None if they have finished."""
    limit = time.monotonic() + config.launch.timeout if config.launch.timeout else float("inf")
    records, hangs, look = follow(folder.metrics, time.time()), HangWatch(ranks.ranks, config.launch), 0.0
    try:
        ranks.start()
        with _forward_signals(ranks), Progress(config.train.steps, 0, config.name) as show:
            told = False
            while (state := ranks.state()) != "ended" and time.monotonic() < limit:
                if hold.code and not told:
                    told = True
                    show.message("another start takes this run over: the ranks finish their step and save")
                    ranks.ask_to_stop()
                for record in next(records):
                    show.update(record)
                if state == "running" and time.monotonic() >= look:
                    look = time.monotonic() + _LOOK
                    if (verdict := hangs.check(look)) is not None:
                        return hang_failure(verdict, ranks.ranks)
                time.sleep(_POLL)
            for record in next(records):
                show.update(record)
    finally:
        ranks.end()
    if state != "ended":
        return Failure(
            code=EXIT_FAILED,
            rank=-1,
            message=f"launch.timeout={config.launch.timeout:.0f} s is over: the run was ended",
        )
    return ranks.failure()


@contextmanager
def _forward_signals(ranks: LocalRanks) -> Iterator[None]:
    """Passes the first signal that asks to stop on to the ranks, and ends everything at the second.

    SIGHUP, of a terminal that closes, is sent twice and by several: it never counts as the second.
    """
    asked = False

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal asked
        if asked and number == signal.SIGHUP:
            return
        if asked:
            ranks.end(grace=0.5)
            sys.exit(128 + number)
        asked = True
        print("\nstopping: the ranks finish their step and save; press again to end at once", flush=True)
        ranks.ask_to_stop()

    before = {number: signal.signal(number, handle) for number in stop_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
