"""Parquet: kinds of strings, damage told in rows, and files that ask for more memory than they have."""

import subprocess
import sys
from pathlib import Path

import pytest

from mindmoe.data.records import MAX_LINE, Record, Rejected, parse
from mindmoe.data.sources import discover
from mindmoe.host.errors import UserError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

TEXTS = [f"document {i} \u6f22\ttab" for i in range(600)]


def read(path: Path, text_key: str = "text") -> tuple[list[str], list[Rejected]]:
    records = list(discover(str(path), "auto", text_key).inputs[0].read())
    texts = [parse(record, text_key) for record in records if isinstance(record, Record)]
    return texts, [record for record in records if isinstance(record, Rejected)]


def write(path: Path, values, **options) -> Path:
    parquet.write_table(pyarrow.table({"id": pyarrow.array(range(len(values))), "text": values}), path, **options)
    return path


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize(
    "kind",
    [
        pyarrow.string(),
        pyarrow.large_string(),
        pyarrow.string_view(),
        pyarrow.binary(),
        pyarrow.large_binary(),
        pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
        pyarrow.dictionary(pyarrow.int32(), pyarrow.large_string()),
    ],
    ids=str,
)
def test_every_kind_of_string(tmp_path: Path, kind, version: str, compression: str) -> None:
    values = [TEXTS[i % 100] if i % 7 else None for i in range(600)]
    raw = [value.encode() if value and "binary" in str(kind) else value for value in values]
    options = {"compression": compression, "data_page_version": version, "row_group_size": 170, "data_page_size": 700}
    array = pyarrow.array(raw, getattr(kind, "value_type", kind))
    array = array.dictionary_encode() if "dictionary" in str(kind) else array
    path = write(tmp_path / "t.parquet", array, **options)
    texts, bad = read(path)
    assert texts == [value for value in values if value is not None]
    assert [record.line for record in bad] == [i + 1 for i, value in enumerate(values) if value is None]
    assert {record.reason for record in bad} == {"'text' is null"} and not any(record.rest for record in bad)


