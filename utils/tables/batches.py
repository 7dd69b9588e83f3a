"""What the readers of all formats share: options, batches of columns, bad rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from utils.common.errors import UserError
from utils.tables.headers import checked_line
from utils.tables.source_files import SourceFile

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
        if self.quote in ("\r", "\n") or self.quote[1:] or not self.quote.isascii():
            raise UserError(f"--quote {self.quote!r} is not one ASCII character, nor empty.")


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
