"""metrics.jsonl: one JSON object a line, appended while training, and what a resumed run makes of it.

A line is written by one system call, so a killed run leaves at most one torn line. On resuming, that line and
every step that will be repeated are removed, so that curves never double back.
"""

import json
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pydantic_core import from_json

from mindmoe.host.errors import UserError
from mindmoe.host.files import FileError, FileMissing, open_append, open_regular

_MAX_LINE = 2**26  # [bytes]; the routing of a few hundred experts in a few hundred layers takes 2 MB
_log = logging.getLogger(__name__)


class MetricsLog:
    """Appends records to a metrics file.

    A disk that fills up while training loses records and warns once; it does not stop the run.

    Args:
        path: the file; its folder must exist.
        resume_step: step that training resumes from. Records of later steps are removed; events stay, because
            they are history: the one that tells why a run stopped is of a later step.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, path: Path, resume_step: int):
        self._path = path
        self._torn = self._warned = False
        try:
            _repair(path, resume_step)
            self._file = open_append(path)
        except (OSError, FileError) as error:
            what = error.message if isinstance(error, FileError) else error.strerror
            raise UserError(
                f"cannot write {path}: {what}", "free some space, or set output_dir to a folder you may write"
            ) from error

    def write(self, record: dict[str, Any]) -> None:
        """Appends one record; it survives a kill as soon as this returns. NaN and infinity become null."""
        line = (b"\n" if self._torn else b"") + _encode(record) + b"\n"
        try:
            self._torn = self._file.write(line) != len(line)
            problem = "the disk is full" if self._torn else None
        except OSError as error:
            problem = error.strerror
        if problem and not self._warned:
            self._warned = True
            _log.warning("metrics are being lost: cannot write %s: %s", self._path, problem)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics file, in file order; none if there is no file."""
    return list(iterate_metrics(path))


def iterate_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a metrics file one by one; broken lines are passed over, and counted in a warning.

    The last line is not counted: a run may be writing it.

    Raises:
        FileError: it cannot be read.
    """
    broken = 0
    try:
        file = open_regular(path, follow=False)
    except FileMissing:
        return
    with file:
        for line in _lines(file):
            record = _decode(line)
            if record is not None:
                yield record
            elif line.endswith(b"\n"):
                broken += 1
    if broken:
        _log.warning("%s has %d broken lines, which were passed over", path, broken)


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file with their ends; one that is longer than any record comes in pieces, which are none."""
    while line := file.readline(_MAX_LINE):
        yield line


def _decode(line: bytes) -> dict[str, Any] | None:
    """The record of a line; None if the line is torn or no record."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = from_json(line, allow_inf_nan=False)  # a tenth of the time of `strict_json`, for files of many lines
    except ValueError:
        return None
    is_record = isinstance(record, dict) and isinstance(record.get("kind"), str) and type(record.get("step")) is int
    return record if is_record else None


def _encode(record: dict[str, Any]) -> bytes:
    try:
        return json.dumps(record, separators=(",", ":"), default=_plain, allow_nan=False).encode()
    except ValueError:
        return json.dumps(_finite(record), separators=(",", ":"), allow_nan=False).encode()


def _plain(value: Any) -> Any:
    """Array scalars and arrays as numbers and lists."""
    return value.tolist()


def _finite(value: Any) -> Any:
    """The value with null for every number that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if hasattr(value, "tolist"):
        return _finite(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _repair(path: Path, resume_step: int) -> None:
    """Rewrites the file without torn lines and without records after `resume_step`; atomically, if at all."""

    def stays(line: bytes) -> bool:
        record = _decode(line)
        return record is not None and (record["step"] <= resume_step or record["kind"] == "event")

    try:
        file = open_regular(path, follow=False)
    except FileMissing:
        return
    with file:
        if all(stays(line) for line in _lines(file)):
            return
        file.seek(0)
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        aside.unlink(missing_ok=True)
        try:
            with aside.open("xb") as kept:
                kept.writelines(line for line in _lines(file) if stays(line))
                kept.flush()
                os.fsync(kept.fileno())
            os.replace(aside, path)
        except OSError:
            aside.unlink(missing_ok=True)
            raise
