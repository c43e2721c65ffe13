"""Reading a checkpoint under any layout: any box of any tensor, fetching only the blocks it touches, all verified.

The manifest seals the header of a shard, the header seals the blocks of its tensors, and a byte that was not
verified never leaves this module. Plain reads, not a memory map: a failing disk then raises EIO, which can be
handled, instead of SIGBUS, and a file that changes later changes nothing.

A process alone reads past the page cache, straight to where the values belong: nothing is copied, and a core has time
left to verify at the speed of the disk. Processes that share a machine mostly want the same bytes, so they read through
the cache, and the disk is read once for all of them.
"""

import math
import os
import stat
import struct
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import xxhash

from mindmoe.checkpoint import disk
from mindmoe.checkpoint.chunks import BLOCKS, MAX_HEADER, TensorInfo, parse_header
from mindmoe.checkpoint.digest import block_bytes, num_blocks, tensor_sum
from mindmoe.checkpoint.dtypes import numpy_dtype
from mindmoe.checkpoint.folder import is_misplaced
from mindmoe.checkpoint.manifest import (
    ChunkRecord,
    CorruptCheckpoint,
    Manifest,
    ShardRecord,
    TensorRecord,
)
from mindmoe.host.errors import CheckpointError
from mindmoe.parallel.box import Box

_PIECE = 2**23  # [bytes] fetched at once, a multiple of blocks; enough to keep a disk busy
_DIRECT = 2**18  # [bytes] from which a read goes past the page cache; neighbours of a smaller one come with it
_THREADS = 4  # one waits for the disk while another verifies
Slices = tuple[slice, ...]


