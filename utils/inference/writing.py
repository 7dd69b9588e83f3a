"""The rows as they were read, with columns of answers."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import IO, TYPE_CHECKING, Any

from utils.common.errors import UserError
from utils.inference.answers import Answers
from utils.tables.formats import SEPARATORS
from utils.tables.rows import Chunk

if TYPE_CHECKING:
    import pyarrow as pa

GROUP_ROWS = 65_536
GROUP_BYTES = 32 << 20


class Writer(ABC):
    """Writes chunk after chunk to a stream."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    @abstractmethod
    def write(self, chunk: Chunk, answers: Answers) -> None:
        """Write some rows."""

    def finish(self) -> None:  # noqa: B027
        """Write what is still held back."""


def clash(name: str, option: str = "--column") -> UserError:
    """The error for a column of answers that the input already has."""
    return UserError(
        f"The input already has a column {name!r}. Say {option} NAME for another name of the "
        "prediction columns."
    )


class JsonLinesWriter(Writer):
    """An object per line; those that were read as JSON are left exactly as they were."""

    def write(self, chunk: Chunk, answers: Answers) -> None:
        """Write some rows."""
        if not len(chunk):
            return
        for name in _keys(chunk).intersection(answers.names()):
            raise clash(name)
        lines = chunk.lines or _json_lines(chunk.table)
        members = answers.json_members()
        whole = [
            f"{line[:-1]}{'' if line[1:-1].isspace() or line == '{}' else ', '}{more}}}\n"
            for line, more in zip(lines, members, strict=True)
        ]
        self._stream.write("".join(whole).encode())


def _keys(chunk: Chunk) -> set[str]:
    if chunk.table is not None:
        return set(chunk.table.column_names)
    return set().union(*chunk.records)


def _json_lines(table: pa.Table) -> list[str]:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.types as types

    columns = [
        pc.if_else(pc.is_finite(column), column, pa.scalar(None, column.type))
        if types.is_floating(column.type)
        else column
        for column in table.columns
    ]
    rows = pa.table(columns, names=unique(table.column_names)).to_pylist()
    return [json.dumps(row, ensure_ascii=False, default=_jsonable) for row in rows]


