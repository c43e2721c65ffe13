"""Where a rank is: the phases and collectives it is in, left in a small file that the launcher reads.

A rank that hangs cannot say so. Its file, beside its log, always holds the phases it has entered and not left, and a
count that grows with each of them, so that from outside a rank at work is told from a hung one, and the hung one from
those that wait for it. Recording costs microseconds and never fails a run; in a process that was not launched nothing
is recorded.
"""

import json
import os
import stat
import struct
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mindmoe.host import strict_json
from mindmoe.host.files import FileError, read_bytes

_HEAD = struct.Struct("<QI")  # the count and the length of the content
_TAIL = struct.Struct("<Q")  # the count again: a reader that finds two counts has read during a write
_RESERVED = 1 << 14  # [bytes] written at the start, so that a disk that fills up later still takes the record
_MOST_BYTES = 1 << 22  # of a record
_MOST_RANKS = 1 << 20  # of a group
_NOT_RECORDED: AbstractContextManager[Any] = nullcontext()


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """A phase that a rank has entered.

    Attributes:
        name: what it does, such as `gradients (graph)` or `all_to_all_v over ep`.
        number: which one of its name, where its name alone does not say; -1 for none.
        ranks: global ranks that take part, if it may wait for them; empty for work of this rank alone.
        call: how many such phases these ranks have begun together, with this one.
        first: whether this process enters it for the first time, so that it may have to compile.
    """

    name: str
    number: int = -1
    ranks: tuple[int, ...] = ()
    call: int = 0
    first: bool = False

    def __str__(self) -> str:
        number = f" {self.number}" if self.number >= 0 else ""
        return f"{self.name}{number}" + (f" [{spans(self.ranks)}], call {self.call}" if self.ranks else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """What the file of a rank says.

    Attributes:
        count: how many phases it has entered and left.
        since: when it entered or left the last one [s since the epoch].
        phases: those it is in, the outermost first.
        calls: how many phases it has begun together with each set of ranks.
    """

    count: int
    since: float
    phases: tuple[Phase, ...]
    calls: dict[tuple[int, ...], int]

    def __str__(self) -> str:
        return ", ".join(map(str, self.phases)) or "no phase"


def record_in(path: Path) -> None:
    """Records the phases of this process in a file from now on; where it cannot be written nothing is recorded."""
    with suppress(OSError):
        _RECORD.open(path)


def during(name: str, ranks: Sequence[int] = (), number: int = -1) -> AbstractContextManager[Any]:
    """Returns a context that is one phase of this rank; for the main thread, and not inside a compiled function.

    After an exception the phase stays recorded until the next one is entered: a rank that fails leaves behind where
    it was.

    Args:
        name: of the phase; a rank enters few distinct ones.
        ranks: global ranks that it may wait for, in an order that is the same on each of them.
        number: told apart from others of its name, such as the step number.
    """
    return _Entered(name, tuple(ranks), number) if _RECORD.file is not None else _NOT_RECORDED


def standing() -> tuple[int, bool]:
    """How many phases this process has recorded, and whether one that it is in may have to compile."""
    return _RECORD.count, any(phase.fields and phase.fields[4] for phase in tuple(_RECORD.stack))


def read(path: Path) -> Position | None:
    """What a rank has recorded; None if it has not begun to, is writing at this moment, over and over, or cannot be
    read: nothing that stands in the file ends its reader."""
    for _ in range(100):
        try:
            raw = read_bytes(path, _MOST_BYTES, follow=False)
            count, length = _HEAD.unpack_from(raw)
            if count == 0:
                return None
            if (count,) == _TAIL.unpack_from(raw, _HEAD.size + length):
                return _parsed(count, strict_json.parse(raw[_HEAD.size : _HEAD.size + length], str(path)), str(path))
        except FileError:
            return None
        except (ValueError, struct.error):
            pass  # read during a write
        time.sleep(0.001)
    return None


@lru_cache(maxsize=4096)
def spans(ranks: tuple[int, ...]) -> str:
    """The ranks in short: `0-3`, or `0-504/8` for every eighth, separated by commas."""
    parts, at = [], 0
    while at < len(ranks):
        stride = ranks[at + 1] - ranks[at] if at + 1 < len(ranks) else 0
        end = at
        while stride > 0 and end + 1 < len(ranks) and ranks[end + 1] - ranks[end] == stride:
            end += 1
        if end - at >= 2 or (end > at and stride == 1):
            parts.append(f"{ranks[at]}-{ranks[end]}" + (f"/{stride}" if stride > 1 else ""))
        else:
            end = at
            parts.append(str(ranks[at]))
        at = end + 1
    return ",".join(parts)


@lru_cache(maxsize=4096)
def ranks_in(text: str) -> tuple[int, ...]:
    """The ranks that `spans` wrote.

    Raises:
        ValueError: it is no such text, or names more ranks than any run has.
    """
    ranks: list[int] = []
    for part in filter(None, text.split(",")):
        bounds, _, stride = part.partition("/")
        first, _, last = bounds.partition("-")
        found = range(int(first), int(last or first) + 1, int(stride or 1))
        if not 0 <= found.start <= found.stop <= _MOST_RANKS or len(ranks) + len(found) > _MOST_RANKS:
            raise ValueError(f"{part} is no part of a run's ranks")
        ranks += found
    return tuple(ranks)


class _Record:
    """The phases of this process, and the file that mirrors them: a descriptor, None until it is opened."""

    def __init__(self) -> None:
        self.file: int | None = None
        self.stack: list[_Entered] = []
        self.count = 0
        self.calls: dict[str, int] = {}
        self.seen: set[str] = set()

    def open(self, path: Path) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        file = os.open(path, flags, 0o666)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            return
        os.write(file, bytes(_RESERVED))
        self.file, self.stack, self.count, self.calls, self.seen = file, [], 0, {}, set()
        self.write()

    def write(self) -> None:
        """Writes one more event."""
        if self.file is None:
            return
        self.count += 1
        phases = [phase.fields for phase in self.stack]
        content = json.dumps({"since": time.time(), "phases": phases, "calls": self.calls}).encode()
        try:
            os.pwrite(self.file, _HEAD.pack(self.count, len(content)) + content + _TAIL.pack(self.count), 0)
        except OSError:  # a record that stands still would pass for a hang, none does not
            os.ftruncate(self.file, 0)
            os.close(self.file)
            self.file = None


_RECORD = _Record()


class _Entered:
    """A phase while it is being entered and left."""

    __slots__ = ("depth", "fields", "name", "number", "ranks")

    def __init__(self, name: str, ranks: tuple[int, ...], number: int):
        self.name, self.ranks, self.number = name, ranks, number
        self.depth = -1
        self.fields: tuple[Any, ...] = ()

    def __enter__(self) -> None:
        group, record = spans(self.ranks), _RECORD
        if group:
            record.calls[group] = record.calls.get(group, 0) + 1
        self.fields = (self.name, self.number, group, record.calls.get(group, 0), self.name not in record.seen)
        record.seen.add(self.name)
        while record.stack and record.stack[-1].depth < 0:  # what an exception has ended
            record.stack.pop()
        self.depth = len(record.stack)
        record.stack.append(self)
        record.write()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.depth = -1
            return
        del _RECORD.stack[self.depth :]
        _RECORD.write()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Content:
    """What the file holds: when the last event was, fields of Phase, and calls by group."""

    since: float
    phases: list[tuple[str, int, str, int, bool]]
    calls: dict[str, int]


def _parsed(count: int, value: Any, name: str) -> Position:
    content = strict_json.checked(_Content, value, name)
    return Position(
        count=count,
        since=content.since,
        phases=tuple(
            Phase(name=name, number=number, ranks=ranks_in(group), call=call, first=first)
            for name, number, group, call, first in content.phases
        ),
        calls={ranks_in(group): calls for group, calls in content.calls.items()},
    )
