"""A run folder with the records of a whole run."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

ENTROPIES = {"unigram_entropy": 6.25, "bigram_entropy": 4.5}


def train_record(step: int, moe: bool = True, **changes: Any) -> dict[str, Any]:
    """A plausible record of a step."""
    router = {"load_cv": 0.3, "max_vio": 0.5 + 1 / step, "router_entropy": 2.5, "dropped_fraction": 0.0}
    return {
        "kind": "train",
        "step": step,
        "time": 1.7e9 + step * 0.5,
        "loss": 4 + 4 / step,
        "aux_loss": 0.01,
        "z_loss": 0.001,
        "lr": 3e-4,
        "grad_norm": 1.0,
        "tokens": 2048,
        "tokens_per_s": 4096.0,
        "mfu": 0.3,
        "hfu": 0.4,
        "step_seconds": 0.5,
        "data_seconds": 0.1,
        "compute_seconds": 0.3,
        "update_seconds": 0.05,
        **(router if moe else {}),
        **changes,
    }


def eval_record(step: int, **changes: Any) -> dict[str, Any]:
    """A plausible record of an evaluation."""
    figures = {"loss": 4.25, "perplexity": 70.1, "bits_per_byte": 1.5, "tokens": 8192, "seconds": 1.0}
    return {"kind": "eval", "step": step, "time": 1.7e9 + step * 0.5, **figures, **ENTROPIES, **changes}


def routing_record(step: int, layers: int = 3, experts: int = 8) -> dict[str, Any]:
    """Even loads, but for one expert of the last layer that gets a half."""
    load = np.full((layers, experts), 1 / experts)
    load[-1] = 0.5 / (experts - 1)
    load[-1, 0] = 0.5
    per_layer = {"cv": [0.1] * layers, "entropy": [2.0] * layers, "dropped": [0.0] * layers}
    return {"kind": "routing", "step": step, "load": load.tolist(), "max_vio": [1.0] * layers, **per_layer}


def event_record(step: int, event: str = "checkpoint", message: str = "saved") -> dict[str, Any]:
    """A record of something that happened."""
    return {"kind": "event", "step": step, "time": 1.7e9 + step * 0.5, "event": event, "message": message}


def whole_run(steps: int = 40) -> list[dict[str, Any]]:
    """Start, steps, evaluations, routing and finish."""
    records = [event_record(0, "start", "starting")]
    for step in range(1, steps + 1):
        records.append(train_record(step))
        if step % 10 == 0:
            records += [eval_record(step), routing_record(step), event_record(step)]
    return [*records, event_record(steps, "finish", "finished")]


@pytest.fixture(scope="session")
def records() -> SimpleNamespace:
    """The functions above, by kind."""
    return SimpleNamespace(
        train=train_record, eval=eval_record, routing=routing_record, event=event_record, whole_run=whole_run
    )


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run folder: `make_run(records, name=..., config=..., environment=...)`."""

    def make(
        records: list[dict[str, Any]] | None,
        name: str = "run",
        config: str = "train: {steps: 40}\n",
        environment: Any = None,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").write_text(config)
        if records is not None:
            (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        if environment is not None:
            (folder / "environment.json").write_text(json.dumps(environment))
        return folder

    return make
