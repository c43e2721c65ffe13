"""Megatron's .bin/.idx token files: a reader that believes nothing, and a streaming writer.

`<prefix>.bin` holds the tokens of all sequences, one after the other, and nothing else. `<prefix>.idx`
holds, little-endian and without padding:

    9 bytes  "MMIDIDX\\0\\0"
    u64      version, 1
    u8       dtype code of the tokens
    u64      number of sequences N
    u64      length D of document_index = number of documents + 1
    i32[N]   lengths: tokens of each sequence
    i64[N]   offsets: first byte of each sequence in .bin
    i64[D]   document_index: the sequences of document d are document_index[d] .. document_index[d+1]
    i8[N]    modes, only in multimodal sets

Source: NVIDIA Megatron-LM, megatron/core/datasets/indexed_dataset.py. Files written there are read here and the
other way round.
"""

import os
import struct
from array import array
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from mindmoe.data.files import fsync_folder, rename_durably
from mindmoe.host.errors import UserError
from mindmoe.host.files import FileMissing, open_regular, shown

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
DTYPES = {
    code: np.dtype(name) for code, name in enumerate(("u1", "i1", "<i2", "<i4", "<i8", "<f8", "<f4", "<u2"), start=1)
}
_HEADER = struct.Struct("<9sQBQQ")
_CHUNK = 1 << 16  # sequences checked at a time, so that they stay in the processor's cache
_REMEDY = "restore the pair from a good copy or prepare it again"


def token_dtype(vocab_size: int) -> np.dtype:
    """The dtype Megatron chooses for a vocabulary of this size: u16 below 65,500 entries, else i32."""
    return np.dtype("<u2") if vocab_size < 65_500 else np.dtype("<i4")


def bin_path(prefix: str | Path) -> Path:
    """The token file of a pair."""
    return Path(f"{prefix}.bin")


def idx_path(prefix: str | Path) -> Path:
    """The index file of a pair."""
    return Path(f"{prefix}.idx")


