"""Where raw documents come from: files, folders, and the standard library of this Python.

`discover` lists the inputs of a source in an order that depends on nothing but their names; an `Input` streams
its records in bounded memory. Nothing is decoded here, so that decoding can be spread over processes.
"""

import json
import os
import stat
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from mindmoe.data.compression import decompressed, refuse_bomb, suffix_of_content
from mindmoe.data.parquet import read_parquet
from mindmoe.data.records import MAX_LINE, MAX_TEXT, Input, Record, Rejected
from mindmoe.data.stdlib import stdlib_inputs
from mindmoe.host.errors import UserError
from mindmoe.host.files import FileError, open_regular, shown

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
_CHUNK = 4 << 20  # [bytes]
_MAX_NAME = 4096  # [characters] of a path


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
    if os.path.isdir(path):
        _walk(path, format, text_key, os.path.realpath(exclude) if exclude else None, found)
    elif os.path.isfile(path):
        # A file that the user names is read whatever its suffix: .json as lines, anything else as text.
        kind = _kind(path.name, format) or ("jsonl" if suffix_of_content(path.name) == ".json" else "txt")
        found.inputs.append(_input(path, path.name, kind, text_key, follow=True))
    elif os.path.exists(path):
        raise UserError(f"{shown(source, 300)} is neither a file nor a folder", "name regular files or folders of them")
    else:
        raise UserError(
            f"source {shown(source, 300)} does not exist",
            "check the path, or write python-stdlib for the built-in text",
        )
    return found


def _walk(root: Path, format: Format, text_key: str, exclude: str | None, found: Discovery) -> None:
    """Collects the files below `root`, sorted by name; no symbolic link is followed out of it."""
    real_root = os.path.realpath(root)
    entries: list[tuple[str, Path]] = []

    def refuse(error: OSError) -> None:
        found.rejected.append(Rejected(shown(str(error.filename), _MAX_NAME), 0, f"unreadable: {error.strerror}"))

    for folder, folders, files in os.walk(root, onerror=refuse):
        # In place, which is how os.walk is told what to leave out; the output may lie inside the source.
        folders[:] = [
            name for name in folders if not name.startswith(".") and os.path.realpath(Path(folder, name)) != exclude
        ]
        # os.walk does not enter them, but those that lead elsewhere are told.
        linked_folders = [name for name in folders if Path(folder, name).is_symlink()]
        for name in files + linked_folders:
            path = Path(folder, name)
            if not name.startswith("."):
                entries.append((path.relative_to(root).as_posix(), path))
    # The output follows this order, so it is that of the bytes on disk, however names are decoded.
    for relative, path in sorted(entries, key=lambda entry: os.fsencode(entry[0])):
        if path.is_symlink():
            # A link to elsewhere in the folder is met there; any other would carry the search out of the source.
            if not Path(os.path.realpath(path)).is_relative_to(real_root):
                reason = "symbolic link out of the source: name its target instead"
                found.rejected.append(Rejected(shown(str(path), _MAX_NAME), 0, reason))
            continue
        kind = _kind(path.name, format)
        try:
            regular = stat.S_ISREG(os.stat(path, follow_symlinks=False).st_mode)
        except OSError as error:
            refuse(error)
            continue
        if kind is None or not regular:
            found.skipped[suffix_of_content(path.name) or "no suffix"] += 1
            continue
        found.inputs.append(_input(path, relative, kind, text_key))


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


def _input(path: Path, name: str, kind: str, text_key: str, *, follow: bool = False) -> Input:
    """A file as an input; `follow` says whether its name may be a link, as one that the user gives may."""
    status = os.stat(path, follow_symlinks=follow)
    called = shown(str(path), _MAX_NAME)
    readers: dict[str, Callable[[], Iterator[Record | Rejected]]] = {
        "txt": partial(_read_text, path, called, follow),
        "jsonl": partial(_read_lines, path, called, follow),
        "parquet": partial(read_parquet, path, called, text_key, follow=follow),
    }

    def read() -> Iterator[Record | Rejected]:
        try:
            yield from readers[kind]()
        except FileError as error:
            # A text file is one record, any other may have held many.
            yield Rejected(called, 0, f"unreadable: {error}", rest=kind != "txt")

    return Input(shown(name, _MAX_NAME), status.st_size, str(status.st_mtime_ns), read)


def _read_text(path: Path, name: str, follow: bool) -> Iterator[Record | Rejected]:
    """The file as one record."""
    try:
        with open_regular(path, follow=follow) as raw, decompressed(raw, path.name) as stream:
            content = bytearray()
            while len(content) <= MAX_TEXT and (chunk := stream.read(_CHUNK)):
                content += chunk
                # `raw` is the stored file, so its position is how many bytes have made this content.
                refuse_bomb(len(content), raw.tell())
            if len(content) > MAX_TEXT:
                yield Rejected(name, 0, f"longer than {MAX_TEXT >> 20} MiB: split it, or write a .jsonl of documents")
                return
            yield Record(name, 0, bytes(content), is_json=False, position=raw.tell())
    except (OSError, EOFError, zlib.error) as error:
        yield Rejected(name, 0, f"unreadable: {error}")


def _read_lines(path: Path, name: str, follow: bool) -> Iterator[Record | Rejected]:
    """One record a line; blank lines are passed over, too long ones are skipped without being held."""
    number = total = 0
    with open_regular(path, follow=follow) as raw, decompressed(raw, path.name) as stream:
        try:
            # One more than is allowed, so that a line of just that length is told from a longer one.
            while line := stream.readline(MAX_LINE + 1):
                number += 1
                total += len(line)
                too_long = len(line) > MAX_LINE
                while too_long and not line.endswith(b"\n") and (line := stream.readline(MAX_LINE)):
                    total += len(line)
                    refuse_bomb(total, raw.tell())
                refuse_bomb(total, raw.tell())
                if too_long:
                    yield Rejected(name, number, f"line longer than {MAX_LINE >> 20} MiB")
                # A last line without its break may be whole: only the beginning of an object is taken for a cut file.
                elif not line.endswith(b"\n") and _is_cut(line):
                    reason = f"the file is cut {len(line):,} bytes into this line; what followed is lost"
                    yield Rejected(name, number, reason, rest=True)
                elif not line.isspace():
                    yield Record(name, number, line, is_json=True, position=raw.tell())
        except (OSError, EOFError, zlib.error) as error:
            size = os.fstat(raw.fileno()).st_size
            left = size - raw.tell()
            lost = f"{left:,} of its {size:,} bytes" if left else f"it ends after {size:,} bytes"
            reason = f"unreadable, the rest of the file is lost, {lost}: {error}"
            yield Rejected(name, number + 1, reason, rest=True)


def _is_cut(line: bytes) -> bool:
    """Whether the last line of a file is the beginning of an object, and not one."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return line.lstrip().startswith(b"{")
    return False
