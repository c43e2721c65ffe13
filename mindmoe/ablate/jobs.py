"""The runs of an ablation: what each one is, whether it is done, and how it is started (dry)."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindmoe.ablate.config import AblateConfig, ArmConfig
from mindmoe.config import RunConfig
from mindmoe.env import run_environment
from mindmoe.errors import UserError
from mindmoe.load import dump_config, load_config
from mindmoe.observe.metrics import read_metrics


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One complete training run."""

    name: str
    config: RunConfig

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.config.output_dir) / self.config.name


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What a finished run left in its folder.

    Attributes:
        loss: held-out, at the last step [nats].
        seconds: sum over steps, the first one, which compiles, taken as the median [s].
        curve: (steps, held-out losses).
        mean_k, load_cv, max_vio, dropped: means over the second half of the run.
        load: (L, E) of the last routing record, or None.
    """

    loss: float
    seconds: float
    curve: tuple[list[int], list[float]]
    mean_k: float
    load_cv: float
    max_vio: float
    dropped: float
    load: np.ndarray | None


class Plan:
    """Builds the jobs of an ablation.

    Args:
        ablation: the comparison.
        folder: of its file, which paths are relative to.
    """

    def __init__(self, ablation: AblateConfig, folder: Path):
        self.ablation, self.folder = ablation, folder
        self.out = Path(ablation.output_dir) / ablation.name

    def job(self, arm: str, seed: int, budget: float = 1.0, settings: Mapping[str, float] | None = None) -> Job:
        """The complete run of an arm: its own full schedule, paired by seed with every other arm.

        Raises:
            ConfigError: the arm is no valid run.
        """
        name = f"{arm}-seed{seed}" + (f"-x{budget:g}" if budget != 1.0 else "")
        return self._build(name, self.ablation.arms[arm], seed, {}, settings or {}, budget)

    def trial(self, arm: str, settings: Mapping[str, float]) -> Job:
        """A short run of a tuned arm; arms that try the same settings share it."""
        config = self.ablation.arms[arm]
        assert config.tune is not None
        key = json.dumps([config.config, config.preset, config.set, dict(settings)], sort_keys=True)
        name = f"trial-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
        return self._build(name, config, config.tune.seed, {"train.steps": config.tune.steps}, settings, 1.0)

    def _build(
        self,
        name: str,
        arm: ArmConfig,
        seed: int,
        more: Mapping[str, Any],
        settings: Mapping[str, float],
        budget: float,
    ) -> Job:
        values = {**arm.set, **more, **settings}
        values |= {"name": name, "output_dir": str(self.out), "seed": seed, "data.seed": seed}
        values |= {"launch.threads": self.ablation.threads, "checkpoint.every": 0, "checkpoint.keep_last": 1}
        words = [f"{key}={json.dumps(value)}" for key, value in values.items()]
        preset = self.folder / arm.preset if arm.preset else None
        config = load_config(self.folder / (arm.config or self.ablation.base), words, preset)
        if budget != 1.0:
            steps = max(1, round(config.train.steps * budget))
            config = config.model_copy(update={"train": config.train.model_copy(update={"steps": steps})})
        return Job(name=name, config=config)


def measured(job: Job) -> Measured | None:
    """What a job left behind; None unless it has run to its last step."""
    records = read_metrics(job.folder / "metrics.jsonl")
    evals = [record for record in records if record["kind"] == "eval"]
    train = [record for record in records if record["kind"] == "train"]
    if not evals or evals[-1]["step"] != job.config.train.steps or evals[-1]["loss"] is None:
        return None
    late = [record for record in train if 2 * record["step"] > job.config.train.steps and "mean_k" in record]

    def mean(key: str) -> float:
        return float(np.mean([record[key] for record in late])) if late else float("nan")

    seconds = np.array([record["step_seconds"] for record in train])
    routing = [record for record in records if record["kind"] == "routing"]
    return Measured(
        loss=evals[-1]["loss"],
        seconds=float(np.median(seconds)) * job.config.train.steps,
        curve=([record["step"] for record in evals], [record["loss"] for record in evals]),
        mean_k=mean("mean_k"),
        load_cv=mean("load_cv"),
        max_vio=mean("max_vio"),
        dropped=mean("dropped_fraction"),
        load=np.array(routing[-1]["load"]) if routing else None,
    )


def write_config(job: Job) -> Path:
    """Writes the config of a job and returns its path."""
    path = job.folder.parent / "configs" / f"{job.name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dump_config(job.config), encoding="utf-8")
    return path


def run(job: Job, threads: int) -> Measured:
    """Runs a job to its end, or takes its result if it is there; an interrupted one resumes from its checkpoint.

    Raises:
        UserError: the run failed; names its log.
    """
    done = measured(job)
    if done is not None:
        return done
    path, log = write_config(job), job.folder.parent / "logs" / f"{job.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        command = [sys.executable, "-m", "mindmoe", "train", str(path)]
        code = subprocess.run(command, stdout=out, stderr=out, env=run_environment(threads)).returncode
    done = measured(job)
    if code or done is None:
        raise UserError(f"run {job.name} ended with exit code {code} before its last step", f"see {log}")
    return done
