"""`mindmoe report RUN`: the story of a run as one HTML file that needs nothing else."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from mindmoe.host.errors import UserError
from mindmoe.observe import charts
from mindmoe.observe.progress import duration
from mindmoe.observe.report_template import PAGE
from mindmoe.observe.story import Columns, Story, read_story

_MAX_EVENTS = 300
_MAX_CONFIG = 200_000  # [characters]
_TAIL = 20  # last training records that the final training loss is the mean of


@dataclass(frozen=True, slots=True)
class Tile:
    """One headline figure."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart, or an intention to draw one."""

    title: str
    note: str
    svg: str
    wide: bool = False


@dataclass(frozen=True, slots=True)
class State:
    """How the run stands."""

    label: str
    colour: str
    text: str


def write_report(run_dir: Path, out: Path | None = None) -> Path:
    """Writes the report of a run, live or dead, and returns its path.

    Args:
        run_dir: the folder of the run.
        out: the file to write; by default report.html in that folder.

    Raises:
        UserError: it is no run folder, or the file cannot be written.
    """
    page = render(read_story(run_dir))
    out = out or run_dir / "report.html"
    aside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        aside.write_text(page, encoding="utf-8")
        os.replace(aside, out)
    except OSError as error:
        with suppress(OSError):
            aside.unlink()
        raise UserError(f"cannot write {out}: {error.strerror}", "give a file you may write with --out") from error
    return out


def render(story: Story) -> str:
    """The report as HTML."""
    from jinja2 import Environment, StrictUndefined

    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(PAGE)
    return template.render(
        name=story.name,
        colours=charts.COLOURS,
        state=_state(story),
        tiles=list(_tiles(story)),
        sections=[section for section in _sections(story) if section["charts"]],
        events=[_event_row(event) for event in story.events[-_MAX_EVENTS:]],
        hidden_events=max(0, len(story.events) - _MAX_EVENTS),
        environment=list(_flat(story.environment)),
        config_text=story.config_text[:_MAX_CONFIG],
    )


def _state(story: Story) -> State:
    steps = story.train["step"]
    done = int(steps[-1]) if len(steps) else 0
    text = f"{done:,} of {story.planned_steps:,} steps" if story.planned_steps else f"{done:,} steps"
    ends = {
        "finish": ("finished", "green"),
        "nan": ("stopped: loss is not finite", "red"),
        "signal": ("stopped on request", "orange"),
    }
    # Only what came after the last start counts: earlier ends are history, of steps that may have been repeated.
    last = next((event for event in reversed(story.events) if event.get("event") in (*ends, "start", "resume")), None)
    if last is not None and last["event"] in ends and last["step"] >= done:
        return State(*ends[last["event"]], text)
    if story.planned_steps and done >= story.planned_steps:
        return State("finished", "green", text)
    return State("in progress or interrupted", "blue", text)


def _tiles(story: Story) -> Iterator[Tile]:
    train, evals = story.train, story.evals
    valid, unigram, bigram = (_last(evals[key]) for key in ("loss", "unigram_entropy", "bigram_entropy"))
    if valid is not None:
        perplexity, bits = _last(evals["perplexity"]), _last(evals["bits_per_byte"])
        notes = [f"perplexity {perplexity:,.4g}"] if perplexity is not None else []
        notes += [f"{bits:.3f} bits per byte"] if bits is not None else []
        yield Tile("Validation loss", f"{valid:.4f}", ", ".join(notes))
        if unigram is not None:
            note = f"unigram {unigram:.3f}" + (f", bigram {bigram:.3f}" if bigram is not None else "") + " nats"
            side = "Below" if valid <= unigram else "Above"
            yield Tile(f"{side} unigram entropy", f"{abs(unigram - valid):.3f} nats", note)
    loss = train["loss"][np.isfinite(train["loss"])]
    if len(loss):
        count = min(_TAIL, len(loss))
        yield Tile("Training loss", f"{loss[-count:].mean():.4f}", f"mean of the last {count} records")
    if len(train["step"]):
        yield Tile("Steps", f"{train['step'][-1]:,.0f}", f"of {story.planned_steps:,}" if story.planned_steps else "")
        yield Tile("Tokens", _short(_total_tokens(train)), "")
    speed = train["tokens_per_s"][np.isfinite(train["tokens_per_s"])]
    if len(speed):
        yield Tile("Tokens per second", f"{np.median(speed):,.0f}", f"median; best {speed.max():,.0f}")
    mfu, hfu = (train[key][np.isfinite(train[key])] for key in ("mfu", "hfu"))
    if len(mfu):
        again = f"; HFU, with what is computed again, {np.median(hfu):.1%}" if len(hfu) else ""
        yield Tile("MFU", f"{np.median(mfu):.1%}", f"median{again}")
    seconds = train["step_seconds"][np.isfinite(train["step_seconds"])]
    if len(seconds):
        yield Tile("Median step", f"{np.median(seconds) * 1000:,.0f} ms", f"first step {duration(seconds[0])}")
    vio = _last(train["max_vio"])
    if vio is not None:
        cv = _last(train["load_cv"])
        yield Tile(
            "Expert balance", f"{vio:.2f}", f"max violation; load CV {cv:.2f}" if cv is not None else "max violation"
        )


