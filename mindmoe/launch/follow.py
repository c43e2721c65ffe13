"""Following a metrics file that another process appends to."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def follow(path: Path, since: float) -> Iterator[list[dict[str, Any]]]:
    """Yields, each time it is asked, the complete records that are new and were written after `since`.

    A resumed run replaces its file by one without the steps that it repeats; then the file is read from its start.

    Args:
        path: the file; it may not exist yet.
        since: records with an earlier `time`, or without one, are passed over [s since the epoch].
    """
    offset, inode, rest = 0, None, b""
    while True:
        if not path.exists():
            yield []
            continue
        status = path.stat()
        if status.st_ino != inode or status.st_size < offset:
            offset, inode, rest = 0, status.st_ino, b""
        with path.open("rb") as file:
            file.seek(offset)
            data = rest + file.read()
            offset = file.tell()
        *lines, rest = data.split(b"\n")
        records = (json.loads(line) for line in lines if line.startswith(b"{") and line.endswith(b"}"))
        yield [record for record in records if record.get("time", 0.0) >= since]
