"""A rank as its launcher sees it: the small files beside its log, and its process."""

import re
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from mindmoe import position
from mindmoe.position import Position

STACK_SIGNAL = signal.SIGUSR1
"""A worker answers it by writing the stacks of all its threads into its log, even from within a collective."""

_LAST_LINES = 12
_CHATTER = re.compile(r"\[(DEBUG|INFO|WARNING)\] ")  # of MindSpore, which goes on after a stack trace


@dataclass(frozen=True, slots=True)
class Rank:
    """The files of a rank in the log folder of a launch: written by the worker, read by the launcher.

    Attributes:
        number: global rank.
        folder: the log folder.
        local: whether it runs on this node, so that its process number means something here.
    """

    number: int
    folder: Path
    local: bool = True

    @property
    def log(self) -> Path:
        """What it printed; msrun gives the file its name."""
        return self.folder / f"worker_{self.number}.log"

    @property
    def pid_file(self) -> Path:
        """Its process number."""
        return self.folder / f"rank_{self.number}.pid"

    @property
    def exit_file(self) -> Path:
        """Its exit code, and below it one line that says why it failed."""
        return self.folder / f"rank_{self.number}.exit"

    @property
    def position_file(self) -> Path:
        """Where it is."""
        return self.folder / f"rank_{self.number}.position"

    def forget(self) -> None:
        """Removes what an earlier launch left."""
        for path in (self.pid_file, self.exit_file, self.position_file):
            path.unlink(missing_ok=True)

    def position(self) -> Position | None:
        """Where it is, or was when it ended."""
        return position.read(self.position_file)

    def outcome(self) -> tuple[int, str] | None:
        """Its exit code and reason; None if it left none, because it runs or was killed."""
        with suppress(FileNotFoundError, ValueError):
            code, _, reason = self.exit_file.read_text(encoding="utf-8").partition("\n")
            return int(code), reason.strip()
        return None

    def process(self) -> psutil.Process | None:
        """Its living process, None before it starts, after it has ended, and on another node."""
        if not self.local:
            return None
        with suppress(FileNotFoundError, ValueError, psutil.NoSuchProcess):  # an empty file is just being written
            process = psutil.Process(int(self.pid_file.read_text(encoding="utf-8")))
            if process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None

    def ended(self) -> bool:
        """Whether it has run and is over; its process may still be leaving."""
        if self.exit_file.exists():
            return True
        with suppress(FileNotFoundError, ValueError):
            int(self.pid_file.read_text(encoding="utf-8"))
            return self.process() is None
        return False

    def failed(self) -> bool:
        """Whether it has ended badly: with a code, or without leaving one."""
        return self.ended() and (self.outcome() or (1, ""))[0] != 0


def dump_stacks(ranks: Iterable[Rank], patience: float = 3.0) -> dict[int, str]:
    """Makes living ranks write their stacks into their logs; returns by rank what was written within `patience` s."""
    asked = {}
    for rank in ranks:
        if (process := rank.process()) is not None and rank.log.exists():
            asked[rank] = rank.log.stat().st_size
            with suppress(psutil.Error):
                process.send_signal(STACK_SIGNAL)
                process.send_signal(signal.SIGCONT)  # a stopped process takes no other signal first
    deadline = time.monotonic() + patience
    written: dict[int, str] = {}
    while len(written) < len(asked) and time.monotonic() < deadline:
        time.sleep(0.2)
        for rank, size in asked.items():
            if (text := _after(rank.log, size)).rstrip().count("\n") > 1:
                written[rank.number] = text
    time.sleep(0.2)  # the last lines of the last one
    return {rank.number: _after(rank.log, size) for rank, size in asked.items() if rank.number in written}


def tail(path: Path) -> str:
    """The last lines of a log, without what MindSpore reports for information only."""
    if not path.exists():
        return f"    ({path} was not written)"
    lines = path.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()
    return indented([line for line in lines if not _CHATTER.match(line)][-_LAST_LINES:])


def indented(lines: Iterable[str]) -> str:
    """Lines as they stand below a message."""
    return "\n".join(f"    {line[:240]}" for line in lines)


def _after(path: Path, offset: int) -> str:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read().decode("utf-8", errors="replace")
