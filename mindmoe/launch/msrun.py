"""`mindmoe launch`: starts the ranks of a run on this machine through msrun, shows progress, and cleans up.

The launcher imports no MindSpore. It refuses a run that cannot work before any process starts, follows the
metrics file for the display, passes signals on, and names the rank that failed first with its reason.
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
from mindmoe.launch.processes import end_all, marked
from mindmoe.observe.progress import Progress
from mindmoe.train.folder import RunFolder
from mindmoe.train.preflight import finished_steps, preflight

_POLL = 0.2  # [s]
_LINGER = 10.0  # [s] that msrun and its scheduler may need after the last rank has ended
_GRACE = 5.0  # [s] for the other ranks to leave a word after one has failed


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
    for stale in (*folder.logs.glob("rank_*.exit"), *folder.logs.glob("rank_*.pid")):
        stale.unlink()
    mark = uuid.uuid4().hex
    threads = threads_per_rank(config.launch.threads, cards)
    env = worker_environment(threads, cards, str(Path(sys.executable).parent), mark)
    print(
        f"launching {config.name} on {cards} processes with {threads} threads each; logs in {folder.logs}", flush=True
    )
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
            with _Forward(folder, mark):
                _watch(process, config, folder, cards)
    finally:
        end_all(mark)
    return _outcome(folder, cards)


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


def _watch(process: subprocess.Popen, config: RunConfig, folder: RunFolder, cards: int) -> None:
    """Shows records until msrun has ended, a rank has failed, or time is up; what then still runs is to be ended.

    msrun's scheduler may wait for its own time-outs long after a rank has died, so the ranks are watched here.
    """
    limit = time.monotonic() + config.launch.timeout if config.launch.timeout else float("inf")
    over = float("inf")
    records = follow(folder.metrics, time.time())
    with Progress(config.train.steps, 0, config.name) as show:
        while process.poll() is None and time.monotonic() < min(limit, over):
            for record in next(records):
                show.update(record)
            ended, failed = _ended_ranks(folder)
            if ended == cards:
                over = min(over, time.monotonic() + _LINGER)
            elif failed:
                over = min(over, time.monotonic() + _GRACE)
            time.sleep(_POLL)
        for record in next(records):
            show.update(record)
        if time.monotonic() >= limit:
            show.message(f"launch.timeout={config.launch.timeout:.0f} s is over: the run was ended")


def _ended_ranks(folder: RunFolder) -> tuple[int, int]:
    """How many ranks have ended, and how many of them badly: with a code, or without leaving one."""
    ended = failed = 0
    for path in folder.logs.glob("rank_*.pid"):
        status = path.with_suffix(".exit")
        if status.exists():
            text = status.read_text(encoding="utf-8")
            ended += 1
            failed += not text.startswith("0\n")
        elif (pid := path.read_text()) and not psutil.pid_exists(int(pid)):  # empty: it is just being written
            ended += 1
            failed += 1
    return ended, failed


class _Forward:
    """Passes the first SIGINT or SIGTERM on to the ranks as SIGTERM, and ends everything at the second."""

    def __init__(self, folder: RunFolder, mark: str):
        self.folder, self.mark, self.asked = folder, mark, False
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
        ranks = {int(path.read_text()) for path in self.folder.logs.glob("rank_*.pid")}
        for process in marked(self.mark):
            if process.pid in ranks:
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)


def _outcome(folder: RunFolder, cards: int) -> int:
    """The exit code of the launch; says which rank failed first and why."""
    codes: dict[int, tuple[int, str]] = {}
    for status in sorted(folder.logs.glob("rank_*.exit"), key=lambda path: path.stat().st_mtime):
        first_line, _, reason = status.read_text(encoding="utf-8").partition("\n")
        codes[int(status.stem.removeprefix("rank_"))] = int(first_line), reason.strip()
    failed = [rank for rank, (code, _) in codes.items() if code]
    if not failed and len(codes) == cards:
        return 0
    text = (folder.logs / "msrun.log").read_text(encoding="utf-8", errors="replace")
    first = re.search(r"Worker process (\d+) exit with exception. Error code: (-?\d+)", text)
    pids = {path.read_text().strip(): int(path.stem.removeprefix("rank_")) for path in folder.logs.glob("rank_*.pid")}
    if first and first[1] in pids and pids[first[1]] not in codes:
        rank = pids[first[1]]
        how = f"was killed by signal {-int(first[2])}" if int(first[2]) < 0 else f"ended with code {first[2]}"
        _complain(
            f"rank {rank} {how}; the other ranks were ended. Launch again to resume from the newest checkpoint",
            folder.logs / f"worker_{rank}.log",
        )
        return 1
    if not failed:
        missing = [rank for rank in range(cards) if rank not in codes]
        _complain(f"ranks {missing} did not finish", folder.logs / "msrun.log")
        return 1
    code, reason = codes[failed[0]]
    if code in (130, 143):
        print("stopped as asked; the same command resumes", flush=True)
    elif code == 2:
        print(f"mindmoe: {reason}", file=sys.stderr)
    else:
        _complain(f"rank {failed[0]} failed first: {reason or 'see its log'}", folder.logs / f"worker_{failed[0]}.log")
    return code


def _complain(message: str, log: Path) -> None:
    print(f"mindmoe: {message}\n  last lines of {log}:\n{_tail(log)}", file=sys.stderr)


def _tail(path: Path, lines: int = 8) -> str:
    if not path.exists():
        return f"  ({path} was not written)"
    text = path.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()[-lines:]
    return "\n".join(f"    {line[:240]}" for line in text)
