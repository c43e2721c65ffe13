"""The life of a checkpoint folder without faults: publish, find, prune, save again, hand over."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from mindmoe.checkpoint import folder, retention, store
from mindmoe.checkpoint.chunks import Chunk
from mindmoe.checkpoint.manifest import CorruptCheckpoint, Manifest
from mindmoe.checkpoint.retention import Retention
from mindmoe.host.errors import CheckpointError

Save = Callable[..., Path]


def names(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.name != "WRITER")


def test_save_and_find(ram: Path, saver: ModuleType, save: Save) -> None:
    root = ram / "run" / "checkpoints"
    assert store.newest_valid(root) is None
    path = save(root, 20)
    assert path == root / "step-00000020"
    found = store.newest_valid(root)
    assert found is not None and found.path == path and found.manifest.step == 20 and not found.quarantined
    assert saver.is_state(20, found.tensors)
    tensors, manifest = store.load(path)
    assert saver.is_state(20, tensors) and manifest == found.manifest
    assert json.loads((path / "MANIFEST.json").read_text().rsplit("\n", 2)[0])["step"] == 20


def test_keep_last_and_names_without_leftovers(ram: Path, save: Save) -> None:
    for step in (5, 10, 200_000_000, 15):
        save(ram, step, keep_last=2)
    assert names(ram) == ["step-00000015", "step-200000000"]
    save(ram, 7, keep_last=1)  # an older step than those kept, but it was just acknowledged
    assert names(ram) == ["step-00000007", "step-200000000"]


def test_prune_counts_only_complete_steps(ram: Path, save: Save) -> None:
    for step in (1, 2, 3):
        save(ram, step)
    (ram / "step-00000003" / "shard-00000.safetensors").unlink()
    assert retention.prune(ram, Retention(keep_last=1)) == [ram / "step-00000001"]
    with pytest.raises(ValueError, match="at least 1"):
        Retention(keep_last=0)


def test_same_step_again_replaces_it(ram: Path, saver: ModuleType, save: Save) -> None:
    save(ram, 4, content=1)
    save(ram, 4, content=2)
    assert names(ram) == ["step-00000004"]
    found = store.newest_valid(ram)
    assert found is not None and saver.is_state(2, found.tensors)


def test_interrupted_replacement_is_taken_up(ram: Path, saver: ModuleType, save: Save) -> None:
    save(ram, 4, content=1)
    os.rename(ram / "step-00000004", ram / "first")
    save(ram, 4, content=2)
    os.rename(ram / "step-00000004", ram / "step-00000004.1")  # as if killed before the last rename
    os.rename(ram / "first", ram / "step-00000004")
    found = store.newest_valid(ram)
    assert found is not None and saver.is_state(2, found.tensors)
    save(ram, 4, content=3)
    assert names(ram) == ["step-00000004"]
    found = store.newest_valid(ram)
    assert found is not None and saver.is_state(3, found.tensors)


def test_an_earlier_writer_cannot_publish(ram: Path, saver: ModuleType) -> None:
    first = saver.meta(store.claim(ram))
    staging = store.begin(ram, 1, first.generation)
    record = store.write_shard(staging, 0, saver.state(1))
    second = saver.meta(store.claim(ram))
    assert names(ram) == []  # the unfinished save of the first is gone
    with pytest.raises(CheckpointError):
        store.commit(ram, staging, Manifest(step=1, meta=first, shards=(record,)))
    with pytest.raises(CheckpointError, match="two runs share the folder"):
        store.save(ram, 1, saver.state(1), first, Retention(), 0)
    store.save(ram, 1, saver.state(1), second, Retention(), 0)
    assert names(ram) == ["step-00000001"]


def test_the_fence_holds_at_the_moment_of_publishing(ram: Path, saver: ModuleType) -> None:
    first = saver.meta(store.claim(ram))
    staging = store.begin(ram, 1, first.generation)
    record = store.write_shard(staging, 0, saver.state(1))
    (ram / "WRITER").write_text("another")  # claimed, but its cleaning has not come by yet
    with pytest.raises(CheckpointError, match="claimed by writer another"):
        store.commit(ram, staging, Manifest(step=1, meta=first, shards=(record,)))
    assert folder.list_steps(ram) == []


def test_corrupt_newest_is_quarantined_and_named(ram: Path, saver: ModuleType, save: Save) -> None:
    for _ in range(2):
        for step in (1, 2, 3):
            save(ram, step)
        shard = ram / "step-00000003" / "shard-00000.safetensors"
        raw = bytearray(shard.read_bytes())
        raw[-1] ^= 1  # the last byte of the file is a value of a one-byte type
        shard.write_bytes(raw)
        (ram / "step-00000002" / "MANIFEST.json").unlink()
        found = store.newest_valid(ram)
        assert found is not None and saver.is_state(1, found.tensors)
    assert found is not None and [q.path.name for q in found.quarantined] == [
        "quarantine-step-00000003-1",
        "quarantine-step-00000002-1",
    ]
    assert "shard-00000.safetensors: tensor mask" in found.quarantined[0].reason
    assert "MANIFEST.json is missing" in found.quarantined[1].reason
    assert str(found.quarantined[0]).startswith("put the corrupt quarantine-step-00000003-1 aside: ")
    assert names(ram) == [
        "quarantine-step-00000002",
        "quarantine-step-00000002-1",
        "quarantine-step-00000003",
        "quarantine-step-00000003-1",
        "step-00000001",
    ]


def test_training_never_starts_over_silently(ram: Path, save: Save) -> None:
    (save(ram, 1) / "MANIFEST.json").write_text("")
    for why in ("MANIFEST.json does not match", ""):  # also on the next start, when only the quarantined folder is left
        with pytest.raises(CheckpointError, match=f"no valid one.*{why}"):
            store.newest_valid(ram)


def test_a_newer_format_is_not_skipped(ram: Path, save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    save(ram, 1)
    save(ram, 2)
    monkeypatch.setattr("mindmoe.checkpoint.manifest._MAJOR", "0")
    with pytest.raises(CheckpointError, match="reads 0.x"):
        store.newest_valid(ram)
    assert names(ram) == ["step-00000001", "step-00000002"]


def test_a_step_replaced_while_it_is_read_is_not_quarantined(
    ram: Path, saver: ModuleType, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(ram, 1)
    real = store.load

    def load_slowly(path: Path, read: object) -> tuple[dict[str, np.ndarray], Manifest]:
        monkeypatch.setattr(store, "load", real)
        shutil.rmtree(path)  # the writer saves the step again meanwhile
        save(ram, 1, content=5)
        raise CorruptCheckpoint("torn by the replacement")

    monkeypatch.setattr(store, "load", load_slowly)
    found = store.newest_valid(ram)
    assert found is not None and saver.is_state(5, found.tensors) and not found.quarantined


def test_many_writers_one_checkpoint(ram: Path, saver: ModuleType) -> None:
    whole = np.arange(60, dtype=np.float32).reshape(5, 12)
    meta = saver.meta(store.claim(ram))
    staging = store.begin(ram, 3, meta.generation)
    boxes = {0: ((0, 0), (2, 12)), 1: ((2, 0), (3, 5)), 2: ((2, 5), (3, 7))}
    records = []
    for rank, (offset, shape) in boxes.items():
        part = whole[offset[0] : offset[0] + shape[0], offset[1] : offset[1] + shape[1]]
        chunks: dict[str, np.ndarray | Chunk] = {"w": Chunk(part, "", whole.shape, offset)}
        if rank == 1:
            chunks["only here"] = np.ones(3, np.int64)
        records.append(store.write_shard(staging, rank, chunks))
    with pytest.raises(CorruptCheckpoint, match="tensor w"):
        store.commit(ram, staging, Manifest(step=3, meta=meta, shards=tuple(records[:2])))
    path = store.commit(ram, staging, Manifest(step=3, meta=meta, shards=tuple(records)))
    tensors, manifest = store.load(path)
    assert np.array_equal(tensors["w"], whole) and np.array_equal(tensors["only here"], np.ones(3))
    assert len(manifest.shards) == 3


def test_a_folder_under_the_name_of_another_step(ram: Path, save: Save) -> None:
    save(ram, 1)
    os.rename(save(ram, 2), ram / "step-00000003")
    found = store.newest_valid(ram)
    assert found is not None and found.manifest.step == 1
    assert "holds step 2" in found.quarantined[0].reason


def test_of_a_thousand_checkpoints_one_is_read(
    ram: Path, saver: ModuleType, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = save(ram, 1)
    for step in range(2, 1000):
        os.mkdir(ram / folder.step_name(step))
        for file in first.iterdir():
            os.link(file, ram / folder.step_name(step) / file.name)
    save(ram, 1000, keep_last=1000)
    read, load = [], store.load
    monkeypatch.setattr(store, "load", lambda path, *rest: read.append(path.name) or load(path, *rest))
    found = store.newest_valid(ram)
    assert read == ["step-00001000"]
    assert found is not None and found.path.name == "step-00001000" and saver.is_state(1000, found.tensors)
