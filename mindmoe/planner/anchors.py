"""The planner held to published runs: predicted against measured step time, row by row of a CSV file.

A row states model, hardware, sizes, degrees and the measured speed. What it leaves open is chosen by fixed rules,
the same for every row:
- routing is balanced where the row says so, else the median imbalance;
- `recompute` is `full` where the source says "full recompute", else the least that fits 90% of the card, or
  else all of it (`selective` where the planner finds that none fits, for the run did fit);
- experts are whole on a rank (etp 1), layers split evenly, the faster dispatcher of one-hop and two-hop is used;
- `zero` 3 is the faster of gathering weights for every micro-batch and of gathering them once a step (our zero 1):
  frameworks of that kind offer both.
Optional columns `recompute`, `dispatcher`, `schedule` and `etp` override the rules.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from statistics import median
from typing import Literal, cast

from mindmoe.errors import UserError
from mindmoe.pipeline.schedule import ScheduleName
from mindmoe.planner.architecture import reference
from mindmoe.planner.compute import Precision
from mindmoe.planner.hardware import Hardware, load_hardware
from mindmoe.planner.layout import RECOMPUTES, Dispatcher, Layout, Recompute
from mindmoe.planner.routing import Percentile
from mindmoe.planner.step import CostModel, Estimate, Workload

_REQUIRED = ("id", "model", "hardware", "cards", "seq", "gbs", "mbs", "tp", "pp", "ep")
_HEADROOM = 0.9
_ONE_AND_TWO_HOPS: tuple[Dispatcher, ...] = ("all_to_all", "two_hop")


@dataclass(frozen=True, kw_only=True, slots=True)
class Anchor:
    """A published run: what is known of its layout, and its measured step time [s]."""

    name: str
    workload: Workload
    hardware: Hardware
    layout: Layout
    recompute: Recompute | None
    dispatcher: Dispatcher | None
    measured_s: float
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """An anchor beside the planner's estimate."""

    anchor: Anchor
    estimate: Estimate

    @property
    def error(self) -> float:
        """Predicted over measured step time, minus 1."""
        return self.estimate.step_s / self.anchor.measured_s - 1.0


def read_anchors(path: Path) -> list[Anchor]:
    """The rows of a CSV file.

    Raises:
        UserError: the file cannot be read, or a row is incomplete or contradicts itself.
    """
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} ({error})", "give the path of a CSV file of published runs") from None
    if not rows:
        raise UserError(f"{path} holds no rows", f"give a CSV file with the columns {', '.join(_REQUIRED)}")
    return [_parse(row, f"{path} line {number}") for number, row in enumerate(rows, start=2)]


def packaged_anchors(name: Literal["anchors", "anchors_apart"] = "anchors") -> list[Anchor]:
    """The published runs that come with the planner: those it is held to, or those with assumptions in them."""
    with as_file(files("mindmoe.planner").joinpath(f"{name}.csv")) as path:
        return read_anchors(path)


def _parse(row: dict[str, str], where: str) -> Anchor:
    missing = [name for name in _REQUIRED if not row.get(name)]
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}", "fill the columns")

    def whole(name: str, default: int = 1) -> int:
        text = row.get(name) or str(default)
        if not text.isdigit() or int(text) < (0 if name == "zero" else 1):
            raise UserError(f"{where}: {name}={text!r} is not a whole number", "correct it")
        return int(text)

    cards, tp, pp, cp, vpp = (whole(name) for name in ("cards", "tp", "pp", "cp", "vpp"))
    if cards % (tp * pp * cp):
        raise UserError(f"{where}: cards={cards} is not a multiple of tp*pp*cp={tp * pp * cp}", "correct the row")
    schedule = cast(ScheduleName, row.get("schedule") or ("interleaved" if vpp > 1 else "1f1b"))
    layout = Layout(
        dp=cards // (tp * pp * cp),
        tp=tp,
        pp=pp,
        ep=whole("ep"),
        cp=cp,
        etp=whole("etp"),
        zero=whole("zero"),
        schedule=schedule,
        chunks=vpp,
        micro_batch_size=whole("mbs"),
        split="even",
    )
    precision: Precision = "fp8" if "fp8" in row.get("dtype", "").lower() else "bf16"
    routing: Percentile = "balanced" if row.get("forced_balance") == "yes" else "p50"
    workload = Workload(
        architecture=reference(row["model"]),
        seq_length=whole("seq"),
        global_batch_size=whole("gbs"),
        precision=precision,
        routing_time=routing,
        routing_memory=routing,
    )
    if row.get("step_s"):
        measured = float(row["step_s"])
    elif row.get("tokens_per_s_per_card"):
        measured = workload.tokens / (cards * float(row["tokens_per_s_per_card"]))
    else:
        raise UserError(f"{where} has neither step_s nor tokens_per_s_per_card", "fill one")
    source = row.get("source", "")
    recompute = cast(Recompute | None, row.get("recompute") or ("full" if "full recompute" in source.lower() else None))
    return Anchor(
        name=row["id"],
        workload=workload,
        hardware=load_hardware(row["hardware"]),
        layout=layout,
        recompute=recompute,
        dispatcher=cast(Dispatcher | None, row.get("dispatcher") or None),
        measured_s=measured,
        source=source,
    )


def predict(anchor: Anchor) -> Estimate:
    """The planner's estimate of a published run, what it leaves open chosen by the rules of this module."""
    model = CostModel(anchor.hardware, anchor.workload)
    layout = anchor.layout
    if anchor.dispatcher:
        layout = replace(layout, dispatcher=anchor.dispatcher)
    else:
        layout = replace(layout, dispatcher=model.best_dispatcher(layout, _ONE_AND_TWO_HOPS))
    candidates = [layout] if layout.zero < 3 else [layout, replace(layout, zero=1)]
    estimates = [
        model.estimate(replace(candidate, recompute=anchor.recompute or _least(model, candidate)))
        for candidate in candidates
    ]
    return min(estimates, key=lambda estimate: estimate.step_s)


def _least(model: CostModel, layout: Layout) -> Recompute:
    """The least recomputation that fits the card, with the headroom that people leave or else without."""
    for headroom in (_HEADROOM, 1.0):
        limit = headroom * model.hardware.memory_gib * 2.0**30
        for recompute in RECOMPUTES:
            if model.memory(replace(layout, recompute=recompute))[0].total <= limit:
                return recompute
    return "selective"


def compare(anchors: Sequence[Anchor]) -> list[Comparison]:
    """Every anchor beside its estimate."""
    return [Comparison(anchor=anchor, estimate=predict(anchor)) for anchor in anchors]


def error_summary(comparisons: Sequence[Comparison]) -> tuple[float, float]:
    """Median and largest absolute relative error of the step time."""
    errors = [abs(comparison.error) for comparison in comparisons]
    return median(errors), max(errors)
