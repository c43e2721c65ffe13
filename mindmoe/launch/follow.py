"""Following a metrics file that another process appends to."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mindmoe.host import strict_json
from mindmoe.host.errors import UserError
from mindmoe.host.files import FileError, open_regular

_MOST = 1 << 26  # [bytes] taken at a time


def follow(path: Path, since: float) -> Iterator[list[dict[str, Any]]]:
    """Yields, each time it is asked, the complete records that are new and were written after `since`.

    A resumed run replaces its file by one without the steps that it repeats; then the file is read from its start. What
    is no record that a console can show is passed over.

    Args:
        path: the file; it may not exist yet.
        since: records with an earlier `time`, or without one, are passed over [s since the epoch].
    """
    offset, inode, rest = 0, None, b""
    while True:
        data = b""
        try:
            with open_regular(path, follow=False) as file:
                status = os.fstat(file.fileno())
                if status.st_ino != inode or status.st_size < offset:
                    offset, inode, rest = 0, status.st_ino, b""
                file.seek(offset)
                data = file.read(_MOST)
                offset += len(data)
        except FileError:
            pass  # it is not there yet, or is none that a run has written
        *lines, rest = (rest + data).split(b"\n")
        yield [record for line in lines if (record := _shown(line)) is not None and record["time"] >= since]


def _shown(line: bytes) -> dict[str, Any] | None:
    """The record of a line if a console can show it, else None."""
    try:
        record = strict_json.parse(line, "a line of metrics")
    except UserError:
        return None
    if not isinstance(record, dict) or not {"kind", "step", "time"} <= record.keys():
        return None
    texts = {"kind", *(("event", "message") if record["kind"] == "event" else ())}
    numbers = all(type(value) in (int, float, type(None)) for key, value in record.items() if key not in texts)
    whole = type(record["step"]) is int and type(record["time"]) in (int, float)
    return record if whole and numbers and all(isinstance(record.get(key), str) for key in texts) else None
