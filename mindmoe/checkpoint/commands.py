"""`mindmoe ckpt`: what lies in a checkpoint folder, whether it is whole, and what to do about it. Needs no device."""

import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mindmoe.checkpoint import disk, store, verdicts
from mindmoe.checkpoint.balance import share_out
from mindmoe.checkpoint.chunks import Chunk, Staging, write_shard
from mindmoe.checkpoint.dtypes import numpy_dtype
from mindmoe.checkpoint.folder import (
    QUARANTINE,
    STEP,
    list_steps,
    parsed,
    read_manifest,
    shard_name,
    step_of,
)
from mindmoe.checkpoint.identity import MOMENTS, stored_table, table_digest
from mindmoe.checkpoint.manifest import ChunkRecord, Manifest, ShardRecord
from mindmoe.checkpoint.reader import Checkpoint, total_digest
from mindmoe.checkpoint.retention import PIN, SCORE, Retention, complete_manifest, prune, superfluous
from mindmoe.host.errors import CheckpointError, UserError
from mindmoe.host.files import shown
from mindmoe.parallel.box import Box

DAMAGED = 1  # exit code
_PLAIN_WIDTH = 160
_ABANDONED = 3600.0  # [s] after which an unfinished save without a new file is nobody's
_DIFF_ROWS = 2**24  # [bytes] compared at a time


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(width=_PLAIN_WIDTH, highlight=False)


def _table(title: str, *columns: str) -> Table:
    """A table; columns whose name starts with `>` are right-aligned."""
    table = Table(title=_said(title), title_justify="left")
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    return table


def _said(value: object) -> Text:
    """Something from a manifest or the name of a file, as one line that neither a terminal nor rich obeys."""
    return Text(shown(str(value), 1000))


def root_of(path: Path) -> Path:
    """The checkpoint folder of a run folder, of a step's folder, or itself.

    Raises:
        UserError: there are no checkpoints.
    """
    # A run folder, its checkpoints, or one step: people name any of them.
    for root in (path / "checkpoints", path, path.parent if STEP.fullmatch(path.name) else path):
        if list_steps(root) or (root.is_dir() and list(root.glob(f"{QUARANTINE}*"))):
            return root
    raise UserError(f"{path} holds no checkpoints", "give a run folder, its checkpoints folder, or one step in it")


def step_folder(path: Path, step: int | None) -> Path:
    """One step: the folder itself, a numbered step of a run, or its newest.

    Raises:
        UserError: there is no such step.
    """
    if STEP.fullmatch(path.name) or path.name.startswith(QUARANTINE):
        return path
    steps = [found for found in list_steps(root_of(path)) if step is None or step_of(found) == step]
    if not steps:
        have = ", ".join(str(step_of(found)) for found in list_steps(root_of(path))) or "none"
        raise UserError(f"{path} has no {'step' if step is None else f'step {step}'}", f"it holds: {have}")
    return steps[0]


