"""How fast checkpoints are, beside what the disk and the memory allow, all measured in one interleaved run.

Usage: checkpoint.py FOLDER [--mib 1024] [--rounds 5] [--out FILE]. FOLDER lies on the disk to be measured.
Every round measures each figure once, a pair that is compared one right after the other, so that noise of the machine
falls on both. On a machine that has other work the best of many rounds tells what limits, the median how busy it was.
Reads are cold (posix_fadvise DONTNEED before each), except those called warm: raw ones and loads alike.
"""

import argparse
import json
import os
import shutil
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from mindmoe.checkpoint import chunks, disk, store
from mindmoe.checkpoint.folder import list_steps, step_name
from mindmoe.checkpoint.manifest import ChunkRecord, Meta
from mindmoe.checkpoint.retention import Retention
from mindmoe.checkpoint.writer import Outcome, SavePolicy, Writer

PIECE = 2**26  # [bytes], the size of write that was fastest here


def state(mib: int) -> dict[str, np.ndarray]:
    """Weights and both moments of a few layers, as many as fit: large expert matrices and small vectors."""
    rng = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}
    layer, left = 0, mib * 2**18
    while left > 0:
        for name, shape in (
            ("gate_up", (8, 512, 1024)),
            ("down", (8, 512, 512)),
            ("norm", (512,)),
            ("bias", (8, 1024)),
        ):
            tensors[f"layers.{layer}.{name}"] = rng.standard_normal(shape, np.float32)
            left -= int(np.prod(shape))
        layer += 1
    return tensors


def forget(path: Path) -> None:
    """Takes the files of a folder out of the page cache."""
    for file in path.rglob("*"):
        if file.is_file():
            fd = os.open(file, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def raw_write(folder: Path, memory: memoryview) -> float:
    """Seconds of a sequential write past the page cache, with fsync: the limit of the disk."""
    path = folder / "raw"
    path.unlink(missing_ok=True)
    started = time.perf_counter()
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_DIRECT, 0o600)
    for start in range(0, len(memory), PIECE):
        os.write(fd, memory[start : start + PIECE])
    os.fsync(fd)
    os.close(fd)
    return time.perf_counter() - started


def raw_read(folder: Path, memory: memoryview, warm: bool = False) -> float:
    """Seconds of the faster of a sequential direct read and a cached one, without the file in the cache unless warm."""
    times = []
    for flags in (0,) if warm else (os.O_DIRECT, 0):
        if not warm:
            forget(folder)
        fd = os.open(folder / "raw", os.O_RDONLY | flags)
        started = time.perf_counter()
        for start in range(0, len(memory), PIECE):
            os.preadv(fd, [memory[start : start + PIECE]], start)
        times.append(time.perf_counter() - started)
        os.close(fd)
    return min(times)


class Peak:
    """Watches the resident memory of this process beyond what it was."""

    def __enter__(self) -> "Peak":
        self.process, self.extra, self.stop = psutil.Process(), 0, threading.Event()
        self.before = self.process.memory_info().rss
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self) -> None:
        """Looks every 5 ms."""
        while not self.stop.wait(0.005):
            self.extra = max(self.extra, self.process.memory_info().rss - self.before)

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()


def find_among_many(root: Path, source: Path) -> float:
    """Seconds to find the newest valid step among 1,000; the manifests and shards of the others are links."""
    small = {"w": np.ones((64, 64), np.float32)}
    meta = Meta(model={}, topology={}, config_digest="", generation=store.claim(root))
    first = store.save(root, 1, small, meta, Retention(keep_last=1000), 0)
    for step in range(2, 1001):
        (root / step_name(step)).mkdir()
        for file in first.iterdir():
            os.link(file, root / step_name(step) / file.name)
    store.save(root, 1000, small, meta, Retention(keep_last=1000), 0)
    started = time.perf_counter()
    found = store.newest_valid(root)
    seconds = time.perf_counter() - started
    assert found is not None and found.manifest.step == 1000 and len(list_steps(root)) == 1000
    return seconds


