"""What the report tells of a run, read from its folder: curves as columns, evaluations, routing, events."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from mindmoe.config import strict_yaml
from mindmoe.host import strict_json
from mindmoe.host.errors import ConfigError, UserError
from mindmoe.host.files import FileMissing, read_bytes, shown
from mindmoe.observe.metrics import iterate_metrics

TRAIN_KEYS = (
    "step",
    "time",
    "loss",
    "lr",
    "grad_norm",
    "tokens",
    "tokens_per_s",
    "mfu",
    "hfu",
    "step_seconds",
    "data_seconds",
    "compute_seconds",
    "update_seconds",
    "load_cv",
    "max_vio",
    "router_entropy",
    "dropped_fraction",
)
EVAL_KEYS = ("step", "loss", "perplexity", "bits_per_byte", "unigram_entropy", "bigram_entropy", "tokens")
_BLOCK = 2_000  # training records held as dicts at a time; more make the garbage collector work

Columns = dict[str, np.ndarray]
"""Curves by name, all of one length, float64; a missing value is NaN."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutingStory:
    """How experts were used: `load` (layers, experts) of the last record, fractions that sum to 1 per layer;
    `max_vio` (records, layers) and `steps` (records,) over the run."""

    step: int
    load: np.ndarray
    max_vio: np.ndarray
    steps: np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True)
class Story:
    """A run as it stands in its folder."""

    name: str
    train: Columns
    evals: Columns
    routing: RoutingStory | None
    events: list[dict[str, Any]]
    planned_steps: int | None
    config_text: str
    environment: dict[str, Any]


def read_story(run_dir: Path) -> Story:
    """Reads the folder of a run, live or dead.

    Raises:
        UserError: it is no run folder, or a file of it cannot be read.
    """
    if not any(os.path.lexists(run_dir / name) for name in ("config.yaml", "metrics.jsonl")):
        raise UserError(
            f"{shown(str(run_dir), 300)} is not a run folder", "give output_dir/name of a run, such as runs/quickstart"
        )
    kinds: dict[str, list[dict[str, Any]]] = {"train": [], "eval": [], "event": []}
    blocks: list[Columns] = []
    imbalance: list[tuple[int, Any]] = []
    last_routing: dict[str, Any] = {}
    for record in iterate_metrics(run_dir / "metrics.jsonl"):
        kind = record["kind"]
        if kind == "routing":
            imbalance.append((record["step"], record.get("max_vio")))
            last_routing = record
        elif kind in kinds:
            kinds[kind].append(record)
            if len(kinds["train"]) == _BLOCK:
                blocks.append(_columns(kinds["train"], TRAIN_KEYS))
                kinds["train"].clear()
    blocks.append(_columns(kinds["train"], TRAIN_KEYS))
    config_text = _text(run_dir / "config.yaml")
    return Story(
        name=run_dir.resolve().name,
        train={key: np.concatenate([block[key] for block in blocks]) for key in TRAIN_KEYS},
        evals=_columns(kinds["eval"], EVAL_KEYS),
        routing=_routing(last_routing, imbalance),
        events=kinds["event"],
        planned_steps=_planned_steps(config_text),
        config_text=config_text,
        environment=_environment(run_dir / "environment.json"),
    )


def _columns(records: list[dict[str, Any]], keys: Sequence[str]) -> Columns:
    """The values of records by key, NaN for whatever is missing or no number."""
    try:
        values = chain.from_iterable(map(itemgetter(*keys), records))
        table = np.fromiter(values, np.float64, len(records) * len(keys)).reshape(-1, len(keys))
    except (KeyError, TypeError, ValueError, OverflowError):  # a dense run has no router keys; MFU may be null
        table = np.array([[_number(record.get(key)) for key in keys] for record in records])
    return {key: table[:, index] for index, key in enumerate(keys)}


def _number(value: Any) -> float:
    try:
        return float(value) if isinstance(value, (int, float)) else math.nan
    except OverflowError:
        return math.nan


def _routing(last: dict[str, Any], imbalance: list[tuple[int, Any]]) -> RoutingStory | None:
    """The routing of a run; None if the last record does not hold one load per layer and expert."""
    load = last.get("load")
    if not isinstance(load, list) or not load or not isinstance(load[0], list):
        return None
    if not all(_is_row(row, len(load[0])) for row in load):
        return None
    usable = [(step, row) for step, row in imbalance if _is_row(row, len(load))]
    steps = np.array([step for step, _ in usable], np.float64)
    max_vio = np.array([row for _, row in usable], np.float64).reshape(len(usable), len(load))
    return RoutingStory(step=last["step"], load=np.array(load, np.float64), max_vio=max_vio, steps=steps)


def _is_row(value: Any, length: int) -> bool:
    """Whether a value is a list of so many numbers, at least one."""
    return isinstance(value, list) and len(value) == length > 0 and all(isinstance(v, (int, float)) for v in value)


def _text(path: Path) -> str:
    """The text of a small file; empty if there is none."""
    try:
        return read_bytes(path, follow=False).decode(errors="replace")
    except FileMissing:
        return ""


def _planned_steps(config_text: str) -> int | None:
    try:
        root = strict_yaml.parse(config_text, "config.yaml").root
        steps = strict_yaml.plain(root)["train"]["steps"] if root is not None else None
    except (ConfigError, TypeError, KeyError):
        return None
    return steps if type(steps) is int else None


def _environment(path: Path) -> dict[str, Any]:
    try:
        value = strict_json.parse(_text(path).encode() or b"{}", str(path))
    except strict_json.JsonError:
        return {}
    return value if isinstance(value, dict) else {}
