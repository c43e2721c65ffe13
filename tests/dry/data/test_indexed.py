"""The .bin/.idx format against bytes built by hand, damage of every kind, and a round trip of random sets."""

import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mindmoe.data.indexed import DTYPES, IndexedDataset, IndexedWriter, bin_path, idx_path, token_dtype
from mindmoe.host.errors import UserError

STRUCT_CODE = {1: "B", 2: "b", 3: "h", 4: "i", 5: "q", 6: "d", 7: "f", 8: "H"}
DOCUMENTS = [[[1, 2, 3], [4]], [], [[5, 6], [], [7]], [[8, 9]]]  # documents of sequences
MODES = [[0, 1], [], [1, 0, 1], [0]]


def golden(code: int, modes: bool) -> tuple[bytes, bytes]:
    """The two files of DOCUMENTS, straight from the description of the format."""
    sequences = [sequence for document in DOCUMENTS for sequence in document]
    flat = [token for sequence in sequences for token in sequence]
    data = struct.pack(f"<{len(flat)}{STRUCT_CODE[code]}", *flat)
    index = b"MMIDIDX\x00\x00" + struct.pack("<Q", 1) + struct.pack("<B", code)
    ends, count = [0], 0
    for document in DOCUMENTS:
        count += len(document)
        ends.append(count)
    index += struct.pack("<Q", len(sequences)) + struct.pack("<Q", len(ends))
    offset = 0
    offsets = []
    for sequence in sequences:
        offsets.append(offset)
        offset += len(sequence) * struct.calcsize(STRUCT_CODE[code])
    index += struct.pack(f"<{len(sequences)}i", *map(len, sequences))
    index += struct.pack(f"<{len(sequences)}q", *offsets)
    index += struct.pack(f"<{len(ends)}q", *ends)
    if modes:
        flags = [mode for document in MODES for mode in document]
        index += struct.pack(f"<{len(flags)}b", *flags)
    return data, index


def put(folder: Path, data: bytes, index: bytes, name: str = "golden") -> Path:
    bin_path(folder / name).write_bytes(data)
    idx_path(folder / name).write_bytes(index)
    return folder / name


@pytest.mark.parametrize("modes", [False, True])
@pytest.mark.parametrize("code", sorted(DTYPES))
def test_reads_golden_bytes(tmp_path: Path, code: int, modes: bool) -> None:
    data = IndexedDataset(put(tmp_path, *golden(code, modes)))
    assert (data.num_documents, data.num_sequences, data.num_tokens) == (4, 6, 9)
    assert data.dtype.itemsize == struct.calcsize(STRUCT_CODE[code])
    assert data.flat.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert [data.sequence(i).tolist() for i in range(6)] == [[1, 2, 3], [4], [5, 6], [], [7], [8, 9]]
    assert [data.document(i).tolist() for i in range(4)] == [[1, 2, 3, 4], [], [5, 6, 7], [8, 9]]
    assert (data.modes.tolist() if data.modes is not None else None) == ([0, 1, 1, 0, 1, 0] if modes else None)


@pytest.mark.parametrize("modes", [False, True])
@pytest.mark.parametrize("code", sorted(DTYPES))
def test_writes_golden_bytes(tmp_path: Path, code: int, modes: bool) -> None:
    with IndexedWriter(tmp_path / "ours", DTYPES[code], modes) as writer:
        for document, flags in zip(DOCUMENTS, MODES, strict=True):
            for sequence, mode in zip(document, flags, strict=True):
                writer.add_sequence(np.array(sequence, np.int64), mode if modes else 0)
            writer.end_document()
    written = bin_path(tmp_path / "ours").read_bytes(), idx_path(tmp_path / "ours").read_bytes()
    assert written == golden(code, modes)
    assert sorted(os.listdir(tmp_path)) == ["ours.bin", "ours.idx"]


def test_every_truncation_is_refused_by_name(tmp_path: Path) -> None:
    data, index = golden(8, modes=False)
    for size in range(len(index)):
        with pytest.raises(UserError, match=r"golden\.idx: (header|file size)"):
            IndexedDataset(put(tmp_path, data, index[:size]))
    for size in range(len(data)):
        with pytest.raises(UserError, match=r"golden\.bin: file size"):
            IndexedDataset(put(tmp_path, data[:size], index))
    with pytest.raises(UserError, match=r"golden\.bin: file size"):
        IndexedDataset(put(tmp_path, data + b"\0", index))


