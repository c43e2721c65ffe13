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
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import xxhash
from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter, ValidationError

from mindmoe.checkpoint.digest import add
from mindmoe.errors import CheckpointError

VERSION = "2.0"
_MAJOR = VERSION.split(".")[0]
_DIGEST = re.compile("[0-9a-f]{16}")


class CorruptCheckpoint(CheckpointError):
    """Bytes on disk that are not those that were written: incomplete, altered, or mixed up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkRecord:
    """One stored box of a tensor.

    `shape` and `offset` have as many entries as `global_shape`; `digest` is what the box adds to the digest of its
    tensor (`digest.tensor_sum`), 16 hexadecimal digits.
    """

    dtype: str
    shape: tuple[int, ...]
    global_shape: tuple[int, ...]
    offset: tuple[int, ...]
    digest: str


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

    `model` identifies the network and must be equal at load; `topology` says how it was laid out (information
    only, any layout may load); `generation` is the writer that saved it, from `store.claim`; `state` holds
    small values that resuming needs beyond the tensors.
    """

    model: dict[str, JsonValue]
    topology: dict[str, JsonValue]
    config_digest: str
    generation: str
    state: dict[str, JsonValue] = field(default_factory=dict)


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


class _Head(BaseModel):
    """The part of a manifest that every version shares."""

    model_config = ConfigDict(strict=True)
    format: Literal["mindmoe-checkpoint"]
    version: str


@cache
def _adapter() -> TypeAdapter[Manifest]:
    return TypeAdapter(Manifest)


def _digest_line(body: bytes) -> bytes:
    return f'"xxh3_128:{xxhash.xxh3_128_hexdigest(body)}"\n'.encode()


def parse(raw: bytes, where: Path) -> Manifest:
    """The manifest in the content of its file.

    Args:
        raw: the whole file.
        where: its path, for messages.

    Raises:
        CorruptCheckpoint: the digest, the JSON or the structure is wrong.
        CheckpointError: a newer major version wrote it.
    """
    cut = raw.rfind(b"\n", 0, -1) + 1
    body = raw[:cut]
    if _digest_line(body) != raw[cut:]:
        raise CorruptCheckpoint(f"{where} does not match its own digest")
    try:
        version = _Head.model_validate_json(body).version
        if version.split(".")[0] != _MAJOR:
            raise CheckpointError(
                f"{where} has format version {version} but this program reads {_MAJOR}.x",
                "use the version of mindmoe that wrote it, or a newer one",
            )
        manifest = _adapter().validate_json(body, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise CorruptCheckpoint(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    for shard in manifest.shards:
        if shard.file in ("", ".", "..") or "/" in shard.file:
            raise CorruptCheckpoint(f"{where}: {shard.file!r} is not a plain file name")
    if bad := next((name for name, chunk in manifest.chunks() if not _DIGEST.fullmatch(chunk.digest)), None):
        raise CorruptCheckpoint(f"{where}: the digest of {bad} is not 16 hexadecimal digits")
    return manifest


def check_tiling(manifest: Manifest) -> None:
    """Raises CorruptCheckpoint unless the chunks of every tensor cover it exactly once."""
    boxes: dict[str, list[ChunkRecord]] = {}
    for name, chunk in manifest.chunks():
        boxes.setdefault(name, []).append(chunk)
    for name, chunks in boxes.items():
        first = chunks[0]
        if any((c.global_shape, c.dtype) != (first.global_shape, first.dtype) for c in chunks):
            raise CorruptCheckpoint(f"tensor {name}: its chunks disagree about shape or dtype")
        if not all(_inside(c) for c in chunks):
            raise CorruptCheckpoint(f"tensor {name}: a chunk lies outside of shape {first.global_shape}")
        if sum(math.prod(c.shape) for c in chunks) != math.prod(first.global_shape) or _overlap(chunks):
            raise CorruptCheckpoint(
                f"tensor {name}: its {len(chunks)} chunks do not cover shape {first.global_shape} exactly once"
            )


def _inside(chunk: ChunkRecord) -> bool:
    if not len(chunk.shape) == len(chunk.offset) == len(chunk.global_shape):
        return False
    return all(
        o >= 0 and n >= 0 and o + n <= g for o, n, g in zip(chunk.offset, chunk.shape, chunk.global_shape, strict=True)
    )


def _overlap(chunks: list[ChunkRecord]) -> bool:
    """Whether any two boxes of one tensor share an element."""
    if len(chunks) == 1:
        return False
    low = np.array([c.offset for c in chunks], np.int64)
    high = low + np.array([c.shape for c in chunks], np.int64)
    shared = np.minimum(high[:, None], high[None]) > np.maximum(low[:, None], low[None])  # (chunks, chunks, dims)
    return bool(np.triu(shared.all(axis=2), k=1).any())
