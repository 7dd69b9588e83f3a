"""Rows of a table as a stream: a few thousand at a time, however many there are."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import tempfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.adapters.columns import texts_of
from utils.errors import UserError, unknown
from utils.predicting.formats import BUFFER, Input, open_input

if TYPE_CHECKING:
    import pyarrow as pa

TEXT_COLUMNS = ("text", "name")
"""Looked for if the text column is not named: the usual name, and that of dataset splits."""
WINDOW_BYTES = 8_000_000
BLOCK = 4 << 20  # of a text table; a row has to fit
SEPARATORS = {"csv": ",", "tsv": "\t"}
SAMPLE = 1000  # rows of JSON lines in which a text column has to appear
_BOM = "\ufeff"
_LIKELY = re.compile(r"[,;|\t]")

JsonRow = tuple[int, str, dict[str, Any]]
"""Number of the line, its JSON, its value."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Chunk:
    """Some consecutive rows.

    Parameters
    ----------
    texts
        One per row, empty where there is none.
    table
        The rows as they were read, from a columnar format.
    lines, records, numbers
        The rows as they were read, as JSON, as values, and where they stand in the file.
    """

    texts: list[str]
    table: pa.Table | None = None
    lines: list[str] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts)


class Rows(ABC):
    """An open table.

    Parameters
    ----------
    source
        Where it is read from.
    wanted
        Text columns, empty for the usual ones.
    trained
        Those that the model learned from: taken first where none are wanted.

    Attributes
    ----------
    columns
        Names of its columns; for JSON lines those of the first rows.
    text
        The text columns.
    """

    columns: tuple[str, ...]
    text: tuple[str, ...]

    def __init__(self, source: Input, wanted: Sequence[str], trained: Sequence[str] = ()) -> None:
        self.source = source
        self.name = source.name
        self._wanted, self._trained = tuple(wanted), tuple(trained)
        if source.size == 0:
            raise self.empty()

    @abstractmethod
    def chunks(self, size: int) -> Iterator[Chunk]:
        """Yield rows in order, at most `size` at a time."""

    def part(self) -> float | None:
        """Share of the table that has been read, None if its size is not known."""
        return self.source.part

    def stop(self) -> None:
        """Wait for no further bytes, whoever is reading."""
        self.source.counted.stopped = True

    def empty(self) -> UserError:
        """The error for a file without anything."""
        return UserError(f"{self.name} is empty.")

    def not_utf8(self, where: str) -> UserError:
        """The error for other encodings."""
        return UserError(
            f"{self.name} is not UTF-8 ({where}). Convert it: iconv -f LATIN1 -t UTF-8 FILE "
            "(or whatever encoding it has)."
        )

    def choose(self, columns: Sequence[str]) -> tuple[str, ...]:
        """The text columns among the table's.

        Raises
        ------
        UserError
            A named one is not there, or none was named and the usual ones are not there.
        """
        for name in self._wanted:
            if name not in columns:
                raise unknown("column", name, columns)
            if columns.count(name) > 1:
                raise UserError(f"{self.name} has several columns {name!r}. Rename all but one.")
        if not self._wanted and self._trained and all(columns.count(x) == 1 for x in self._trained):
            return self._trained
        usual = [name for name in TEXT_COLUMNS if columns.count(name) == 1]
        if not self._wanted and not usual and len(columns) != 1:
            raise UserError(
                f"Which column of {self.name} holds the text? Say -t COLUMN. There are: "
                f"{', '.join(columns)}."
            )
        return self._wanted or (*usual, *columns)[:1]


