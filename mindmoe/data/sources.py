"""Where raw documents come from: files, folders, and the standard library of this Python.

`discover` lists the inputs of a source in an order that depends on nothing but their names; an `Input` streams
its records in bounded memory. Nothing is decoded here, so that decoding can be spread over processes.
"""

import os
import stat
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

from mindmoe.data.compression import decompressed, suffix_of_content
from mindmoe.data.records import MAX_LINE, MAX_TEXT, Input, Record, Rejected
from mindmoe.data.stdlib import stdlib_inputs
from mindmoe.errors import UserError

Format = Literal["auto", "txt", "jsonl", "parquet"]
JSONL_SUFFIXES = {".jsonl", ".ndjson"}
TEXT_SUFFIXES = {".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".org", ".adoc", ".html", ".htm", ".css", ".sql"}
TEXT_SUFFIXES |= {
    ".py",
    ".pyi",
    ".c",
    ".h",
    ".cc",
    ".cpp",
    ".hpp",
    ".cu",
    ".java",
    ".kt",
    ".scala",
    ".js",
    ".ts",
    ".go",
}
TEXT_SUFFIXES |= {".rs", ".rb", ".php", ".pl", ".lua", ".r", ".jl", ".hs", ".ml", ".swift", ".sh"}
_BOMB_RATIO = 1000  # decompressed bytes per stored byte; text compresses 3 to 100 times
_CHUNK = 4 << 20  # [bytes]
_BOMB_FLOOR = 64 << 20  # [bytes] decompressed before the ratio is looked at


@dataclass
class Discovery:
    """What a source holds: inputs in order, files refused, and the count of files left out by suffix."""

    inputs: list[Input] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def discover(source: str, format: Format, text_key: str, exclude: Path | None = None) -> Discovery:
    """Lists the inputs of one source.

    Args:
        source: `python-stdlib`, a file, or a folder, which is searched recursively; hidden entries are left out.
        format: how to read the files; `auto` goes by suffix, and in a folder leaves unknown suffixes out.
        text_key: key or column of the text in .jsonl and Parquet files.
        exclude: a folder that is not searched (the output, when it lies inside the source).

    Raises:
        UserError: there is no such file or folder.
    """
    if source == "python-stdlib":
        return Discovery(inputs=stdlib_inputs())
    path = Path(source)
    found = Discovery()
    if path.is_dir():
        _walk(path, format, text_key, exclude.resolve() if exclude else None, found)
    elif path.is_file():
        kind = _kind(path.name, format) or ("jsonl" if suffix_of_content(path.name) == ".json" else "txt")
        found.inputs.append(_input(path, path.name, kind, text_key))
    elif path.exists():
        raise UserError(f"{source} is neither a file nor a folder", "name regular files or folders of them")
    else:
        raise UserError(
            f"source {source} does not exist", "check the path, or write python-stdlib for the built-in text"
        )
    return found


def _walk(root: Path, format: Format, text_key: str, exclude: Path | None, found: Discovery) -> None:
    """Collects the files below `root`, sorted by name; no symbolic link is followed out of it."""
    real_root = root.resolve()
    entries: list[tuple[str, Path]] = []

    def refuse(error: OSError) -> None:
        found.rejected.append(Rejected(printable(str(error.filename)), 0, f"unreadable: {error.strerror}"))

    for folder, folders, files in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".") and Path(folder, name).resolve() != exclude]
        linked_folders = [name for name in folders if Path(folder, name).is_symlink()]
        for name in files + linked_folders:
            path = Path(folder, name)
            if not name.startswith("."):
                entries.append((path.relative_to(root).as_posix(), path))
    for relative, path in sorted(entries, key=lambda entry: os.fsencode(entry[0])):
        if path.is_symlink():
            # A link to elsewhere in the folder is met there; any other would carry the search out of the source.
            if not path.resolve().is_relative_to(real_root):
                reason = "symbolic link out of the source: name its target instead"
                found.rejected.append(Rejected(printable(str(path)), 0, reason))
            continue
        kind = _kind(path.name, format)
        if kind is None or not stat.S_ISREG(path.stat(follow_symlinks=False).st_mode):
            found.skipped[suffix_of_content(path.name) or "no suffix"] += 1
            continue
        found.inputs.append(_input(path, relative, kind, text_key))