class IndexedDataset:
    """A .bin/.idx pair, memory mapped, its structure checked as a whole before anything is served.

    Attributes:
        dtype: of the tokens.
        lengths: (N,) i32, tokens of each sequence.
        offsets: (N,) i64, first byte of each sequence.
        document_index: (documents + 1,) i64.
        modes: (N,) i8 or None.
        flat: (num_tokens,) all tokens in file order.

    Raises:
        UserError: a file is missing or does not follow the format; names the file and the field.
    """

    def __init__(self, prefix: str | Path):
        self.prefix = str(prefix)
        self._idx, self._bin = idx_path(prefix), bin_path(prefix)
        with self._open(self._idx) as idx, self._open(self._bin) as tokens:
            self._read_index(idx)
            size = os.fstat(tokens.fileno()).st_size
            self._check_lengths_and_offsets(size)
            self._check_document_index()
            self.num_tokens = size // self.dtype.itemsize
            # An empty file cannot be mapped.
            self.flat: NDArray = (
                np.memmap(tokens, self.dtype, "r", shape=(self.num_tokens,))
                if self.num_tokens
                else np.empty(0, self.dtype)
            )

    def _open(self, path: Path) -> BinaryIO:
        try:
            return open_regular(path)
        except FileMissing as error:
            raise FileMissing(error.message, "check the path; a token set is a pair <prefix>.bin/.idx") from None

    def _fail(self, path: Path, field: str, problem: str) -> UserError:
        return UserError(f"{shown(str(path), 300)}: {field} {problem}", _REMEDY)

    def _read_index(self, idx: BinaryIO) -> None:
        """Maps the four arrays, after checking that the header accounts for every byte of the file."""
        size = os.fstat(idx.fileno()).st_size
        if size < _HEADER.size:
            raise self._fail(self._idx, "header", f"needs {_HEADER.size} bytes, the file has {size}")
        # The arrays below are views of this map: an index of millions of sequences takes no memory of its own.
        buffer = np.memmap(idx, np.uint8, "r")
        magic, version, code, sequences, entries = _HEADER.unpack(buffer[: _HEADER.size].tobytes())
        if magic != MAGIC:
            raise self._fail(self._idx, "magic", f"is {magic!r}, not {MAGIC!r}: this is no Megatron index")
        if version != VERSION:
            raise self._fail(self._idx, "version", f"is {version}, only {VERSION} is known")
        if code not in DTYPES:
            raise self._fail(self._idx, "dtype code", f"is {code}, known are {', '.join(map(str, DTYPES))}")
        self.dtype = DTYPES[code]
        # Before any array is made: a header that asks for more than the file has is refused by plain arithmetic.
        plain = _HEADER.size + 12 * sequences + 8 * entries
        if size not in (plain, plain + sequences):
            raise self._fail(
                self._idx,
                "file size",
                f"is {size} bytes, but {sequences} sequences and {entries} document_index entries take {plain} "
                f"(or {plain + sequences} with modes)",
            )
        self.num_sequences = sequences
        self.num_documents = entries - 1
        self.lengths = np.frombuffer(buffer, "<i4", sequences, _HEADER.size)
        self.offsets = np.frombuffer(buffer, "<i8", sequences, _HEADER.size + 4 * sequences)
        self.document_index = np.frombuffer(buffer, "<i8", entries, _HEADER.size + 12 * sequences)
        self.modes = np.frombuffer(buffer, "i1", sequences, plain) if size > plain else None

    def _check_lengths_and_offsets(self, size: int) -> None:
        """Lengths are not negative, offsets are their running sum, and .bin, of `size` bytes, ends with the last."""
        end = 0
        for start in range(0, self.num_sequences, _CHUNK):
            # In 64 bits: sums of 32-bit lengths overflow.
            lengths = self.lengths[start : start + _CHUNK].astype(np.int64)
            if (lengths < 0).any():
                first = start + int(np.argmax(lengths < 0))
                raise self._fail(self._idx, f"lengths[{first}]", f"is {self.lengths[first]}, below 0")
            ends = end + np.cumsum(lengths) * self.dtype.itemsize
            wrong = self.offsets[start : start + _CHUNK] != ends - lengths * self.dtype.itemsize
            if wrong.any():
                first = int(np.argmax(wrong))
                expected = int(ends[first] - lengths[first] * self.dtype.itemsize)
                raise self._fail(
                    self._idx,
                    f"offsets[{start + first}]",
                    f"is {self.offsets[start + first]}, but the lengths before it put it at {expected}",
                )
            end = int(ends[-1])
        if size != end:
            raise self._fail(self._bin, "file size", f"is {size} bytes, but {self._idx.name} describes {end}")

    def _check_document_index(self) -> None:
        """The document index rises from 0 to the number of sequences."""
        index = self.document_index
        if len(index) == 0 or index[0] != 0:
            raise self._fail(self._idx, "document_index", "does not start with 0")
        for start in range(0, len(index) - 1, _CHUNK):
            # Chunks overlap by one entry, or a fall between two of them would be missed.
            falls = np.diff(index[start : start + _CHUNK + 1]) < 0
            if falls.any():
                first = start + int(np.argmax(falls)) + 1
                raise self._fail(self._idx, f"document_index[{first}]", f"is {index[first]}, below the entry before it")
        if index[-1] != self.num_sequences:
            raise self._fail(
                self._idx, "document_index", f"ends with {index[-1]}, but there are {self.num_sequences} sequences"
            )

    def sequence(self, index: int) -> NDArray:
        """(length,) the tokens of one sequence, as a view of the file."""
        start = int(self.offsets[index]) // self.dtype.itemsize
        return self.flat[start : start + int(self.lengths[index])]

    def document(self, index: int) -> NDArray:
        """(length,) the tokens of one document, as a view of the file."""
        return self.flat[self.document_start(index) : self.document_start(index + 1)]

    def document_start(self, index: int) -> int:
        """The position in `flat` where document `index` starts; of document `num_documents`, where the last ends."""
        sequence = int(self.document_index[index])
        # There is no offset behind the last sequence; documents without sequences may stand there too.
        if sequence == self.num_sequences:
            return self.num_tokens
        return int(self.offsets[sequence]) // self.dtype.itemsize

    def document_starts(self, first: int, stop: int) -> NDArray[np.int64]:
        """(stop - first,) the positions in `flat` where documents start, all of them before the last token."""
        return self.offsets[self.document_index[first:stop]] // self.dtype.itemsize


