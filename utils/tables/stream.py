"""Rows of a table as a stream: a few thousand at a time, however many there are."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import re
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from utils.common.errors import UserError
from utils.tables.arrow_types import plain_table
from utils.tables.batches import ReadOptions, to_array
from utils.tables.columns import refuse_nested, texts_of
from utils.tables.dialect import declared_separator, dialect_of, has_escapes
from utils.tables.formats import BUFFER, SEPARATORS, Input, as_utf8, open_input, peeked, unescaped
from utils.tables.headers import header_hint
from utils.tables.quotes import WellQuoted
from utils.tables.rows import BLOCK, TEXT_COLUMNS, WINDOW_BYTES, Chunk, Rows, TableRows, explained

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.csv import InvalidRow

LINE = 64 << 20  # bytes of a line of JSON
SAMPLE = 1000  # rows of JSON lines in which a text column has to appear
_BOM = "\ufeff"
_LIKELY = re.compile(r"[,;|\t]")

JsonRow = tuple[int, str, dict[str, Any]]
"""Number of the line, its JSON, its value."""


class CsvRows(TableRows):
    """A text table; every cell stays the string it is.

    Parameters
    ----------
    separator
        Of the columns, where neither `options` nor a first line ``sep=;`` say otherwise.
    options
        How the table is written.
    """

    def __init__(
        self,
        source: Input,
        wanted: Sequence[str],
        trained: Sequence[str] = (),
        *,
        separator: str,
        options: ReadOptions,
    ) -> None:
        super().__init__(source, wanted, trained)
        self._options = options
        self._head = peeked(source).removeprefix(_BOM.encode())
        declared = declared_separator(self._head)
        self._separator = options.sep or declared or separator
        if self._separator == options.quote:
            raise UserError(f"--quote {options.quote!r} separates the columns of {self.name}.")
        self._skipped = options.header_row - 1 if options.header_row else int(declared is not None)
        self._escaped = has_escapes(self._head, self._separator, options.quote)
        if self._escaped:
            self.source = unescaped(source, options.quote)
        if options.quote:
            self.source = self._well_quoted()
        self._broken: InvalidRow | None = None
        with explained(self, "a table"):
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
        try:
            self.text = self.choose(self.columns)
        except UserError as error:
            raise UserError(f"{error.message} {self._hint()}") from error

    def _well_quoted(self) -> Input:
        """The same table, checked for stray quotes as it is read."""
        checked = WellQuoted(
            self.source.stream,
            sep=self._separator,
            quote=self._options.quote,
            skipped=self._skipped,
            name=self.name,
        )
        stream = io.BufferedReader(checked, BUFFER)
        return dataclasses.replace(self.source, stream=cast(IO[bytes], stream))

    def _hint(self) -> str:
        """Say which of the first lines seems to be the header."""
        options = dataclasses.replace(self._options, sep=self._separator)
        rows = dialect_of(self._head, options, ()).rows
        names = self._wanted or self._trained or TEXT_COLUMNS
        return header_hint(rows, min(rows, default=1), names)

    def _schema(self) -> pa.Schema:
        return self._reader.schema

    def _open(self) -> Any:
        import pyarrow as pa
        from pyarrow import csv

        return csv.open_csv(
            self.source.stream,
            read_options=csv.ReadOptions(block_size=BLOCK, skip_rows=self._skipped),
            parse_options=csv.ParseOptions(
                delimiter=self._separator,
                quote_char=self._options.quote or False,
                newlines_in_values=bool(self._options.quote),
                invalid_row_handler=self._remember,
            ),
            convert_options=csv.ConvertOptions(
                default_column_type=pa.large_string(), strings_can_be_null=False
            ),
        )

    def _remember(self, row: InvalidRow) -> str:
        self._broken = self._broken or row
        return "error"

    def place(self) -> str:
        """The line of a row of another width than the header."""
        line = self._line_of(self._broken.text) if self._broken else None
        return f"line {line:,}: " if line else ""

    def advice(self) -> str:
        """Say which line seems to be the header, if rows are of another width than it."""
        return self._hint() if self._broken else ""

    def _line_of(self, row: str) -> int | None:
        """Where a row begins in a file that can be read once more."""
        if self.source.size is None:
            return None
        lines = [line.encode() for line in row.splitlines()]
        with open_input(self.source.path) as again:
            decoded = as_utf8(again, self._options.encoding)
            stream = (unescaped(decoded, self._options.quote) if self._escaped else decoded).stream
            window: deque[bytes] = deque(maxlen=len(lines))
            for number, line in enumerate(stream, 1):
                window.append(line.rstrip(b"\r\n"))
                if window[0] == lines[0] and list(window) == lines:
                    return number - len(lines) + 1
        return None

    def chunks(self, size: int) -> Iterator[Chunk]:
        """Yield rows in order, at most `size` at a time."""
        return self._chunks(self._tables(), size)

    def _tables(self) -> Iterator[pa.Table]:
        import pyarrow as pa

        while True:
            with explained(self, "a table"):
                try:
                    batch = self._reader.read_next_batch()
                except StopIteration:
                    return
            yield pa.Table.from_batches([batch])


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
        self._check_texts()
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

    def _check_texts(self) -> None:
        """Refuse nested values, and rows without any column of texts."""
        import pyarrow.types as types

        columns = plain_table(self._picked(self._schema().empty_table()))
        refuse_nested(columns)
        if not any(
            types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind)
            for kind in columns.schema.types
        ):
            kind = columns.schema.types[0]
            raise UserError(f"Column {self.text[0]!r} of {self.name} holds {kind}, not text.")

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
            for number, raw in enumerate(iter(self._line, b""), 1):
                if len(raw) == LINE:
                    raise self._no_object(number, f"has more than {LINE >> 20} MB")
                line = self._decoded(raw, number).strip()
                if line:
                    yield number, line, self._parsed(line, number)

    def _line(self) -> bytes:
        return self.source.stream.readline(LINE)

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
        columns = {name: to_array([record.get(name) for record in records]) for name in self.text}
        joined, _ = texts_of(pa.table(columns), self.text)
        texts = [
            text if any(isinstance(record.get(name), str) for name in self.text) else ""
            for text, record in zip(joined.to_pylist(), records, strict=True)
        ]
        return Chunk(texts=texts, lines=lines, records=records, numbers=numbers)


@contextmanager
def open_rows(
    path: Path | None,
    kind: str,
    *,
    text: Sequence[str] = (),
    trained: Sequence[str] = (),
    options: ReadOptions | None = None,
) -> Iterator[Rows]:
    """Open a table.

    Parameters
    ----------
    path
        None for standard input.
    kind
        One of `utils.tables.formats.FORMATS`.
    text
        Text columns; several are joined as adapt.py joins them. Empty for the usual ones.
    trained
        The columns that the model learned from: the usual ones where the table has them all.
    options
        The separator, encoding and line of the header of a text table.

    Raises
    ------
    UserError
        It cannot be read, or has no such column.
    """
    options = options or ReadOptions()
    if kind not in SEPARATORS and options.header_row:
        raise UserError(f"--header-row is for csv and tsv files; this is {kind}.")
    if kind not in SEPARATORS and options.quote != ReadOptions.quote:
        raise UserError(f"--quote is for csv and tsv files; this is {kind}.")
    if kind == "parquet" and options.encoding:
        raise UserError("--encoding is for text files; this is parquet.")
    with open_input(path) as source:
        if kind == "parquet":
            yield ParquetRows(source, text, trained)
            return
        source = as_utf8(source, options.encoding)
        if kind == "jsonl":
            yield JsonRows(source, text, trained)
        else:
            yield CsvRows(source, text, trained, separator=SEPARATORS[kind], options=options)
