"""What a run shows on the console: a live panel in a terminal, aligned lines anywhere else.

Lines are also chosen in CI and when NO_COLOR is set. Both fit 80 columns.
"""

import os
from collections import deque
from time import monotonic
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_WINDOW = 100  # records that the remaining time is estimated from
_REFRESH = 0.1  # [s] between two drawings of the panel
_HEADER_EVERY = 40  # lines
_COLUMNS = (
    ("step", 7),
    ("loss", 7),
    ("grad", 7),
    ("lr", 8),
    ("tok/s", 9),
    ("mfu", 6),
    ("hfu", 6),
    ("max_vio", 7),
    ("cv", 6),
    ("eta", 8),
)


class Progress:
    """Shows the records of a run as they come. Use it as a context manager.

    Args:
        total_steps: steps of the whole run.
        start_step: steps done before.
        title: name of the run.
        console: where to show it; by default standard output.
    """

    def __init__(self, total_steps: int, start_step: int, title: str, console: Console | None = None):
        self._total, self._step, self._title = total_steps, start_step, title
        self._console = console or Console()
        self._clock: deque[tuple[float, int]] = deque(maxlen=_WINDOW)
        self._train: dict[str, Any] = {}
        self._eval: dict[str, Any] = {}
        self._lines = 0
        self._drawn = 0.0
        self._live: Live | None = None
        if self._console.is_terminal and not self._console.is_dumb_terminal and not _wants_lines():
            self._live = Live(console=self._console, auto_refresh=False)

    def __enter__(self) -> "Progress":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.update(self._panel())
            self._live.stop()

    def update(self, record: dict[str, Any]) -> None:
        """Shows a train, eval or event record; other kinds are not for the console."""
        kind = record["kind"]
        if kind == "event":
            self.message(record["message"])
        elif kind == "eval":
            self._eval = record
            if self._live is None:
                self.message(f"valid {_evaluation(record)}")
        elif kind == "train":
            self._train, self._step = record, record["step"]
            self._clock.append((record["time"], record["step"]))
            if self._live is None:
                self._line()
        if self._live is not None and (monotonic() - self._drawn >= _REFRESH or self._step >= self._total):
            self._live.update(self._panel(), refresh=True)
            self._drawn = monotonic()

    def message(self, text: str) -> None:
        """Shows a sentence above the panel or between the lines."""
        self._console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def _eta(self) -> str:
        """Time left at the pace of the last records, everything between steps included."""
        if len(self._clock) > 1 and self._clock[-1][1] > self._clock[0][1]:
            pace = (self._clock[-1][0] - self._clock[0][0]) / (self._clock[-1][1] - self._clock[0][1])
        else:
            pace = self._train.get("step_seconds") or 0.0
        return duration(pace * (self._total - self._step))

    def _line(self) -> None:
        """One aligned line; the names of its columns are repeated now and then."""
        if self._lines % _HEADER_EVERY == 0:
            names = " ".join(f"{name:>{width}}" for name, width in _COLUMNS)
            self.message(f"{self._title}: {self._total} steps\n{names}" if not self._lines else names)
        self._lines += 1
        figures = {**_figures(self._train), "step": str(self._step), "eta": self._eta()}
        self.message(" ".join(f"{figures[name]:>{width}}" for name, width in _COLUMNS))

    def _panel(self) -> Panel:
        figures = _figures(self._train)
        bar = Table.grid(padding=(0, 2), expand=True)
        bar.add_column(ratio=1)
        done = Text(f"{self._step}/{self._total}", "bold")
        bar.add_row(ProgressBar(total=self._total, completed=self._step), done, f"eta {self._eta()}")
        pairs = [("loss", "loss"), ("grad", "grad"), ("lr", "lr"), ("tok/s", "tok/s"), ("mfu", "mfu"), ("hfu", "hfu")]
        rows = [_pairs([(label, figures[key]) for label, key in pairs])]
        if "max_vio" in self._train:
            rows.append(_pairs([("experts: max_vio", figures["max_vio"]), ("load cv", figures["cv"])]))
        if self._eval:
            rows.append(_pairs([("valid", _evaluation(self._eval))]))
        return Panel(Group(bar, *rows), title=Text(self._title, "bold"), title_align="left", border_style="cyan")


def duration(seconds: float) -> str:
    """A duration as people write it: 0:42, 1:02:33, 3d 4h."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    if hours >= 48:
        return f"{hours // 24}d {hours % 24}h"
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def _wants_lines() -> bool:
    return any(os.environ.get(name) for name in ("CI", "NO_COLOR"))


def _number(record: dict[str, Any], key: str, form: str) -> str:
    """A figure of a record: `-` if it has none, `nan` if it is not a finite number (null in the file)."""
    if key not in record:
        return "-"
    value = record[key]
    if value is None:
        return "-" if key in ("mfu", "hfu") else "nan"
    return format(value, form)


def _figures(train: dict[str, Any]) -> dict[str, str]:
    return {
        "loss": _number(train, "loss", ".4f"),
        "grad": _number(train, "grad_norm", ".3g"),
        "lr": _number(train, "lr", ".2e"),
        "tok/s": _number(train, "tokens_per_s", ",.0f"),
        "mfu": _number(train, "mfu", ".1%"),
        "hfu": _number(train, "hfu", ".1%"),
        "max_vio": _number(train, "max_vio", ".2f"),
        "cv": _number(train, "load_cv", ".2f"),
    }


def _evaluation(record: dict[str, Any]) -> str:
    """The figures of an evaluation, the entropies of the same tokens beside the loss."""
    text = f"loss {_number(record, 'loss', '.4f')} at step {record['step']}"
    if record.get("unigram_entropy") is not None:
        unigram, bigram = _number(record, "unigram_entropy", ".2f"), _number(record, "bigram_entropy", ".2f")
        text += f" (unigram {unigram}, bigram {bigram})"
    text += f", perplexity {_number(record, 'perplexity', '.4g')}"
    return text + (f", {record['bits_per_byte']:.3f} bits/byte" if record.get("bits_per_byte") is not None else "")


def _pairs(pairs: list[tuple[str, str]]) -> Text:
    """Label and value, label and value, in one line."""
    line = Text()
    for label, value in pairs:
        line.append("   " if line else "").append(label, "dim").append(" ").append(value, "bold")
    return line
