"""Says what a long data job is doing: a live bar on a terminal, a line now and then elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

_LINE_EVERY = 5.0  # [s] between lines when the output is no terminal


def human_bytes(count: float) -> str:
    """A size for reading: `12.3 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def human_seconds(seconds: float) -> str:
    """A duration for reading: `4.2 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class ByteProgress:
    """Progress through a number of bytes, with speed and the time left; a context manager.

    Args:
        console: where to show it.
        title: what is going on.
        total: [bytes] of the whole job.
    """

    def __init__(self, console: Console, title: str, total: int):
        self._console, self._title, self._total = console, title, max(total, 1)
        self._start = self._last_line = time.monotonic()
        self._live = console.is_terminal and not console.no_color
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[detail]}"),
        )
        self._bar = Progress(*columns, TextColumn("ETA"), TimeRemainingColumn(), console=console, transient=True)
        self._task = self._bar.add_task(title, total=self._total, detail="")

    def update(self, done: int, detail: str) -> None:
        """Shows that `done` bytes are through; `detail` is appended."""
        elapsed = max(time.monotonic() - self._start, 1e-9)
        speed = f"{human_bytes(done / elapsed)}/s"
        if self._live:
            self._bar.update(self._task, completed=done, detail=f"{speed}, {detail}")
        elif time.monotonic() - self._last_line > _LINE_EVERY:
            self._last_line = time.monotonic()
            left = human_seconds(elapsed * (self._total - done) / done) if done else "unknown"
            share = f"{human_bytes(done)} of {human_bytes(self._total)}"
            self._console.print(f"  {self._title}: {share}, {speed}, {detail}, ETA {left}", markup=False)

    def __enter__(self) -> "ByteProgress":
        if self._live:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._bar.stop()