@pytest.mark.parametrize("encoding", ["PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_every_encoding(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "t.parquet"
    write(path, pyarrow.array(TEXTS), use_dictionary=False, column_encoding={"text": encoding})
    assert read(path) == (TEXTS, [])


def test_position_rises_to_the_size(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", pyarrow.array(TEXTS), row_group_size=100)
    positions = [record.position for record in discover(str(path), "auto", "text").inputs[0].read()]
    assert positions == sorted(positions) and positions[-1] == path.stat().st_size


@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows(tmp_path: Path, rows: int) -> None:
    path = write(tmp_path / "t.parquet", pyarrow.array(TEXTS[:rows], pyarrow.string()))
    assert read(path) == (TEXTS[:rows], [])


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (pyarrow.array([1, 2]), "int64"),
        (pyarrow.array([["a"], ["b"]]), "list<"),
        (pyarrow.array([{"text": "a"}, {"text": "b"}]), "struct<"),
        (pyarrow.array([1, 2], pyarrow.decimal128(5, 2)), "decimal128"),
        (pyarrow.array([b"ab", b"cd"], pyarrow.binary(2)), "fixed_size_binary"),
        (pyarrow.nulls(2), "null"),
        (pyarrow.array([1, 2]).dictionary_encode(), "int64"),
    ],
    ids=str,
)
def test_columns_that_hold_no_text(tmp_path: Path, values, kind: str) -> None:
    with pytest.raises(UserError, match=f"column 'text' of .*t.parquet holds {kind}.*, not strings: set text_key"):
        read(write(tmp_path / "t.parquet", values))


def test_columns_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"]), pyarrow.array([1])], ["x", "x", "n"])
    parquet.write_table(table, path)
    with pytest.raises(UserError, match="has 2 columns 'x'"):
        read(path, "x")
    with pytest.raises(UserError, match="has no column 'text'; it has x, x, n"):
        read(path)


def test_a_nested_column_of_the_same_name_is_another(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    columns = {"meta": pyarrow.array([{"text": "inner"}]), "meta.text": pyarrow.array(["outer"])}
    parquet.write_table(pyarrow.table(columns), path)
    assert read(path, "meta.text") == (["outer"], [])


def test_a_cut_file_is_lost_as_a_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", pyarrow.array(TEXTS))
    whole = path.read_bytes()
    for size in (len(whole) - 1, len(whole) // 2, 5, 0):
        path.write_bytes(whole[:size])
        texts, (lost,) = read(path)
        assert texts == [] and lost.rest and f"all of its {size:,} bytes are lost" in lost.reason


def test_a_hole_is_told_in_rows_and_the_rest_is_read(tmp_path: Path) -> None:
    """Bytes of the second and the last of four row groups are zeros, as a broken download leaves them."""
    path = write(tmp_path / "t.parquet", pyarrow.array(TEXTS), row_group_size=150, use_dictionary=False)
    metadata = parquet.ParquetFile(path).metadata
    content = bytearray(path.read_bytes())
    for group in (1, 3):
        column = metadata.row_group(group).column(1)
        start, size = column.data_page_offset, column.total_compressed_size
        content[start : start + size] = bytes(size)
    path.write_bytes(content)
    texts, lost = read(path)
    assert texts == TEXTS[:150] + TEXTS[300:450]
    assert [(record.line, record.rest) for record in lost] == [(151, True), (451, True)]
    assert "row group 2 of 4 is unreadable, 150 rows are lost" in lost[0].reason
    assert "row group 4 of 4 is unreadable, 150 rows are lost" in lost[1].reason


def test_noise_never_ends_the_job(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", pyarrow.array(TEXTS), row_group_size=150)
    whole = path.read_bytes()
    for at in range(4, len(whole) - 8, len(whole) // 80):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF, whole[at + 1] ^ 0x55]) + whole[at + 2 :])
        try:
            records = list(discover(str(path), "auto", "text").inputs[0].read())
        except UserError as error:
            assert "column" in str(error)
        else:
            assert len(records) <= len(TEXTS) + 4


def test_a_value_longer_than_a_line_may_be(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", pyarrow.array(["a", "x" * (MAX_LINE + 1), "y" * MAX_LINE]), compression="none")
    texts, (bad,) = read(path)
    assert [len(text) for text in texts] == [1, MAX_LINE] and (bad.line, bad.rest) == (2, False)


def test_a_footer_that_ends_the_library_is_not_given_to_it(tmp_path: Path, root: Path) -> None:
    """Noise in the footer, in a process of its own: pyarrow ends its process on some of it."""
    path = write(tmp_path / "t.parquet", pyarrow.array(TEXTS), row_group_size=300)
    done = subprocess.run(
        [sys.executable, "-c", NOISE, str(path)], cwd=root, capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stdout) == (0, "300\n"), done.stderr


NOISE = """
import random, sys
from mindmoe.data.sources import discover
from mindmoe.host.errors import UserError
whole = open(sys.argv[1], "rb").read()
footer = int.from_bytes(whole[-8:-4], "little")
rng = random.Random(0)
for _ in range(300):
    content = bytearray(whole)
    for _ in range(rng.choice([1, 2, 5])):
        content[len(whole) - 8 - rng.randint(1, footer)] = rng.randrange(256)
    open(sys.argv[1], "wb").write(content)
    try:
        list(discover(sys.argv[1], "auto", "text").inputs[0].read())
    except UserError:
        pass
print(300)
"""


def _lying(path: Path) -> None:
    """Makes the footer say that the text column takes next to nothing decompressed."""
    size = parquet.ParquetFile(path).metadata.row_group(0).column(1).total_uncompressed_size
    true = _varint(2 * size)  # zigzag
    lie = bytes([0x84, *[0x80] * (len(true) - 2), 0])
    content = path.read_bytes()
    at = content.rindex(true)
    path.write_bytes(content[:at] + lie + content[at + len(true) :])
    assert parquet.ParquetFile(path).metadata.row_group(0).column(1).total_uncompressed_size == 2


def _varint(value: int) -> bytes:
    encoded = []
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


BOMB = """
import sys
from mindmoe.data.sources import discover
for item in discover(sys.argv[1], "auto", "text").inputs:
    for record in item.read():
        if hasattr(record, "reason"): print(record)
with open("/proc/self/status") as status:
    print(next(int(line.split()[1]) // 1024 for line in status if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("length", "rows", "options", "lying"),
    [
        (1 << 27, 4, {}, False),
        (1 << 27, 4, {}, True),
        (1 << 27, 4, {"use_dictionary": False, "compression": "gzip"}, True),
        (1 << 23, 40, {"use_dictionary": False}, True),
        (1 << 22, 3000, {}, False),  # the dictionary holds it once, the rows repeat it
    ],
)
def test_bombs(tmp_path: Path, root: Path, length: int, rows: int, options: dict, lying: bool) -> None:
    """Gigabytes of text in some kilobytes take a few hundred MiB at most."""
    values = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * rows, pyarrow.int32()), ["x" * length])
    if "use_dictionary" in options:
        values = values.cast(pyarrow.large_string())
    path = write(tmp_path / "bomb.parquet", values, **{"compression": "zstd", **options})
    if lying:
        _lying(path)
    done = subprocess.run(
        [sys.executable, "-c", BOMB, str(path)], cwd=root, capture_output=True, text=True, check=True, timeout=100
    )
    *told, peak = done.stdout.splitlines()
    assert int(peak) < 500  # [MiB]
    assert len(told) == 1 and "more than 1000 times" in told[0] and "rows are lost" in told[0]
