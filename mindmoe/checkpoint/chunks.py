"""Shards: safetensors files written straight from buffers, and read back only after every byte was verified.

The stock safetensors library reads these files; it does not write them, because it neither fsyncs nor computes
digests, and needs a second copy of the data. Layout: u64 header length, JSON header padded to 8 bytes, data.
Source: https://github.com/huggingface/safetensors#format
"""

import json
import math
import mmap
import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from mindmoe.checkpoint import disk
from mindmoe.checkpoint.manifest import ChunkRecord, CorruptCheckpoint, ShardRecord

MAX_HEADER = 100_000_000  # [bytes], the limit of the stock reader
_READ = 2**20  # [bytes] read at once while verifying; stays in the L2 cache between read and digest

# NumPy has no bfloat16, so BF16 is stored and returned as its 16 bits in uint16. Plain uint16 arrays are
# refused: after loading they could not be told from BF16.
_NUMPY = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U8": "|u1",
    "BOOL": "|b1",
}
_TAGS = {np.dtype(text): tag for tag, text in _NUMPY.items() if tag != "BF16"}


@dataclass(frozen=True, slots=True)
class Chunk:
    """A box of a tensor to be saved; by default the whole tensor.

    Args:
        array: the values. A dtype named bfloat16 (MindSpore's or ml_dtypes') is stored as BF16.
        dtype: the safetensors tag if the array's dtype does not tell: `BF16` for raw bits in uint16.
        global_shape: shape of the tensor the box is cut from.
        offset: index of the first element of the box in that tensor.
    """

    array: np.ndarray
    dtype: str = ""
    global_shape: tuple[int, ...] | None = None
    offset: tuple[int, ...] | None = None

    @property
    def tag(self) -> str:
        """The safetensors dtype tag. Raises ValueError for a dtype that cannot be stored."""
        if self.dtype == "BF16" and self.array.dtype == np.uint16 or self.array.dtype.name == "bfloat16":
            return "BF16"
        tag = _TAGS.get(self.array.dtype)
        if tag is None or self.dtype not in ("", tag):
            raise ValueError(
                f"dtype {self.array.dtype} cannot be stored{' as ' + self.dtype if self.dtype else ''}: "
                f"use one of {', '.join(_NUMPY)} (BF16 as uint16 with dtype='BF16')"
            )
        return tag


def as_chunk(value: np.ndarray | Chunk) -> Chunk:
    """The value as a chunk; an array becomes the chunk of a whole tensor."""
    return value if isinstance(value, Chunk) else Chunk(value)


def _raw(array: np.ndarray) -> memoryview:
    """The bytes of an array in C order; copies only if it is not contiguous."""
    return np.ravel(array, order="C").view(np.uint8).data


