"""Documents out of Parquet files, in bounded memory whatever the file says about itself.

A page is decompressed as a whole, so a few kilobytes can ask for gigabytes. The figures in the footer may lie; those in
the header of each page are what the reader goes by, so they are read first, and a row group whose pages are too
large is left out.
"""

import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mindmoe.data.compression import refuse_bomb
from mindmoe.data.records import MAX_LINE, Record, Rejected
from mindmoe.data.thrift import ThriftReader
from mindmoe.host.errors import UserError
from mindmoe.host.files import open_regular, shown

_MAX_PAGE = 256 << 20  # [bytes] decompressed
_BATCH = 32 << 20  # [bytes] of values decoded at a time, where they are no larger each
_BATCH_ROWS = 256
_MAX_FOOTER = 16 << 20  # [bytes]
_STRINGS = {"string", "large_string", "string_view", "binary", "large_binary", "binary_view"}


def read_parquet(path: Path, name: str, text_key: str, *, follow: bool) -> Iterator[Record | Rejected]:
    """One record a row of the text column; of a row group that cannot be read, how many rows are lost with it.

    Args:
        path: the file.
        name: what to call it in records.
        text_key: the column of the text.
        follow: whether its name may be a link.

    Raises:
        FileError: it cannot be opened.
        UserError: pyarrow is missing, or the file has no such column of strings.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"reading {name} needs the package pyarrow", "pip install 'mindmoe[parquet]'") from None
    failures = (OSError, ValueError, OverflowError, MemoryError, pyarrow.ArrowException)
    with open_regular(path, follow=follow) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            # Before pyarrow sees the file: this parse is bounded and fails with an error.
            groups = _row_groups(file, size, text_key)
            table = parquet.ParquetFile(file, buffer_size=1 << 20)
            schema = table.schema_arrow
        except failures as error:
            reason = f"cut or damaged, all of its {size:,} bytes are lost: {shown(str(error), 300)}"
            yield Rejected(name, 0, reason, rest=True)
            return
        _check_column(name, schema, text_key)
        all_rows = sum(group.rows for group in groups)
        before = stored = total = 0
        for number, group in enumerate(groups):
            done = 0
            try:
                # Page headers first: nothing of a group is decompressed until all of its pages are known to be small.
                size_in_file, batch_rows = _measure(file, group)
                stored += size_in_file
                for value in _values(table, number, text_key, batch_rows) if group.rows else ():
                    total += value.size if value is not None else 0
                    refuse_bomb(total, stored)  # a few rows of a dictionary may be repeated without end
                    done += 1
                    # Rows stand in for bytes, which the library does not tell; the divisor grows if the footer named
                    # too few rows.
                    position = size * (before + done) // max(all_rows, before + done)
                    if value is None:
                        yield Rejected(name, before + done, f"{text_key!r} is null")
                    elif value.size > MAX_LINE:
                        yield Rejected(name, before + done, f"value longer than {MAX_LINE >> 20} MiB")
                    else:
                        yield Record(name, before + done, value.to_pybytes(), False, position)
            except failures as error:
                where = f"row group {number + 1} of {len(groups)}"
                reason = f"{where} is unreadable, {group.rows - done:,} rows are lost: {shown(str(error), 300)}"
                yield Rejected(name, before + done + 1, reason, rest=True)
            before += group.rows


class _RowGroup(NamedTuple):
    """Rows that are stored together.

    Attributes:
        rows: how many.
        chunks: where the text of these rows starts and ends in the file [bytes].
    """

    rows: int
    chunks: list[tuple[int, int]]


def _row_groups(file: BinaryIO, size: int, text_key: str) -> list[_RowGroup]:
    """The row groups of a file, by its footer.

    pyarrow's own view of them is not asked for: on a damaged footer it ends the process.

    Source: apache/parquet-format, parquet.thrift: FileMetaData, RowGroup, ColumnChunk, ColumnMetaData.

    Raises:
        OSError: there is no footer, or it is damaged.
    """
    file.seek(max(size - 8, 0))
    # The end of a Parquet file: the footer, its length in 4 bytes, and PAR1.
    length, magic = int.from_bytes(file.read(4), "little"), file.read(4)
    if magic != b"PAR1" or not 0 < length <= min(size - 12, _MAX_FOOTER):
        raise OSError("it does not end as a Parquet file does")
    file.seek(size - 8 - length)
    try:
        groups = []
        # Fields by number: FileMetaData 4 row_groups; RowGroup 1 columns, 3 num_rows; ColumnChunk 3 meta_data;
        # ColumnMetaData 3 path_in_schema, 7 total_compressed_size, 9 data_page_offset, 11 dictionary_page_offset.
        for group in ThriftReader(BytesIO(file.read(length))).struct()[4]:
            chunks = []
            for chunk in group[1]:
                column = chunk[3]
                start = column[9]
                if 0 < column.get(11, 0) < start:
                    start = column[11]  # the dictionary comes first
                if b".".join(column[3]) == text_key.encode():
                    chunks.append((start, start + column[7]))
            groups.append(_RowGroup(max(group[3], 0), chunks))
    except (KeyError, TypeError, AttributeError):
        raise OSError("its footer is damaged") from None
    return groups


def _check_column(name: str, schema: Any, text_key: str) -> None:
    """The table must have one column of this name and of strings; `schema` is a pyarrow.Schema."""
    remedy = "set text_key to the column of the text"
    columns = schema.names.count(text_key)
    if not columns:
        names = ", ".join(shown(column) for column in schema.names[:20])
        raise UserError(f"{name} has no column {text_key!r}; it has {names or 'none'}", remedy)
    if columns > 1:
        raise UserError(f"{name} has {columns} columns {text_key!r}", "write it anew with one column of that name")
    kind = schema.field(text_key).type
    kind = getattr(kind, "value_type", kind) if str(kind).startswith("dictionary<") else kind
    if str(kind) not in _STRINGS:
        raise UserError(f"column {text_key!r} of {name} holds {shown(str(kind))}, not strings", remedy)


def _values(table: Any, group: int, text_key: str, batch_rows: int) -> Iterator[Any]:
    """The bytes of each row as a buffer, None where it is null."""
    batches = table.iter_batches(batch_rows, row_groups=[group], columns=[text_key], use_threads=False)
    for batch in batches:
        for scalar in batch.column(text_key):
            # The value behind the index of a dictionary-encoded column.
            plain = scalar.value if hasattr(scalar, "dictionary") else scalar
            yield plain.as_buffer() if plain is not None else None


def _measure(file: BinaryIO, group: _RowGroup) -> tuple[int, int]:
    """The bytes that the text of a row group takes in the file, and how many rows to decode at a time.

    No value is longer than the largest page, its own or that of the dictionary.

    Raises:
        OSError: a page is too large, the pages grow out of all proportion, or their headers are damaged.
    """
    largest = stored = total = 0
    for start, stop in group.chunks if group.rows else ():
        for size, page in _pages(file, start, stop):
            stored, total, largest = stored + size, total + page, max(largest, page)
            refuse_bomb(total, stored)
            if page > _MAX_PAGE:
                raise OSError(
                    f"a page of it takes {page:,} bytes, more than {_MAX_PAGE >> 20} MiB: "
                    "write the file anew with smaller pages or row groups"
                )
    return stored, max(1, min(_BATCH_ROWS, _BATCH // max(largest, 1)))


def _pages(file: BinaryIO, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The stored and the decompressed bytes of the pages of a column chunk, from their headers.

    Source: apache/parquet-format, parquet.thrift. A PageHeader has its type, uncompressed_page_size and
    compressed_page_size as fields 1 to 3, and is followed by the page.
    """
    thrift = ThriftReader(file)
    file.seek(start)
    while file.tell() < stop:
        header = thrift.struct()
        page, size = header.get(2), header.get(3)
        if not isinstance(page, int) or not isinstance(size, int) or page < 0 or size < 0:
            raise OSError("the header of a page is damaged")
        yield size, page
        # Past the page itself, which is not read.
        file.seek(size, os.SEEK_CUR)
