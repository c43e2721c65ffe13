"""Kills, flipped bits, truncation, missing and swapped files, full disks, failing system calls.

MINDMOE_TEST_KILLS and MINDMOE_TEST_FLIP_STRIDE make the random ones longer.

Invariant of every test: what is found afterwards is bitwise a state that was saved, and never older than the
last acknowledged step; whatever is not found so is refused loudly.
"""

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mindmoe.checkpoint import store
from mindmoe.checkpoint.folder import list_steps
from mindmoe.checkpoint.manifest import CorruptCheckpoint, Manifest
from mindmoe.checkpoint.retention import Retention
from mindmoe.host.errors import CheckpointError

Save = Callable[..., Path]
KILLS = int(os.environ.get("MINDMOE_TEST_KILLS", "20"))
STRIDE = int(os.environ.get("MINDMOE_TEST_FLIP_STRIDE", "61"))  # every n-th byte has one bit flipped


@pytest.mark.slow
def test_kill_at_random_moments(ram: Path, saver: ModuleType, root: Path) -> None:
    rng = random.Random(0)
    acknowledged = fallbacks = 0
    with subprocess.Popen(
        [sys.executable, str(saver.__file__), str(ram)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as parent:
        assert parent.stdin is not None and parent.stdout is not None
        for _ in range(KILLS):
            print(file=parent.stdin, flush=True)
            child = int(parent.stdout.readline())
            first = parent.stdout.readline()
            time.sleep(rng.uniform(0, 0.04))
            os.kill(child, signal.SIGKILL)
            steps = [int(line) for line in (first, *iter(parent.stdout.readline, "dead\n"))]
            assert steps[0] in (max(acknowledged, 1), acknowledged + 1), "it resumes where it was"
            acknowledged = steps[-1]
            found = store.newest_valid(ram)
            assert found is not None and saver.is_state(found.manifest.step, found.tensors)
            assert acknowledged <= found.manifest.step <= acknowledged + 1
            fallbacks += len(found.quarantined)
    assert fallbacks == 0, "a kill never leaves a corrupt step, only unfinished ones"


@pytest.fixture
def two(ram: Path, save: Save) -> tuple[Path, Path]:
    """A folder with steps 1 and 2, and the folder of step 2."""
    save(ram, 1)
    return ram, save(ram, 2)


def test_every_flipped_bit_is_detected(two: tuple[Path, Path]) -> None:
    rng = random.Random(1)
    _, newest = two
    flips = 0
    for file in sorted(newest.iterdir()):
        good = file.read_bytes()
        for position in range(0, len(good), STRIDE):
            bad = bytearray(good)
            bad[position] ^= 1 << rng.randrange(8)
            file.write_bytes(bad)
            with pytest.raises(CorruptCheckpoint):
                store.load(newest)
            flips += 1
        file.write_bytes(good)
    store.load(newest)
    assert flips > 100


def test_every_truncation_is_detected(two: tuple[Path, Path]) -> None:
    _, newest = two
    for file in sorted(newest.iterdir()):
        good = file.read_bytes()
        for bad in [good[:n] for n in range(0, len(good), STRIDE * 5)] + [good[:-1], good + b"\0", good + b"\n"]:
            file.write_bytes(bad)
            with pytest.raises(CorruptCheckpoint):
                store.load(newest)
        file.write_bytes(good)
    store.load(newest)


def missing(newest: Path, older: Path) -> None:
    (newest / "shard-00000.safetensors").unlink()


def of_another_step(newest: Path, older: Path) -> None:
    shutil.copy(older / "shard-00000.safetensors", newest)


def manifest_of_another_step(newest: Path, older: Path) -> None:
    shutil.copy(older / "MANIFEST.json", newest)


def zeroed_page(newest: Path, older: Path) -> None:
    with (newest / "shard-00000.safetensors").open("r+b") as file:
        file.seek(4096)
        file.write(bytes(4096))


def altered_metadata(newest: Path, older: Path) -> None:
    shard = newest / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes().replace(b'"format":"np"', b'"format":"pt"'))


def linked(newest: Path, older: Path) -> None:
    (newest / "shard-00000.safetensors").unlink()
    (newest / "shard-00000.safetensors").mkdir()


def emptied(newest: Path, older: Path) -> None:
    shutil.rmtree(newest)
    newest.mkdir()


@pytest.mark.parametrize(
    "damage", [missing, of_another_step, manifest_of_another_step, zeroed_page, altered_metadata, linked, emptied]
)
def test_damaged_newest_falls_back(
    two: tuple[Path, Path], saver: ModuleType, damage: Callable[[Path, Path], None]
) -> None:
    folder, newest = two
    damage(newest, folder / "step-00000001")
    found = store.newest_valid(folder)
    assert found is not None and found.manifest.step == 1 and saver.is_state(1, found.tensors)
    assert len(found.quarantined) == 1


def test_swapped_shards(ram: Path, saver: ModuleType) -> None:
    meta = saver.meta(store.claim(ram))
    staging = store.begin(ram, 1, meta.generation)
    state = saver.state(1)
    records = tuple(
        store.write_shard(staging, rank, {f"{rank}": state["w.0"], f"{rank}.same": state["w.1"]}) for rank in range(2)
    )
    path = store.commit(ram, staging, Manifest(step=1, meta=meta, shards=records))
    store.load(path)
    one, two = (path / record.file for record in records)
    os.rename(one, path / "x")
    os.rename(two, one)
    os.rename(path / "x", two)
    with pytest.raises(CorruptCheckpoint, match="shard-00000.safetensors: the header"):
        store.load(path)


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, names: list[str], error: int, nth: int) -> Iterator[list[int]]:
    """Makes the n-th of the named os calls raise; yields a list that holds the calls so far."""
    count = [0]

    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] == nth:
                raise OSError(error, os.strerror(error), "injected")
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in names:
            patch.setattr(os, name, wrap(getattr(os, name)))
        yield count


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS])
def test_every_failing_system_call_of_a_save(
    ram: Path, saver: ModuleType, save: Save, error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = ["open", "pwrite", "fsync", "rename", "mkdir", "unlink", "rmdir"]
    outcomes = set()
    for nth in range(1, 100):
        folder = ram / f"{nth}"
        save(folder, 1)
        with failing(monkeypatch, calls, error, nth) as count:
            try:
                save(folder, 2, keep_last=1)
                saved = True
            except CheckpointError as raised:
                assert raised.remedy
                saved = False
        found = store.newest_valid(folder)
        assert found is not None and saver.is_state(found.manifest.step, found.tensors) and not found.quarantined
        assert found.manifest.step == 2 if saved else found.manifest.step in (1, 2)
        save(folder, 3)
        found = store.newest_valid(folder)
        assert found is not None and saver.is_state(3, found.tensors)
        outcomes.add(saved)
        if count[0] < nth:
            break
    assert nth > 20 and outcomes == {True, False}


def test_every_failing_system_call_of_a_load(
    ram: Path, saver: ModuleType, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(ram, 1)
    save(ram, 2)
    for nth in range(1, 50):
        with failing(monkeypatch, ["open", "preadv", "pread", "fstat"], errno.EMFILE, nth) as count:
            try:
                found = store.newest_valid(ram)
                assert found is not None and found.manifest.step == 2 and saver.is_state(2, found.tensors)
            except CheckpointError as raised:
                assert not isinstance(raised, CorruptCheckpoint), "a full table of descriptors is no corruption"
        if count[0] < nth:
            break
    assert nth > 5
    assert [path.name for path in list_steps(ram)] == ["step-00000002", "step-00000001"]


def test_a_disk_that_cannot_read_back_falls_back(
    two: tuple[Path, Path], saver: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with failing(monkeypatch, ["preadv"], errno.EIO, 1):
        found = store.newest_valid(two[0])
    assert found is not None and saver.is_state(1, found.tensors) and len(found.quarantined) == 1


def test_short_writes(ram: Path, saver: ModuleType, save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:997], at))
        save(ram, 1)
    found = store.newest_valid(ram)
    assert found is not None and saver.is_state(1, found.tensors)


def test_file_size_limit_at_every_size(ram: Path, saver: ModuleType, save: Save) -> None:
    size = (save(ram, 1) / "shard-00000.safetensors").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in [*range(64, size, 1999), size - 1, size + 4096]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(CheckpointError, match="ulimit") if limit < size else pytest.MonkeyPatch.context():
                save(ram, 2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        found = store.newest_valid(ram)
        assert found is not None and found.manifest.step == (1 if limit < size else 2)
        assert saver.is_state(found.manifest.step, found.tensors)
    assert sorted(path.name for path in ram.iterdir()) == ["WRITER", "step-00000001", "step-00000002"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a file system of so many KiB; skips where that is not allowed."""
    mounted = []

    def mount(kib: int) -> Path:
        folder = tmp_path / f"{kib}"
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)], capture_output=True)
        if done.returncode:
            pytest.skip("mounting a tmpfs needs root")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk_of_every_size(
    small_disk: Callable[[int], Path], saver: ModuleType, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    preflight = random.Random(2)
    outcomes = set()
    for kib in range(12, 140, 4):
        folder = small_disk(kib)
        if preflight.random() < 0.5:  # the disk also fills after the check, by the hand of another
            monkeypatch.setattr(store, "require_space", lambda *_: None)
        acknowledged = 0
        for step in (1, 2, 3):
            try:
                save(folder, step)
                acknowledged = step
            except CheckpointError as error:
                assert "free space" in error.remedy
                break
        outcomes.add(acknowledged)
        found = store.newest_valid(folder) if acknowledged else None
        assert found is None or found.manifest.step == acknowledged and saver.is_state(acknowledged, found.tensors)
        monkeypatch.undo()
    assert outcomes == {0, 1, 2, 3}


def test_free_space_is_checked_before_writing(ram: Path, saver: ModuleType, save: Save) -> None:
    save(ram, 1)
    with pytest.raises(CheckpointError, match="checkpoint.min_free"):
        store.save(ram, 2, saver.state(2), saver.meta(store.claim(ram)), Retention(), 2**60)
    assert [path.name for path in list_steps(ram)] == ["step-00000001"]


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="part of this path is a file"):
        store.claim(tmp_path / "file" / "checkpoints")
