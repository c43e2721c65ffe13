"""Shards: safetensors files written from one staging buffer, and read back only after the bytes were verified.

The stock safetensors library reads these files; it does not write them, because it neither fsyncs nor computes
digests, and needs a second copy of the data. Layout: u64 header length, JSON header padded to 64 bytes, data. The
header's metadata holds the digests of the blocks of every tensor, so that a part can be read and verified alone.
Source: https://github.com/huggingface/safetensors#format
"""

import json
import math
import struct
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from mindmoe.checkpoint import disk
from mindmoe.checkpoint.digest import block_bytes, block_digests, num_blocks, tensor_sum
from mindmoe.checkpoint.dtypes import DTYPES, numpy_dtype
from mindmoe.checkpoint.manifest import ChunkRecord, CorruptCheckpoint, ShardRecord
from mindmoe.host.files import shown
from mindmoe.host.strict_json import JsonError, parse
from mindmoe.parallel.box import Box

MAX_HEADER = 100_000_000  # [bytes], the limit of the stock reader
_SEALERS = 2  # threads: one core digests 2 to 3 GB/s, less than a fast disk writes
BLOCKS = "blocks:"  # prefix of the metadata entry that holds the block digests of a tensor

_TAGS = {np.dtype(text): tag for tag, text in DTYPES.items() if tag != "BF16"}


def tag_of(array: np.ndarray, dtype: str = "") -> str:
    """The safetensors dtype tag of an array.

    Args:
        array: a dtype named bfloat16 (MindSpore's or ml_dtypes') is stored as BF16.
        dtype: the tag if the array's dtype does not tell: `BF16` for raw bits in uint16.

    Raises:
        ValueError: a dtype that cannot be stored.
    """
    if dtype == "BF16" and array.dtype == np.uint16 or array.dtype.name == "bfloat16":
        return "BF16"
    tag = _TAGS.get(array.dtype)
    if tag is None or dtype not in ("", tag):
        raise ValueError(
            f"dtype {array.dtype} cannot be stored{' as ' + dtype if dtype else ''}: "
            f"use one of {', '.join(DTYPES)} (BF16 as uint16 with dtype='BF16')"
        )
    return tag


@dataclass(frozen=True, slots=True)
class Chunk:
    """A box of a tensor to be saved; by default the whole tensor.

    Args:
        array: the values.
        dtype: the safetensors tag if the array's dtype does not tell, see `tag_of`.
        global_shape: shape of the tensor the box is cut from.
        offset: index of the first element of the box in that tensor.
    """

    array: np.ndarray
    dtype: str = ""
    global_shape: tuple[int, ...] | None = None
    offset: tuple[int, ...] | None = None

    @property
    def record(self) -> ChunkRecord:
        """Its record, without digest. Raises ValueError for a dtype that cannot be stored."""
        shape = self.array.shape
        offset = (0,) * len(shape) if self.offset is None else self.offset
        whole = shape if self.global_shape is None else self.global_shape
        return ChunkRecord.of(tag_of(self.array, self.dtype), whole, Box(offset, shape))


def as_chunk(value: np.ndarray | Chunk) -> Chunk:
    """The value as a chunk; an array becomes the chunk of a whole tensor."""
    return value if isinstance(value, Chunk) else Chunk(value)


