"""Simulated power loss (after ALICE, OSDI 2014): every state the disk may hold when the power fails.

The system calls of a few saves are recorded. For a crash after each of them, the possible disks are built: an
operation on a folder is durable once that folder was fsynced afterwards, written bytes once their file was;
anything else may have happened or not. The newest valid step must never be older than the last acknowledged.
The test of the test: without any single kind of fsync, or without the rename, it must find a loss.
Source: Pillai et al., "All File Systems Are Not Created Equal" (OSDI 2014).
"""

import itertools
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mindmoe.checkpoint import store
from mindmoe.checkpoint.folder import list_steps
from mindmoe.checkpoint.retention import Retention
from mindmoe.checkpoint.torture.state import is_state, meta, state
from mindmoe.host.errors import CheckpointError

Op = tuple[Any, ...]  # (kind, ...); folders and files are numbers, the checkpoint folder is 0
Trace = tuple[list[Op], list[tuple[int, int]]]
"""Recorded operations, and when which step was acknowledged: (number of operations so far, step)."""
MUTATIONS = ("file shard", "file MANIFEST", "dir staging", "dir root", "rename")
_PAGE = 4096


def of_fd(fd: int) -> Path:
    return Path(os.readlink(f"/proc/self/fd/{fd}"))


class Disk:
    """Names in folders: (folder, name) -> number of a file or folder."""

    def __init__(self) -> None:
        self.names: dict[tuple[int, str], int] = {}

    def find(self, path: Path) -> int:
        """The number of a path relative to the checkpoint folder."""
        number = 0
        for part in path.parts:
            number = self.names[number, part]
        return number

    def apply(self, op: Op) -> None:
        kind, folder, name = op[:3]
        if kind in ("mkdir", "create"):
            self.names[folder, name] = op[3]
        elif kind == "remove":
            self.names.pop((folder, name), None)
        elif kind == "rename" and (folder, name) in self.names:
            self.names[op[3], op[4]] = self.names.pop((folder, name))

    def tree(self, content: dict[int, bytes], folder: int = 0, prefix: str = "") -> dict[str, bytes | None]:
        """Path -> content of a file, None for a folder."""
        found: dict[str, bytes | None] = {}
        for (inside, name), number in self.names.items():
            if inside == folder:
                found[prefix + name] = content.get(number)
                found |= self.tree(content, number, f"{prefix}{name}/")
        return found


@contextmanager
def recording(root: Path, ops: list[Op]) -> Iterator[None]:
    """Appends every change under `root` to `ops` while it is entered."""
    live = Disk()

    def entry(path: Any, dir_fd: int | None = None) -> tuple[int, str]:
        where = (of_fd(dir_fd) / path if dir_fd is not None else Path(path)).relative_to(root)
        return live.find(where.parent), where.name

    def number(fd: int) -> int:
        return live.find(of_fd(fd).relative_to(root))

    describe: dict[str, Callable[..., Op | None]] = {
        "mkdir": lambda path, mode=0, dir_fd=None: ("mkdir", *entry(path, dir_fd), len(ops) + 1),
        "open": lambda path, flags, mode=0, dir_fd=None: (
            ("create", *entry(path, dir_fd), len(ops) + 1) if flags & os.O_CREAT else None
        ),
        "pwrite": lambda fd, data, position: ("write", number(fd), "", bytes(data), position),
        "fsync": lambda fd: ("sync dir" if of_fd(fd).is_dir() else "sync file", number(fd), ""),
        "rename": lambda old, new: ("rename", *entry(old), *entry(new)),
        "unlink": lambda path, dir_fd=None: ("remove", *entry(path, dir_fd)),
        "rmdir": lambda path, dir_fd=None: ("remove", *entry(path, dir_fd)),
    }

    def hook(name: str, real: Callable[..., Any]) -> None:
        def call(*args: Any, **kwargs: Any) -> Any:
            op = describe[name](*args, **kwargs)
            result = real(*args, **kwargs)
            if op:
                ops.append(op)
                live.apply(op)
            return result

        setattr(os, name, call)

    intact = {name: getattr(os, name) for name in describe}
    for name, real in intact.items():
        hook(name, real)
    try:
        yield
    finally:
        for name, real in intact.items():
            setattr(os, name, real)


