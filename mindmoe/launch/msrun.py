"""`mindmoe launch`: starts the ranks of a run on this machine through msrun, shows progress, and cleans up.

The launcher imports no MindSpore. It refuses a run that cannot work before any process starts, follows the
metrics file for the display, passes signals on, ends a run that a rank has failed or hangs in, and names that rank,
the place it was in and its last words.
"""

import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil

from mindmoe.config import RunConfig
from mindmoe.env import threads_per_rank, worker_environment
from mindmoe.errors import UserError
from mindmoe.launch.follow import follow
from mindmoe.launch.hang import HangWatch, Verdict
from mindmoe.launch.processes import end_all
from mindmoe.launch.ranks import Rank, dump_stacks
from mindmoe.observe.progress import Progress
from mindmoe.train.folder import RunFolder
from mindmoe.train.preflight import finished_steps, preflight

EXIT_FAILED = 1  # a rank was killed, or hung
_POLL = 0.2  # [s]
_LOOK = 1.0  # [s] between two looks at the positions of the ranks
_LINGER = 10.0  # [s] that msrun and its scheduler may need after the last rank has ended
_GRACE = 5.0  # [s] for the other ranks to leave a word after one has failed
_LAST_LINES = 12
_CHATTER = re.compile(r"\[(DEBUG|INFO|WARNING)\] ")  # of MindSpore, which goes on after a stack trace