def _sections(story: Story) -> Iterator[dict[str, Any]]:
    """The charts that the records can fill, in reading order."""
    train, evals, routing = story.train, story.evals, story.routing

    def chart(title: str, note: str, draw: Callable[[], str], *needs: np.ndarray, wide: bool = False) -> list[Chart]:
        known = any(np.isfinite(values).any() for values in needs)
        return [Chart(title, note, draw(), wide)] if known else []

    def curve(title: str, note: str, key: str, unit: str, colour: str, log: bool = False) -> list[Chart]:
        return chart(title, note, lambda: charts.curve_chart(train, key, unit, colour, log), train[key])

    yield {
        "title": "Learning",
        "charts": [
            *chart("Loss", "below the dashed line, the model knows more than how frequent each token is",
                   lambda: charts.loss_chart(train, evals), train["loss"], evals["loss"], wide=True),
            *curve("Gradient norm", "before clipping", "grad_norm", "L2 norm", charts.VIOLET, log=True),
            *curve("Learning rate", "warm-up and decay as configured", "lr", "learning rate", charts.GREEN),
        ],
    }  # fmt: skip
    yield {
        "title": "Speed",
        "charts": [
            *curve("Throughput", "tokens of all ranks together", "tokens_per_s", "tokens per second", charts.BLUE),
            *chart("Time of a step", "what a step waits for; the axis leaves out rare outliers such as compilation",
                   lambda: charts.time_chart(train), train["step_seconds"]),
        ],
    }  # fmt: skip
    yield {
        "title": "Experts",
        "charts": [
            *chart("Balance", "spread of the load over experts: worst layer and mean of the layers",
                   lambda: charts.balance_chart(train), train["load_cv"], train["max_vio"]),
            *curve("Router entropy", "mean over tokens and layers", "router_entropy", "nats", charts.GREEN),
            *(curve("Dropped", "choices that found no slot", "dropped_fraction", "fraction", charts.RED)
              if np.nansum(train["dropped_fraction"]) > 0 else []),
            *(chart(f"Load of every expert at step {routing.step:,}", "1 is the fair share; dark experts are idle",
                    lambda: charts.load_chart(routing), routing.load, wide=True) if routing else []),
            *(chart("Imbalance of every layer over the run", "brighter is worse",
                    lambda: charts.evolution_chart(routing), routing.max_vio, wide=True)
              if routing and len(routing.steps) > 1 else []),
        ],
    }  # fmt: skip


def _last(values: np.ndarray) -> float | None:
    """The last finite value; None if there is none."""
    known = values[np.isfinite(values)]
    return float(known[-1]) if len(known) else None


def _total_tokens(train: Columns) -> float:
    """Tokens trained on; records may be sparser than steps, so each one stands for the steps since the one before."""
    steps = np.diff(train["step"], prepend=0.0)
    return float(np.nansum(train["tokens"] * steps))


def _short(number: float) -> str:
    """A count in three digits: 3.28 M."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def _event_row(event: dict[str, Any]) -> dict[str, str]:
    row = {key: str(event.get(key, ""))[:2000] for key in ("step", "event", "message")}
    try:
        row["time"] = datetime.fromtimestamp(event["time"], timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        row["time"] = ""
    return row


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested mappings as (dotted key, text) pairs."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, "unknown" if value is None else str(value)
