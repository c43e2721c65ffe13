"""Durable files: what has its final name is whole, whatever was killed or lost power meanwhile."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from mindmoe.host.files import open_regular

_CHUNK = 1 << 20  # [bytes]


def fsync_folder(folder: Path) -> None:
    """Makes the renames and deletions done in `folder` survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename_durably(source: Path, target: Path) -> None:
    """Gives a file, already written and fsynced, its final name."""
    os.replace(source, target)
    fsync_folder(target.parent)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON under `path`, which never holds half of it."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=2)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    rename_durably(partial, path)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content` under `path` and fsyncs it; the name may hold a part of it until this returns."""
    with open(path, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def file_digest(path: Path) -> str:
    """SHA-256 of the content of a file, hexadecimal.

    Raises:
        FileError: it cannot be read.
    """
    digest = hashlib.sha256()
    with open_regular(path) as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