class TableRows(Rows):
    """A table whose columns are known from the beginning."""

    def _chunks(self, tables: Iterator[pa.Table], size: int) -> Iterator[Chunk]:
        table = None
        for table in tables:
            rows = max(1, min(size, size * WINDOW_BYTES // max(table.nbytes, WINDOW_BYTES)))
            for start in range(0, table.num_rows, rows):
                yield self._chunk(table.slice(start, rows))
        if table is None:  # its columns are worth writing all the same
            yield self._chunk(self._schema().empty_table())

    @abstractmethod
    def _schema(self) -> pa.Schema:
        """The columns."""

    def _chunk(self, table: pa.Table) -> Chunk:
        picked = table.select([table.column_names.index(name) for name in self.text])
        texts, _ = texts_of(picked, self.text)
        return Chunk(texts=texts.to_pylist(), table=table)


class CsvRows(TableRows):
    """A text table; every cell stays the string it is."""

    def __init__(
        self, source: Input, wanted: Sequence[str], separator: str, trained: Sequence[str] = ()
    ) -> None:
        super().__init__(source, wanted, trained)
        self._separator = separator
        with self._explained():
            self._reader = self._open()
        source.opened.callback(self._reader.close)  # it reads ahead: before the file is closed
        try:
            self.columns = tuple(self._reader.schema.names)
        except UnicodeDecodeError as error:
            raise self.not_utf8("the names of its columns") from error
        if not wanted and len(self.columns) == 1 and (found := _LIKELY.search(self.columns[0])):
            raise UserError(
                f"{self.name} has one column, {self.columns[0]!r}. If {found[0]!r} separates its "
                f"columns, say --sep {found[0]!r}; else name it with -t."
            )
        self.text = self.choose(self.columns)

    def _schema(self) -> pa.Schema:
        return self._reader.schema

    def _open(self) -> Any:
        import pyarrow as pa
        from pyarrow import csv

        return csv.open_csv(
            self.source.stream,
            read_options=csv.ReadOptions(block_size=BLOCK),
            parse_options=csv.ParseOptions(delimiter=self._separator, newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                default_column_type=pa.large_string(), strings_can_be_null=False
            ),
        )

    def chunks(self, size: int) -> Iterator[Chunk]:
        """Yield rows in order, at most `size` at a time."""
        return self._chunks(self._tables(), size)

    def _tables(self) -> Iterator[pa.Table]:
        import pyarrow as pa

        while True:
            with self._explained():
                try:
                    batch = self._reader.read_next_batch()
                except StopIteration:
                    return
            yield pa.Table.from_batches([batch])

    def _explained(self) -> AbstractContextManager[None]:
        return explained(self, "a table")


class ParquetRows(TableRows):
    """A Parquet file; from standard input by way of a temporary file."""

    def __init__(self, source: Input, wanted: Sequence[str], trained: Sequence[str] = ()) -> None:
        super().__init__(source, wanted, trained)
        import pyarrow.parquet as pq

        if source.is_packed:
            raise UserError(f"{self.name} is packed Parquet, which is not streamed. Unpack it.")
        with explained(self, "Parquet"):
            self._file = pq.ParquetFile(self._seekable(), pre_buffer=False, buffer_size=BUFFER)
        self.columns = tuple(self._file.schema_arrow.names)
        self.text = self.choose(self.columns)
        for name in self.text:
            self._check_text(name)
        self._done = 0

    def _seekable(self) -> Any:
        if self.source.path is not None:
            return self.source.path
        spool = tempfile.TemporaryFile(prefix="ktt-predict-")  # noqa: SIM115
        self.source.opened.callback(spool.close)
        shutil.copyfileobj(self.source.stream, spool, BUFFER)
        if not spool.tell():
            raise self.empty()
        return spool

    def _schema(self) -> pa.Schema:
        return self._file.schema_arrow

    def _check_text(self, name: str) -> None:
        import pyarrow.types as types

        kind = self._file.schema_arrow.field(name).type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        if not (
            types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
            or types.is_null(kind)
        ):  # fmt: skip
            raise UserError(f"Column {name!r} of {self.name} holds {kind}, not text.")

    def part(self) -> float | None:
        """Share of the rows that have been read."""
        return self._done / max(self._file.metadata.num_rows, 1)

    def chunks(self, size: int) -> Iterator[Chunk]:
        """Yield rows in order, at most `size` at a time."""
        return self._chunks(self._tables(size), size)

    def _tables(self, size: int) -> Iterator[pa.Table]:
        import pyarrow as pa

        batches = self._file.iter_batches(batch_size=size)
        while True:
            with explained(self, "Parquet"):
                batch = next(batches, None)
            if batch is None:
                return
            self._done += batch.num_rows
            yield pa.Table.from_batches([batch])


class JsonRows(Rows):
    """JSON lines: an object per line; blank lines are no rows."""

    def __init__(self, source: Input, wanted: Sequence[str], trained: Sequence[str] = ()) -> None:
        super().__init__(source, wanted, trained)
        self._rows = self._read()
        self._first = list(itertools.islice(self._rows, SAMPLE))
        if not self._first:
            raise self.empty()
        self.columns = tuple(dict.fromkeys(key for _, _, row in self._first for key in row))
        self.text = self.choose(self.columns)

    def _read(self) -> Iterator[JsonRow]:
        number = 0
        with explained(self, "JSON lines"):
            for number, raw in enumerate(self.source.stream, 1):
                line = self._decoded(raw, number).strip()
                if line:
                    yield number, line, self._parsed(line, number)

    def _decoded(self, raw: bytes, number: int) -> str:
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.not_utf8(f"line {number:,}") from error
        return line.removeprefix(_BOM) if number == 1 else line

    def _parsed(self, line: str, number: int) -> dict[str, Any]:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "it cannot be read"
            raise self._no_object(number, f"is not JSON ({reason})") from error
        if not isinstance(value, dict):
            raise self._no_object(number, "is no JSON object")
        return value

    def _no_object(self, number: int, reason: str) -> UserError:
        return UserError(
            f"{self.name}: line {number:,} {reason}. JSON lines have one object per line, such as "
            '{"text": "…"}; for other formats say --input-format.'
        )

    def chunks(self, size: int) -> Iterator[Chunk]:
        """Yield rows in order, at most `size` at a time."""
        rows: list[JsonRow] = []
        weight = 0
        for row in itertools.chain(self._first, self._rows):
            rows.append(row)
            weight += len(row[1])
            if len(rows) == size or weight > WINDOW_BYTES:
                yield self._chunk(rows)
                rows, weight = [], 0
        if rows:
            yield self._chunk(rows)

    def _chunk(self, rows: list[JsonRow]) -> Chunk:
        import pyarrow as pa

        numbers, lines, records = map(list, zip(*rows, strict=True))
        columns = {
            name: pa.array([_string(record.get(name)) for record in records], pa.large_string())
            for name in self.text
        }
        texts, _ = texts_of(pa.table(columns), self.text)
        return Chunk(texts=texts.to_pylist(), lines=lines, records=records, numbers=numbers)


def _string(value: Any) -> str | None:
    """A string that can be encoded; None for everything else."""
    if not isinstance(value, str):
        return None
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return value.encode("utf-8", "replace").decode()
    return value


@contextmanager
def explained(rows: Rows, kind: str) -> Iterator[None]:
    """Turn the ways in which a damaged file fails into the user's error."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, EOFError, zlib.error) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        if "Empty CSV" in reason:
            raise rows.empty() from error
        if "invalid UTF8" in reason:
            where = re.search(r"Row #\d+", reason)
            raise rows.not_utf8(where[0].lower() if where else "somewhere") from error
        if "straddling" in reason:
            reason = f"a row is longer than {BLOCK >> 20} MB, or a quote is never closed"
        raise UserError(f"{rows.name} cannot be read as {kind}: {reason}.") from error


@contextmanager
def open_rows(
    path: Path | None,
    kind: str,
    *,
    text: Sequence[str] = (),
    trained: Sequence[str] = (),
    separator: str | None = None,
) -> Iterator[Rows]:
    """Open a table.

    Parameters
    ----------
    path
        None for standard input.
    kind
        One of `utils.predicting.formats.FORMATS`.
    text
        Text columns; several are joined as adapt.py joins them. Empty for the usual ones.
    trained
        The columns that the model learned from: the usual ones where the table has them all.
    separator
        Of the columns of a text table.

    Raises
    ------
    UserError
        It cannot be read, or has no such column.
    """
    with open_input(path) as source:
        if kind == "parquet":
            yield ParquetRows(source, text, trained)
        elif kind == "jsonl":
            yield JsonRows(source, text, trained)
        else:
            yield CsvRows(source, text, separator or SEPARATORS[kind], trained)