def size_text(nbytes: float) -> str:
    """A size for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.2f} TiB"


def _age(seconds: float) -> str:
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name} ago"
    return f"{seconds / 86_400:.0f} days ago"


def ls(path: Path) -> int:
    """Lists the steps of a folder, what `verify` found, what was set aside, and what is unfinished; reads no tensor."""
    root = root_of(path)
    table = _table(f"checkpoints in {root}", ">step", "saved", ">size", ">shards", ">held-out loss", "content", "state")
    known = verdicts.recall(root)
    for folder in list_steps(root):
        manifest = complete_manifest(folder)
        if manifest is None:
            table.add_row(str(step_of(folder)), "", "", "", "", "", Text("incomplete: run ckpt verify", "red"))
            continue
        score = manifest.meta.state.get(SCORE)
        state = Text("complete")
        if (verdict := known.get(folder.name)) is not None:
            when = _age(time.time() - verdict.time)
            state = Text(f"DAMAGED, found {when}", "red") if verdict.problems else Text(f"whole, verified {when}")
        table.add_row(
            str(manifest.step),
            _age(time.time() - manifest.saved_at) if manifest.saved_at else "",
            size_text(manifest.size),
            str(len(manifest.shards)),
            f"{score:.4f}" if isinstance(score, float) else "",
            total_digest(manifest.tensors()),
            state.append(", pinned") if (folder / PIN).exists() else state,
        )
    console = _console()
    console.print(table)
    for folder in sorted(root.glob(f"{QUARANTINE}*")):
        console.print(Text("set aside as corrupt", "red"), _said(folder.name), sep=": ")
    for folder in sorted(root.glob(f"{disk.TEMPORARY}step-*")):
        console.print("unfinished save", _said(folder.name), sep=": ")
    console.print(f"{size_text(shutil.disk_usage(root).free)} free on this disk")
    return 0


def show(path: Path, step: int | None, everything: bool) -> int:
    """Prints what one step holds and belongs to."""
    folder = step_folder(path, step)
    with store.open_step(folder) as checkpoint:
        manifest, tensors = checkpoint.manifest, checkpoint.tensors
    meta = manifest.meta
    facts = _table(str(folder), "what", "value")
    for what, value in (
        ("step", manifest.step),
        ("format version", manifest.version),
        ("size", f"{size_text(manifest.size)} in {len(manifest.shards)} shards"),
        ("elements", f"{sum(math.prod(t.shape) for t in tensors.values()):,} in {len(tensors)} tensors"),
        ("content digest", total_digest(tensors)),
        ("model digest", table_digest(stored_table(tensors))),
        ("config digest", meta.config_digest),
        ("written by", meta.generation),
        ("software", _pairs(meta.versions)),
        ("layout", _pairs(meta.topology)),
        *((f"data: {key}", json.dumps(value)) for key, value in meta.data.items()),
        *meta.state.items(),
    ):
        facts.add_row(_said(what), _said(value))
    console = _console()
    console.print(facts)
    chunks: dict[str, int] = {}
    for name, _ in manifest.chunks():
        chunks[name] = chunks.get(name, 0) + 1
    listed = list(tensors.items())[: None if everything else 20]
    table = _table("tensors", "name", "dtype", "shape", ">chunks", "digest")
    for name, tensor in listed:
        shape = "x".join(map(str, tensor.shape)) or "-"
        table.add_row(_said(name), tensor.dtype, shape, str(chunks[name]), tensor.digest)
    console.print(table)
    if len(listed) < len(tensors):
        console.print(f"{len(tensors) - len(listed)} more: add --all")
    return 0


def _pairs(values: Mapping[str, object]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items()) or "not recorded"


def verify(path: Path, step: int | None, everything: bool) -> int:
    """Reads every byte of a step, or of all steps, and prints what is wrong; exit code 1 if something is.

    What it finds is remembered for `ls`, as long as the files stay as they are.
    """
    folders = list_steps(root_of(path)) if everything else [step_folder(path, step)]
    console, damaged = _console(), 0
    for folder in folders:
        # The fingerprint is taken before the reading: a file that changes meanwhile makes the verdict void.
        started, files = time.perf_counter(), verdicts.fingerprint(folder)
        problems = list(store.damage(folder))
        verdicts.remember(folder, files, problems)
        if problems:
            damaged += 1
            console.print(Text(f"{folder.name}: DAMAGED", "red"))
            for problem in problems:
                console.print(Text("  ").append_text(_said(problem)))
        else:
            manifest, seconds = read_manifest(folder), time.perf_counter() - started
            speed = manifest.size / seconds / 1e9
            console.print(f"{folder.name}: whole, {size_text(manifest.size)} verified at {speed:.2f} GB/s")
    return DAMAGED if damaged else 0


def diff(first: Path, second: Path, step: int | None = None, other_step: int | None = None) -> int:
    """Compares two steps tensor by tensor, whatever their layouts; exit code 1 if they differ.

    Args:
        first: a run folder, its checkpoints, or one step.
        second: what to compare it with.
        step: which step of both; by default the newest of each.
        other_step: which step of the second, if it is another.
    """
    console = _console()
    folders = step_folder(first, step), step_folder(second, step if other_step is None else other_step)
    with store.open_step(folders[0]) as one, store.open_step(folders[1]) as two:
        for name, side in (("first", one), ("second", two)):
            console.print(Text(f"{name}: ").append_text(_said(f"{side.path}, {_content(side)}")))
        table = _table("differences", "tensor", "of", "what", ">largest difference", ">elements that differ")
        for name in sorted(one.tensors.keys() | two.tensors.keys()):
            here, there = one.tensors.get(name), two.tensors.get(name)
            row = _said(name), "optimizer" if name.startswith(MOMENTS) else "weights"
            if here is None or there is None:
                table.add_row(*row, f"only in the {'first' if there is None else 'second'}", "", "")
            elif (here.shape, here.dtype) != (there.shape, there.dtype):
                table.add_row(*row, f"{here.dtype} {here.shape} / {there.dtype} {there.shape}", "", "")
            elif here.digest != there.digest:
                largest, count = _difference(one, two, name)
                table.add_row(*row, "content", f"{largest:.3g}", f"{count:,} of {math.prod(here.shape):,}")
        equal = table.row_count == 0
        console.print(f"equal: {len(one.tensors)} tensors, content {total_digest(one.tensors)}" if equal else table)
    return 0 if equal else DAMAGED


def _content(checkpoint: Checkpoint) -> str:
    """What a step holds, in a few words."""
    moments = sum(name.startswith(MOMENTS) for name in checkpoint.tensors)
    weights = len(checkpoint.tensors) - moments
    return f"step {checkpoint.manifest.step}: {weights} tensors of weights, {moments} of the optimizer"


def _difference(one: Checkpoint, two: Checkpoint, name: str) -> tuple[float, int]:
    """Largest absolute difference and number of elements that differ, in pieces of bounded size."""
    record = one.tensors[name]
    largest, count = 0.0, 0
    for box in slabs(record.shape, numpy_dtype(record.dtype).itemsize, _DIFF_ROWS):
        a, b = (source.read({name: box})[name] for source in (one, two))
        # Bits and not values, as digests do: NaN differs from itself, and 0.0 equals -0.0.
        bits = np.dtype(f"u{a.dtype.itemsize}")
        count += int(np.count_nonzero(a.reshape(-1).view(bits) != b.reshape(-1).view(bits)))
        if record.dtype == "BF16":
            # BF16 is the upper half of an fp32.
            a, b = ((x.astype(np.uint32) << 16).view(np.float32) for x in (a, b))
        with np.errstate(invalid="ignore"):
            gap = np.abs(a.astype(np.float64) - b.astype(np.float64))
        largest = max(largest, float(np.nanmax(gap, initial=0.0)))
    return largest, count


def slabs(shape: tuple[int, ...], itemsize: int, limit: int) -> Iterator[Box]:
    """Boxes of whole rows that tile a tensor, each of at most `limit` bytes or one row."""
    if not shape:
        yield Box((), ())
        return
    row = math.prod(shape[1:]) * itemsize
    step = max(1, limit // max(row, 1))
    for start in range(0, shape[0], step):
        yield Box.whole(shape).cut(0, start, min(step, shape[0] - start))


def prune_steps(path: Path, rule: Retention, dry_run: bool) -> int:
    """Deletes the complete steps that no rule wants, or says which they are."""
    root = root_of(path)
    if dry_run:
        complete = [(folder, m) for folder in list_steps(root) if (m := complete_manifest(folder))]
        gone = superfluous(complete, rule)
    else:
        gone = prune(root, rule)
    for folder in gone:
        print(f"{'would delete' if dry_run else 'deleted'} {folder.name}")
    left = len(list_steps(root)) - len(gone) * dry_run
    print(f"{len(gone)} steps {'would be ' * dry_run}deleted, {left} stay")
    return 0


def pin(path: Path, step: int | None, keep: bool) -> int:
    """Marks a step so that it is never deleted, or takes the mark away."""
    folder = step_folder(path, step)
    with disk.reported(f"{'pin' if keep else 'unpin'} {folder}"):
        if keep:
            disk.replace_file(folder / PIN, b"")
        else:
            (folder / PIN).unlink(missing_ok=True)
            disk.sync_dir(folder)
    print(f"{folder.name} is {'kept until it is unpinned' if keep else 'no longer pinned'}")
    return 0


def reshard(path: Path, step: int | None, out: Path, num_shards: int) -> int:
    """Writes a step anew with another number of shards, in memory of one shard; content and digests stay the same."""
    with store.open_step(step_folder(path, step)) as source:
        generation = store.claim(out)
        wanted = source.manifest
        staging_folder = store.begin(out, wanted.step, generation)
        staging, records = Staging(), []
        for rank, share in enumerate(cut(source, num_shards)):
            with store.reading(source.path):
                arrays = source.read({name: record.box for name, record in share.items()})
            chunks = {n: Chunk(arrays[n], r.dtype, r.global_shape, r.offset) for n, r in share.items()}
            with disk.reported(f"write the checkpoint in {out}"):
                records.append(write_shard(staging_folder / shard_name(rank), chunks, staging))
        published = store.commit(out, staging_folder, _resharded(wanted, generation, records))
        with store.open_step(published) as result:
            # Digests of tensors do not depend on how they are cut, so they prove the copy.
            if result.tensors != source.tensors:
                raise CheckpointError(f"{published} does not have the content of {source.path}", "report this")
            digest = total_digest(result.tensors)
    print(f"{published}: {num_shards} shards, content {digest}, as before")
    return 0


def _resharded(manifest: Manifest, generation: str, records: list[ShardRecord]) -> Manifest:
    meta = replace(manifest.meta, generation=generation, topology={**manifest.meta.topology, "shards": len(records)})
    return replace(manifest, meta=meta, shards=tuple(records))


def cut(source: Checkpoint, num_shards: int) -> list[dict[str, ChunkRecord]]:
    """What each shard holds: every tensor is cut along its first dimension, small ones are shared out whole."""
    small: dict[str, ChunkRecord] = {}
    shards: list[dict[str, ChunkRecord]] = [{} for _ in range(num_shards)]
    for name, tensor in source.tensors.items():
        shape = tensor.shape
        # Too few rows to give each shard one.
        if not shape or shape[0] < num_shards:
            small[name] = ChunkRecord.of(tensor.dtype, shape)
            continue
        start = 0
        for rank, part in enumerate(np.array_split(np.arange(shape[0]), num_shards)):
            shards[rank][name] = ChunkRecord.of(tensor.dtype, shape, Box.whole(shape).cut(0, start, len(part)))
            start += len(part)
    for rank, names in enumerate(share_out([small] * num_shards)):
        shards[rank] |= {name: small[name] for name in names}
    return shards


def repair(path: Path) -> int:
    """Sets damaged steps aside, brings back those set aside that verify now, removes abandoned saves."""
    root, done = root_of(path), 0
    for folder in list_steps(root):
        if problems := list(store.damage(folder)):
            target = store.set_aside(folder)
            print(f"set aside {folder.name} as {target.name}: {shown(problems[0], 1000)}")
            done += 1
    for folder in sorted(root.glob(f"{QUARANTINE}*")):
        # Brought back only where no other step has its name by now.
        match = STEP.search(folder.name)
        if match and not (root / match[0]).exists() and not list(store.damage(folder)):
            with disk.reported(f"bring back {folder}"):
                os.rename(folder, root / match[0])
                disk.sync_dir(root)
            print(f"brought back {match[0]}: every byte of {folder.name} verifies")
            done += 1
    # Saves alone: what the ranks of a live run tell each other lies beside them, and may be older.
    for folder in sorted(root.glob(f"{disk.TEMPORARY}step-*")):
        # A save under way keeps writing; one without a new file for an hour has nobody.
        newest = max((p.stat().st_mtime for p in (folder, *folder.rglob("*"))), default=0.0)
        if time.time() - newest > _ABANDONED:
            with disk.reported(f"remove {folder}"):
                disk.remove(folder)
            print(f"removed the abandoned {folder.name}")
            done += 1
    steps = [parsed(folder)[0] for folder in list_steps(root)]
    print(f"{done} repairs; the newest valid step is {steps[0]}" if steps else f"{done} repairs; no valid step is left")
    return 0 if steps else DAMAGED