def _jsonable(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def unique(names: Sequence[str]) -> Sequence[str]:
    """Refuse names that stand twice.

    Raises
    ------
    UserError
        One does.
    """
    for name in set(names):
        if names.count(name) > 1:
            raise UserError(
                f"Column {name!r} stands {names.count(name)} times in the input: this format "
                "needs different names. Rename it, or write CSV."
            )
    return names


class CsvWriter(Writer):
    """Comma- or tab-separated; quotes only around cells that need them."""

    def __init__(self, stream: IO[bytes], separator: str) -> None:
        super().__init__(stream)
        self._separator = separator
        self._records = Records()
        self._started = False

    def write(self, chunk: Chunk, answers: Answers) -> None:
        """Write some rows, and the header before the first."""
        import pyarrow as pa

        table = self._records.cells(chunk) if chunk.table is None else chunk.table
        added = answers.flat_columns()
        if not self._started:
            self._started = True
            names = _header(table.column_names, added)
            self._write_lines([pa.array([name], pa.large_string()) for name in names])
        if len(chunk):
            columns = [*table.columns, *added.values()]
            self._write_lines([_cells(column) for column in columns])

    def _write_lines(self, columns: Sequence[pa.Array]) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        quoted = [self._quoted(column) for column in columns]
        text = pa.large_string()
        lines = pc.binary_join_element_wise(*quoted, pa.scalar(self._separator, text))
        lines = pc.binary_join_element_wise(lines, pa.scalar("", text), pa.scalar("\n", text))
        self._stream.write(_bytes_of(lines))

    def _quoted(self, column: pa.Array) -> pa.Array:
        import pyarrow as pa
        import pyarrow.compute as pc

        special = pc.match_substring_regex(column, f'[{self._separator}"\r\n]')
        if not pc.any(special).as_py():
            return column
        escaped = pc.replace_substring(column, '"', '""')
        quote, nothing = (pa.scalar(mark, pa.large_string()) for mark in ('"', ""))
        inside = pc.binary_join_element_wise(quote, escaped, quote, nothing)
        return pc.if_else(special, inside, column)


def _header(names: Sequence[str], added: Iterable[str]) -> list[str]:
    for name in added:
        if name in names:
            raise clash(name)
    return [*names, *added]


def _cells(column: Any) -> pa.Array:
    """Any column as strings without nulls; nested values as JSON."""
    import pyarrow as pa
    import pyarrow.compute as pc

    text = pa.large_string()
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    try:
        cells = column.cast(text)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        cells = pa.array([_cell(value) for value in column.to_pylist()], text)
    return pc.fill_null(cells, "") if cells.null_count else cells


def _cell(value: Any) -> str:
    if value is None or isinstance(value, str):
        text = value or ""
    elif isinstance(value, bytes):
        text = _jsonable(value)
    else:
        text = json.dumps(value, ensure_ascii=False, default=_jsonable)
    return text.encode("utf-8", "replace").decode()  # halves of surrogate pairs


def _bytes_of(lines: pa.Array) -> memoryview:
    """The characters of a large_string array, one string after the other."""
    import numpy as np

    _, offsets, data = lines.buffers()
    bounds = np.frombuffer(offsets, np.int64)[lines.offset : lines.offset + len(lines) + 1]
    return memoryview(data)[bounds[0] : bounds[-1]]


class ParquetWriter(Writer):
    """Parquet, in row groups of bounded size."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(stream)
        self._records = Records()
        self._writer: Any = None
        self._held: list[pa.Table] = []

    def write(self, chunk: Chunk, answers: Answers) -> None:
        """Write some rows, or keep them until there are enough for a row group."""
        table = self._records.table(chunk) if chunk.table is None else chunk.table
        for name, column in answers.columns().items():
            if name in unique(table.column_names):
                raise clash(name)
            table = table.append_column(name, column)
        self._held.append(table)
        rows, size = (sum(getattr(t, kind) for t in self._held) for kind in ("num_rows", "nbytes"))
        if rows >= GROUP_ROWS or size >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        whole = pa.concat_tables(self._held)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._stream, whole.schema, compression="zstd")
        self._writer.write_table(whole)
        self._held.clear()

    def finish(self) -> None:
        """Write the last row group and the footer."""
        if self._held:
            self._flush()
        if self._writer is not None:
            self._writer.close()


class Records:
    """Turns JSON objects into tables, all with the columns of the first chunk."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._schema: pa.Schema | None = None

    def _check(self, chunk: Chunk) -> None:
        if not self._names:
            self._names = list(dict.fromkeys(key for record in chunk.records for key in record))
        for number, record in zip(chunk.numbers, chunk.records, strict=True):
            for key in record:
                if not key.isascii():
                    _check_encodable(key, number)
                if key not in self._names:
                    raise UserError(
                        f"Line {number:,} has the key {key!r}, which no earlier one has: a table "
                        "needs its columns at the beginning. Write JSON lines: --format jsonl."
                    )

    def cells(self, chunk: Chunk) -> pa.Table:
        """A table of strings; values that are none as JSON."""
        import pyarrow as pa

        self._check(chunk)
        columns = {
            name: pa.array([_cell(record.get(name)) for record in chunk.records], pa.large_string())
            for name in self._names
        }
        return pa.table(columns)

    def table(self, chunk: Chunk) -> pa.Table:
        """A table with the types of the first chunk's values."""
        import pyarrow as pa

        self._check(chunk)
        try:
            rows = {name: [record.get(name) for record in chunk.records] for name in self._names}
            if self._schema is None:
                self._schema = _without_null_types(pa.table(rows).schema)
            return pa.table(rows, schema=self._schema)
        except (pa.ArrowException, UnicodeError, OverflowError) as error:
            lines = f"{chunk.numbers[0]:,} to {chunk.numbers[-1]:,}"
            reason = str(error).splitlines()[0].rstrip(".")
            raise UserError(
                f"Lines {lines} do not fit Parquet columns ({reason}). Write JSON lines: "
                "--format jsonl."
            ) from error


def _check_encodable(key: str, number: int) -> None:
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"Line {number:,} has the key {key!r}, half of a surrogate pair, which a table cannot "
            "hold. Write JSON lines: --format jsonl."
        ) from error


def _without_null_types(schema: pa.Schema) -> pa.Schema:
    """Columns that had no value so far are taken for text."""
    import pyarrow as pa

    return pa.schema(
        [pa.field(f.name, pa.string() if pa.types.is_null(f.type) else f.type) for f in schema]
    )


def open_writer(stream: IO[bytes], kind: str) -> Writer:
    """A writer of one of `utils.tables.formats.FORMATS`."""
    if kind == "parquet":
        return ParquetWriter(stream)
    if kind == "jsonl":
        return JsonLinesWriter(stream)
    return CsvWriter(stream, SEPARATORS[kind])