def crashes(ops: list[Op], rng: random.Random, subsets: int) -> Iterator[dict[str, bytes | None]]:
    """Disks that may be found if the power fails after `ops`."""
    writes, durable = dict[int, list[tuple[int, bytes]]](), dict[int, int]()
    for op in ops:
        if op[0] == "create":
            writes[op[3]] = []
        elif op[0] == "write":
            writes[op[1]].append((op[4], op[3]))
        elif op[0] == "sync file":
            durable[op[1]] = len(writes[op[1]])
    synced = {op[1]: index for index, op in enumerate(ops) if op[0] == "sync dir"}
    naming = [i for i, op in enumerate(ops) if op[0] in ("mkdir", "create", "remove", "rename")]
    volatile = {
        i
        for i in naming
        if any(synced.get(folder, -1) < i for folder in {ops[i][1], ops[i][3 if ops[i][0] == "rename" else 1]})
    }
    prefixes = [{i for i in volatile if i < n} for n in (*sorted(volatile), len(ops))]
    some = [{i for i in volatile if rng.random() < 0.5} for _ in range(subsets)]
    for kept, lost in itertools.product(prefixes + some, ("all", "zero", "half", "mixed", *["pages"] * 8)):
        disk = Disk()
        for i in naming:
            if i in kept or i not in volatile:
                disk.apply(ops[i])
        content = {}
        for number, parts in writes.items():
            safe = durable.get(number, 0)
            content[number] = assembled(parts[:safe] + [(at, torn(part, lost, rng)) for at, part in parts[safe:]])
        yield disk.tree(content)


def assembled(parts: list[tuple[int, bytes]]) -> bytes:
    """The content of a file that was written at positions; what no write covers is zero."""
    content = bytearray(max((at + len(part) for at, part in parts), default=0))
    for at, part in parts:
        content[at : at + len(part)] = part
    return bytes(content)


def torn(part: bytes, lost: str, rng: random.Random) -> bytes:
    """What may be left of bytes that were written but not synced."""
    lost = rng.choice(["", "all", "zero", "half"]) if lost == "mixed" else lost
    if lost == "pages":
        pages = [part[n : n + _PAGE] for n in range(0, len(part), _PAGE)]
        return b"".join(page if rng.random() < 0.5 else bytes(len(page)) for page in pages)
    return {"": part, "all": b"", "zero": bytes(len(part)), "half": part[: len(part) // 2]}[lost]


def losses(trace: Trace, folder: Path, states_per_crash: int) -> Iterator[str]:
    """Builds every disk once and yields what is wrong with it, or an empty string.

    Args:
        trace: what happened until the power failed.
        folder: where disks are built.
        states_per_crash: so many of the disks possible at each moment are looked at.
    """
    ops, acknowledged = trace
    rng = random.Random(0)
    done = set[tuple[int, frozenset[tuple[str, bytes | None]]]]()
    for end in range(len(ops) + 1):
        due = max((step for at, step in acknowledged if at <= end), default=0)
        disks = {frozenset(disk.items()): disk for disk in crashes(ops[:end], rng, states_per_crash)}
        keys = [key for key in disks if (due, key) not in done]
        for key in rng.sample(keys, min(states_per_crash, len(keys))):
            done.add((due, key))
            _build(folder, disks[key])
            yield _verdict(folder, due, end)


def _build(folder: Path, disk: dict[str, bytes | None]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path in sorted(disk):
        content = disk[path]
        if content is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(content)


def _verdict(folder: Path, due: int, end: int) -> str:
    try:
        found = store.newest_valid(folder)
        for published in list_steps(folder):
            store.load(published)  # nothing half-written or half-deleted is ever visible
    except CheckpointError as error:
        return str(error)
    step = found.manifest.step if found else 0
    right = found is None or is_state(step, found.tensors)
    return "" if right and step >= due else f"after {end} operations: step {step}, acknowledged {due}"


def trace_saves(root: Path) -> Trace:
    """The operations of saves with pruning and of a step saved again, in a folder that does not exist yet."""
    ops: list[Op] = []
    acknowledged = []
    root.mkdir()
    with recording(root, ops):
        for steps, keep_last in (((1, 2), 2), ((2, 3), 1)):  # the second writer saves step 2 again
            own = meta(store.claim(root))
            for step in steps:
                store.save(root, step, state(step), own, Retention(keep_last=keep_last), 0)
                acknowledged.append((len(ops), step))
    return ops, acknowledged


def without(trace: Trace, mutation: str) -> Trace:
    """The trace as if the writer lacked one of the steps of its protocol, see MUTATIONS."""
    ops, acknowledged = trace
    created = {op[3]: op[2] for op in ops if op[0] == "create"}

    def left_out(op: Op) -> bool:
        return {
            "file shard": op[0] == "sync file" and "shard" in created[op[1]],
            "file MANIFEST": op[0] == "sync file" and "MANIFEST" in created[op[1]],
            "dir staging": op[0] == "sync dir" and op[1] != 0,
            "dir root": op[0] == "sync dir" and op[1] == 0,
            "rename": op[0] == "rename" and op[2].startswith(".tmp-step"),
        }[mutation]

    kept = [op for op in ops if not left_out(op)]
    return kept, [(sum(not left_out(op) for op in ops[:at]), step) for at, step in acknowledged]


def unnoticed(trace: Trace, folder: Path, states_per_crash: int) -> list[str]:
    """The mutations that the simulation does not notice; there must be none."""
    return [
        mutation
        for mutation in MUTATIONS
        if without(trace, mutation)[0] == trace[0]
        or not any(losses(without(trace, mutation), folder, states_per_crash))
    ]
