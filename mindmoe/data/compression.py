"""Streams that decompress .gz and .zst files in bounded memory and notice when a file was cut short."""

import gzip
import io
from contextlib import AbstractContextManager, nullcontext
from pathlib import PurePath
from typing import Any, BinaryIO, cast

from mindmoe.host.errors import UserError

_COMPRESSIONS = (".gz", ".zst")
_MAX_WINDOW = 1 << 27  # [bytes] a frame that asks for more memory is refused
# Zstandard expands one byte at most some 32,000 times, so this bounds one step to about 32 MiB.
_ZSTD_STEP = 1 << 10
_ZSTD_HEADER = 18  # [bytes] of a frame's header at most
_BOMB_RATIO = 1000  # decompressed bytes per stored byte; text compresses 3 to 100 times
_BOMB_FLOOR = 64 << 20  # [bytes] decompressed before the ratio is looked at


def suffix_of_content(name: str) -> str:
    """The suffix that tells the format, in lower case: `.jsonl` of `a.jsonl.gz`."""
    path = PurePath(name.lower())
    return PurePath(path.stem).suffix if path.suffix in _COMPRESSIONS else path.suffix


def refuse_bomb(total: int, stored: int) -> None:
    """Ends the reading of what grows out of all proportion.

    Args:
        total: [bytes] decompressed so far.
        stored: [bytes] that they came from.

    Raises:
        OSError: it has grown more than text can.
    """
    if total > _BOMB_FLOOR and total > _BOMB_RATIO * max(stored, 1):
        raise OSError(f"it decompresses to more than {_BOMB_RATIO} times its size")


def decompressed(raw: BinaryIO, name: str) -> AbstractContextManager[BinaryIO]:
    """A stream of the content of `raw`, decompressed according to the suffix of its name.

    The stream raises OSError, EOFError or zlib.error on damaged input.

    Raises:
        UserError: zstandard is not installed.
    """
    if name.lower().endswith(".gz"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if name.lower().endswith(".zst"):
        return cast(BinaryIO, io.BufferedReader(_ZstdStream(raw), 1 << 20))
    return nullcontext(raw)


class _ZstdStream(io.RawIOBase):
    """All frames of a .zst file; its own loop because zstandard's reader takes a truncated file for a whole one."""

    def __init__(self, raw: BinaryIO):
        try:
            import zstandard
        except ImportError:
            raise UserError("reading .zst files needs the package zstandard", "pip install 'mindmoe[zstd]'") from None
        self._raw = raw
        self._error: type[Exception] = zstandard.ZstdError
        self._new_frame = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).decompressobj
        self._size_of: Any = zstandard.frame_content_size
        self._frame: Any = None
        self._size, self._done = -1, 0  # [bytes] of the frame, -1 if it does not say, and how many are through
        self._input = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills `buffer` as far as one step goes; 0 at the end of the last frame."""
        while not self._output:
            self._input = self._input or self._raw.read(_ZSTD_STEP)
            if not self._input:
                if self._frame is None:
                    return 0
                # A library that sees no more input just stops: that a frame is open is what tells a cut file.
                lost = f", {self._size - self._done:,} bytes of text before its end" if self._size >= 0 else ""
                raise EOFError(f"the file ends inside a zstd frame{lost}")
            try:
                if self._frame is None:
                    self._frame, self._done = self._new_frame(), 0
                    self._size = self._size_of(self._input) if len(self._input) >= _ZSTD_HEADER else -1
                self._output = memoryview(self._frame.decompress(self._input))
            except self._error as error:
                raise OSError(str(error)) from None
            self._done += len(self._output)
            self._input = b""
            if self._frame.eof:
                # Frames may follow each other; what was read of the next one is its beginning.
                self._input, self._frame = self._frame.unused_data, None
        size = min(len(buffer), len(self._output))
        buffer[:size] = self._output[:size]
        self._output = self._output[size:]
        return size
