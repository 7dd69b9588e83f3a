"""Read tables: any of the supported kinds of file to an Arrow table of the wanted columns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from utils.adapters.headers import checked_line
from utils.adapters.sources import SourceFile
from utils.errors import UserError, unknown

if TYPE_CHECKING:
    import pyarrow as pa

SHOWN_LINES = 5


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How files are read; None means: find out.

    Parameters
    ----------
    sep
        Separator of a text table; more than one character is allowed.
    quote
        Quote character of a text table, "" for none.
    header
        False: a text table without a header; its columns are called 0, 1, 2, …
    lines
        Regular expression with named groups: each line is a row, each group a column.
    records
        Keys of a JSON object under which the rows lie.
    sheet
        Sheet of a workbook.
    header_row
        Line of the header, from 1; None for the first one that is not empty.
    """

    encoding: str | None = None
    sep: str | None = None
    quote: str = '"'
    header: bool = True
    lines: str | None = None
    records: tuple[str, ...] = ()
    sheet: str | None = None
    header_row: int | None = None

    def __post_init__(self) -> None:
        if self.header_row is not None and (self.lines or not self.header):
            other = "--lines" if self.lines else "--no-header"
            raise UserError(f"--header-row and {other} exclude each other.")
        checked_line(self.header_row)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What came out of one or more files.

    Parameters
    ----------
    table
        The wanted columns; in text formats all are strings.
    broken
        Rows that could not be read and are not in `table`.
    broken_at
        Where the first of them are.
    """

    table: pa.Table
    broken: int = 0
    broken_at: tuple[str, ...] = ()
    encodings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Reader(Protocol):
    """One opened file: its columns are known, its rows are not read yet."""

    columns: tuple[str, ...]

    def read(self, wanted: Sequence[str]) -> Batch:
        """Read the wanted columns."""

    def hint(self, names: Sequence[str]) -> str:
        """Say where columns seem to be that are not among `columns`; empty if nobody knows."""
        return ""


def open_reader(source: SourceFile, options: ReadOptions, hints: Sequence[str]) -> Reader:
    """Open a file with the reader of its kind.

    Parameters
    ----------
    hints
        Names that the user expects among the columns; they settle the separator and the shape
        of JSON where several would do.
    """
    from utils.adapters import columnar, delimited, json_files, workbooks

    if options.lines:
        return delimited.LineReader(source, options)
    if source.kind == "csv":
        return delimited.CsvReader(source, options, hints)
    if source.kind == "jsonl":
        return json_files.JsonLinesReader(source, options, hints)
    if source.kind == "json":
        return json_files.open_json(source, options, hints)
    if source.kind == "xlsx":
        return workbooks.WorkbookReader(source, options)
    return (
        columnar.ParquetReader(source) if source.kind == "parquet" else columnar.ArrowReader(source)
    )


def select_columns(spec: str, columns: Sequence[str], kind: str = "column") -> tuple[str, ...]:
    """Resolve ``"A,B"`` to column names; a name that holds a comma itself is matched first.

    Raises
    ------
    UserError
        A name is no column.
    """
    parts = spec.split(",")
    chosen: list[str] = []
    start = 0
    while start < len(parts):
        for end in range(len(parts), start, -1):
            name = _matching(",".join(parts[start:end]), columns)
            if name is not None:
                break
        else:
            raise unknown(kind, parts[start].strip() or spec, columns)
        if list(columns).count(name) > 1:
            raise UserError(f"Column {name!r} stands more than once in the header. Rename one.")
        chosen.append(name)
        start = end
    return tuple(dict.fromkeys(chosen))


def select_column(name: str, columns: Sequence[str], option: str) -> str:
    """Resolve the name of one column.

    Raises
    ------
    UserError
        It is no column, or several.
    """
    found = select_columns(name, columns)
    if len(found) > 1:
        raise UserError(f"{option} takes one column, not {len(found)}.")
    return found[0]


def _matching(name: str, columns: Sequence[str]) -> str | None:
    if name in columns:
        return name
    stripped = name.strip()
    return next((column for column in columns if column.strip() == stripped), None)


@dataclass(kw_only=True)
class BrokenRows:
    """Counts rows that cannot be read and remembers where the first ones are."""

    count: int = 0
    places: list[str] = field(default_factory=list)

    def add(self, place: str) -> None:
        """Count one row."""
        self.count += 1
        if len(self.places) < SHOWN_LINES:
            self.places.append(place)


def to_array(values: Sequence[Any]) -> pa.Array:
    """Make a column of strings, or of lists of strings, from any Python values."""
    import pyarrow as pa

    if any(isinstance(value, list | tuple) for value in values):
        return pa.array(map(_plain_list, values), pa.large_list(pa.large_string()))
    try:
        return pa.array(values, pa.large_string())
    except (pa.ArrowException, UnicodeEncodeError, TypeError):
        return pa.array([_plain(value) for value in values], pa.large_string())


def _plain_list(value: Any) -> list[str | None] | None:
    """One cell as a list of strings; None where it, or an item of it, is no single value."""
    items = value if isinstance(value, list | tuple) else [value]
    if value is None or any(isinstance(item, dict | list | tuple) for item in items):
        return None
    return [_plain(item) for item in items]


def _plain(value: Any) -> str | None:
    """One cell as a string; what is missing or no single value becomes None."""
    if value is None or isinstance(value, dict | list | tuple) or value != value:
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).encode("utf-8", "replace").decode("utf-8")


def damaged(source: SourceFile, kind: str, error: Exception) -> UserError:
    """The error for a file that its reader gives up on."""
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return UserError(f"{source.path} cannot be read as {kind}: {reason}")


def numbered(count: int) -> tuple[str, ...]:
    """Names for columns that have none: 0, 1, 2, …"""
    return tuple(map(str, range(count)))


def line_pattern(pattern: str) -> re.Pattern[str]:
    """Compile the pattern of ``--lines``.

    Raises
    ------
    UserError
        It is no regular expression, or has no named groups.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--lines {pattern!r} is no regular expression: {error}.") from error
    if not compiled.groupindex:
        raise UserError(
            f"--lines {pattern!r} has no named groups. Write (?P<label>…) and (?P<text>…)."
        )
    return compiled
