"""What ends a run early: a signal asks it to save and stop, a second one ends the process at once."""

import os
import signal
from types import FrameType
from typing import Protocol

EXIT_ORPHANED = 4  # the launcher of a rank has gone
EXIT_OVERTAKEN = 5  # another start has taken the run folder, or wants it


class StopSource(Protocol):
    """What else may ask: it gives the exit code to stop with, 0 for none."""

    code: int


def stop_signals() -> list[signal.Signals]:
    """The signals that ask a run to save and stop; SIGHUP, of a terminal that closes, unless it is ignored (nohup)."""
    # nohup starts a process with SIGHUP ignored; a handler of our own would undo that.
    hangup = [] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGTERM, signal.SIGINT, *hangup]


class StopRequest:
    """Watches the signals while it is entered.

    Attributes:
        signal: the first that came, 0 before.
        watch: what else may ask.
    """

    def __init__(self) -> None:
        self.signal = 0
        self.watch: StopSource | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopRequest":
        # The handler only notes the signal: a step under way is finished, saved, and left together with all other
        # ranks.
        self._before = {number: signal.signal(number, self._handle) for number in stop_signals()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.signal and number != signal.SIGHUP:  # a terminal that closes sends it twice
            os._exit(128 + number)  # nothing may run any more: an unfinished save is ignored by the next start
        self.signal = self.signal or number

    @property
    def asked(self) -> bool:
        """Whether this process shall stop."""
        return self.exit_code != 0

    @property
    def exit_code(self) -> int:
        """The code to stop with: for a signal by the shell's convention, 0 if nobody has asked."""
        if self.signal:
            return 128 + self.signal
        return self.watch.code if self.watch is not None else 0
