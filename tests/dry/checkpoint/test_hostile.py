"""Steps that no writer leaves behind: hostile manifests, links, things that are no files, other permissions."""

import json
import os
import stat
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import xxhash

from mindmoe.checkpoint import disk, store
from mindmoe.checkpoint.folder import MANIFEST, list_steps
from mindmoe.checkpoint.manifest import ChunkRecord, Manifest, Meta, ShardRecord, parse, tiles
from mindmoe.checkpoint.retention import Retention, prune
from mindmoe.parallel.box import Box

Save = Callable[..., Path]


def reseal(step: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the manifest of a step and gives it a digest that fits."""
    file = step / MANIFEST
    content = json.loads(file.read_bytes().rsplit(b"\n", 2)[0])
    change(content)
    body = json.dumps(content).encode() + b"\n"
    file.write_bytes(body + f'"xxh3_128:{xxhash.xxh3_128_hexdigest(body)}"\n'.encode())


def of_shard(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["shards"][0].update(values)


def of_chunk(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: next(iter(manifest["shards"][0]["tensors"].values())).update(values)


def renamed(name: str) -> Callable[[dict[str, Any]], None]:
    def rename(manifest: dict[str, Any]) -> None:
        tensors = manifest["shards"][0]["tensors"]
        tensors[name] = tensors.pop(next(iter(tensors)))

    return rename


def deep(manifest: dict[str, Any]) -> None:
    nested: Any = 0
    for _ in range(200):
        nested = [nested]
    manifest["meta"]["model"]["x"] = nested


@pytest.mark.parametrize(
    "change",
    [
        of_shard(file="a\0"),
        of_shard(file="a/b"),
        of_shard(file="../a"),
        of_shard(file="."),
        of_shard(file=""),
        of_shard(file=MANIFEST),
        of_shard(file="x" * 300),
        of_shard(file="a\x1b[2J"),
        of_shard(size=-1),
        of_shard(size=10**30),
        of_shard(size=True),
        of_shard(tensors=None),
        of_chunk(dtype="X"),
        of_chunk(dtype=""),
        of_chunk(shape=[0, 10**30], global_shape=[0, 10**30], offset=[0, 0]),
        of_chunk(shape=[0, 2**62], global_shape=[0, 2**62], offset=[0, 0]),
        of_chunk(shape=[1] * 40, global_shape=[1] * 40, offset=[0] * 40),
        of_chunk(shape=[1], global_shape=[1, 1], offset=[0]),
        of_chunk(shape=[-1]),
        of_chunk(offset=[-1, 0]),
        of_chunk(digest="g" * 16),
        renamed(""),
        renamed("w\0"),
        renamed("\x1b]0;title\x07"),
        renamed("w" * 2000),
        lambda manifest: manifest.update(step=-2),
        lambda manifest: manifest.update(step=10**30),
        lambda manifest: manifest.update(shards={}),
        lambda manifest: manifest.update(shards=manifest["shards"] * 2),
        lambda manifest: manifest.update(meta=[]),
        lambda manifest: manifest.update(version=2.0),
        lambda manifest: manifest["meta"].update(state={"x": float("nan")}),
        deep,
    ],
)
def test_a_manifest_that_cannot_be_meant_is_set_aside(ram: Path, save: Save, saver: ModuleType, change: Any) -> None:
    save(ram, 1)
    reseal(save(ram, 2), change)
    found = store.newest_valid(ram)
    assert found is not None and found.manifest.step == 1 and saver.is_state(1, found.tensors)
    assert [q.path.name for q in found.quarantined] == ["quarantine-step-00000002"]
    assert found.quarantined[0].reason.isprintable()


def test_a_manifest_with_a_key_twice_is_set_aside(ram: Path, save: Save) -> None:
    save(ram, 1)
    file = save(ram, 2) / MANIFEST
    body = file.read_bytes().rsplit(b"\n", 2)[0].replace(b'"step": 2', b'"step": 3, "step": 2') + b"\n"
    file.write_bytes(body + f'"xxh3_128:{xxhash.xxh3_128_hexdigest(body)}"\n'.encode())
    found = store.newest_valid(ram)
    assert found is not None and found.manifest.step == 1


@pytest.mark.slow
def test_a_hundred_thousand_chunks_are_checked_in_seconds() -> None:
    boxes = [Box((2 * i, 5 * j), (2, 5)) for i in range(300) for j in range(334)]
    whole = (600, 1670)

    def record(box: Box) -> ChunkRecord:
        return replace(ChunkRecord.of("F32", whole, box), digest="0" * 16)

    shards = tuple(
        ShardRecord(file=f"shard-{i}", size=100, header_digest="h", tensors={"w": record(box)})
        for i, box in enumerate(boxes)
    )
    manifest = Manifest(
        step=1, meta=Meta(model={}, topology={}, config_digest="", generation=""), shards=shards
    ).to_bytes()
    started = time.process_time()
    assert len(parse(manifest, Path("m")).shards) == len(boxes)
    last = boxes[-1]
    for wrong in (boxes[1:], boxes[:-1] + boxes[:1], [*boxes[:-1], last.cut(0, -1, last.shape[0])]):
        assert not tiles(whole, wrong)
    assert time.process_time() - started < 60, "comparing all pairs of chunks would take hours"


def test_a_step_on_another_disk_is_loaded_and_only_its_link_is_removed(
    ram: Path, save: Save, saver: ModuleType
) -> None:
    root, big = ram / "checkpoints", ram / "big"
    big.mkdir()
    for step in (1, 2):
        os.rename(save(root, step), big / f"step-0000000{step}")
        (root / f"step-0000000{step}").symlink_to(big / f"step-0000000{step}")
    found = store.newest_valid(root)
    assert found is not None and saver.is_state(2, found.tensors) and not found.quarantined
    assert prune(root, Retention(keep_last=1)) == [root / "step-00000001"]
    assert [path.name for path in list_steps(root)] == ["step-00000002"]
    save(root, 2)  # replaces the step of the link by one of its own
    assert not (root / "step-00000002").is_symlink() and not list(root.glob(".del-*"))
    for step in (1, 2):
        assert saver.is_state(step, store.load(big / f"step-0000000{step}")[0])


def test_a_checkpoint_folder_may_itself_be_a_link(ram: Path, save: Save, saver: ModuleType) -> None:
    (ram / "big").mkdir()
    (ram / "checkpoints").symlink_to(ram / "big")
    for step in (1, 2, 3):
        save(ram / "checkpoints", step, keep_last=2)
    assert (ram / "checkpoints").is_symlink()
    assert [path.name for path in list_steps(ram / "big")] == ["step-00000003", "step-00000002"]
    found = store.newest_valid(ram / "checkpoints")
    assert found is not None and saver.is_state(3, found.tensors)


def test_links_left_by_an_interrupted_deletion_do_not_block_the_next_run(ram: Path, save: Save) -> None:
    kept = save(ram / "elsewhere", 1)
    (ram / "root").mkdir()
    for name in (".del-step-00000001-x", ".tmp-step-00000002-y"):
        (ram / "root" / name).symlink_to(kept)
    store.claim(ram / "root")
    assert [path.name for path in (ram / "root").iterdir()] == ["WRITER"] and (kept / MANIFEST).is_file()


def test_remove_never_follows(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("x")
    folder = tmp_path / "folder"
    folder.mkdir()
    for link, target in (("a", "kept"), ("b", "kept/file"), ("c", "nowhere"), ("folder/d", "../kept")):
        (tmp_path / link).symlink_to(target)
    for name in ("a", "b", "c", "folder", "never was"):
        disk.remove(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept"] and (tmp_path / "kept" / "file").is_file()


def _no_folder(step: Path) -> None:
    step.write_text("")


def _empty(step: Path) -> None:
    step.mkdir()


def _to_nothing(step: Path) -> None:
    step.symlink_to("nowhere")


def _to_itself(step: Path) -> None:
    step.symlink_to(step.name)


def _pipe(step: Path) -> None:
    step.mkdir()
    os.mkfifo(step / MANIFEST)


def _linked_manifest(step: Path) -> None:
    step.mkdir()
    (step / MANIFEST).symlink_to(step.parent / "step-00000001" / MANIFEST)


@pytest.mark.parametrize("make", [_no_folder, _empty, _to_nothing, _to_itself, _pipe, _linked_manifest])
def test_what_is_no_step_is_passed_over(ram: Path, save: Save, make: Callable[[Path], None]) -> None:
    save(ram, 1)
    make(ram / "step-00000009")
    found = store.newest_valid(ram)
    assert found is not None and found.manifest.step == 1
    assert [q.path.name for q in found.quarantined] == ["quarantine-step-00000009"]


@pytest.mark.parametrize("instead", ["link", "pipe", "folder"])
def test_a_shard_that_is_no_file_is_damage(ram: Path, save: Save, instead: str) -> None:
    save(ram, 1)
    shard = save(ram, 2) / "shard-00000.safetensors"
    os.rename(shard, ram / "moved")
    match instead:
        case "link":
            shard.symlink_to(ram / "moved")
        case "pipe":
            os.mkfifo(shard)
        case "folder":
            shard.mkdir()
    found = store.newest_valid(ram)
    assert found is not None and found.manifest.step == 1 and len(found.quarantined) == 1


@pytest.mark.parametrize("umask, folder, file", [(0o022, 0o755, 0o644), (0o027, 0o750, 0o640), (0o077, 0o700, 0o600)])
def test_permissions_are_those_that_the_umask_leaves(ram: Path, save: Save, umask: int, folder: int, file: int) -> None:
    before = os.umask(umask)
    try:
        step = save(ram / "run" / "checkpoints", 1)
    finally:
        os.umask(before)
    for path in (ram / "run", step.parent, step):
        assert stat.S_IMODE(path.stat().st_mode) == folder, path
    for path in (*step.iterdir(), step.parent / "WRITER"):
        assert stat.S_IMODE(path.stat().st_mode) == file, path
