"""The console: aligned lines, the live panel, and when which is shown."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from mindmoe.observe.progress import Progress, duration


@pytest.fixture(autouse=True)
def no_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CI", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=80)


def shown(where: Console) -> str:
    assert isinstance(where.file, io.StringIO)
    return where.file.getvalue()


def test_lines_are_aligned_and_fit_80_columns(records: SimpleNamespace) -> None:
    where = console(terminal=False)
    with Progress(1_000_000, 0, "run", where) as progress:
        for step in (1, 2, 999, 1_000_000):
            progress.update(records.train(step, tokens_per_s=1_234_567.0, loss=12.3456, grad_norm=123.4))
        progress.update(records.eval(1_000_000))
        progress.update(records.routing(1_000_000))
    title, header, *lines, valid = shown(where).splitlines()
    assert title == "run: 1000000 steps"
    assert header.split() == ["step", "loss", "grad", "lr", "tok/s", "mfu", "hfu", "max_vio", "cv", "eta"]
    assert {len(line) for line in (header, *lines)} == {len(header)} and len(header) <= 80
    assert lines[0].split()[:8] == ["1", "12.3456", "123", "3.00e-04", "1,234,567", "30.0%", "40.0%", "1.50"]
    assert (
        valid.startswith("valid loss 4.2500 at step 1000000 (unigram 6.25, bigram 4.50)") and "1.500 bits/byte" in valid
    )


def test_eta_is_the_time_of_the_remaining_steps(records: SimpleNamespace) -> None:
    where = console(terminal=False)
    with Progress(1000, 0, "run", where) as progress:
        progress.update(records.train(1, step_seconds=30.0))  # the first step compiles: all that is known so far
        for step in range(2, 101):
            progress.update(records.train(step))  # the records are half a second apart
    lines = [line for line in shown(where).splitlines() if line.split()[0].isdigit()]
    assert lines[0].split()[-1] == duration(30.0 * 999)
    assert lines[-1].split()[-1] == "7:30" == duration(0.5 * 900)


def test_what_is_missing_or_not_finite(records: SimpleNamespace) -> None:
    where = console(terminal=False)
    with Progress(10, 0, "run", where) as progress:
        progress.update(records.train(1, moe=False, loss=None, mfu=None, hfu=None, grad_norm=float("inf")))
        progress.update(records.eval(1, loss=None, bits_per_byte=None, unigram_entropy=None))
    line = shown(where).splitlines()[2].split()
    assert line[1] == "nan" and line[2] == "inf" and line[5:9] == ["-"] * 4


def test_messages_are_text_not_markup() -> None:
    where = console(terminal=False)
    with Progress(10, 0, "[bold]x", where) as progress:
        progress.message("[red]saved[/red] :smile: " + "long " * 40)
        progress.update({"kind": "event", "step": 1, "time": 0.0, "event": "nan", "message": "[/] loss [nan]"})
    assert shown(where) == "[red]saved[/red] :smile: " + "long " * 40 + "\n[/] loss [nan]\n"


@pytest.mark.parametrize("variable", ["CI", "NO_COLOR"])
def test_lines_in_ci_and_without_colour(
    variable: str, monkeypatch: pytest.MonkeyPatch, records: SimpleNamespace
) -> None:
    monkeypatch.setenv(variable, "1")
    where = console(terminal=True)
    with Progress(10, 0, "run", where) as progress:
        progress.update(records.train(1))
    assert "\x1b" not in shown(where) and shown(where).splitlines()[2].split()[0] == "1"


def test_the_panel_shows_everything_and_fits_80_columns(records: SimpleNamespace) -> None:
    where = console(terminal=True)
    with Progress(40, 0, "[run]", where) as progress:
        progress.update(records.event(0, "start", "starting"))
        for step in range(1, 41):
            progress.update(records.train(step, tokens_per_s=1_234_567.0, grad_norm=12345.678))
        progress.update(records.eval(40))
    plain = Console(width=80, file=io.StringIO())
    plain.print(progress._panel())
    text = shown(plain)
    for part in ("[run]", "40/40", "eta 0:00", "loss 4.1000", "1,234,567", "30.0%", "max_vio 0.53", "load cv 0.30",
                 "valid loss 4.2500", "unigram 6.25"):  # fmt: skip
        assert part in text, part
    assert max(map(len, text.splitlines())) == 80
    assert "starting" in shown(where) and "40/40" in shown(where)


def test_the_panel_is_not_redrawn_for_every_step(records: SimpleNamespace) -> None:
    where = console(terminal=True)
    with Progress(10_000, 0, "run", where) as progress:
        for step in range(1, 2001):
            progress.update(records.train(step))
    assert shown(where).count("eta") < 100


@pytest.mark.parametrize(
    "seconds, text", [(0, "0:00"), (59.6, "1:00"), (3723, "1:02:03"), (172800, "2d 0h"), (-5, "0:00")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