def launch(config: RunConfig, cards: int) -> int:
    """Runs a resolved config on `cards` processes of this machine; returns 0, or the code of the rank that failed.

    Raises:
        UserError: the run cannot work, or the port is taken.
    """
    preflight(config, cards)
    folder = RunFolder.of(config)
    if (done := finished_steps(config)) >= config.train.steps:
        print(
            f"nothing to do: {done} of {config.train.steps} steps of {folder.path} are done; "
            "raise train.steps to continue"
        )
        return 0
    folder.create(config)
    port = config.launch.port or _free_port()
    _require_free(port)
    ranks = [Rank(number, folder.logs) for number in range(cards)]
    for rank in ranks:
        rank.forget()
    mark = uuid.uuid4().hex
    threads = threads_per_rank(config.launch.threads, cards)
    env = worker_environment(threads, cards, str(Path(sys.executable).parent), mark)
    print(
        f"launching {config.name} on {cards} processes with {threads} threads each; logs in {folder.logs}", flush=True
    )
    hang = None
    try:
        with open(folder.logs / "msrun.log", "w", encoding="utf-8") as output:
            process = subprocess.Popen(
                _command(config, cards, port, folder),
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            with _Forward(ranks, mark):
                hang = _watch(process, config, folder, ranks)
                if hang is not None:
                    _report_hang(hang, ranks)
    finally:
        end_all(mark)
    return EXIT_FAILED if hang is not None else _outcome(folder, ranks)


def _command(config: RunConfig, cards: int, port: int, folder: RunFolder) -> list[str]:
    worker = Path(__file__).with_name("worker.py")
    return [
        sys.executable,
        "-m",
        "mindspore.parallel.cluster.run",
        f"--worker_num={cards}",
        f"--local_worker_num={cards}",
        f"--master_port={port}",
        f"--log_dir={folder.logs}",
        "--join=True",
        f"--cluster_time_out={int(config.launch.cluster_timeout)}",
        "--tail_worker_log=-1",
        str(worker),
        str(folder.logs),
        str(folder.config),
        config.train.device,
    ]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(
                f"launch.port={port} cannot be used: {error.strerror}", "set launch.port=0 to take a free one"
            ) from None


def _watch(process: subprocess.Popen, config: RunConfig, folder: RunFolder, ranks: list[Rank]) -> Verdict | None:
    """Shows records until msrun has ended, a rank has failed or hangs, or time is up; what then runs is to be ended.

    msrun's scheduler may wait for its own time-outs long after a rank has died, so the ranks are watched here.

    Returns:
        The verdict if the ranks hang.
    """
    limit = time.monotonic() + config.launch.timeout if config.launch.timeout else float("inf")
    over = float("inf")
    records, hangs, look = follow(folder.metrics, time.time()), HangWatch(ranks, config.launch), 0.0
    with Progress(config.train.steps, 0, config.name) as show:
        while process.poll() is None and time.monotonic() < min(limit, over):
            for record in next(records):
                show.update(record)
            if any(rank.failed() for rank in ranks) or _first_failure(folder) is not None:
                over = min(over, time.monotonic() + _GRACE)
            elif all(rank.ended() for rank in ranks):
                over = min(over, time.monotonic() + _LINGER)
            elif time.monotonic() >= look:
                look = time.monotonic() + _LOOK
                if verdict := hangs.check(time.monotonic()):
                    return verdict
            time.sleep(_POLL)
        for record in next(records):
            show.update(record)
        if time.monotonic() >= limit:
            show.message(f"launch.timeout={config.launch.timeout:.0f} s is over: the run was ended")
    return None


def _report_hang(verdict: Verdict, ranks: list[Rank]) -> None:
    """Says why the run is ended, with the last lines and the stacks of the ranks to blame."""
    blamed = [rank for rank in ranks if rank.number in verdict.culprits]
    last_lines = {rank.number: _tail(rank.log) for rank in blamed}
    stacks = dump_stacks(ranks)
    print(f"mindmoe: {verdict.reason}; the run was ended. Launch again to resume", file=sys.stderr)
    for rank in blamed:
        print(f"  last lines of {rank.log}:\n{last_lines[rank.number]}", file=sys.stderr)
        if rank.number in stacks:
            print(f"  its stacks:\n{_indented(stacks[rank.number].splitlines())}", file=sys.stderr)


class _Forward:
    """Passes the first SIGINT or SIGTERM on to the ranks as SIGTERM, and ends everything at the second."""

    def __init__(self, ranks: list[Rank], mark: str):
        self.ranks, self.mark, self.asked = ranks, mark, False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> None:
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.asked:
            end_all(self.mark, grace=0.5)
            sys.exit(128 + number)
        self.asked = True
        print("\nstopping: the ranks finish their step and save; press again to end at once", flush=True)
        for rank in self.ranks:
            if (process := rank.process()) is not None:
                with suppress(psutil.Error):
                    process.send_signal(signal.SIGTERM)


def _outcome(folder: RunFolder, ranks: list[Rank]) -> int:
    """The exit code of the launch; says which rank failed first and why."""
    outcomes = {rank: outcome for rank in ranks if (outcome := rank.outcome()) is not None}
    if len(outcomes) == len(ranks) and not any(code for code, _ in outcomes.values()):
        return 0
    if killed := _killed(folder, ranks):
        rank, how = killed
        _complain(rank, f"{how}; the other ranks were ended. Launch again to resume from the newest checkpoint")
        return EXIT_FAILED
    failed = [rank for rank, (code, _) in outcomes.items() if code]
    if not failed:
        missing = [rank.number for rank in ranks if rank not in outcomes]
        log = folder.logs / "msrun.log"
        print(f"mindmoe: ranks {missing} did not finish\n  last lines of {log}:\n{_tail(log)}", file=sys.stderr)
        return EXIT_FAILED
    first = min(failed, key=lambda rank: rank.exit_file.stat().st_mtime_ns)
    code, reason = outcomes[first]
    if code in (130, 143):
        print("stopped as asked; the same command resumes", flush=True)
    elif code == 2:
        print(f"mindmoe: {reason}", file=sys.stderr)
    else:
        _complain(first, f"failed first: {reason or 'see its log'}")
    return code


def _killed(folder: RunFolder, ranks: list[Rank]) -> tuple[Rank, str] | None:
    """The first rank that ended without leaving a code, and how; msrun, which ends the others, notes it."""
    if (first := _first_failure(folder)) is None:
        return None
    pid, code = first
    for rank in ranks:
        with suppress(FileNotFoundError):
            if rank.pid_file.read_text().strip() == str(pid) and rank.outcome() is None:
                return rank, f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    return None


def _first_failure(folder: RunFolder) -> tuple[int, int] | None:
    """The process and the code of the first worker that msrun saw fail, even before it could leave a file."""
    text = (folder.logs / "msrun.log").read_text(encoding="utf-8", errors="replace")
    found = re.search(r"Worker process (\d+) exit with exception. Error code: (-?\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def _complain(rank: Rank, message: str) -> None:
    place = f" (it was in {at})" if (at := rank.position()) is not None and at.phases else ""
    print(
        f"mindmoe: rank {rank.number} {message}{place}\n  last lines of {rank.log}:\n{_tail(rank.log)}", file=sys.stderr
    )


def _tail(path: Path) -> str:
    if not path.exists():
        return f"  ({path} was not written)"
    lines = path.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()
    return _indented([line for line in lines if not _CHATTER.match(line)][-_LAST_LINES:])


def _indented(lines: list[str]) -> str:
    return "\n".join(f"    {line[:240]}" for line in lines)
