"""What happens to checkpoints: kills, flipped bits, truncation, lost and swapped files, full disks, failing calls.

Each fault returns what became of a contender in so many trials. The invariant: what is found afterwards is bitwise a
state that was saved, and never older than the last step that was acknowledged.
"""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindmoe.checkpoint.torture.contenders import Contender
from mindmoe.checkpoint.torture.state import plain
from mindmoe.host.errors import CheckpointError

_CALLS = ("open", "pwrite", "fsync", "rename", "mkdir", "unlink", "rmdir")


@dataclass(slots=True)
class FaultVerdict:
    """Trials of one fault on one contender.

    Attributes:
        good: no acknowledged step was lost and no wrong byte loaded.
        lost: an acknowledged step cannot be loaded, though its disk did not lose it.
        silent: wrong bytes were loaded as if they were right.
    """

    good: int = 0
    lost: int = 0
    silent: int = 0

    @property
    def trials(self) -> int:
        """How many."""
        return self.good + self.lost + self.silent

    def judge(self, found: Any, due: int, newest: int | None = None) -> None:
        """Counts one trial: what was found, what had to be found at least, and the newest step ever begun."""
        step = found[0] if found else 0
        if found and not _is_plain(step, found[1]) or newest is not None and step > newest:
            self.silent += 1
        elif step < due:
            self.lost += 1
        else:
            self.good += 1

    def __str__(self) -> str:
        parts = [f"{self.good}/{self.trials}"]
        parts += [f"{self.lost} lost"] if self.lost else []
        parts += [f"{self.silent} SILENT"] if self.silent else []
        return ", ".join(parts)


def _found(contender: Contender, root: Path) -> Any:
    """The newest step that a contender finds; a loud refusal of everything is a loss too."""
    try:
        return contender.find(root)
    except CheckpointError:
        return None


def _is_plain(step: int, tensors: dict[str, Any]) -> bool:
    wanted = plain(step)
    return wanted.keys() == tensors.keys() and all(
        tensors[name].tobytes() == array.tobytes() for name, array in wanted.items()
    )


