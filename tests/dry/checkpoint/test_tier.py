"""The second place of checkpoints: verified copies, the nearer one first, and a source that is not pruned meanwhile."""

import shutil
import threading
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from mindmoe.checkpoint import store, tier
from mindmoe.checkpoint.folder import list_steps, step_of
from mindmoe.checkpoint.manifest import ChunkRecord
from mindmoe.checkpoint.retention import Retention
from mindmoe.checkpoint.tier import Tier, copy_step, folder_copier
from mindmoe.checkpoint.writer import SavePolicy, Writer
from mindmoe.host.errors import CheckpointError


def writer(root: Path, saver: ModuleType, second: Tier) -> Writer:
    policy = SavePolicy(retention=Retention(keep_last=1), min_free=0, timeout=10)
    boxes = {"w": ChunkRecord.of("F32", (50,))}
    return Writer(root, boxes, rank=0, world=1, meta=saver.meta(store.claim(root)), policy=policy, tier=second)


def steps(root: Path) -> list[int]:
    return [step_of(path) for path in list_steps(root)]


def test_some_steps_are_copied_and_found_where_they_are(ram: Path, saver: ModuleType) -> None:
    near, far = ram / "near", ram / "far"
    second = Tier(folder_copier(far, Retention(keep_last=2), 0), 2)
    one = writer(near, saver, second)
    for step in range(1, 8):
        one.save(step, lambda _, now=step: np.full(50, now, np.float32))
        one.wait()
        second.join()  # what is being copied would not be pruned
    one.close()
    copied = second.poll()
    assert [c.step for c in copied] == [2, 4, 6] and all(c.place and c.error is None for c in copied)
    assert steps(near) == [7] and steps(far) == [6, 4]
    found = store.newest_valid(near, second=far)
    assert found is not None and found.path.parent == near and found.manifest.step == 7
    shutil.copytree(list_steps(far)[0], near / "step-00000006")
    shutil.rmtree(near / "step-00000007")
    found = store.newest_valid(near, second=far)
    assert found is not None and found.path.parent == near, "of equal steps the near one"
    shutil.rmtree(near)
    found = store.newest_valid(near, second=far)
    assert found is not None and found.path.parent == far and found.tensors["w"][0] == 6


def test_a_copy_that_does_not_verify_is_not_published(
    ram: Path, saver: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = Tier(folder_copier(ram / "far", Retention(keep_last=2), 0), 1)
    one = writer(ram / "near", saver, second)
    real = tier._copy_file

    def flipping(source: Path, target: Path) -> None:
        real(source, target)
        raw = bytearray(target.read_bytes())
        raw[-1] ^= 1
        target.write_bytes(raw)

    monkeypatch.setattr(tier, "_copy_file", flipping)
    one.save(1, lambda _: np.zeros(50, np.float32))
    (outcome,) = one.wait()
    one.close()
    (copied,) = second.poll()
    assert outcome.error is None and copied.place is None and copied.error is not None
    assert "the copy does not verify" in str(copied.error) and steps(ram / "far") == []
    assert not list((ram / "far").glob(".tmp-*"))


def test_what_is_being_copied_is_not_pruned(ram: Path, saver: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    second = Tier(folder_copier(ram / "far", Retention(keep_last=2), 0), 2)
    one = writer(ram / "near", saver, second)
    go, real = threading.Event(), tier._copy_file

    def slow(source: Path, target: Path) -> None:
        go.wait()
        real(source, target)

    monkeypatch.setattr(tier, "_copy_file", slow)
    for step in (2, 3):
        one.save(step, lambda _: np.zeros(50, np.float32))
        one.wait()
    assert steps(ram / "near") == [3, 2]
    go.set()
    second.join()
    one.close()
    assert steps(ram / "far") == [2]
    one.save(5, lambda _: np.zeros(50, np.float32))
    one.wait()
    assert steps(ram / "near") == [5]


def test_a_damaged_source_is_not_copied(ram: Path, saver: ModuleType) -> None:
    path = store.save(ram / "a", 1, saver.state(1), saver.meta(store.claim(ram / "a")), Retention(), 0)
    file = path / "shard-00000.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(CheckpointError, match="does not verify"):
        copy_step(path, ram / "b", store.claim(ram / "b"), Retention())
    (path / "MANIFEST.json").write_bytes(b"{}")
    with pytest.raises(CheckpointError, match="digest"):
        copy_step(path, ram / "b", store.claim(ram / "b"), Retention())
    assert steps(ram / "b") == [] and isinstance(store.newest_valid(ram / "b"), type(None))
