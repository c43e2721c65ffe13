"""Raw records and the rules that turn one into a document or name why it is refused."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

MAX_LINE = 16 << 20  # [bytes] a longer line of a .jsonl file, or value of a Parquet file, is not read
MAX_TEXT = 256 << 20  # [bytes] a longer text file is not read: a document is held in memory whole


@dataclass(frozen=True)
class Record:
    """A document as found, not yet decoded.

    Attributes:
        file: name of its file within the source.
        line: 1-based line or row; 0 when the file is the document.
        payload: its bytes.
        is_json: whether the payload is a JSON object holding the text.
        position: bytes of the file read up to its end, as stored on disk.
    """

    file: str
    line: int
    payload: bytes
    is_json: bool
    position: int


@dataclass(frozen=True)
class Rejected:
    """What is left out: where it stands and why.

    Attributes:
        file: name of its file within the source.
        line: 1-based line or row; 0 when the file is the document.
        reason: why, and what to do.
        rest: whether this is a part of a file, of which it is not known how many records it holds, and not one record.
    """

    file: str
    line: int
    reason: str
    rest: bool = False

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}" if self.line else f"{self.file}: {self.reason}"


@dataclass(frozen=True)
class Input:
    """One file of a source, or a generated stand-in for one.

    Attributes:
        name: path within the source, printable.
        size: [bytes] on disk, for progress.
        stamp: changes when the content may have changed.
        read: starts a pass over its records.
    """

    name: str
    size: int
    stamp: str
    read: Callable[[], Iterator[Record | Rejected]]


class BadRecord(Exception):
    """Carries the reason for which a record is refused; never leaves this package."""


def parse(record: Record, text_key: str) -> str:
    """The text of a record, encodable as UTF-8 and free of NUL; empty if it holds none.

    Args:
        record: what to decode.
        text_key: the key of the text in JSON records.

    Raises:
        BadRecord: with the reason.
    """
    payload = record.payload.removeprefix(b"\xef\xbb\xbf")  # a byte order mark is no text
    try:
        decoded = payload.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRecord(f"invalid UTF-8 at byte {error.start}: 0x{payload[error.start]:02x}") from None
    text = _text_of(decoded, text_key) if record.is_json else decoded
    # No text holds NUL, but most binary files do.
    if "\x00" in text:
        raise BadRecord(f"NUL character at {text.index(chr(0))}: not a text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can spell what UTF-8 cannot
        raise BadRecord(f"lone surrogate U+{ord(text[error.start]):04X} at {error.start}") from None
    return text


def _text_of(line: str, text_key: str) -> str:
    """The value of `text_key` in a line that must be one strict JSON object."""

    def as_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # Python keeps the last of two equal keys without a word: which text is meant cannot be known.
        if sum(key == text_key for key, _ in pairs) > 1:
            raise BadRecord(f"key {text_key!r} appears twice")
        return dict(pairs)

    # NaN and Infinity, which Python reads and JSON does not have.
    def refuse_constant(name: str) -> NoReturn:
        raise BadRecord(f"{name} is not JSON")

    try:
        value = json.loads(line, object_pairs_hook=as_dict, parse_constant=refuse_constant)
    except RecursionError:
        raise BadRecord("bad JSON: nested too deep") from None
    except ValueError as error:
        raise BadRecord(f"bad JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadRecord(f"not a JSON object but {type(value).__name__}")
    if text_key not in value:
        keys = ", ".join(repr(key)[:40] for key in list(value)[:8])
        raise BadRecord(f"no key {text_key!r}; it has {keys or 'none'}{_better_key(value)}")
    text = value[text_key]
    if not isinstance(text, str):
        raise BadRecord(f"{text_key!r} is not a string but {type(text).__name__}")
    return text


def _better_key(value: dict[str, Any]) -> str:
    """The setting to suggest to who named a key that is not there: the key of the longest text."""
    texts = {key: len(text) for key, text in value.items() if isinstance(text, str)}
    key = max(texts, key=lambda name: texts[name], default="")
    return f": set text_key={key}" if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", key) else ""