class IndexedWriter:
    """Writes a pair in one pass; the names `<prefix>.bin` and `.idx` appear only with `commit`.

    Memory is 12 bytes a document of one sequence. As a context manager it commits at the end and aborts on an
    error. The index is renamed last, and an index that stood there before is removed first, so that at no
    moment an index lies beside tokens it does not describe.

    Args:
        prefix: path of the pair without the suffix; the folder must exist.
        dtype: one of DTYPES; tokens are cast to it and checked against its range.
        modes: whether to write the mode array of multimodal sets.
    """

    def __init__(self, prefix: str | Path, dtype: DTypeLike, modes: bool = False):
        self.dtype = np.dtype(dtype).newbyteorder("<")
        codes = {known: code for code, known in DTYPES.items()}
        if self.dtype not in codes:
            raise ValueError(f"dtype {self.dtype} has no code in the format: use one of {', '.join(map(str, codes))}")
        self._code = codes[self.dtype]
        self._idx, self._bin = idx_path(prefix), bin_path(prefix)
        self._idx_partial, self._bin_partial = Path(f"{self._idx}.partial"), Path(f"{self._bin}.partial")
        self._lengths = array("i")
        self._document_index = array("q", [0])
        self._modes = array("b") if modes else None
        self.num_tokens = 0
        self._stream = open(self._bin_partial, "wb", buffering=1 << 20)  # noqa: SIM115 (closed by commit or abort)

    def add_sequence(self, tokens: ArrayLike, mode: int = 0) -> None:
        """Appends one sequence to the open document.

        Args:
            tokens: (length,) numbers that fit the dtype; may be empty.
            mode: of the sequence, only with modes=True.

        Raises:
            UserError: a token is outside the dtype's range.
        """
        values = self._cast(np.asarray(tokens))
        self._stream.write(values.data)
        self._lengths.append(values.size)
        self.num_tokens += values.size
        if self._modes is not None:
            self._modes.append(mode)
        elif mode:
            raise ValueError(f"mode={mode} given to a writer made with modes=False")

    def end_document(self) -> None:
        """Closes the open document: the next sequence starts another."""
        self._document_index.append(len(self._lengths))

    def add_document(self, sequences: Sequence[ArrayLike]) -> None:
        """Appends one document made of these sequences."""
        for tokens in sequences:
            self.add_sequence(tokens)
        self.end_document()

    def _cast(self, values: NDArray) -> NDArray:
        if values.ndim != 1:
            raise ValueError(f"tokens of shape {values.shape} are not one sequence")
        if values.size and self.dtype.kind in "iu":
            # A cast would cut fractions off without a word.
            if values.dtype.kind not in "iu":
                raise ValueError(f"tokens of dtype {values.dtype} cannot be written as {self.dtype}")
            limits = np.iinfo(self.dtype)
            low, high = int(values.min()), int(values.max())
            if low < limits.min or high > limits.max:
                raise UserError(
                    f"token {low if low < limits.min else high} does not fit {self.dtype.name} "
                    f"({limits.min} to {limits.max}) in {self._bin}",
                    "write the set with a wider dtype or use the tokenizer it was meant for",
                )
        return np.ascontiguousarray(values, self.dtype)

    def commit(self) -> None:
        """Makes the pair durable and visible, the index last. Sequences outside a document become one."""
        if self._document_index[-1] != len(self._lengths):
            self.end_document()
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        with open(self._idx_partial, "wb") as stream:
            header = (MAGIC, VERSION, self._code, len(self._lengths), len(self._document_index))
            stream.write(_HEADER.pack(*header))
            lengths = np.frombuffer(self._lengths, np.intc).astype("<i4", copy=False)
            stream.write(lengths.data)
            self._write_offsets(stream, lengths)
            stream.write(np.frombuffer(self._document_index, np.longlong).astype("<i8", copy=False).data)
            if self._modes is not None:
                stream.write(self._modes)
            stream.flush()
            os.fsync(stream.fileno())
        # From here until the new index has its name, a crash leaves no pair rather than a wrong one.
        if self._idx.exists():
            self._idx.unlink()
            fsync_folder(self._idx.parent)
        rename_durably(self._bin_partial, self._bin)
        rename_durably(self._idx_partial, self._idx)

    def _write_offsets(self, stream: BinaryIO, lengths: NDArray) -> None:
        end = 0
        for start in range(0, len(lengths), _CHUNK):
            chunk = lengths[start : start + _CHUNK].astype(np.int64) * self.dtype.itemsize
            ends = end + np.cumsum(chunk)
            stream.write((ends - chunk).astype("<i8", copy=False).data)
            end = int(ends[-1])

    def abort(self) -> None:
        """Removes what was written; the final names are untouched."""
        self._stream.close()
        for path in (self._bin_partial, self._idx_partial):
            path.unlink(missing_ok=True)

    def __enter__(self) -> "IndexedWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.commit()
        else:
            self.abort()
