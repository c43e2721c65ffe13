"""The manifest: round trip, versions, tiling of chunks, and what a checkpoint must fit."""

from dataclasses import replace
from pathlib import Path

import pytest
import xxhash

from mindmoe.checkpoint.manifest import (
    ChunkRecord,
    CorruptCheckpoint,
    Manifest,
    Meta,
    ShardRecord,
    check_tiling,
    parse,
)
from mindmoe.host.errors import CheckpointError

WHERE = Path("MANIFEST.json")


def chunk(offset: tuple[int, ...], shape: tuple[int, ...], whole: tuple[int, ...] = (4, 6)) -> ChunkRecord:
    return ChunkRecord(dtype="F32", shape=shape, global_shape=whole, offset=offset, digest="00000000000000ad")


def manifest(*chunks: ChunkRecord) -> Manifest:
    """One tensor `w`, each chunk in a shard of its own."""
    shards = tuple(
        ShardRecord(file=f"shard-{i}", size=1, header_digest="h", tensors={"w": c}) for i, c in enumerate(chunks)
    )
    meta = Meta(
        model={"hidden_size": 8, "layers": [1, "a", None]},
        topology={"dp": 2},
        config_digest="c",
        generation="g",
        state={"tokens": 2**60, "loss": 0.1},
    )
    return Manifest(step=20, meta=meta, shards=shards)


WHOLE = manifest(chunk((0, 0), (4, 6)))


def signed(body: bytes) -> bytes:
    return body + f'"xxh3_128:{xxhash.xxh3_128_hexdigest(body)}"\n'.encode()


def test_round_trip() -> None:
    assert parse(WHOLE.to_bytes(), WHERE) == WHOLE


def test_unknown_keys_of_the_same_major_version_are_ignored() -> None:
    body = WHOLE.to_bytes().rsplit(b"\n", 2)[0] + b"\n"
    assert parse(
        signed(body.replace(b'"step": 20', b'"new": {"x": 1}, "step": 20').replace(b'"2.0"', b'"2.7"')), WHERE
    ) == replace(WHOLE, version="2.7")


def test_another_major_version_is_refused_but_not_called_corrupt() -> None:
    with pytest.raises(CheckpointError, match=r"version 3\.0") as raised:
        parse(replace(WHOLE, version="3.0").to_bytes(), WHERE)
    assert not isinstance(raised.value, CorruptCheckpoint)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}\n",
        b"[]\n",
        b"{\n",
        b'{"format": "x", "version": "2.0"}\n',
        b'{"format": "mindmoe-checkpoint", "version": "2.0"}\n',
        b"[" * 9999 + b"\n",
    ],
)
def test_signed_nonsense_is_corrupt(body: bytes) -> None:
    with pytest.raises(CorruptCheckpoint):
        parse(signed(body), WHERE)


@pytest.mark.parametrize(
    "old, new",
    [
        (b'"step": 20', b'"step": "20"'),
        (b'"shard-0"', b'"../shard-0"'),
        (b'"shard-0"', b'".."'),
        (b'"size": 1', b'"size": 1.5'),
        (b'"00000000000000ad"', b'"ad"'),
    ],
)
def test_signed_wrong_fields_are_corrupt(old: bytes, new: bytes) -> None:
    body = WHOLE.to_bytes().rsplit(b"\n", 2)[0] + b"\n"
    assert old in body
    with pytest.raises(CorruptCheckpoint):
        parse(signed(body.replace(old, new)), WHERE)


@pytest.mark.parametrize(
    "chunks",
    [
        [chunk((0, 0), (4, 6))],
        [chunk((0, 0), (4, 2)), chunk((0, 2), (4, 4))],
        [chunk((0, 0), (1, 6)), chunk((1, 0), (3, 5)), chunk((1, 5), (3, 1))],
        [chunk((), (), ())],
        [chunk((0, 0), (0, 6), (0, 6))],
    ],
)
def test_chunks_that_tile(chunks: list[ChunkRecord]) -> None:
    check_tiling(manifest(*chunks))


@pytest.mark.parametrize(
    "chunks",
    [
        [chunk((0, 0), (4, 5))],  # a hole
        [chunk((0, 0), (4, 2)), chunk((0, 1), (4, 4))],  # an overlap of the right volume
        [chunk((0, 0), (4, 6)), chunk((0, 0), (4, 6))],  # twice
        [chunk((1, 0), (4, 6))],  # outside
        [chunk((0, -1), (4, 6))],
        [chunk((0,), (24,))],  # wrong number of dimensions
        [chunk((0, 0), (2, 6)), chunk((2, 0), (2, 6), (4, 7))],  # disagree about the whole
        [chunk((0, 0), (2, 6)), replace(chunk((2, 0), (2, 6)), dtype="F16")],
    ],
)
def test_chunks_that_do_not_tile(chunks: list[ChunkRecord]) -> None:
    with pytest.raises(CorruptCheckpoint, match="tensor w"):
        check_tiling(manifest(*chunks))