@pytest.mark.parametrize(("code", "modes"), [(8, False), (4, True)])
def test_every_bit_flip_is_refused_or_harmless(tmp_path: Path, code: int, modes: bool) -> None:
    """No flipped bit of the index changes a token; what remains unseen moves only document borders or modes."""
    data, index = golden(code, modes)
    sequences = [[1, 2, 3], [4], [5, 6], [], [7], [8, 9]]
    index_start = len(index) - 8 * 5 - (6 if modes else 0)
    prefix = put(tmp_path, data, index)
    refused = 0
    for bit in range(8 * len(index)):
        damaged = bytearray(index)
        damaged[bit // 8] ^= 1 << bit % 8
        idx_path(prefix).write_bytes(damaged)
        try:
            found = IndexedDataset(prefix)
        except UserError as error:
            refused += 1
            assert "golden." in str(error)
        else:
            assert bit // 8 >= index_start, f"bit {bit} of the header, lengths or offsets went unseen"
            assert [found.sequence(i).tolist() for i in range(6)] == sequences
    assert refused >= 8 * index_start


@pytest.mark.parametrize(
    ("position", "value", "field"),
    [
        (0, b"X", "magic"),
        (9, b"\x02", "version"),
        (17, b"\x09", "dtype code is 9"),
        (18, b"\xff\xff\xff\xff\xff\xff\xff\xff", "file size"),
        (34, b"\xff\xff\xff\xff", r"lengths\[0\] is -1"),
        (34, b"\x02", r"offsets\[1\]"),
        (34 + 24 + 8, b"\x07", r"offsets\[1\] is 7, but the lengths before it put it at 6"),
        (34 + 72, b"\x01", "document_index does not start with 0"),
        (34 + 72 + 8, b"\x05", r"document_index\[2\] is 2, below"),
        (34 + 72 + 32, b"\x05", r"document_index ends with 5, but there are 6"),
    ],
)
def test_damage_is_named(tmp_path: Path, position: int, value: bytes, field: str) -> None:
    data, index = golden(8, modes=False)
    damaged = index[:position] + value + index[position + len(value) :]
    with pytest.raises(UserError, match=rf"golden\.idx: {field}"):
        IndexedDataset(put(tmp_path, data, damaged))


def test_missing_half_is_named(tmp_path: Path) -> None:
    prefix = put(tmp_path, *golden(8, modes=False))
    bin_path(prefix).unlink()
    with pytest.raises(UserError, match=r"golden\.bin does not exist"):
        IndexedDataset(prefix)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    documents=st.lists(st.lists(st.lists(st.integers(0, 65_535), max_size=5), max_size=3), max_size=6),
    dtype=st.sampled_from(["u2", "i4", "i8"]),
)
def test_round_trip(tmp_path: Path, documents: list[list[list[int]]], dtype: str) -> None:
    with IndexedWriter(tmp_path / "random", dtype) as writer:
        for document in documents:
            writer.add_document([np.array(sequence, np.int64) for sequence in document])
    data = IndexedDataset(tmp_path / "random")
    assert data.dtype == np.dtype(dtype)
    assert data.num_documents == len(documents)
    sequences = [sequence for document in documents for sequence in document]
    assert [data.sequence(i).tolist() for i in range(data.num_sequences)] == sequences
    for i, document in enumerate(documents):
        assert data.document(i).tolist() == [token for sequence in document for token in sequence]


def test_writer_checks_ranges(tmp_path: Path) -> None:
    writer = IndexedWriter(tmp_path / "set", "u2")
    writer.add_sequence([0, 65_535])
    with pytest.raises(UserError, match="token 65536 does not fit uint16"):
        writer.add_sequence([1, 65_536])
    with pytest.raises(UserError, match="token -1 does not fit uint16"):
        writer.add_sequence([-1])
    with pytest.raises(ValueError, match="float64"):
        writer.add_sequence([1.5])
    with pytest.raises(ValueError, match="not one sequence"):
        writer.add_sequence([[1], [2]])
    writer.commit()
    assert IndexedDataset(tmp_path / "set").flat.tolist() == [0, 65_535]


def test_dtype_boundary() -> None:
    assert token_dtype(65_499) == np.uint16
    assert token_dtype(65_500) == np.int32


def test_an_error_leaves_the_old_pair(tmp_path: Path, write_pair: Callable[..., Path]) -> None:
    prefix = write_pair([[1, 2]])
    with pytest.raises(RuntimeError), IndexedWriter(prefix, "u2") as writer:
        writer.add_document([[3]])
        raise RuntimeError
    assert IndexedDataset(prefix).flat.tolist() == [1, 2]
    assert sorted(os.listdir(tmp_path)) == ["set.bin", "set.idx"]


KILLED = """
import os, sys
from mindmoe.data import indexed
real, calls = indexed.rename_durably, []
def counted(source, target):
    if len(calls) == int(sys.argv[2]):
        os._exit(9)
    calls.append(target)
    real(source, target)
indexed.rename_durably = counted
writer = indexed.IndexedWriter(sys.argv[1], "u2")
writer.add_document([[7, 8]])
writer.commit()
"""


@pytest.mark.parametrize("renames", [0, 1])
def test_killed_between_renames_is_never_taken_for_whole(
    root: Path, write_pair: Callable[..., Path], renames: int
) -> None:
    """Even when the old pair has the same sizes, so that its index would fit the new tokens."""
    prefix = write_pair([[1, 2]])
    command = [sys.executable, "-c", KILLED, str(prefix), str(renames)]
    assert subprocess.run(command, cwd=root, check=False).returncode == 9
    with pytest.raises(UserError, match=r"set\.idx does not exist"):
        IndexedDataset(prefix)