def printable(name: str) -> str:
    """A file name as text that can be printed and written as UTF-8, whatever bytes it is made of."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def _kind(name: str, format: Format) -> str | None:
    """How to read a file of this name: txt, jsonl, parquet, or None if the suffix says nothing."""
    if format != "auto":
        return format
    suffix = suffix_of_content(name)
    if suffix in JSONL_SUFFIXES:
        return "jsonl"
    if suffix == ".parquet":
        return "parquet"
    return "txt" if suffix in TEXT_SUFFIXES else None


def _input(path: Path, name: str, kind: str, text_key: str) -> Input:
    status = path.stat()
    shown = printable(str(path))
    readers: dict[str, Callable[[], Iterator[Record | Rejected]]] = {
        "txt": partial(_read_text, path, shown),
        "jsonl": partial(_read_lines, path, shown),
        "parquet": partial(_read_parquet, path, shown, text_key),
    }
    return Input(printable(name), status.st_size, str(status.st_mtime_ns), readers[kind])


def _open(path: Path) -> BinaryIO:
    """Opens a regular file that is still one: what became a link or a pipe since it was listed is refused."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("no regular file any more")
    return os.fdopen(descriptor, "rb")


def _read_text(path: Path, name: str) -> Iterator[Record | Rejected]:
    """The file as one record."""
    try:
        with _open(path) as raw, decompressed(raw, path.name) as stream:
            content = bytearray()
            while len(content) <= MAX_TEXT and (chunk := stream.read(_CHUNK)):
                content += chunk
                _refuse_bomb(len(content), raw.tell())
            if len(content) > MAX_TEXT:
                yield Rejected(name, 0, f"longer than {MAX_TEXT >> 20} MiB: split it, or write a .jsonl of documents")
                return
            yield Record(name, 0, bytes(content), is_json=False, position=raw.tell())
    except (OSError, EOFError, zlib.error) as error:
        yield Rejected(name, 0, f"unreadable: {error}")


def _read_lines(path: Path, name: str) -> Iterator[Record | Rejected]:
    """One record a line; blank lines are passed over, too long ones are skipped without being held."""
    number = total = 0
    try:
        with _open(path) as raw, decompressed(raw, path.name) as stream:
            while line := stream.readline(MAX_LINE + 1):
                number += 1
                total += len(line)
                too_long = len(line) > MAX_LINE
                while too_long and not line.endswith(b"\n") and (line := stream.readline(MAX_LINE)):
                    total += len(line)
                    _refuse_bomb(total, raw.tell())
                _refuse_bomb(total, raw.tell())
                if too_long:
                    yield Rejected(name, number, f"line longer than {MAX_LINE >> 20} MiB")
                elif not line.isspace():
                    yield Record(name, number, line, is_json=True, position=raw.tell())
    except (OSError, EOFError, zlib.error) as error:
        yield Rejected(name, number + 1, f"the rest of the file is unreadable: {error}")


def _refuse_bomb(total: int, stored: int) -> None:
    if total > _BOMB_FLOOR and total > _BOMB_RATIO * max(stored, 1):
        raise OSError(f"it decompresses to more than {_BOMB_RATIO} times its size")


def _read_parquet(path: Path, name: str, text_key: str) -> Iterator[Record | Rejected]:
    """One record a row of the text column."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"reading {path} needs the package pyarrow", "pip install 'mindmoe[parquet]'") from None
    number = 0
    try:
        size = path.stat().st_size
        with parquet.ParquetFile(path) as table:
            _check_column(path, table.schema_arrow, text_key)
            rows = table.metadata.num_rows
            for batch in table.iter_batches(batch_size=256, columns=[text_key]):
                for value in batch.column(0):
                    number += 1
                    buffer = value.as_buffer()
                    if buffer is None:
                        yield Rejected(name, number, f"{text_key!r} is null")
                    else:
                        yield Record(name, number, buffer.to_pybytes(), False, size * number // rows)
    except (OSError, pyarrow.ArrowException) as error:
        yield Rejected(name, number + 1, f"the rest of the file is unreadable: {error}")


def _check_column(path: Path, schema: Any, text_key: str) -> None:
    """The table must have a column of this name and of strings; `schema` is a pyarrow.Schema."""
    remedy = "set text_key to the column of the text"
    if text_key not in schema.names:
        raise UserError(f"{path} has no column {text_key!r}; it has {', '.join(schema.names)}", remedy)
    kind = str(schema.field(text_key).type)
    if kind not in ("string", "large_string", "binary", "large_binary"):
        raise UserError(f"column {text_key!r} of {path} holds {kind}, not strings", remedy)