def measure(folder: Path, mib: int, rounds: int) -> dict[str, list[float]]:
    """The figures of every round [s], and of memory [bytes]."""
    tensors = state(mib)
    size = sum(array.nbytes for array in tensors.values())
    memory = disk.aligned(size // PIECE * PIECE + PIECE, lasting=True)
    memory[:] = np.random.default_rng(1).bytes(PIECE) * (len(memory) // PIECE)
    root = folder / "checkpoints"
    boxes = {name: ChunkRecord.of("F32", array.shape) for name, array in tensors.items()}
    meta = Meta(model={}, topology={}, config_digest="", generation=store.claim(root))
    policy = SavePolicy(retention=Retention(keep_last=1), min_free=0, timeout=600)
    target = {name: np.zeros_like(array) for name, array in tensors.items()}
    step = 0

    def save(writer: Writer) -> Outcome:
        nonlocal step
        step += 1
        writer.save(step, tensors.__getitem__)
        (outcome,) = writer.wait()
        assert outcome.error is None, outcome.error
        return outcome

    def copy() -> float:
        started = time.perf_counter()
        for name, array in tensors.items():
            np.copyto(target[name], array)
        return time.perf_counter() - started

    with Peak() as peak:
        writer = Writer(root, boxes, rank=0, world=1, meta=meta, policy=policy)
        save(writer)
    figures: dict[str, list[float]] = {"size": [float(size)], "extra memory": [float(peak.extra)]}

    def note(name: str, value: float) -> None:
        figures.setdefault(name, []).append(value)

    def load(cached: bool) -> tuple[float, float]:
        """Time and processor time [s]."""
        started, used = time.perf_counter(), time.process_time()
        loaded, _ = store.load(list_steps(root)[0], lambda checkpoint: checkpoint.read_all(cached))
        took = time.perf_counter() - started, time.process_time() - used
        assert len(loaded) == len(tensors)
        return took

    blank: Callable[..., str] = lambda data, block: "0" * 16 * (-(-len(data) // block))  # noqa: E731
    for _ in range(rounds):
        note("raw write", raw_write(folder, memory) * size / len(memory))
        used = time.process_time()
        with_digests = save(writer)
        note("processor of stall and save", time.process_time() - used)
        note("save", with_digests.seconds - with_digests.stall)
        note("stall", with_digests.stall)
        note("copy", copy())
        with mock.patch.object(chunks, "block_digests", blank), mock.patch.object(chunks, "tensor_sum", lambda *_: 0):
            used = time.process_time()
            without = save(writer)
            note("processor without digests", time.process_time() - used)
        note("save without digests", without.seconds - without.stall)
        save(writer)
        note("raw read", raw_read(folder, memory) * size / len(memory))
        forget(root)
        seconds, used = load(cached=False)
        note("verified load", seconds)
        note("processor of load", used)
        forget(root)
        seconds, used = load(cached=True)
        note("load through the cache", seconds)
        note("processor of load through the cache", used)
        note("raw warm read", raw_read(folder, memory, warm=True) * size / len(memory))
        note("verified warm load", load(cached=True)[0])
    disk.remove(root)
    note("newest of 1,000", find_among_many(folder / "many", folder))
    return figures


def report(figures: dict[str, list[float]]) -> None:
    """Prints each figure and what it is held against."""
    size = figures["size"][0]
    middle = {name: statistics.median(values) for name, values in figures.items()}
    best = {name: min(values) for name, values in figures.items()}
    table = Table("figure", "median", "best", "goal", title=f"{size / 2**20:.0f} MiB of state, medians of rounds")
    names = ("raw write", "save", "save without digests", "raw read", "verified load", "load through the cache")
    for name in (*names, "raw warm read", "verified warm load"):
        table.add_row(name, f"{size / middle[name] / 1e9:.2f} GB/s", f"{size / best[name] / 1e9:.2f} GB/s", "")
    rows = (
        ("save / raw write", "raw write", "save", "at least 90%"),
        ("verified load / raw read", "raw read", "verified load", "at least 80%"),
        ("warm load / raw warm read", "raw warm read", "verified warm load", ""),
        ("cost of digests", "save", "save without digests", "at most 105%"),
    )
    for name, above, below, goal in rows:
        table.add_row(name, f"{middle[above] / middle[below]:.1%}", f"{best[above] / best[below]:.1%}", goal)
    for name in (name for name in figures if name.startswith("processor")):
        table.add_row(name, f"{middle[name]:.3f} s", f"{best[name]:.3f} s", "")
    limit = 1.3 * middle["copy"] + 0.02
    table.add_row("stall", f"{middle['stall']:.3f} s", f"{best['stall']:.3f} s", f"at most {limit:.3f} s")
    table.add_row("extra memory / state", f"{figures['extra memory'][0] / size:.1%}", "", "at most 110%")
    table.add_row("newest of 1,000 steps", f"{middle['newest of 1,000']:.3f} s", "", "at most 1 s")
    Console(width=110).print(table)


def main() -> None:
    """Measures, prints and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    work = args.folder / "mindmoe-bench"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        figures = measure(work, args.mib, args.rounds)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    report(figures)
    if args.out:
        args.out.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
