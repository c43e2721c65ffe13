"""What this machine refuses before anything starts, and what is only doubted on a laptop."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from mindmoe.cli.main import main
from mindmoe.config.load import load_config
from mindmoe.launch.check import check_node
from mindmoe.train import preflight
from mindmoe.train.folder import RunFolder

GIB = 2**30
MACHINE = [
    ("train.device=ascend", "train.device=ascend needs 1 device here, and /dev/davinci* shows 0"),
    ("launch.threads=3", "launch.threads=3 is more than the 2 cores"),
    ("checkpoint.keep_last=1000000", "checkpoint.keep_last=1000000 keeps"),
    ("checkpoint.min_free=20GiB", "and checkpoint.min_free need 20.1 GiB"),
    ("model.hidden_size=65536", "weights and moments take"),
    ("data.sources=nowhere", "nowhere"),
]


@pytest.fixture
def config(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A config and its words on a machine of two cores, without a device, with 8 GiB of memory, 10 of 100 GiB free."""
    monkeypatch.setattr(preflight, "devices", lambda: 0)
    monkeypatch.setattr(preflight, "usable_cores", lambda: 2)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=8 * GIB))
    usage = shutil._ntuple_diskusage(100 * GIB, 90 * GIB, 10 * GIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.chdir(tmp_path)
    return [
        str(root / "configs" / "quickstart.yaml"),
        "name=run",
        "train.steps=20",
        "optim.warmup_steps=2",
        "parallel.ep=1",
    ]


@pytest.mark.parametrize(("word", "expected"), MACHINE)
def test_train_and_launch_refuse_what_this_machine_cannot_do(config, capsys, tmp_path, word, expected):
    for command in (["train"], ["launch", "--cards", "1"]):
        assert main([*command, *config, word]) == 2
        said = capsys.readouterr().err
        assert expected in said and "Traceback" not in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("word", "expected"), MACHINE)
def test_the_check_of_a_node_refuses_the_same(config, word, expected):
    run = load_config(config[0], [*config[1:], word])
    (RunFolder.of(run).path / "launch").mkdir(parents=True)
    RunFolder.of(run).create(run)
    assert any(expected in problem for problem in check_node(run, 1, 1, "127.0.0.1").problems)


@pytest.mark.parametrize(("word", "expected"), MACHINE)
def test_validate_only_warns_of_the_machine(config, capsys, word, expected):
    assert main(["config", "validate", *config, word]) == 0
    said = capsys.readouterr()
    assert expected in said.err and "warning: on this machine" in said.err and "valid" in said.out


POD = "launch.kubernetes={image: i, claim: c, mount: /shared}"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["output_dir=/elsewhere", POD],
            "output_dir=/elsewhere is /elsewhere, outside launch.kubernetes.mount=/shared",
        ),
        (["output_dir=/shared/../x", POD], "output_dir=/shared/../x is /x, outside"),
        (["output_dir=/sharedx", POD], "outside launch.kubernetes.mount"),
        (["output_dir=/shared/r", "data.sources=/data/x", POD], "data.sources=/data/x"),
        (["output_dir=/shared/r", "data.sources=/shared/d", "data.valid=/v", POD], "data.valid=/v"),
        (["output_dir=/shared/r", "checkpoint.durable={path: /safe}", POD], "checkpoint.durable.path=/safe"),
        (['output_dir="a\\nb"'], "cannot be printed"),
        (['data.sources="a\\eb"'], "cannot be printed"),
    ],
)
def test_paths_that_no_machine_can_use_are_refused_everywhere(config, capsys, words, expected):
    for command in (["config", "validate"], ["train"], ["launch", "--cards", "1"]):
        assert main([*command, *config, *words]) == 2
        assert expected in capsys.readouterr().err


def test_relative_paths_of_pods_are_doubted_on_a_laptop(config, capsys):
    assert main(["config", "validate", *config, "output_dir=runs", "data.sources=data", POD]) == 0
    assert "outside launch.kubernetes.mount=/shared" in capsys.readouterr().err
    assert main(["train", *config, "output_dir=runs", "data.sources=data", POD]) == 2


def test_what_fits_is_not_doubted(config):
    run = load_config(config[0], config[1:])
    assert preflight.machine_problems(run, 1) == [] and preflight.path_problems(run) == []
    many = load_config(config[0], [*config[1:], "checkpoint.keep_last=400", "checkpoint.every=0", "launch.threads=2"])
    assert preflight.machine_problems(many, 1) == []  # one save takes little, and 400 would fit the disk


def test_the_size_of_a_checkpoint_is_that_of_weights_and_moments(config):
    run = load_config(config[0], config[1:])
    plain = load_config(config[0], [*config[1:], "optim.type=sgd"])
    assert 2.9 < preflight.checkpoint_size(run) / preflight.checkpoint_size(plain) <= 3.0


@pytest.mark.parametrize(("visible", "count"), [(None, 2), ("0", 1), ("", 0), ("0,1,2,3", 2)])
def test_devices_are_those_that_are_visible(tmp_path, monkeypatch, visible, count):
    for name in ("davinci0", "davinci1", "davinci_manager", "tty"):
        (tmp_path / name).touch()
    monkeypatch.setattr(preflight, "Path", lambda _: tmp_path)
    monkeypatch.delenv("ASCEND_RT_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", visible)
    assert preflight.devices() == count