def _index(place: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """The index of an element of a C-contiguous array among all of them."""
    return int(np.ravel_multi_index(place, shape)) if shape else 0


def _room(shape: tuple[int, ...], dtype: np.dtype, position: int) -> np.ndarray:
    """An array to be filled from a position [bytes] of a file, placed so that a direct read can fill it."""
    size = math.prod(shape) * dtype.itemsize
    if size < _DIRECT or position % dtype.itemsize:
        return np.empty(shape, dtype)
    return np.frombuffer(disk.aligned(size, position), dtype).reshape(shape)


@dataclass(frozen=True, slots=True)
class _Piece:
    """One read: whole blocks of a chunk, and where their rows go.

    Attributes:
        begin, end: wanted bytes within the chunk; `low` and `high` are the blocks around them.
        target: (rows, ...) where they go.
        cut: index into a row, None if whole rows are wanted.
    """

    chunk: str
    begin: int
    end: int
    low: int
    high: int
    target: np.ndarray
    cut: Slices | None


class ShardReader:
    """An open shard whose size and header were verified.

    Args:
        path: the file.
        record: what the manifest says of it.

    Raises:
        CorruptCheckpoint: size or header differ from the record.
        OSError: the file cannot be opened or read.
    """

    def __init__(self, path: Path, record: ShardRecord):
        self.path, self.record = path, record
        self.bytes_read = 0
        self._lock = threading.Lock()
        self.past_cache = True
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if is_misplaced(error):
                raise CorruptCheckpoint(f"{path} is no file: {error.strerror}") from None
            raise
        self._direct: int | None = None
        try:
            status = os.fstat(self._fd)
            if not stat.S_ISREG(status.st_mode) or status.st_size != record.size:
                raise CorruptCheckpoint(f"{path} has {status.st_size} bytes, expected a file of {record.size}")
            self._direct = disk.reopen_direct(self._fd)
            self.entries, self.blocks = self._verified_header()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)
        if self._direct is not None:
            os.close(self._direct)

    def _verified_header(self) -> tuple[dict[str, TensorInfo], dict[str, str]]:
        path, record = self.path, self.record
        # Not sealed yet, so it is held against the file before memory is asked for.
        (length,) = struct.unpack("<Q", self._fetch(0, 8))
        if length > min(MAX_HEADER, record.size - 8):
            raise CorruptCheckpoint(f"{path}: header length {length} is beyond the file or {MAX_HEADER} bytes")
        head = bytes(self._fetch(0, 8 + length))
        if xxhash.xxh3_128_hexdigest(head) != record.header_digest:
            raise CorruptCheckpoint(f"{path}: the header does not match its digest")
        entries, metadata = parse_header(head, record.size, path)
        # Reads go by the header, boxes by the manifest: they must mean the same tensors.
        if {n: (e.dtype, e.shape) for n, e in entries.items()} != {
            n: (c.dtype, c.shape) for n, c in record.tensors.items()
        }:
            raise CorruptCheckpoint(f"{path}: the header lists other tensors than the manifest")
        blocks = {name: metadata.get(BLOCKS + name, "") for name in entries}
        for name, entry in entries.items():
            # 16 hexadecimal digits for each block, so that no block can be without one.
            if len(blocks[name]) != 16 * num_blocks(entry.end - entry.begin, self._block(name, entries)):
                raise CorruptCheckpoint(f"{path}: the header does not hold the block digests of {name}")
        return entries, blocks

    def _block(self, name: str, entries: Mapping[str, TensorInfo] | None = None) -> int:
        entry = (entries or self.entries)[name]
        return block_bytes(entry.shape, numpy_dtype(entry.dtype).itemsize)

    def _fetch(self, begin: int, end: int, into: memoryview | None = None) -> memoryview:
        """Bytes begin .. end of the file, unverified."""
        view = into if into is not None else disk.aligned(end - begin, begin)
        done = 0
        # A direct read may stop short; the loop below fetches the rest through the cache.
        if self._direct is not None and self.past_cache and len(view) >= _DIRECT:
            done = disk.read_pages(self._direct, view, begin)
        while done < len(view):
            got = os.preadv(self._fd, [view[done:]], begin + done)
            if not got:
                raise CorruptCheckpoint(f"{self.path} ends at byte {begin + done}, expected {end}")
            done += got
        with self._lock:
            self.bytes_read += done
        return view

    def fetch_blocks(self, name: str, low: int, high: int, into: memoryview | None = None) -> memoryview:
        """Verified bytes low .. high of a tensor; `low` is the start of a block, `high` an end.

        Raises:
            CorruptCheckpoint: a block does not match its digest; the message gives its bytes in the file.
        """
        begin, block = self.entries[name].begin, self._block(name)
        data = self._fetch(begin + low, begin + high, into)
        # Digests of the blocks from the one that starts at `low` on.
        wanted = self.blocks[name][16 * (low // block) :]
        for index, start in enumerate(range(0, high - low, block)):
            part = data[start : start + block]
            if xxhash.xxh3_64_hexdigest(part) != wanted[16 * index : 16 * index + 16]:
                where = begin + low + start
                raise CorruptCheckpoint(
                    f"{self.path}: tensor {name} does not match its digest in bytes {where} to {where + len(part)}"
                )
        return data

    def pieces(self, name: str, offset: tuple[int, ...], target: np.ndarray) -> Iterator[_Piece]:
        """The reads that fill `target` with the box of its shape at `offset` within the chunk."""
        entry = self.entries[name]
        shape, wanted, size, block = entry.shape, target.shape, entry.end - entry.begin, self._block(name)
        if not target.size:
            return
        # A row is what `block_bytes` keeps together: the last dimensions from `dim` on.
        dim, row = 0, size
        while row > block:
            row, dim = row // shape[dim], dim + 1
        cut = None if wanted[dim:] == shape[dim:] else Box(offset[dim:], wanted[dim:]).index
        # The whole chunk fits into one block: one read, and what is not wanted is cut away.
        if not dim:
            yield _Piece(name, 0, size, 0, size, target[None], cut)
            return
        lead = dim  # rows of all but the first `lead` dimensions make one run, where they are wanted whole
        while lead > 1 and wanted[lead - 1] == shape[lead - 1] and target.flags.c_contiguous:
            lead -= 1
        # From here on in rows: of one index of the leading dimensions, and of one read.
        rows_per_index = math.prod(shape[lead:dim])
        rows_per_piece = max(1, _PIECE // block) * block // row
        for place in np.ndindex(*wanted[: lead - 1]):
            # zip stops at the shorter: `place` has all leading dimensions but the last, along which the run goes.
            corner = (*(p + o for p, o in zip(place, offset, strict=False)), offset[lead - 1])
            first = int(np.ravel_multi_index(corner, shape[:lead])) * rows_per_index
            rows = target[place].reshape(-1, *wanted[dim:])
            start, stop = first, first + len(rows)
            while start < stop:
                # Pieces end at multiples of their size in the chunk, not in the box: two of a run share no block.
                end = min(stop, (start // rows_per_piece + 1) * rows_per_piece)
                # Outwards to whole blocks, the only thing that can be verified.
                low, high = start * row // block * block, min(size, -(-end * row // block) * block)
                yield _Piece(name, start * row, end * row, low, high, rows[start - first : end - first], cut)
                start = end

    def read(self, piece: _Piece) -> None:
        """Fetches, verifies and copies one piece."""
        target = piece.target
        # Nothing around what is wanted: it is read to where it belongs, without a copy.
        if piece.cut is None and (piece.begin, piece.end) == (piece.low, piece.high) and target.flags.c_contiguous:
            self.fetch_blocks(piece.chunk, piece.low, piece.high, target.reshape(-1).view(np.uint8).data)
            return
        data = self.fetch_blocks(piece.chunk, piece.low, piece.high)[piece.begin - piece.low : piece.end - piece.low]
        shape = self.entries[piece.chunk].shape
        # (bytes) -> (rows, ...) with the chunk's own lengths, of which `cut` takes the wanted ones.
        rows = np.frombuffer(data, target.dtype).reshape((len(target), *shape[len(shape) - target.ndim + 1 :]))
        index = (slice(None), *(piece.cut or ()))
        target[...] = rows[index]


class Checkpoint:
    """One published step, open for reading any box of any tensor. A context manager.

    Args:
        path: the folder, for messages and to find the shards.
        manifest: parsed from it.
    """

    def __init__(self, path: Path, manifest: Manifest):
        self.path, self.manifest = path, manifest
        self.tensors = manifest.tensors()
        # By tensor: the shards and boxes it lies in, so that a box looks only where it may overlap.
        self._homes: dict[str, list[tuple[ShardRecord, ChunkRecord]]] = {name: [] for name in self.tensors}
        for shard in manifest.shards:
            for name, chunk in shard.tensors.items():
                self._homes[name].append((shard, chunk))
        self._open: dict[str, ShardReader] = {}

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        while self._open:
            self._open.popitem()[1].close()

    @property
    def bytes_read(self) -> int:
        """What was fetched from the shards so far, headers included [bytes]."""
        return sum(shard.bytes_read for shard in self._open.values())

    def read(self, boxes: Mapping[str, Box], cached: bool = False) -> dict[str, np.ndarray]:
        """Boxes of tensors, verified and C-contiguous; BF16 comes as its bits in uint16.

        Args:
            boxes: by tensor name, within the tensors.
            cached: read through the page cache, because other processes of this machine want the same bytes.

        Raises:
            CorruptCheckpoint: something differs from what was saved; the message names file, tensor and bytes.
            KeyError: there is no such tensor.
            OSError: a file cannot be opened or read.
        """
        found: dict[str, np.ndarray] = {}
        work: list[tuple[ShardReader, _Piece]] = []
        for name, box in boxes.items():
            dtype = numpy_dtype(self.tensors[name].dtype)
            for shard, chunk in self._homes[name]:
                shared = box.overlap(chunk.box)
                if shared is None:
                    continue
                reader = self._reader(shard)
                reader.past_cache = not cached
                there, here = shared.inside(chunk.box), shared.inside(box)
                if name not in found:
                    # Where the box would begin in the file if the chunk held all of it: the array is placed after
                    # that, so that direct reads find it aligned.
                    ahead = _index(there.offset, chunk.shape) - _index(here.offset, box.shape)
                    found[name] = _room(box.shape, dtype, reader.entries[name].begin + ahead * dtype.itemsize)
                target = found[name][here.index] if box.shape else found[name]
                work += [(reader, piece) for piece in reader.pieces(name, there.offset, target)]
            found.setdefault(name, np.empty(box.shape, dtype))  # an empty box
        with ThreadPoolExecutor(_THREADS) as pool:
            try:
                # Iterated, because the exception of a read is raised only when its result is taken.
                for _ in pool.map(lambda item: item[0].read(item[1]), work):
                    pass
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return found

    def read_all(self, cached: bool = False) -> dict[str, np.ndarray]:
        """Every tensor, whole and verified; `cached` as in `read`."""
        return self.read({name: Box.whole(t.shape) for name, t in self.tensors.items()}, cached)

    def _reader(self, shard: ShardRecord) -> ShardReader:
        if shard.file not in self._open:
            self._open[shard.file] = ShardReader(self.path / shard.file, shard)
        return self._open[shard.file]

    def damage(self) -> Iterator[str]:
        """Everything that is wrong with the files, one sentence each; empty if every byte is right.

        Beyond what `read` verifies, tensor digests are computed anew.
        """
        for shard in self.manifest.shards:
            try:
                yield from self._damage_of(self._reader(shard))
            except CheckpointError as error:
                yield error.message
            except OSError as error:
                yield f"{self.path / shard.file}: {error.strerror}"

    def _damage_of(self, reader: ShardReader) -> Iterator[str]:
        for name, chunk in reader.record.tensors.items():
            array = _room(chunk.shape, numpy_dtype(chunk.dtype), reader.entries[name].begin)
            sound = True
            for piece in reader.pieces(name, (0,) * array.ndim, array):
                try:
                    reader.read(piece)
                except CorruptCheckpoint as error:
                    sound = False
                    yield error.message
            # Blocks were verified one by one; this is the digest that tells two checkpoints apart.
            if sound and tensor_sum(array, chunk.offset) != int(chunk.digest, 16):
                yield f"{reader.path}: tensor {name} does not have the digest of its content"


def total_digest(tensors: Mapping[str, TensorRecord]) -> str:
    """One word for a set of tensors: equal for equal names, shapes and content, whatever the layout."""
    text = "".join(f"{name} {t.dtype} {t.shape} {t.digest}\n" for name, t in sorted(tensors.items()))
    return xxhash.xxh3_64_hexdigest(text.encode())