def kills(name: str, contender: Contender, root: Path, trials: int) -> FaultVerdict:
    """SIGKILL at random moments of a process that saves without pause; all trials go on in one folder."""
    rng, verdict, acknowledged = random.Random(0), FaultVerdict(), 0
    command = [sys.executable, "-m", "mindmoe.checkpoint.torture.child", name, str(root)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as parent:
        assert parent.stdin is not None and parent.stdout is not None
        for _ in range(trials):
            print(file=parent.stdin, flush=True)
            child = int(parent.stdout.readline())
            first = parent.stdout.readline()
            time.sleep(rng.uniform(0, 0.06))
            os.kill(child, signal.SIGKILL)
            steps = [int(line) for line in (first, *iter(parent.stdout.readline, "dead\n"))]
            acknowledged = steps[-1]
            found = _found(contender, root)
            verdict.judge(found, acknowledged)
            if not found or found[0] < acknowledged:  # go on from what is there
                acknowledged = found[0] if found else 0
    return verdict


@contextmanager
def _two_steps(contender: Contender, root: Path) -> Iterator[list[tuple[Path, bytes]]]:
    """Steps 1 and 2 are saved; yields the files of step 2 and their bytes. They are put back by `_restore`."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    contender.save(root, 1, plain(1))
    contender.save(root, 2, plain(2))
    yield [(path, path.read_bytes()) for path in contender.newest(root)]


def _restore(files: list[tuple[Path, bytes]], root: Path) -> None:
    """Puts the bytes of step 2 back where they were, whatever a contender did with the damaged files."""
    for aside in root.glob("quarantine-*"):
        shutil.rmtree(aside)
    for path, content in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _damaged(
    contender: Contender, root: Path, trials: int, damage: Callable[[random.Random, Path, bytes], None]
) -> FaultVerdict:
    """Step 2 is damaged: step 1, or step 2 if the damage did no harm, must be found, with all bytes right."""
    rng, verdict = random.Random(1), FaultVerdict()
    with _two_steps(contender, root) as files:
        for trial in range(trials):
            path, content = files[trial % len(files)]
            damage(rng, path, content)
            verdict.judge(_found(contender, root), due=1)
            _restore(files, root)
    return verdict


def flips(contender: Contender, root: Path, trials: int) -> FaultVerdict:
    """One bit of the newest step is flipped."""

    def flip(rng: random.Random, path: Path, content: bytes) -> None:
        bad = bytearray(content)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)

    return _damaged(contender, root, trials, flip)


def truncations(contender: Contender, root: Path, trials: int) -> FaultVerdict:
    """A file of the newest step is cut, or has bytes appended."""

    def cut(rng: random.Random, path: Path, content: bytes) -> None:
        path.write_bytes(content[: rng.randrange(len(content))] if rng.random() < 0.9 else content + b"\0")

    return _damaged(contender, root, trials, cut)


def zeroed_pages(contender: Contender, root: Path, trials: int) -> FaultVerdict:
    """A page of the newest step reads as zeros, as after a write that never reached the disk."""

    def zero(rng: random.Random, path: Path, content: bytes) -> None:
        bad, start = bytearray(content), rng.randrange(0, len(content), 4096)
        bad[start : start + 4096] = bytes(len(bad[start : start + 4096]))
        path.write_bytes(bad)

    return _damaged(contender, root, trials, zero)


def missing_and_swapped(contender: Contender, root: Path) -> FaultVerdict:
    """A file of the newest step is missing, or is that of the step before."""
    verdict = FaultVerdict()
    with _two_steps(contender, root) as files:
        for index in range(len(files)):
            for swap in (False, True):
                path = files[index][0]
                older = Path(str(path).replace("00000002", "00000001"))
                if swap:
                    path.write_bytes(older.read_bytes())
                else:
                    path.unlink()
                verdict.judge(_found(contender, root), due=1)
                _restore(files, root)
    return verdict


def full_disks(contender: Contender, root: Path) -> FaultVerdict | None:
    """A disk of every size from half to three times the state; None if this user may not mount one."""
    verdict, size = FaultVerdict(), sum(array.nbytes for array in plain(1).values()) // 1024
    root.mkdir(parents=True, exist_ok=True)
    for kib in range(size // 2, 3 * size + size // 2, size // 12):
        options = ["-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(root)]
        if subprocess.run(["mount", *options], capture_output=True).returncode:
            return None
        try:
            acknowledged = 0
            for step in (1, 2, 3):
                try:
                    contender.save(root, step, plain(step))
                    acknowledged = step
                except Exception:
                    break  # told, as it should be
            verdict.judge(_found(contender, root), acknowledged)
        finally:
            subprocess.run(["umount", "-l", str(root)], check=True)
    return verdict


def failing_calls(contender: Contender, root: Path) -> FaultVerdict:
    """Every system call of a save fails once, with four errors; only for a writer that is made of Python's calls."""
    verdict = FaultVerdict()
    for error in (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS):
        for nth in range(1, 200):
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir()
            contender.save(root, 1, plain(1))
            with failing(error, nth) as count:
                try:
                    contender.save(root, 2, plain(2))
                    acknowledged = 2
                except CheckpointError:
                    acknowledged = 1
            verdict.judge(_found(contender, root), acknowledged, newest=2)
            contender.save(root, 3, plain(3))
            verdict.judge(_found(contender, root), 3)
            if count[0] < nth:
                break
    return verdict


@contextmanager
def failing(error: int, nth: int) -> Iterator[list[int]]:
    """Makes the n-th of the file calls of `os` raise; yields a list that holds the number of calls so far."""
    count = [0]

    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] == nth:
                raise OSError(error, os.strerror(error), "injected")
            return real(*args, **kwargs)

        return call

    intact = {name: getattr(os, name) for name in _CALLS}
    for name, real in intact.items():
        setattr(os, name, wrap(real))
    try:
        yield count
    finally:
        for name, real in intact.items():
            setattr(os, name, real)
