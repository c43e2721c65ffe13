"""The run folder: where everything of a run lives, and whether it may be continued (dry)."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindmoe.config.load import dump_config, flat, load_config
from mindmoe.config.run import RunConfig
from mindmoe.host.errors import UserError
from mindmoe.host.files import FileMissing, replace_file, shown

_MAY_CHANGE = (
    "train.steps",
    "train.eval_every",
    "train.eval_batches",
    "train.mode",
    "train.device",
    "train.kernels",
    "optim.schedule",
    "optim.min_lr_ratio",
    "optim.decay_fraction",
    "optim.warmup_steps",
    "optim.on_jump",
    "checkpoint",
    "observe",
    "launch",
    "parallel",
    "output_dir",
    "data.valid",
    "data.on_change",
)
"""What a continued run may change; everything else decides what the run computes."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    @classmethod
    def of(cls, config: RunConfig) -> "RunFolder":
        """The folder of a config: output_dir / name."""
        return cls(Path(config.output_dir) / config.name)

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON record a line."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Checkpoint folders."""
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        """Event files."""
        return self.path / "tensorboard"

    @property
    def environment(self) -> Path:
        """Machine and versions."""
        return self.path / "environment.json"

    @property
    def logs(self) -> Path:
        """Logs of the workers."""
        return self.path / "logs"

    def load_config(self) -> RunConfig:
        """The config that the run was last started with.

        Raises:
            UserError: there is no run here.
        """
        if (config := self.recorded()) is None:
            raise UserError(
                f"{shown(str(self.path), 300)} is not a run folder: {self.config.name} is missing",
                "give the folder that training printed, output_dir/name",
            )
        return config

    def recorded(self) -> RunConfig | None:
        """The config that the run was last started with; None if there is no run here.

        Raises:
            UserError: it cannot be read.
        """
        try:
            return load_config(self.config)
        except FileMissing:
            return None

    def check_continues(self, config: RunConfig) -> None:
        """Refuses a config that would continue another run.

        Raises:
            UserError: names the keys that differ.
        """
        if (recorded := self.recorded()) is None:
            return
        # Dotted keys, so that a difference is told by the word that would set it.
        before, now = flat(recorded.model_dump()), flat(config.model_dump())
        changed = [
            f"{key}: {before.get(key)!r} there, {now.get(key)!r} here"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key) and not _may_change(key)
        ]
        if changed:
            raise UserError(
                f"{self.path} holds a run of another config ({'; '.join(changed)})",
                "set name=... for a new run, or restore these values to continue the old one",
            )

    def create(self, config: RunConfig) -> None:
        """Makes the folder and writes the resolved config.

        Raises:
            UserError: the folder cannot be written.
        """
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
            replace_file(self.config, dump_config(config))
        except OSError as error:
            raise UserError(
                f"cannot write the run folder {self.path}: {error.strerror}",
                "set output_dir=... to a folder that you may write, or free some space",
            ) from None

    def write_environment(self, environment: dict[str, Any]) -> None:
        """Records machine and versions."""
        replace_file(self.environment, json.dumps(environment, indent=2))


def _may_change(key: str) -> bool:
    # A prefix stands for its whole section, but `data.valid` not for `data.valid_fraction`.
    return any(key == prefix or key.startswith(prefix + ".") for prefix in _MAY_CHANGE)
