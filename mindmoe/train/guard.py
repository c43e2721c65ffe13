"""Signals: the first asks the run to save and stop, the second ends the process at once."""

import os
import signal
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Watches SIGTERM and SIGINT while it is entered."""

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.signal:
            os._exit(128 + number)  # nothing may run any more: an unfinished save is ignored by the next start
        self.signal = number

    @property
    def asked(self) -> bool:
        """Whether a signal came."""
        return self.signal != 0

    @property
    def exit_code(self) -> int:
        """The shell's convention for a process that a signal ended."""
        return 128 + (self.signal or signal.SIGTERM)
