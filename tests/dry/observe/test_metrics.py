"""metrics.jsonl: torn lines, resuming, strict JSON, full disks."""

import json
import logging
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mindmoe.host.errors import UserError
from mindmoe.observe.metrics import MetricsLog, read_metrics


def write(path: Path, records: list[dict[str, Any]], resume_step: int = 0) -> None:
    log = MetricsLog(path, resume_step)
    for record in records:
        log.write(record)
    log.close()


def test_round_trip(tmp_path: Path, records: SimpleNamespace) -> None:
    file = tmp_path / "metrics.jsonl"
    assert read_metrics(file) == []
    write(file, records.whole_run())
    assert read_metrics(file) == records.whole_run()


def test_resuming_removes_repeated_steps_and_keeps_history(tmp_path: Path, records: SimpleNamespace) -> None:
    file = tmp_path / "metrics.jsonl"
    write(file, [*records.whole_run(40), records.event(37, "nan", "loss is not finite")])
    write(file, [records.train(21)], resume_step=20)
    read = read_metrics(file)
    curves = [record for record in read if record["kind"] != "event"]
    assert [r["step"] for r in curves if r["kind"] == "train"] == list(range(1, 22))
    assert max(r["step"] for r in curves) == 21
    assert [r["step"] for r in read if r["kind"] == "event"] == [0, 10, 20, 30, 40, 40, 37]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_file_that_needs_no_repair_is_not_rewritten(tmp_path: Path, records: SimpleNamespace) -> None:
    file = tmp_path / "metrics.jsonl"
    write(file, records.whole_run(40))
    before = file.stat().st_ino
    MetricsLog(file, 40).close()
    assert file.stat().st_ino == before


def test_torn_anywhere(tmp_path: Path, records: SimpleNamespace) -> None:
    file = tmp_path / "metrics.jsonl"
    write(file, [records.train(1), records.train(2)])
    raw = file.read_bytes()
    first = raw.index(b"\n") + 1
    for size in range(first, len(raw), 7):
        file.write_bytes(raw[:size])
        assert read_metrics(file) == [records.train(1)]
        write(file, [records.train(2)], resume_step=1)
        assert file.read_bytes() == raw


@pytest.mark.parametrize("line", [b"\0" * 512, b"{", b"[1]", b'{"step": 1}', b'{"kind": 1, "step": 1}', b"\xff\xfe",
                                  b'{"kind": "train", "step": "1"}', b""])  # fmt: skip
def test_broken_lines_are_passed_over_and_counted(
    tmp_path: Path, records: SimpleNamespace, line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "metrics.jsonl"
    good = [(json.dumps(records.train(step)) + "\n").encode() for step in (1, 2)]
    file.write_bytes(good[0] + line + b"\n" + good[1])
    with caplog.at_level(logging.WARNING):
        assert [record["step"] for record in read_metrics(file)] == [1, 2]
    assert "1 broken lines" in caplog.text
    MetricsLog(file, 2).close()
    assert file.read_bytes() == b"".join(good)


def test_values_that_json_does_not_know(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    wild = {
        "loss": float("nan"),
        "a": [float("inf"), 1.5],
        "b": np.float32("nan"),
        "c": np.arange(2),
        "d": np.float32(0.5),
    }
    write(file, [{"kind": "train", "step": np.int64(1), **wild}])

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    record = json.loads(file.read_text(), parse_constant=refuse)
    assert record == {"kind": "train", "step": 1, "loss": None, "a": [None, 1.5], "b": None, "c": [0, 1], "d": 0.5}


def test_a_kill_loses_nothing_that_was_written(tmp_path: Path, root: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom mindmoe.observe.metrics import MetricsLog\n"
        "log = MetricsLog(Path(sys.argv[1]), 0)\n"
        "for step in range(1, 51): log.write({'kind': 'train', 'step': step})\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], env={**os.environ, "PYTHONPATH": str(root)})
    assert done.returncode == -9
    assert [record["step"] for record in read_metrics(file)] == list(range(1, 51))


def test_a_full_disk_warns_once_and_the_log_recovers(
    tmp_path: Path, records: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "metrics.jsonl"
    log = MetricsLog(file, 0)
    log.write(records.train(1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 100, before[1]))
    try:
        for step in (2, 3, 4):
            log.write(records.train(step))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    log.write(records.train(5))
    log.close()
    assert [record["step"] for record in read_metrics(file)] == [1, 5]
    assert sum("metrics are being lost" in record.message for record in caplog.records) == 1


def test_an_unwritable_file_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*set output_dir"):
        MetricsLog(tmp_path / "file" / "metrics.jsonl", 0)


def test_a_failed_repair_leaves_the_file_alone(
    tmp_path: Path, records: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, make_run: Callable[..., Path]
) -> None:
    file = make_run(records.whole_run(5)) / "metrics.jsonl"
    before = file.read_bytes()

    def fail(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match="No space left"):
        MetricsLog(file, 2)
    assert file.read_bytes() == before
    assert sorted(path.name for path in file.parent.iterdir()) == ["config.yaml", "metrics.jsonl"]
