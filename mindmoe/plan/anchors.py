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
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from statistics import median
from typing import Literal, cast, get_args

from mindmoe.host.errors import UserError
from mindmoe.host.files import read_text, shown
from mindmoe.pipeline.schedule import ScheduleName
from mindmoe.plan.architecture import reference
from mindmoe.plan.compute import Precision
from mindmoe.plan.hardware import Hardware, hardware_on_file
from mindmoe.plan.layout import DISPATCHERS, RECOMPUTES, Dispatcher, Layout, Recompute
from mindmoe.plan.routing import Percentile
from mindmoe.plan.step import CostModel, Estimate, Workload

_REQUIRED = ("id", "model", "hardware", "cards", "seq", "gbs", "mbs", "tp", "pp", "ep")
_HEADROOM = 0.9
_MOST = 10**8  # of any whole number of a row
_MOST_ACTIONS = 2_000_000  # of a simulated schedule, in one direction
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


def read_rows(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Where each row of a CSV file stands, and its cells by column.

    Raises:
        UserError: the file cannot be read or holds no rows.
    """
    try:
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
        rows = [
            (
                f"{shown(str(path), 300)} line {reader.line_num}",
                {str(key): str(cell or "") for key, cell in row.items()},
            )
            for row in reader
        ]
    except csv.Error as error:
        raise UserError(f"{shown(str(path), 300)} is no CSV file ({error})", "write it anew") from None
    if not rows:
        raise UserError(
            f"{shown(str(path), 300)} holds no rows", f"give a CSV file with the columns {', '.join(_REQUIRED)}"
        )
    return rows


def read_anchors(path: Path) -> list[Anchor]:
    """The rows of a CSV file.

    Raises:
        UserError: the file cannot be read, or a row is incomplete or contradicts itself.
    """
    return [_parse(row, where) for where, row in read_rows(path)]


def compare_rows(path: Path) -> tuple[list[Comparison], list[str]]:
    """The rows of a CSV file beside their estimates, and for every other row why it cannot be predicted.

    Raises:
        UserError: the file cannot be read or holds no rows.
    """
    comparisons, refused = [], []
    for where, row in read_rows(path):
        try:
            comparisons += compare([_parse(row, where)])
        except UserError as error:
            text = str(error)
            refused.append(f"{shown(row.get('id', ''))}: {text if text.startswith(where) else f'{where}: {text}'}")
    return comparisons, refused


def packaged_anchors(name: Literal["anchors", "anchors_apart"] = "anchors") -> list[Anchor]:
    """The published runs that come with the planner: those it is held to, or those with assumptions in them."""
    with as_file(files("mindmoe.plan").joinpath(f"{name}.csv")) as path:
        return read_anchors(path)


def _parse(row: dict[str, str], where: str) -> Anchor:
    missing = [name for name in _REQUIRED if not row.get(name)]
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}", "fill the columns")

    def whole(name: str, least: int = 1, most: int = _MOST) -> int:
        text = row.get(name) or "1"
        if not re.fullmatch("[0-9]{1,9}", text) or not least <= int(text) <= most:
            raise UserError(
                f"{where}: {name}='{shown(text)}' is not a whole number from {least} to {most}", "correct it"
            )
        return int(text)

    def choice(name: str, choices: Sequence[str]) -> str | None:
        text = row.get(name) or None
        if text is not None and text not in choices:
            raise UserError(f"{where}: {name}='{shown(text)}' is none of {', '.join(choices)}", "correct it")
        return text

    cards, tp, pp, cp, vpp = (whole(name) for name in ("cards", "tp", "pp", "cp", "vpp"))
    if cards % (tp * pp * cp):
        raise UserError(f"{where}: cards={cards} is not a multiple of tp*pp*cp={tp * pp * cp}", "correct the row")
    schedule = choice("schedule", get_args(ScheduleName)) or ("interleaved" if vpp > 1 else "1f1b")
    layout = Layout(
        dp=cards // (tp * pp * cp),
        tp=tp,
        pp=pp,
        ep=whole("ep"),
        cp=cp,
        etp=whole("etp"),
        zero=whole("zero", 0, 3),
        schedule=cast(ScheduleName, schedule),
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
    if problem := _problem(workload, layout):
        raise UserError(f"{where}: {problem}", "correct the row")
    source = row.get("source", "")
    stated = choice("recompute", RECOMPUTES) or ("full" if "full recompute" in source.lower() else None)
    hardware = hardware_on_file(row["hardware"])
    hardware.peak(precision)
    return Anchor(
        name=row["id"],
        workload=workload,
        hardware=hardware,
        layout=layout,
        recompute=cast(Recompute | None, stated),
        dispatcher=cast(Dispatcher | None, choice("dispatcher", DISPATCHERS)),
        measured_s=_measured(row, where, workload.tokens / cards),
        source=source,
    )


def _measured(row: dict[str, str], where: str, tokens_per_card: float) -> float:
    """The published step time [s]."""
    name = "step_s" if row.get("step_s") else "tokens_per_s_per_card"
    if not row.get(name):
        raise UserError(f"{where} has neither step_s nor tokens_per_s_per_card", "fill one")
    try:
        value = float(row[name])
    except ValueError:
        value = 0.0
    if not 1e-9 <= value <= 1e15:
        raise UserError(f"{where}: {name}='{shown(row[name])}' is not a number above 0", "correct it")
    return value if name == "step_s" else tokens_per_card / value


def _problem(workload: Workload, layout: Layout) -> str | None:
    """Why a layout is none that the model can speak of, None if it can."""
    architecture = workload.architecture
    layers, pieces, experts = len(architecture.layers), layout.pp * layout.chunks, max(1, architecture.experts)
    if pieces > layers + 2:
        return (
            f"pp*vpp={pieces} pieces are more than the {layers} layers of {architecture.name} with embedding and head"
        )
    if layout.chunks > 1 and (layout.pp == 1 or layout.schedule != "interleaved"):
        return f"vpp={layout.chunks} needs pp above 1 and the interleaved schedule"
    if experts % layout.ep or (layout.dp * layout.cp * layout.tp) % (layout.ep * layout.etp):
        return f"ep={layout.ep} must divide {experts} experts, and ep*etp must divide cards/pp"
    if workload.seq_length % (layout.cp * layout.tp):
        return f"tp*cp={layout.cp * layout.tp} must divide seq={workload.seq_length}"
    count = layout.microbatches(workload.global_batch_size)
    if count < 1 or workload.global_batch_size % (layout.dp * layout.micro_batch_size):
        return f"dp*mbs={layout.dp * layout.micro_batch_size} must divide gbs={workload.global_batch_size}"
    if layout.schedule == "interleaved" and count % layout.pp:
        return f"{count} micro-batches must be a multiple of pp={layout.pp} in an interleaved schedule"
    if layout.pp > 1 and count * pieces > _MOST_ACTIONS:
        return f"{count} micro-batches through {pieces} pieces are too many to simulate"
    return None


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
