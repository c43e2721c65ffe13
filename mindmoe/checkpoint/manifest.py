"""The manifest: what a checkpoint holds, byte for byte, and what it belongs to.

It is the last file written, so a folder with a readable manifest was complete. The file is a JSON object
followed by one line, a JSON string `xxh3_128:<digest of everything above>`; `jq` reads both.

Every tensor is recorded as chunks: a box (`offset`, `shape`) of a global tensor (`global_shape`). One writer
saves one chunk per tensor; many writers save boxes that tile it. Digests form a tree: the manifest seals itself and
the header of every shard, a header seals the blocks of its tensors. Readers of the same major version ignore keys
they do not know, so a minor version may add some.
"""

import math
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Literal

import xxhash
from pydantic import JsonValue, TypeAdapter, ValidationError

from mindmoe.checkpoint.digest import add
from mindmoe.checkpoint.dtypes import DTYPES, numpy_dtype
from mindmoe.host import strict_json
from mindmoe.host.errors import CheckpointError
from mindmoe.host.files import shown
from mindmoe.host.strict_json import JsonError
from mindmoe.parallel.box import Box

VERSION = "2.0"
_MAJOR = VERSION.split(".")[0]
_FILE = re.compile("[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_DIGEST = re.compile("[0-9a-f]{16}")
_MAX_NAME = 1000  # [characters] of the name of a tensor
_MAX_RANK = 32  # of a NumPy array
_MAX_SIZE = 2**60  # [bytes] of a tensor or a file; sums of a few stay below 2^63
_FIELD = 2**61 - 1  # a prime: the sums of `tiles` are taken modulo it


class CorruptCheckpoint(CheckpointError):
    """Bytes on disk that are not those that were written: incomplete, altered, or mixed up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkRecord:
    """One box of a tensor as it is stored, or is to be.

    `shape` and `offset` have as many entries as `global_shape`; `digest` is what the box adds to the digest of its
    tensor (`digest.tensor_sum`), 16 hexadecimal digits; it is empty until the values are known.
    """

    dtype: str
    shape: tuple[int, ...]
    global_shape: tuple[int, ...]
    offset: tuple[int, ...]
    digest: str = ""

    @classmethod
    def of(cls, dtype: str, whole: tuple[int, ...], box: Box | None = None) -> "ChunkRecord":
        """The record of a box that is to be stored, by default all of a tensor of shape `whole`."""
        box = box or Box.whole(whole)
        return cls(dtype=dtype, shape=box.shape, global_shape=whole, offset=box.offset)

    @property
    def box(self) -> Box:
        """Where it lies in its tensor."""
        return Box(self.offset, self.shape)

    @property
    def nbytes(self) -> int:
        """Size [bytes]."""
        return self.box.size * numpy_dtype(self.dtype).itemsize


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorRecord:
    """A whole tensor: equal for equal content under any layout."""

    dtype: str
    shape: tuple[int, ...]
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRecord:
    """One safetensors file [bytes], the digest of its header, and the chunks inside, keyed by tensor name."""

    file: str
    size: int
    header_digest: str
    tensors: dict[str, ChunkRecord]


@dataclass(frozen=True, kw_only=True, slots=True)
class Meta:
    """What a checkpoint belongs to.

    `model` names the table of parameters by its digest; `topology` says how it was laid out (information only, any
    layout may load); `generation` is the writer that saved it, from `store.claim`; `state` holds small values that
    resuming needs beyond the tensors. `config` is the whole configuration, `data` the identity of what was read, and
    `versions` those of the software; they are empty where the writer did not record them.
    """

    model: dict[str, JsonValue]
    topology: dict[str, JsonValue]
    config_digest: str
    generation: str
    state: dict[str, JsonValue] = field(default_factory=dict)
    config: dict[str, JsonValue] = field(default_factory=dict)
    data: dict[str, JsonValue] = field(default_factory=dict)
    versions: dict[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """One checkpoint. `step` counts completed optimizer steps and is also the data cursor.

    `saved_at` is the time of the commit [s since 1970].
    """

    step: int
    meta: Meta
    shards: tuple[ShardRecord, ...]
    format: Literal["mindmoe-checkpoint"] = "mindmoe-checkpoint"
    version: str = VERSION
    saved_at: float = 0.0

    @property
    def size(self) -> int:
        """Size of all shards [bytes]."""
        return sum(shard.size for shard in self.shards)

    def tensors(self) -> dict[str, TensorRecord]:
        """The whole tensors by name, in order of their names."""
        sums: dict[str, int] = {}
        known: dict[str, ChunkRecord] = {}
        for name, chunk in self.chunks():
            sums[name] = add(sums.get(name, 0), int(chunk.digest, 16))
            known[name] = chunk
        return {
            name: TensorRecord(dtype=known[name].dtype, shape=known[name].global_shape, digest=f"{sums[name]:016x}")
            for name in sorted(sums)
        }

    def chunks(self) -> Iterator[tuple[str, ChunkRecord]]:
        """Every (tensor name, chunk) of every shard."""
        for shard in self.shards:
            yield from shard.tensors.items()

    def to_bytes(self) -> bytes:
        """The content of the manifest file."""
        body = _adapter().dump_json(self, indent=1) + b"\n"
        return body + _digest_line(body)


@cache
def _adapter() -> TypeAdapter[Manifest]:
    return TypeAdapter(Manifest)


def _digest_line(body: bytes) -> bytes:
    return f'"xxh3_128:{xxhash.xxh3_128_hexdigest(body)}"\n'.encode()


def parse(raw: bytes, where: Path) -> Manifest:
    """The manifest in the content of its file, checked as a whole: nothing in it needs to be doubted afterwards.

    Args:
        raw: the whole file.
        where: its path, for messages.

    Raises:
        CorruptCheckpoint: the digest, the JSON, the structure or a value is wrong.
        CheckpointError: a newer major version wrote it.
    """
    # The last line is the digest of everything above it; its own line break is left out of the search.
    cut = raw.rfind(b"\n", 0, -1) + 1
    body = raw[:cut]
    if _digest_line(body) != raw[cut:]:
        raise CorruptCheckpoint(f"{where} does not match its own digest")
    try:
        # The version first: a newer format must be told as such, and not as a damaged file.
        head = strict_json.parse(body, str(where))
        version = head.get("version") if isinstance(head, dict) else None
        if not isinstance(version, str) or head.get("format") != "mindmoe-checkpoint":
            raise CorruptCheckpoint(f"{where} is no manifest of a checkpoint")
        if version.split(".")[0] != _MAJOR:
            raise CheckpointError(
                f"{where} has format version {shown(version)} but this program reads {_MAJOR}.x",
                "use the version of mindmoe that wrote it, or a newer one",
            )
        manifest = _adapter().validate_json(body, strict=True)
    except JsonError as error:
        raise CorruptCheckpoint(error.message) from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        key = ".".join(shown(str(part)) for part in first["loc"])
        raise CorruptCheckpoint(f"{where}: {key}: {first['msg']}") from None
    if problem := next(chain(_shard_problems(manifest), _tensor_problems(manifest)), None):
        raise CorruptCheckpoint(f"{where}: {problem}")
    return manifest


def check_tiling(manifest: Manifest) -> None:
    """Raises CorruptCheckpoint unless the chunks of every tensor cover it exactly once."""
    if problem := next(_tensor_problems(manifest), None):
        raise CorruptCheckpoint(problem)


def _shard_problems(manifest: Manifest) -> Iterator[str]:
    if not 0 <= manifest.step < 10**15:
        yield f"step is {manifest.step}, below 0 or not below 10^15"
    files = [shard.file for shard in manifest.shards]
    if len(set(files)) < len(files):
        yield "two shards have the same file"
    for shard in manifest.shards:
        # A name and no path: a manifest must not lead out of its folder.
        if not _FILE.fullmatch(shard.file) or shard.file.endswith(".json"):
            yield f"{shown(shard.file)} is no file name of a shard"
        if not 0 <= shard.size < _MAX_SIZE:
            yield f"{shard.file} has {shard.size} bytes, below 0 or not below 2^60"


def _tensor_problems(manifest: Manifest) -> Iterator[str]:
    chunks: dict[str, list[ChunkRecord]] = {}
    for name, chunk in manifest.chunks():
        if problem := _chunk_problem(name, chunk):
            yield f"tensor {shown(name)}: {problem}"
        chunks.setdefault(name, []).append(chunk)
    for name, parts in chunks.items():
        shape, dtype = parts[0].global_shape, parts[0].dtype
        if any((part.global_shape, part.dtype) != (shape, dtype) for part in parts):
            yield f"tensor {name}: its chunks disagree about shape or dtype"
        if not tiles(shape, [part.box for part in parts]):
            yield f"tensor {name}: its {len(parts)} chunks do not cover shape {shape} exactly once"


def _chunk_problem(name: str, chunk: ChunkRecord) -> str | None:
    """What is wrong with one chunk by itself."""
    if not 0 < len(name) <= _MAX_NAME or not name.isprintable() or name == "__metadata__":
        return "no name of a tensor"
    if chunk.dtype not in DTYPES:
        return f"unknown dtype {shown(chunk.dtype)}"
    if not _DIGEST.fullmatch(chunk.digest):
        return "its digest is not 16 hexadecimal digits"
    if not len(chunk.shape) == len(chunk.offset) == len(chunk.global_shape) <= _MAX_RANK:
        return f"its shape, offset and global_shape are not of one rank of at most {_MAX_RANK}"
    # An empty tensor may have dimensions that NumPy cannot multiply.
    if math.prod(max(length, 1) for length in chunk.global_shape) * numpy_dtype(chunk.dtype).itemsize > _MAX_SIZE:
        return f"shape {chunk.global_shape} is beyond 2^60 bytes"
    box = zip(chunk.offset, chunk.shape, chunk.global_shape, strict=True)
    if not all(start >= 0 and length >= 0 and start + length <= whole for start, length, whole in box):
        return f"a chunk lies outside of shape {chunk.global_shape}"
    return None


def tiles(whole: tuple[int, ...], boxes: list[Box]) -> bool:
    """Whether boxes cover a shape exactly once, in time proportional to their number.

    Give every coordinate of every dimension a random number, and a box the product over its dimensions of the number
    at its end less that at its start. The boxes that tile a shape then sum up to its own product, because inner borders
    cancel; for any others the difference is a polynomial of degree `rank` that is not zero, and vanishes modulo the
    prime with a probability below rank / 2^61. The numbers are drawn anew each time, so nobody can aim at them.
    Source: Schwartz, "Fast probabilistic algorithms for verification of polynomial identities" (1980).
    """
    numbers: list[dict[int, int]] = [{} for _ in whole]

    def product(box: Box) -> int:
        result = 1
        for drawn, start, length in zip(numbers, box.offset, box.shape, strict=True):
            # Drawn when a coordinate is first met: only the borders of boxes matter.
            for place in (start, start + length):
                if place not in drawn:
                    drawn[place] = secrets.randbelow(_FIELD)
            result = result * (drawn[start + length] - drawn[start]) % _FIELD
        return result

    difference = sum(map(product, boxes)) - product(Box.whole(whole))
    return difference % _FIELD == 0
