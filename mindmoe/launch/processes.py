"""The processes of one launch: found by the mark in their environment, signalled, and never left behind."""

import contextlib
import signal
import time

import psutil

from mindmoe.env import LAUNCH_MARK


def marked(mark: str) -> list[psutil.Process]:
    """Every living process of the launch."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(LAUNCH_MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def end_all(mark: str, grace: float = 5.0) -> None:
    """Ends every process of the launch: asks first, and kills what is left after `grace` seconds."""
    for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, grace)):
        remaining = marked(mark)
        for process in remaining:
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)
        deadline = time.monotonic() + patience
        while remaining and time.monotonic() < deadline:
            time.sleep(0.1)
            remaining = marked(mark)
        if not remaining:
            return
