"""A rank as its launcher sees it: the small files beside its log, and its process."""

import os
import re
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import psutil

from mindmoe.host import position
from mindmoe.host.env import LAUNCH_MARK, launcher
from mindmoe.host.errors import UserError
from mindmoe.host.files import FileError, open_regular, read_text, replace_file, shown
from mindmoe.host.position import Position
from mindmoe.host.processes import carries, is_rank, launcher_gone, marked, send
from mindmoe.train.guard import EXIT_ORPHANED

STACK_SIGNAL = signal.SIGUSR1
"""A worker answers it by writing the stacks of all its threads into its log, even from within a collective."""

_LAST_LINES = 12
_TAIL = 1 << 18  # [bytes] of a log that its last lines are looked for in
_CODE = re.compile(r"(-?[0-9]{1,3})\n(.*)", re.DOTALL)
_CHATTER = re.compile(r"\[(DEBUG|INFO|WARNING)\] ")  # of MindSpore, which goes on after a stack trace


@dataclass(frozen=True, slots=True)
class Rank:
    """The files of a rank in the log folder of a launch: written by the worker, read by the launcher.

    Attributes:
        number: global rank.
        folder: the log folder.
        mark: what its process carries in its environment; empty where it runs on another node. The file with its
            process number alone names no process.
    """

    number: int
    folder: Path
    mark: str = ""

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

    def begin(self) -> None:
        """Leaves the number of this process, which is the rank, and records from now on where it is."""
        position.record_in(self.position_file)
        replace_file(self.pid_file, str(os.getpid()))

    def leave(self, code: int, reason: str) -> None:
        """Leaves the exit code of this process, and why it failed."""
        replace_file(self.exit_file, f"{code}\n{reason}\n")

    def forget(self) -> None:
        """Removes what an earlier launch left, and a log that is a link, which would be written through.

        Raises:
            UserError: something else than a file lies there.
        """
        paths = [self.pid_file, self.exit_file, self.position_file, *([self.log] if self.log.is_symlink() else [])]
        for path in paths:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise UserError(
                    f"{shown(str(path), 300)} of an earlier launch cannot be removed: {error.strerror}", "remove it"
                ) from None

    def position(self) -> Position | None:
        """Where it is, or was when it ended."""
        return position.read(self.position_file)

    def outcome(self) -> tuple[int, str] | None:
        """Its exit code and reason; None if it left none, because it runs or was killed."""
        with suppress(FileError):
            if found := _CODE.match(read_text(self.exit_file, follow=False)):
                return int(found[1]), found[2].strip()
        return None

    def pid(self) -> int | None:
        """The process number that it left; None before it has."""
        with suppress(FileError, ValueError):
            text = read_text(self.pid_file, follow=False)
            return int(text) if len(text) < 20 else None
        return None

    def process(self) -> psutil.Process | None:
        """Its living process, None before it starts, after it has ended, and on another node."""
        with suppress(psutil.NoSuchProcess, OverflowError, ValueError):
            if self.mark and (pid := self.pid()) is not None and carries(process := psutil.Process(pid), self.mark):
                return process
        return None

    def ended(self) -> bool:
        """Whether it has run and is over; its process may still be leaving."""
        if os.path.lexists(self.exit_file):
            return True
        return self.pid() is not None and self.process() is None

    def failed(self) -> bool:
        """Whether it has ended badly: with a code, or without leaving one."""
        return self.ended() and (self.outcome() or (1, ""))[0] != 0


def leave_with_launcher(after_ranks: bool) -> None:
    """Ends this process, which has nothing to save, once its launcher has gone.

    Args:
        after_ranks: only when no rank of the launch lives on this machine any more.
    """

    def ranks_live() -> bool:
        found = marked(os.environ.get(LAUNCH_MARK, ""))
        return any(is_rank(process) for process in found)

    def watch() -> None:
        while not launcher_gone(launcher()) or (after_ranks and ranks_live()):
            time.sleep(1.0)
        os._exit(EXIT_ORPHANED)

    Thread(target=watch, daemon=True).start()


def dump_stacks(ranks: Iterable[Rank], patience: float = 3.0) -> dict[int, str]:
    """Makes living ranks write their stacks into their logs; returns by rank what was written within `patience` s."""
    asked = {}
    for rank in ranks:
        if (process := rank.process()) is not None and rank.log.exists():
            asked[rank] = rank.log.stat().st_size
            send(process, rank.mark, STACK_SIGNAL, signal.SIGCONT)  # a stopped process takes no other signal first
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
    try:
        with open_regular(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            lines = file.read(_TAIL).decode("utf-8", errors="replace").rstrip().splitlines()
    except FileError as error:
        return f"    ({error.message})"
    return indented([line for line in lines if not _CHATTER.match(line)][-_LAST_LINES:])


def indented(lines: Iterable[str]) -> str:
    """Lines as they stand below a message."""
    return "\n".join(f"    {line[:240]}" for line in lines)


def _after(path: Path, offset: int) -> str:
    with open_regular(path) as file:
        file.seek(offset)
        return file.read(_TAIL).decode("utf-8", errors="replace")
