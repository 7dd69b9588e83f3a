"""Text tables: CSV and its kin, and lines that follow a pattern."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from utils.common.errors import UserError
from utils.tables.batches import SHOWN_LINES, Batch, Reader, ReadOptions, line_pattern, numbered
from utils.tables.dialect import (  # fmt: skip
    CERTAIN,
    STAND_IN,
    dialect_of,
    escape_signs,
    without_escapes,
)
from utils.tables.headers import header_hint, repeated_note, without_headers
from utils.tables.kinds import refuse_page
from utils.tables.quotes import REMEDY, joined_lines
from utils.tables.source_files import Decoded, SourceFile, decode

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.csv import InvalidRow

_BLOCK = 1 << 22
_PAGE_HEAD = 1 << 10
_MANY_LINES = 500
_MANY_BROKEN = 20


class CsvReader(Reader):
    """A text table with one separator."""

    def __init__(self, source: SourceFile, options: ReadOptions, hints: Sequence[str]) -> None:
        self._path = source.path
        self._options = options
        self._text = decode(source, options.encoding)
        refuse_page(source.path, self._text.data[:_PAGE_HEAD])
        self._dialect = dialect_of(self._text.data, options, hints)
        first = next(iter(self._dialect.rows.values()), [])
        self.columns = tuple(first) if options.header else numbered(len(first))

    def hint(self, names: Sequence[str]) -> str:
        """Say which line seems to be the header."""
        rows = self._dialect.rows if self._options.header else {}
        return header_hint(rows, min(rows, default=1), names)

    def read(self, wanted: Sequence[str]) -> Batch:
        """Read the wanted columns as strings; rows with too many or few fields are broken."""
        data, escaped = self._text.data, False
        table, rows = self._parse(data, wanted)
        quote = self._options.quote
        if doubt := escape_signs(data, self._dialect.sep, quote):
            other = without_escapes(data, quote)
            found = self._parse(other, wanted)
            escaped = doubt == CERTAIN or found[0].num_rows > table.num_rows
            if escaped:
                data, (table, rows) = other, found
        broken = [row.text for row in rows]
        places = tuple(
            _line_numbers(data, [row.replace(STAND_IN, self._dialect.sep) for row in broken])
        )
        table, repeated = without_headers(table) if self._options.header else (table, 0)
        return Batch(
            table=table,
            broken=sum(_lines_lost(row, self._options.quote) for row in broken),
            broken_at=tuple(f"{self._path.name}:{line}" for line in places),
            encodings=(self._text.encoding,),
            notes=(
                *_noted(self._text),
                *(("backslashes before quotes were read as escapes",) if escaped else ()),
                *repeated_note(repeated),
                *_uneven(rows, table.num_rows),
                *_swallowed(broken, self._options.quote),
                *self._joined(data, table.num_rows + repeated + len(broken)),
                *_long_cells(table, data),
            ),
        )

    def _joined(self, data: bytes, rows: int) -> tuple[str, ...]:
        """Say where a stray quote opened a cell that another one, lines below, closed."""
        if data.count(b"\n") <= self._dialect.skipped + 1 + rows:
            return ()  # no cell has several lines
        places = joined_lines(data, self._dialect.sep, self._options.quote, self._dialect.skipped)
        if not places:
            return ()
        line, count = next(iter(places.items()))
        rows_made = "1 row" if len(places) == 1 else f"{len(places):,} rows"
        return (
            f"stray quotes joined {sum(places.values()):,} lines to {rows_made}, the first "
            f"{count:,} from line {line:,} on: mend them, or add --quote '' {REMEDY}",
        )

    def _parse(self, data: bytes, wanted: Sequence[str]) -> tuple[pa.Table, list[InvalidRow]]:
        """The wanted columns, and the rows that do not fit."""
        import pyarrow as pa

        sep = self._dialect.sep
        single = len(sep.encode()) == 1
        if not single:
            data = data.replace(sep.encode(), STAND_IN.encode())
        broken: list[InvalidRow] = []
        for block in (_BLOCK, min(len(data) + 1, 1 << 30)):
            broken.clear()
            try:
                table = self._parse_blocks(data, sep if single else STAND_IN, wanted, broken, block)
                return table if single else _put_back(table, sep), broken
            except pa.ArrowInvalid as error:
                failure = error
        if "Empty CSV" in str(failure):  # a header without a line end
            return pa.table({name: pa.array([], pa.large_string()) for name in wanted}), []
        raise UserError(
            f"{self._path} cannot be read as a table: {str(failure).splitlines()[0]}. "
            "Check --sep; where quotes are ordinary characters, add --quote ''."
        )

    def _parse_blocks(
        self, data: bytes, sep: str, wanted: Sequence[str], broken: list[InvalidRow], block: int
    ) -> pa.Table:
        import pyarrow as pa
        from pyarrow import csv as arrow_csv

        def skip(row: InvalidRow) -> str:
            broken.append(row)
            return "skip"

        names = None if self._options.header else list(self.columns)
        return arrow_csv.read_csv(
            pa.BufferReader(data),
            read_options=arrow_csv.ReadOptions(
                block_size=block, column_names=names, skip_rows=self._dialect.skipped
            ),
            parse_options=arrow_csv.ParseOptions(
                delimiter=sep,
                quote_char=self._options.quote or False,
                newlines_in_values=bool(self._options.quote),
                invalid_row_handler=skip,
            ),
            convert_options=arrow_csv.ConvertOptions(
                include_columns=list(wanted),
                column_types=dict.fromkeys(wanted, pa.large_string()),
                strings_can_be_null=False,
            ),
        )


class LineReader(Reader):
    """Lines that follow a pattern with named groups."""

    def __init__(self, source: SourceFile, options: ReadOptions) -> None:
        self._path = source.path
        self._pattern = line_pattern(options.lines or "")
        self._text = decode(source, options.encoding)
        self.columns = tuple(self._pattern.groupindex)

    def read(self, wanted: Sequence[str]) -> Batch:
        """Read the wanted groups; lines that do not match are broken, blank ones are no rows."""
        import pyarrow as pa
        import pyarrow.compute as pc

        text = self._text.data.decode("utf-8", "replace")
        lines = pc.utf8_rtrim(pa.array(text.split("\n"), pa.large_string()), "\r")
        numbers = pc.indices_nonzero(pc.not_equal(pc.utf8_trim_whitespace(lines), ""))
        try:
            found = pc.extract_regex(lines.take(numbers), f"^(?:{self._pattern.pattern})$")
        except pa.ArrowInvalid as error:
            raise UserError(
                f"--lines {self._pattern.pattern!r}: {error} (look-around and "
                "back-references are not supported)."
            ) from error
        wrong = pc.indices_nonzero(pc.is_null(found))
        places = numbers.take(wrong[:SHOWN_LINES]).to_pylist()
        rows = found.drop_null()
        return Batch(
            table=pa.table({name: pc.struct_field(rows, name) for name in wanted}),
            broken=len(wrong),
            broken_at=tuple(f"{self._path.name}:{line + 1}" for line in places),
            encodings=(self._text.encoding,),
            notes=_noted(self._text),
        )


def _noted(text: Decoded) -> tuple[str, ...]:
    return (text.note,) if text.note else ()


def _line_numbers(data: bytes, rows: Sequence[str]) -> list[int]:
    """Physical lines at which the first broken rows begin."""
    starts = sorted(_line_starts(data, Counter(row.encode() for row in rows)))[:SHOWN_LINES]
    numbers, line, before = [], 1, 0
    for start in starts:
        line += data.count(b"\n", before, start)
        before = start
        numbers.append(line)
    return numbers


def _line_starts(data: bytes, rows: Counter[bytes]) -> list[int]:
    """Where rows of these contents begin in the file, a few of each."""
    found = []
    for row, times in list(rows.items())[:SHOWN_LINES]:
        start = -1
        for _ in range(min(times, SHOWN_LINES)):
            while (start := data.find(row, start + 1)) >= 0:
                end = start + len(row)
                if data[start - 1 : start] in (b"", b"\n", b"\r") and data[end : end + 1] in (
                    b"", b"\n", b"\r",
                ):  # fmt: skip
                    found.append(start)
                    break
            if start < 0:
                break
    return found


def _lines_lost(row: str, quote: str) -> int:
    """Lines of a broken row: more than one count where a stray quote swallowed them."""
    lines = row.count("\n") + 1
    never_closed = bool(quote) and row.count(quote) % 2 == 1
    return lines if never_closed or lines > _MANY_BROKEN else 1


def _uneven(broken: Sequence[InvalidRow], good: int) -> tuple[str, ...]:
    """Say when most rows are of another width than the header: it is the header that is wrong."""
    if len(broken) <= good:
        return ()
    width, count = Counter(row.actual_columns for row in broken).most_common(1)[0]
    return (
        f"{count:,} rows have {width} fields, the header has {broken[0].expected_columns}: mend "
        "the header, or check --sep and --quote",
    )


def _swallowed(rows: Sequence[str], quote: str) -> tuple[str, ...]:
    worst = max((_lines_lost(row, quote) for row in rows), default=1)
    if worst == 1:
        return ()
    return (
        f"a stray quote swallowed {worst:,} lines, counted as broken rows: mend it, or add "
        "--quote '' where quotes are ordinary characters",
    )


def _put_back(table: pa.Table, sep: str) -> pa.Table:
    """Undo the stand-in of a long separator inside quoted cells."""
    import pyarrow as pa
    import pyarrow.compute as pc

    columns = [pc.replace_substring(column, STAND_IN, sep) for column in table.columns]
    return pa.table(columns, names=table.column_names)


def _long_cells(table: pa.Table, data: bytes) -> tuple[str, ...]:
    """Warn of cells that swallowed hundreds of lines: most likely a stray quote."""
    import pyarrow.compute as pc

    longest = max(pc.max(pc.binary_length(column)).as_py() or 0 for column in table.columns)
    if longest < _MANY_LINES or data.count(b"\n") < table.num_rows + _MANY_LINES:
        return ()
    worst = max(
        (pc.max(pc.count_substring(column, "\n")).as_py() or 0 for column in table.columns),
        default=0,
    )
    if worst < _MANY_LINES:
        return ()
    return (
        f"one cell holds {worst:,} lines: if quotes are ordinary characters here, add --quote ''",
    )
