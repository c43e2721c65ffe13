"""The processes of one launch: known by the mark in their environment, signalled, and never left behind.

A mark is `SESSION:NODE`: the session is one start of a run on all its nodes, the node is the launcher that started the
process. A process number proves nothing, since numbers are used again and a file may name any; the environment that a
process was started with does, and only processes of this user show it.
"""

import contextlib
import os
import signal
import time
from functools import cache
from pathlib import Path

import psutil

from mindmoe.host.env import LAUNCH_FOLDER, LAUNCH_MARK


def carries(process: psutil.Process, mark: str) -> bool:
    """Whether a living process carries a mark, or any mark of a session."""
    with contextlib.suppress(psutil.Error):
        found = process.environ().get(LAUNCH_MARK, "")
        return (found == mark or found.startswith(f"{mark}:")) and process.status() != psutil.STATUS_ZOMBIE
    return False


def marked(mark: str, folder: Path | None = None) -> list[psutil.Process]:
    """Every living process of this machine that carries a mark.

    Args:
        mark: of one launcher, or a session alone for those of all its launchers.
        folder: a run folder: only processes that were started for it, since whoever copied a run copied its session.
    """
    found = [process for process in psutil.process_iter() if carries(process, mark)]
    return [process for process in found if folder is None or _is_for(process, folder)]


def is_rank(process: psutil.Process) -> bool:
    """Whether msrun started a process as a rank."""
    with contextlib.suppress(psutil.Error):
        return process.environ().get("MS_ROLE") == "MS_WORKER"
    return False


def _is_for(process: psutil.Process, folder: Path) -> bool:
    with contextlib.suppress(psutil.Error, OSError, KeyError):
        return os.path.samefile(process.environ()[LAUNCH_FOLDER], folder)
    return False


def send(process: psutil.Process, mark: str, *numbers: signal.Signals) -> None:
    """Sends signals to a process that carries a mark, and to no other that has taken its number since."""
    with contextlib.suppress(psutil.Error):
        for number in numbers:
            if carries(process, mark):
                process.send_signal(number)


def end_all(mark: str, grace: float = 5.0, folder: Path | None = None) -> None:
    """Ends every process with a mark: asks first, and kills what is left after `grace` seconds."""
    for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, grace)):
        remaining = marked(mark, folder)
        for process in remaining:
            send(process, mark, number)
        deadline = time.monotonic() + patience
        while remaining and time.monotonic() < deadline:
            time.sleep(0.1)
            remaining = marked(mark, folder)
        if not remaining:
            return


def birth(pid: int) -> str:
    """When a living process was started, in ticks since this machine booted; empty if there is none, or no /proc.

    With the process number it tells a process from a later one of the same number.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return "" if fields[0] in (b"Z", b"X") else fields[19].decode()
    except (OSError, IndexError):
        return ""


@cache
def kernel() -> str:
    """Names the boot of this machine and the space that its process numbers belong to, which containers have each."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def launcher_gone(launcher: str) -> bool:
    """Whether the process that `LAUNCHER` names, as `PID:BIRTH`, has ended."""
    pid, _, born = launcher.partition(":")
    return bool(born) and birth(int(pid)) != born
