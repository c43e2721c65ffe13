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

from mindmoe.config import RunConfig
from mindmoe.env import threads_per_rank, worker_environment
from mindmoe.errors import UserError
from mindmoe.launch.follow import follow
from mindmoe.launch.processes import end_all, marked
from mindmoe.observe.progress import Progress
from mindmoe.train.folder import RunFolder
from mindmoe.train.preflight import preflight

_POLL = 0.2  # [s]
_LINGER = 20.0  # [s] that msrun and its scheduler may need after the last rank has ended


def launch(config: RunConfig, cards: int) -> int:
    """Runs a resolved config on `cards` processes of this machine; returns 0, or the code of the rank that failed.

    Raises:
        UserError: the run cannot work, or the port is taken.
    """
    preflight(config, cards)
    folder = RunFolder.of(config)
    folder.create(config)
    port = config.launch.port or _free_port()
    _require_free(port)
    for stale in (*folder.logs.glob("rank_*.exit"), *folder.logs.glob("rank_*.pid")):
        stale.unlink()
    mark = uuid.uuid4().hex
    threads = threads_per_rank(config.launch.threads, cards)
    env = worker_environment(threads, cards, str(Path(sys.executable).parent), mark)
    print(f"launching {config.name} on {cards} processes with {threads} threads each; logs in {folder.logs}",
          flush=True)
    try:
        with open(folder.logs / "msrun.log", "w", encoding="utf-8") as output:
            process = subprocess.Popen(_command(config, cards, port, folder), env=env, stdin=subprocess.DEVNULL,
                                       stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
            with _Forward(folder, mark):
                _watch(process, config, folder, cards)
    finally:
        end_all(mark)
    return _outcome(folder, cards, process.returncode)


def _command(config: RunConfig, cards: int, port: int, folder: RunFolder) -> list[str]:
    worker = Path(__file__).with_name("worker.py")
    return [
        sys.executable, "-m", "mindspore.parallel.cluster.run",
        f"--worker_num={cards}", f"--local_worker_num={cards}", f"--master_port={port}",
        f"--log_dir={folder.logs}", "--join=True", f"--cluster_time_out={int(config.launch.cluster_timeout)}",
        "--tail_worker_log=-1", str(worker), str(folder.logs), str(folder.config), config.train.device,
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
            raise UserError(f"launch.port={port} cannot be used: {error.strerror}",
                            "set launch.port=0 to take a free one") from None


def _watch(process: subprocess.Popen, config: RunConfig, folder: RunFolder, cards: int) -> None:
    """Shows records until msrun has ended, a rank has ended badly, or time is up."""
    deadline = time.monotonic() + config.launch.timeout if config.launch.timeout else float("inf")
    ended_at = float("inf")
    records = follow(folder.metrics, time.time())
    with Progress(config.train.steps, 0, config.name) as show:
        while process.poll() is None:
            for record in next(records):
                show.update(record)
            now = time.monotonic()
            if now > deadline:
                show.message(f"launch.timeout={config.launch.timeout:.0f} s is over: ending the run")
                return
            if ended_at == float("inf") and len(list(folder.logs.glob("rank_*.exit"))) == cards:
                ended_at = now
            if now > ended_at + _LINGER:
                return
            time.sleep(_POLL)
        for record in next(records):
            show.update(record)


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


def _outcome(folder: RunFolder, cards: int, returncode: int | None) -> int:
    """The exit code of the launch; says which rank failed first and why."""
    codes: dict[int, tuple[int, str, float]] = {}
    for rank in range(cards):
        status = folder.logs / f"rank_{rank}.exit"
        if status.exists():
            code, reason, *_ = [*status.read_text(encoding="utf-8").split("\n", 1), ""]
            codes[rank] = (int(code), reason.strip(), status.stat().st_mtime)
    if len(codes) == cards and all(code == 0 for code, _, _ in codes.values()):
        return 0
    failed = sorted((time_, rank, code, reason) for rank, (code, reason, time_) in codes.items() if code)
    if not failed:
        lost = _lost_rank(folder, cards, codes)
        print(f"mindmoe: {lost}", file=sys.stderr)
        return 1
    _, rank, code, reason = failed[0]
    if code in (130, 143):
        print("stopped as asked; the same command resumes", flush=True)
        return code
    log = folder.logs / f"worker_{rank}.log"
    if code == 2:
        print(f"mindmoe: {reason}", file=sys.stderr)
    else:
        print(f"mindmoe: rank {rank} failed first: {reason or 'see its log'}\n  last lines of {log}:\n"
              + _tail(log), file=sys.stderr)
    return code


def _lost_rank(folder: RunFolder, cards: int, codes: dict[int, tuple[int, str, float]]) -> str:
    """What is known when no rank left a reason: one was killed from outside, or never came up."""
    text = (folder.logs / "msrun.log").read_text(encoding="utf-8", errors="replace")
    match = re.search(r"Worker process (\d+) exit with exception. Error code: (-?\d+)", text)
    pids = {path.read_text().strip(): path.stem for path in folder.logs.glob("rank_*.pid")}
    if match:
        who = pids.get(match[1], f"process {match[1]}").replace("_", " ")
        how = f"was killed by signal {-int(match[2])}" if int(match[2]) < 0 else f"ended with code {match[2]}"
        rank = who.removeprefix("rank ")
        return (f"{who} {how}; the other ranks were ended. Launch again to resume from the newest checkpoint.\n"
                f"  last lines of its log:\n" + _tail(folder.logs / f"worker_{rank}.log"))
    missing = [rank for rank in range(cards) if rank not in codes]
    return (f"ranks {missing} did not finish; see {folder.logs}/msrun.log and worker_*.log:\n"
            + _tail(folder.logs / "msrun.log"))


def _tail(path: Path, lines: int = 8) -> str:
    if not path.exists():
        return f"  ({path} was not written)"
    text = path.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()[-lines:]
    return "\n".join(f"    {line[:240]}" for line in text)
