"""Files of a run folder that somebody else has put there: read without waiting or following, written without harm."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mindmoe.config.load import load_config
from mindmoe.host.errors import UserError
from mindmoe.lab.flight.trace import read_traces, write_trace
from mindmoe.observe.metrics import MetricsLog, read_metrics
from mindmoe.observe.story import read_story
from mindmoe.train.folder import RunFolder

RECORD = {"kind": "train", "step": 1, "time": 1.0, "loss": 2.0}


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _link(path: Path) -> None:
    target = path.with_name(f"target-{path.name}")
    target.write_text(json.dumps(RECORD) + "\n")
    path.symlink_to(target.name)


def _folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.yaml", "environment.json"])
@pytest.mark.parametrize("put", [_pipe, _link, _folder])
def test_a_report_reads_only_files(tmp_path: Path, put: Callable[[Path], None], name: str) -> None:
    for other in {"metrics.jsonl", "config.yaml"} - {name}:
        (tmp_path / other).write_text("")
    put(tmp_path / name)
    with pytest.raises(UserError, match=name):
        read_story(tmp_path)


@pytest.mark.parametrize("put", [_pipe, _link, _folder])
def test_metrics_are_written_only_to_a_file(tmp_path: Path, put: Callable[[Path], None]) -> None:
    put(tmp_path / "metrics.jsonl")
    before = {path.name: path.read_text() for path in tmp_path.glob("target-*")}
    with pytest.raises(UserError, match="cannot write"):
        MetricsLog(tmp_path / "metrics.jsonl", 0)
    assert {path.name: path.read_text() for path in tmp_path.glob("target-*")} == before


@pytest.mark.parametrize(
    "line",
    [
        b'{"kind": "train", "step": NaN}',
        b'{"kind": 1, "step": 1}',
        b'{"kind": "train", "step": true}',
        b"[" * 5000,
        b"\xff\xfe",
        b'{"kind": "train", "step": 1, "x": "\\ud800"}',
    ],
)
def test_lines_that_are_no_records_are_passed_over(tmp_path: Path, line: bytes) -> None:
    whole = json.dumps(RECORD).encode()
    (tmp_path / "metrics.jsonl").write_bytes(whole + b"\n" + line + b"\n" + whole + b"\n")
    assert read_metrics(tmp_path / "metrics.jsonl") == [RECORD, RECORD]


@pytest.mark.parametrize(
    "text", ["a: &a [*a, *a]", "[" * 5000, "train: {steps: true}", "train: 7", "\tx", "", "a: 1\na: 2"]
)
@pytest.mark.parametrize("environment", ["[" * 5000, "{", '{"a": NaN}', "[]"])
def test_a_story_of_nonsense_is_told_without_it(tmp_path: Path, text: str, environment: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    (tmp_path / "environment.json").write_text(environment)
    story = read_story(tmp_path)
    assert story.planned_steps is None and story.environment == {} and story.config_text == text


def test_a_run_folder_is_written_beside_links_not_through_them(root: Path, tmp_path: Path) -> None:
    config = load_config(root / "configs" / "quickstart.yaml", [f"output_dir={tmp_path}"])
    folder = RunFolder.of(config)
    folder.path.mkdir()
    for file in (folder.config, folder.environment):
        (tmp_path / file.name).write_text("mine")
        file.symlink_to(tmp_path / file.name)
    folder.create(config)
    folder.write_environment({"python": "3"})
    assert not folder.config.is_symlink() and folder.load_config() == config
    assert [(tmp_path / name).read_text() for name in ("config.yaml", "environment.json")] == ["mine", "mine"]


def traced(run: Path) -> Path:
    ids = np.zeros((1, 8, 2), np.uint16)
    write_trace(run, 1, 0, [(range(1), ids)], np.arange(8), (1, 8, 4))
    return run / "routing" / "step-00000001-rank-00000.npz"


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-30])


def _no_archive(file: Path) -> None:
    file.write_bytes(b"x" * 100)


def _another_size(file: Path) -> None:
    np.savez(
        file, sizes=np.array([10**9, 10**9, 4]), positions=np.arange(8), **{"layer-0": np.zeros((1, 8, 2), np.uint16)}
    )


def _another_layer(file: Path) -> None:
    np.savez(file, sizes=np.array([1, 8, 4]), positions=np.arange(8), **{"layer-x": np.zeros(3)})


def _linked(file: Path) -> None:
    os.rename(file, file.parent.parent / "moved")
    file.symlink_to(file.parent.parent / "moved")


@pytest.mark.parametrize("harm", [_cut, _no_archive, _another_size, _another_layer, _linked])
def test_a_damaged_trace_is_named(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    file = traced(tmp_path)
    assert [trace.step for trace in read_traces(tmp_path)] == [1]
    harm(file)
    with pytest.raises(UserError, match=f"{file.name} is (damaged|a link)"):
        read_traces(tmp_path)


def test_a_trace_that_unpacks_to_too_much_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traced(tmp_path)
    monkeypatch.setattr("mindmoe.lab.flight.trace._MOST", 50)
    with pytest.raises(UserError, match="bytes unpacked are too many"):
        read_traces(tmp_path)