def encode_header(entries: Mapping[str, tuple[str, tuple[int, ...], int]], metadata: Mapping[str, str]) -> bytes:
    """The head of a safetensors file: length and JSON, padded so that the data starts at a multiple of 64.

    Args:
        entries: dtype, shape and size [bytes] of each tensor, in file order.
        metadata: text by name; its length must not depend on the data if the head is written after them.

    Raises:
        ValueError: a reserved name, or a header beyond MAX_HEADER.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, (dtype, shape, size) in entries.items():
        if name == "__metadata__":
            raise ValueError("a tensor cannot be named __metadata__: the format reserves it")
        begin, end = end, end + size
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    # The format allows blanks behind the JSON; with them the data begins aligned.
    text += b" " * (-(8 + len(text)) % 64)
    if len(text) > MAX_HEADER:
        raise ValueError(f"a header of {len(text)} bytes is above {MAX_HEADER}: use more shards")
    return struct.pack("<Q", len(text)) + text


class Staging:
    """One page-aligned buffer, kept from save to save: memory that was touched once is not fetched again."""

    def __init__(self) -> None:
        self._memory = memoryview(b"")

    def reserve(self, size: int) -> memoryview:
        """`size` bytes; what was reserved before is given up."""
        if size > len(self._memory):
            self._memory = memoryview(b"")  # before the next is made: never two at a time
            self._memory = disk.aligned(size, lasting=True)
        return self._memory[:size]


class Image:
    """A shard in memory exactly as it will lie on disk.

    Args:
        chunks: what it holds, keyed by tensor name.
        staging: where it lies.
    """

    def __init__(self, chunks: Mapping[str, ChunkRecord], staging: Staging):
        # Wide types first keeps every tensor aligned to its item size, so that stock readers can map it.
        order = sorted(chunks, key=lambda name: (-numpy_dtype(chunks[name].dtype).itemsize, name))
        self.chunks = {name: chunks[name] for name in order}
        # Digests have a fixed length, so the head can be measured with blanks and written when they are known.
        self.head_size = len(self._head({name: _blanks(chunk) for name, chunk in self.chunks.items()}))
        self.size = self.head_size + sum(chunk.nbytes for chunk in self.chunks.values())
        self.buffer = staging.reserve(self.size)
        self._views: dict[str, memoryview] = {}
        position = self.head_size
        for name, chunk in self.chunks.items():
            self._views[name] = self.buffer[position : position + chunk.nbytes]
            position += chunk.nbytes

    def array(self, name: str) -> np.ndarray:
        """Where the values of a tensor belong, to be filled."""
        chunk = self.chunks[name]
        return np.frombuffer(self._views[name], numpy_dtype(chunk.dtype)).reshape(chunk.shape)

    def put(self, name: str, values: np.ndarray) -> None:
        """Copies the values of a tensor in; `values` may be a bfloat16 array."""
        target = self.array(name)
        assert values.shape == target.shape, f"{name}: {values.shape} is not {target.shape}"
        np.copyto(target, values.view(np.uint16) if values.dtype.name == "bfloat16" else values, casting="no")

    def seal(self) -> dict[str, ChunkRecord]:
        """Computes all digests from the buffer and writes the head; returns the records of the chunks."""
        with ThreadPoolExecutor(_SEALERS) as pool:
            digests = dict(zip(self.chunks, pool.map(self._digests, self.chunks), strict=True))
        self.buffer[: self.head_size] = self._head({name: blocks for name, (blocks, _) in digests.items()})
        return {name: replace(chunk, digest=digests[name][1]) for name, chunk in self.chunks.items()}

    def _digests(self, name: str) -> tuple[str, str]:
        """Of the blocks of a tensor, and of its content."""
        chunk = self.chunks[name]
        content = tensor_sum(self.array(name), chunk.offset)
        return block_digests(self._views[name], _block(chunk)), f"{content:016x}"

    @property
    def head(self) -> memoryview:
        """The head as it lies in the buffer."""
        return self.buffer[: self.head_size]

    def _head(self, blocks: Mapping[str, str]) -> bytes:
        entries = {name: (chunk.dtype, chunk.shape, chunk.nbytes) for name, chunk in self.chunks.items()}
        return encode_header(entries, {"format": "np"} | {BLOCKS + name: text for name, text in blocks.items()})


def _block(chunk: ChunkRecord) -> int:
    return block_bytes(chunk.shape, numpy_dtype(chunk.dtype).itemsize)


def _blanks(chunk: ChunkRecord) -> str:
    return "0" * 16 * num_blocks(chunk.nbytes, _block(chunk))


def write_image(path: Path, image: Image) -> ShardRecord:
    """Writes a durable safetensors file and returns its record.

    Digests are computed from the staging buffer while another thread writes it, so a byte that changes on its way to
    the disk is noticed, and the disk does not wait for them.

    Args:
        path: a file that does not exist yet.
        image: filled.

    Raises:
        OSError: the disk refused.
    """
    # Direct writes take whole pages: what lies around them, with the head, goes through the cache.
    first = -(-image.head_size // disk.PAGE) * disk.PAGE
    last = max(first, image.size // disk.PAGE * disk.PAGE)
    with disk.new_file(path) as fd, ThreadPoolExecutor(1) as pool:
        sealed = pool.submit(image.seal)
        disk.write_pages(fd, image.buffer[first:last], first)
        # The head holds the digests, so it waits until all of them are known.
        records = sealed.result()
        disk.write_all(fd, image.buffer[:first], 0)
        disk.write_all(fd, image.buffer[last:], last)
    return ShardRecord(
        file=path.name, size=image.size, header_digest=xxhash.xxh3_128_hexdigest(image.head), tensors=records
    )


def write_shard(path: Path, chunks: Mapping[str, Chunk], staging: Staging | None = None) -> ShardRecord:
    """Writes chunks as a durable safetensors file and returns its record.

    Args:
        path: a file that does not exist yet.
        chunks: keyed by tensor name.
        staging: a buffer to use again; by default one is made.

    Raises:
        ValueError: a dtype or a name that cannot be stored.
        OSError: the disk refused.
    """
    image = Image({name: chunk.record for name, chunk in chunks.items()}, staging or Staging())
    for name, chunk in chunks.items():
        image.put(name, chunk.array)
    return write_image(path, image)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor in a safetensors header; `begin` and `end` are positions in the file [bytes]."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def parse_header(head: bytes, file_size: int, where: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors of a safetensors file in file order, and its metadata.

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

    try:
        header = parse(head[8:], f"{where}: header")
        metadata = header.pop("__metadata__", None) or {}
        if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("__metadata__ must hold text by name")
        entries = {name: _entry(item, len(head)) for name, item in header.items()}
    except JsonError as error:
        raise CorruptCheckpoint(error.message) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise refuse(shown(f"{type(error).__name__}: {error}", 200)) from None
    position = len(head)
    # In file order every byte has to belong to just one tensor: none overlaps, and there is no hole to hide in.
    entries = dict(sorted(entries.items(), key=lambda pair: (pair[1].begin, pair[1].end)))
    for name, entry in entries.items():
        if entry.begin != position:
            raise refuse(f"{shown(name)} starts at byte {entry.begin}, expected {position} (overlap or hole)")
        position = entry.end
    if position != file_size:
        raise refuse(f"the data ends at byte {position} but the file at {file_size}")
    return entries, metadata


def _entry(item: Any, data_start: int) -> TensorInfo:
    """One header item, checked by itself. Raises ValueError, TypeError or KeyError."""
    begin, end = item["data_offsets"]
    shape = tuple(item["shape"])
    # `type`, not isinstance: a JSON true is an int to Python.
    if any(type(number) is not int or number < 0 for number in (*shape, begin, end)):
        raise ValueError("shape and data_offsets must be whole numbers from 0")
    if item["dtype"] not in DTYPES:
        raise ValueError(f"unknown dtype {item['dtype']!r}")
    if end - begin != math.prod(shape) * numpy_dtype(item["dtype"]).itemsize:
        raise ValueError(f"{end - begin} bytes do not hold shape {list(shape)} of {item['dtype']}")
    return TensorInfo(item["dtype"], shape, data_start + begin, data_start + end)
