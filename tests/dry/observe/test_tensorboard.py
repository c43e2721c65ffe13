"""TensorBoard events read back, and folders that cannot be written."""

import logging
import resource
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from mindmoe.observe.tensorboard import TensorBoardLog


def events(folder: Path) -> list[Any]:
    """Every event of every file: records are u64 length, u32 crc, data, u32 crc."""
    found = []
    for file in sorted(folder.glob("events.out.tfevents.*")):
        raw, at = file.read_bytes(), 0
        while at < len(raw):
            (length,) = struct.unpack_from("<Q", raw, at)
            found.append(Event.FromString(raw[at + 12 : at + 12 + length]))
            at += length + 16
    return found


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    return {
        (v.tag, e.step): v.simple_value for e in events(folder) for v in e.summary.value if not v.HasField("tensor")
    }


def test_tags_that_users_expect(tmp_path: Path, records: SimpleNamespace) -> None:
    log = TensorBoardLog(tmp_path / "tb", 0)
    for record in (records.train(7), records.eval(7), records.routing(7), records.event(7, "signal", "stop")):
        log.write(record)
    log.close()
    found = scalars(tmp_path / "tb")
    assert {step for _, step in found} == {7}
    expected = {
        "loss/train": 4 + 4 / 7,
        "loss/valid": 4.25,
        "loss/unigram-entropy": 6.25,
        "learning-rate": 3e-4,
        "grad-norm": 1.0,
        "throughput/tokens-per-s": 4096,
        "mfu": 0.3,
        "moe/load-cv": 0.3,
        "moe/max-vio": 0.5 + 1 / 7,
        "valid/bits-per-byte": 1.5,
        "moe-layer/max-vio/002": 1.0,
    }
    for tag, value in expected.items():
        assert found[tag, 7] == pytest.approx(value, rel=1e-6), tag  # float32 on disk
    texts = [v for e in events(tmp_path / "tb") for v in e.summary.value if v.HasField("tensor")]
    assert [text.tensor.string_val[0] for text in texts] == [b"signal: stop"]


def test_what_is_missing_is_left_out(tmp_path: Path, records: SimpleNamespace) -> None:
    log = TensorBoardLog(tmp_path, 0)
    log.write(records.train(1, moe=False, mfu=None, loss=float("nan")))
    log.close()
    found = scalars(tmp_path)
    assert ("mfu", 1) not in found and ("moe/load-cv", 1) not in found
    assert found["loss/train", 1] != found["loss/train", 1]


def test_events_reach_the_disk_while_training(
    tmp_path: Path, records: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = TensorBoardLog(tmp_path, 0)
    log.write(records.train(1))
    assert scalars(tmp_path) == {}, "not every record pays for an fsync"
    monkeypatch.setattr("mindmoe.observe.tensorboard._FLUSH", 0.0)
    log.write(records.train(2))
    assert {step for _, step in scalars(tmp_path)} == {1, 2}
    log.close()


def test_resuming_purges_later_steps(tmp_path: Path, records: SimpleNamespace) -> None:
    TensorBoardLog(tmp_path, 20).close()
    starts = [event for event in events(tmp_path) if event.session_log.status == SessionLog.START]
    assert [event.step for event in starts] == [21]


def test_an_unwritable_folder_warns_once(
    tmp_path: Path, records: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tb").write_text("")
    with caplog.at_level(logging.WARNING):
        log = TensorBoardLog(tmp_path / "tb", 0)
        log.write(records.train(1))
        log.close()
    assert [record.name for record in caplog.records] == ["mindmoe.observe.tensorboard"]


def test_a_full_disk_warns_once_and_never_blocks(
    tmp_path: Path, records: SimpleNamespace, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = TensorBoardLog(tmp_path, 0)
    monkeypatch.setattr("mindmoe.observe.tensorboard._FLUSH", 0.0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, before[1]))
    try:
        for step in range(1, 100):
            log.write(records.train(step))
        log.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sum("no TensorBoard events from now on" in record.message for record in caplog.records) == 1
