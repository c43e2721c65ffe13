"""Shards against the stock safetensors library, and headers that must be refused."""

import json
import struct
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from mindmoe.checkpoint.chunks import MAX_HEADER, Chunk, parse_header, write_shard
from mindmoe.checkpoint.manifest import CorruptCheckpoint, Manifest, Meta, ShardRecord
from mindmoe.checkpoint.reader import Checkpoint, ShardReader

WHERE = Path("x.safetensors")


def read_shard(file: Path, record: ShardRecord) -> dict[str, np.ndarray]:
    meta = Meta(model={}, topology={}, config_digest="", generation="")
    with Checkpoint(file.parent, Manifest(step=0, meta=meta, shards=(record,))) as checkpoint:
        return checkpoint.read_all()


def test_stock_library_reads_every_dtype(tmp_path: Path, saver: ModuleType) -> None:
    file = tmp_path / "a.safetensors"
    state = saver.state(3)
    write_shard(file, state)
    stock = dict(safetensors.deserialize(file.read_bytes()))
    assert stock.keys() == state.keys()
    for name, chunk in state.items():
        assert stock[name]["dtype"] == chunk.record.dtype
        assert tuple(stock[name]["shape"]) == chunk.array.shape
        assert bytes(stock[name]["data"]) == chunk.array.tobytes()


def test_stock_numpy_loader_gives_equal_arrays(tmp_path: Path) -> None:
    arrays = {"b": np.arange(6, dtype=np.float64).reshape(2, 3), "a": np.array([True, False]), "c": np.float16(2.5)}
    write_shard(tmp_path / "a.safetensors", {k: Chunk(np.asarray(v)) for k, v in arrays.items()})
    loaded = load_file(tmp_path / "a.safetensors")
    assert all(np.array_equal(loaded[k], v) and loaded[k].dtype == np.asarray(v).dtype for k, v in arrays.items())


def test_round_trip_is_bitwise(tmp_path: Path, saver: ModuleType) -> None:
    record = write_shard(tmp_path / "a.safetensors", saver.state(5))
    arrays = read_shard(tmp_path / "a.safetensors", record)
    assert saver.is_state(5, arrays)
    assert record.size == (tmp_path / "a.safetensors").stat().st_size
    assert all(array.flags.aligned and array.flags.c_contiguous for array in arrays.values())


def test_arrays_that_are_not_contiguous(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.int32).reshape(4, 6)[::2, ::-1].T
    record = write_shard(tmp_path / "a.safetensors", {"x": Chunk(array)})
    assert np.array_equal(read_shard(tmp_path / "a.safetensors", record)["x"], array)


@pytest.mark.parametrize(
    "chunk",
    [
        Chunk(np.zeros(2, np.uint16)),
        Chunk(np.zeros(2, np.complex64)),
        Chunk(np.zeros(2, ">f4")),
        Chunk(np.zeros(2, np.float32), "BF16"),
    ],
)
def test_a_dtype_that_would_load_as_another_is_refused(tmp_path: Path, chunk: Chunk) -> None:
    with pytest.raises(ValueError, match="cannot be stored"):
        write_shard(tmp_path / "a.safetensors", {"x": chunk})


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.safetensors", {})
    with pytest.raises(FileExistsError):
        write_shard(tmp_path / "a.safetensors", {})


def header(**tensors: tuple[str, list[float], list[int]]) -> bytes:
    text = json.dumps(
        {name: dict(zip(("dtype", "shape", "data_offsets"), item, strict=True)) for name, item in tensors.items()}
    ).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": ("F32", [2], [0, 8]), "b": ("F32", [1], [4, 8])},  # overlap
        {"a": ("F32", [1], [0, 4]), "b": ("U8", [4], [4, 8])},  # does not reach the end of the file
        {"a": ("F32", [1], [0, 4]), "b": ("F32", [1], [8, 12])},  # hole
        {"a": ("F32", [3], [-4, 8])},  # negative
        {"a": ("F32", [3], [0, 8]), "b": ("U8", [4], [8, 12])},  # size does not match the shape
        {"a": ("F32", [-3], [0, 12])},
        {"a": ("F32", [3.0], [0, 12])},
        {"a": ("F32", [True, 3], [0, 12])},
        {"a": ("F7", [3], [0, 12])},
        {"a": ("F32", [3], [0, 12, 12])},
    ],
)
def test_bad_layouts_are_refused(tensors: dict[str, tuple[str, list[float], list[int]]]) -> None:
    head = header(**tensors)
    with pytest.raises(CorruptCheckpoint):
        parse_header(head, len(head) + 12, WHERE)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{",
        b"null",
        b'{"a":1}',
        b'{"a":{}}',
        b"[" * 10_000,
        b"\xff",
        b'{"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]},"a":{}}',
    ],
)
def test_headers_that_are_no_headers_are_refused(text: bytes) -> None:
    with pytest.raises(CorruptCheckpoint):
        parse_header(struct.pack("<Q", len(text)) + text, 9 + len(text), WHERE)


@given(st.binary(max_size=64))
def test_any_header_is_parsed_or_refused(text: bytes) -> None:
    try:
        entries, _ = parse_header(struct.pack("<Q", len(text)) + text, 8 + len(text), WHERE)
    except CorruptCheckpoint:
        return
    assert all(entry.begin == entry.end == 8 + len(text) for entry in entries.values())


def test_a_header_of_the_stock_writer_is_understood(tmp_path: Path) -> None:
    save_file({"x": np.arange(3, dtype=np.float32), "y": np.zeros((2, 0), np.int64)}, tmp_path / "s.safetensors")
    raw = (tmp_path / "s.safetensors").read_bytes()
    head = raw[: 8 + struct.unpack("<Q", raw[:8])[0]]
    entries, _ = parse_header(head, len(raw), WHERE)
    assert raw[entries["x"].begin : entries["x"].end] == np.arange(3, dtype=np.float32).tobytes()


def test_a_header_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    record = write_shard(file, {"x": Chunk(np.zeros(4, np.float32))})
    with file.open("r+b") as stream:
        stream.write(struct.pack("<Q", MAX_HEADER + 1))
        stream.truncate(MAX_HEADER + 100)  # sparse: takes no space
    with pytest.raises(CorruptCheckpoint, match="header length"):
        ShardReader(file, replace(record, size=MAX_HEADER + 100))
