"""What a run folder accepts as a continuation."""

from pathlib import Path

import pytest

from mindmoe.config.load import load_config
from mindmoe.config.run import RunConfig
from mindmoe.host.errors import UserError
from mindmoe.train.folder import RunFolder


@pytest.fixture
def load(root: Path, tmp_path: Path):
    def load(*overrides: str) -> RunConfig:
        return load_config(root / "configs" / "quickstart.yaml", [f"output_dir={tmp_path}", *overrides])

    return load


def test_a_new_folder_accepts_anything_and_keeps_the_config(load):
    config = load()
    folder = RunFolder.of(config)
    folder.check_continues(config)
    folder.create(config)
    assert folder.load_config() == config


@pytest.mark.parametrize(
    "change", ["train.steps=400", "observe.log_every=5", "checkpoint.keep_last=7", "launch.port=1"]
)
def test_what_may_change(load, change):
    RunFolder.of(load()).create(load())
    RunFolder.of(load()).check_continues(load(change))


@pytest.mark.parametrize(
    "change",
    [
        "model.hidden_size=64",
        "moe.num_experts=8",
        "optim.lr=1e-3",
        "seed=3",
        "moe=null",
        "data.seed=9",
        "train.global_batch_size=32",
    ],
)
def test_what_makes_another_run(load, change):
    RunFolder.of(load()).create(load())
    with pytest.raises(UserError, match=change.split("=")[0]):
        RunFolder.of(load()).check_continues(load(change))


def test_not_a_run_folder(tmp_path):
    with pytest.raises(UserError, match="is not a run folder"):
        RunFolder(tmp_path).load_config()


def test_an_unwritable_place_is_a_clear_error(load, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the run folder"):
        config = load(f"output_dir={tmp_path / 'file'}")
        RunFolder.of(config).create(config)
