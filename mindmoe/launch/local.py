"""The ranks of one node: started through msrun, watched, and ended without a trace."""

import os
import re
import socket
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from signal import SIGTERM
from typing import Literal

from mindmoe.host.env import LAUNCH_MARK, LAUNCHER
from mindmoe.host.errors import UserError
from mindmoe.host.files import FileError, open_append, read_bytes, replace_file, shown
from mindmoe.host.processes import birth, end_all, send
from mindmoe.launch.ranks import Rank, tail
from mindmoe.launch.restart import STOPPED

EXIT_FAILED = 1  # a rank was killed, or hung
State = Literal["running", "failing", "ended"]
_LINGER = 10.0  # [s] that msrun and its scheduler may need after the last rank has ended
_MSRUN_OUTPUT = 1 << 24  # [bytes] that msrun prints at most
_GRACE = 5.0  # [s] for the other ranks to leave a word after one has failed


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """What made the ranks of a node end.

    Attributes:
        code: exit code of the run.
        rank: the rank that failed first, -1 if it is none or unknown.
        message: one line.
        details: its last words, below that line.
        time: when it failed, by the clock of the node [s since the epoch].
    """

    code: int
    rank: int
    message: str
    details: str = ""
    time: float = 0.0


class LocalRanks:
    """The processes of one msrun.

    Args:
        command: msrun and its arguments.
        ranks: the ranks that it starts on this node.
        env: environment of msrun; the mark and the name of this process, the launcher, are added to it.
        output: file that takes what msrun prints.
        mark: what every process of it carries in its environment, and no other; empty for one of its own.
    """

    def __init__(
        self, command: Sequence[str], ranks: Sequence[Rank], env: Mapping[str, str], output: Path, mark: str = ""
    ):
        self.command, self.output = list(command), output
        self.mark = mark or f"{uuid.uuid4().hex}:0"
        self.ranks = [replace(rank, mark=self.mark) for rank in ranks]
        self.env = {**env, LAUNCH_MARK: self.mark, LAUNCHER: f"{os.getpid()}:{birth(os.getpid())}"}
        self._process: subprocess.Popen | None = None
        self._over = float("inf")

    def start(self) -> None:
        """Starts msrun, forgetting what an earlier launch left.

        Raises:
            UserError: that cannot be removed.
        """
        end_all(self.mark)  # what a launcher of this node, which has gone, has left
        for rank in self.ranks:
            rank.forget()
        try:
            replace_file(self.output, "")
            output = open_append(self.output)
        except OSError as error:
            raise UserError(
                f"{shown(str(self.output), 300)} cannot be written: {error.strerror}", "remove it"
            ) from None
        with output:
            self._process = subprocess.Popen(
                self.command,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def state(self) -> State:
        """`failing` once a rank has failed, `ended` when nothing more is to be waited for.

        msrun's scheduler may wait for its own time-outs long after a rank has died, so the ranks are watched here.
        """
        assert self._process is not None
        failed = any(rank.failed() for rank in self.ranks) or self._first_failure() is not None
        if failed:
            self._over = min(self._over, time.monotonic() + _GRACE)
        elif all(rank.ended() for rank in self.ranks):
            self._over = min(self._over, time.monotonic() + _LINGER)
        if self._process.poll() is not None or time.monotonic() >= self._over:
            return "ended"
        return "failing" if failed else "running"

    def ask_to_stop(self) -> None:
        """Asks every rank to finish its step and save."""
        for rank in self.ranks:
            if (process := rank.process()) is not None:
                send(process, self.mark, SIGTERM)

    def end(self, grace: float = 5.0) -> None:
        """Ends every process; those that do not go when asked are killed after `grace` seconds."""
        end_all(self.mark, grace)
        if self._process is not None:
            self._process.wait()

    def failure(self) -> Failure | None:
        """Why the ranks ended, None if all have finished."""
        outcomes = {rank: outcome for rank in self.ranks if (outcome := rank.outcome()) is not None}
        if len(outcomes) == len(self.ranks) and not any(code for code, _ in outcomes.values()):
            return None
        if killed := self._killed():
            rank, how = killed
            return _failure_of(rank, EXIT_FAILED, how, time.time())
        failed = [rank for rank, (code, _) in outcomes.items() if code]
        if not failed:
            missing = [rank.number for rank in self.ranks if rank not in outcomes]
            return Failure(
                code=EXIT_FAILED,
                rank=-1,
                message=f"ranks {missing} did not finish",
                details=f"  last lines of {self.output}:\n{tail(self.output)}",
                time=time.time(),
            )
        first = min(failed, key=lambda rank: rank.exit_file.stat().st_mtime_ns)
        code, reason = outcomes[first]
        when = first.exit_file.stat().st_mtime
        if code in STOPPED:
            return Failure(code=code, rank=-1, message="stopped as asked; the same command resumes", time=when)
        if code == 2:
            return Failure(code=code, rank=first.number, message=reason, time=when)
        return _failure_of(first, code, f"failed first: {reason or 'see its log'}", when)

    def _killed(self) -> tuple[Rank, str] | None:
        """The first rank that ended without leaving a code, and how; msrun, which ends the others, notes it."""
        if (first := self._first_failure()) is None:
            return None
        pid, code = first
        for rank in self.ranks:
            if rank.pid() == pid and rank.outcome() is None:
                return rank, f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return None

    def _first_failure(self) -> tuple[int, int] | None:
        """The process and the code of the first worker that msrun saw fail, even before it could leave a file."""
        text = b""
        with suppress(FileError):
            text = read_bytes(self.output, _MSRUN_OUTPUT, follow=False)
        found = re.search(rb"Worker process (\d{1,10}) exit with exception. Error code: (-?\d{1,4})", text)
        return (int(found[1]), int(found[2])) if found else None


def free_port(address: str) -> int:
    """A port that nobody listens on; an empty address stands for all of this node."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return probe.getsockname()[1]


def keep_logs(logs: Path) -> None:
    """Moves the logs of an attempt that failed into a folder of their own, for the next starts new ones."""
    old = [*logs.glob("*.log"), *logs.glob("rank_*.*")]
    if not old:
        return
    number = 1
    while os.path.lexists(aside := logs / f"attempt-{number:03d}"):
        number += 1
    aside.mkdir()
    for path in old:
        os.replace(path, aside / path.name)


def _failure_of(rank: Rank, code: int, how: str, when: float) -> Failure:
    place = f" (it was in {at})" if (at := rank.position()) is not None and at.phases else ""
    return Failure(
        code=code,
        rank=rank.number,
        message=f"rank {rank.number} {how}{place}",
        details=f"  last lines of {rank.log}:\n{tail(rank.log)}",
        time=when,
    )
