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

from mindmoe.config.load import dump_config, load_config
from mindmoe.config.run import RunConfig
from mindmoe.host import strict_json
from mindmoe.host.env import run_environment
from mindmoe.host.errors import UserError
from mindmoe.lab.ablate.config import AblateConfig, ArmConfig
from mindmoe.lab.dmr.config import Dmr
from mindmoe.observe.metrics import read_metrics


@dataclass(frozen=True, kw_only=True, slots=True)
class RunJob:
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
        share: of the steps that each run takes, warm-ups included.
    """

    def __init__(self, ablation: AblateConfig, folder: Path, share: float = 1.0):
        self.ablation, self.folder, self.share = ablation, folder, share
        self.out = Path(ablation.output_dir) / ablation.name

    def job(self, arm: str, seed: int, budget: float = 1.0, settings: Mapping[str, float] | None = None) -> RunJob:
        """The complete run of an arm: its own full schedule, paired by seed with every other arm.

        Raises:
            ConfigError: the arm is no valid run.
        """
        name = f"{arm}-seed{seed}" + (f"-x{budget:g}" if budget != 1.0 else "")
        return self._build(name, self.ablation.arms[arm], seed, {}, settings or {}, budget)

    def trial(self, arm: str, settings: Mapping[str, float]) -> RunJob:
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
    ) -> RunJob:
        values = {**arm.set, **more, **settings}
        values |= {"name": name, "output_dir": str(self.out), "seed": seed, "data.seed": seed}
        values |= {"launch.threads": self.ablation.threads, "checkpoint.every": 0, "checkpoint.keep_last": 1}
        words = [f"{key}={json.dumps(value)}" for key, value in values.items()]
        preset = self.folder / arm.preset if arm.preset else None
        config = load_config(self.folder / (arm.config or self.ablation.base), words, preset)
        if self.share != 1.0:
            config = _shortened(config, self.share)
        if budget != 1.0:
            steps = max(1, round(config.train.steps * budget))
            config = config.model_copy(update={"train": config.train.model_copy(update={"steps": steps})})
        return RunJob(name=name, config=config)


def _shortened(config: RunConfig, share: float) -> RunConfig:
    """The run with a share of its steps and of its warm-ups, that of dynamic routing among them."""

    def part(steps: int) -> int:
        return max(1, round(steps * share)) if steps else 0

    train = config.train.model_copy(update={"steps": part(config.train.steps)})
    optim = config.optim.model_copy(update={"warmup_steps": part(config.optim.warmup_steps)})
    moe = config.moe
    if moe is not None and isinstance(moe.router, Dmr):
        budget = moe.router.budget
        budget = budget.model_copy(update={"warmup_steps": part(budget.warmup_steps)})
        moe = moe.model_copy(update={"router": moe.router.model_copy(update={"budget": budget})})
    return config.model_copy(update={"train": train, "optim": optim, "moe": moe})


def measured(job: RunJob) -> Measured | None:
    """What a job left behind; None unless it has run to its last step.

    Raises:
        JsonError: a record of its metrics is of another form.
    """
    path = job.folder / "metrics.jsonl"
    records = read_metrics(path)

    def of_kind(kind: str, *keys: str, form: Any = float | None) -> list[list[Any]]:
        """For each record of a kind its step and the values of some keys."""
        found = []
        for record in records:
            if record["kind"] == kind:
                where = f"{path}: record {kind!r} of step {record['step']}"
                values = [strict_json.checked(form, record.get(key), f"{where}: {key}") for key in keys]
                found.append([record["step"], *values])
        return found

    evals = [(step, loss) for step, loss in of_kind("eval", "loss") if loss is not None]
    steps = job.config.train.steps
    if not evals or evals[-1][0] != steps:
        return None
    figures = ("mean_k", "load_cv", "max_vio", "dropped_fraction")
    train = of_kind("train", "step_seconds", *figures)
    late = [values for step, _, *values in train if 2 * step > steps and None not in values]
    means = np.mean(late, 0) if late else np.full(len(figures), np.nan)
    seconds = [taken for _, taken, *_ in train if taken is not None]
    loads = of_kind("routing", "load", form=list[list[float]])
    if loads and len({len(row) for row in loads[-1][1]}) != 1:
        raise UserError(f"{path}: the load of step {loads[-1][0]} has layers of several lengths", "remove the record")
    return Measured(
        loss=evals[-1][1],
        seconds=float(np.median(seconds)) * steps if seconds else float("nan"),
        curve=([step for step, _ in evals], [loss for _, loss in evals]),
        mean_k=float(means[0]),
        load_cv=float(means[1]),
        max_vio=float(means[2]),
        dropped=float(means[3]),
        load=np.array(loads[-1][1]) if loads else None,
    )


def write_config(job: RunJob) -> Path:
    """Writes the config of a job and returns its path."""
    path = job.folder.parent / "configs" / f"{job.name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dump_config(job.config), encoding="utf-8")
    return path


def run(job: RunJob, threads: int) -> Measured:
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