def write_shard(path: Path, chunks: Mapping[str, Chunk]) -> ShardRecord:
    """Writes a durable safetensors file and returns its record.

    Digests are computed from the caller's buffers, so a byte that changes on its way to the disk is noticed.

    Args:
        path: a file that does not exist yet.
        chunks: keyed by tensor name.

    Raises:
        ValueError: a dtype or a name that cannot be stored.
        OSError: the disk refused.
    """
    # Wide types first keeps every tensor aligned to its item size, so that loading can map it without a copy.
    order = sorted(chunks, key=lambda name: (-chunks[name].array.dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "np"}}
    end = 0
    for name in order:
        if name == "__metadata__":
            raise ValueError("a tensor cannot be named __metadata__: the format reserves it")
        chunk = chunks[name]
        begin, end = end, end + chunk.array.nbytes
        header[name] = {"dtype": chunk.tag, "shape": list(chunk.array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise ValueError(f"the header of {path.name} has {len(text)} bytes, above {MAX_HEADER}: use more shards")
    head = struct.pack("<Q", len(text)) + text
    records = {}
    with disk.new_file(path) as fd:
        disk.write_all(fd, head)
        for name in order:
            chunk = chunks[name]
            data = _raw(chunk.array)
            records[name] = ChunkRecord(
                dtype=chunk.tag,
                shape=chunk.array.shape,
                digest=xxhash.xxh3_128_hexdigest(data),
                global_shape=chunk.array.shape if chunk.global_shape is None else tuple(chunk.global_shape),
                offset=(0,) * chunk.array.ndim if chunk.offset is None else tuple(chunk.offset),
            )
            disk.write_all(fd, data)
    return ShardRecord(
        file=path.name, size=len(head) + end, header_digest=xxhash.xxh3_128_hexdigest(head), tensors=records
    )


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor in a safetensors header; `begin` and `end` are positions in the file [bytes]."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def parse_header(head: bytes, file_size: int, where: Path) -> dict[str, Entry]:
    """The tensors of a safetensors file, in file order.

    Args:
        head: the length field and the JSON header.
        file_size: size of the whole file [bytes].
        where: the path, for messages.

    Raises:
        CorruptCheckpoint: not JSON, a repeated name, an unknown dtype, or data that is negative, overlapping,
            has holes, does not match the shape, or does not end with the file.
    """

    def refuse(why: str) -> CorruptCheckpoint:
        return CorruptCheckpoint(f"{where}: header: {why}")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key appears twice")
        return dict(pairs)

    try:
        header = json.loads(head[8:], object_pairs_hook=unique)
        header.pop("__metadata__", None)
        entries = {name: _entry(item, len(head)) for name, item in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise refuse(f"{type(error).__name__}: {error}") from None
    position = len(head)
    entries = dict(sorted(entries.items(), key=lambda pair: (pair[1].begin, pair[1].end)))
    for name, entry in entries.items():
        if entry.begin != position:
            raise refuse(f"{name} starts at byte {entry.begin}, expected {position} (overlap or hole)")
        position = entry.end
    if position != file_size:
        raise refuse(f"the data ends at byte {position} but the file at {file_size}")
    return entries


def _entry(item: Any, data_start: int) -> Entry:
    """One header item, checked by itself. Raises ValueError, TypeError or KeyError."""
    begin, end = item["data_offsets"]
    shape = tuple(item["shape"])
    if any(type(number) is not int or number < 0 for number in (*shape, begin, end)):
        raise ValueError("shape and data_offsets must be whole numbers from 0")
    if item["dtype"] not in _NUMPY:
        raise ValueError(f"unknown dtype {item['dtype']!r}")
    if end - begin != math.prod(shape) * np.dtype(_NUMPY[item["dtype"]]).itemsize:
        raise ValueError(f"{end - begin} bytes do not hold shape {list(shape)} of {item['dtype']}")
    return Entry(item["dtype"], shape, data_start + begin, data_start + end)


def _read_exactly(fd: int, size: int, position: int, where: Path) -> bytes:
    data = os.pread(fd, size, position)
    while len(data) < size:
        more = os.pread(fd, size - len(data), position + len(data))
        if not more:
            raise CorruptCheckpoint(f"{where} ends at byte {position + len(data)}, expected {position + size}")
        data += more
    return data


def _digest_range(fd: int, entry: Entry, buffer: bytearray) -> str:
    """The digest of a tensor's bytes.

    Plain reads, not the memory map: a failing disk then raises EIO, which can be handled, instead of SIGBUS.
    """
    digest = xxhash.xxh3_128()
    view = memoryview(buffer)
    position = entry.begin
    while position < entry.end:
        got = os.preadv(fd, [view[: min(len(view), entry.end - position)]], position)
        if not got:
            break
        digest.update(view[:got])
        position += got
    return digest.hexdigest()


def read_shard(path: Path, record: ShardRecord) -> dict[str, np.ndarray]:
    """The arrays of a shard, read-only views of a memory map, after everything in the file was verified.

    Args:
        path: the file.
        record: what the manifest says of it.

    Raises:
        CorruptCheckpoint: anything differs from the record; the message names the file and the tensor.
        OSError: the file cannot be opened or read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size != record.size:
            raise CorruptCheckpoint(f"{path} has {status.st_size} bytes, expected a file of {record.size}")
        (length,) = struct.unpack("<Q", _read_exactly(fd, 8, 0, path))
        if length > min(MAX_HEADER, record.size - 8):
            raise CorruptCheckpoint(f"{path}: header length {length} is beyond the file or {MAX_HEADER} bytes")
        head = _read_exactly(fd, 8 + length, 0, path)
        if xxhash.xxh3_128_hexdigest(head) != record.header_digest:
            raise CorruptCheckpoint(f"{path}: the header does not match its digest")
        entries = parse_header(head, record.size, path)
        if {n: (e.dtype, e.shape) for n, e in entries.items()} != {
            n: (c.dtype, c.shape) for n, c in record.tensors.items()
        }:
            raise CorruptCheckpoint(f"{path}: the header lists other tensors than the manifest")
        buffer = bytearray(_READ)
        for name, entry in entries.items():
            if _digest_range(fd, entry, buffer) != record.tensors[name].digest:
                raise CorruptCheckpoint(f"{path}: tensor {name} does not match its digest")
        mapped = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(fd)
    return {name: _view(mapped, entry) for name, entry in entries.items()}


def _view(mapped: mmap.mmap, entry: Entry) -> np.ndarray:
    flat = np.frombuffer(mapped, np.uint8)[entry.begin : entry.end]
    return flat.view(_NUMPY[entry.dtype]).reshape(entry.shape)
