"""The header of a table: where it may stand, and lines that repeat it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from utils.common.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

HEADER_LINES = 50
"""How far down a header is looked for; people put a title and a few remarks above it."""
_MARK = "\ufeff"


def checked_line(line: int | None) -> int | None:
    """Refuse a line number that no line has.

    Raises
    ------
    UserError
        It is below 1.
    """
    if line is not None and line < 1:
        raise UserError(f"--header-row is {line}: lines are counted from 1.")
    return line


def header_hint(rows: Mapping[int, Iterable[str]], header: int, names: Sequence[str]) -> str:
    """Say which of the first lines seems to be the header.

    Parameters
    ----------
    rows
        Cells by line number.
    header
        The line that was taken for it.
    names
        Columns that should be in it.

    Returns
    -------
    str
        Empty if no other line has more of the names.
    """
    hits = {line: matches(cells, names) for line, cells in rows.items()}
    line = max(hits, key=lambda one: hits[one], default=header)
    if hits.get(line, 0) <= hits.get(header, 0):
        return ""
    return f"The header seems to be line {line}: --header-row {line}."


def matches(cells: Iterable[str], names: Sequence[str]) -> int:
    """How many of the names stand in a row."""
    there = {cell.strip() for cell in cells}
    return len(there.intersection(name.strip() for name in names))


def is_header(cells: Sequence[str | None], names: Sequence[str]) -> bool:
    """Whether a row's cells are nothing but the names of their columns."""
    pairs = zip(cells, names, strict=True)
    return all(cell is not None and _bare(cell) == _bare(name) for cell, name in pairs)


def without_headers(table: pa.Table) -> tuple[pa.Table, int]:
    """Take out rows that repeat the header, as files have that were joined line by line.

    Parameters
    ----------
    table
        Columns of strings.

    Returns
    -------
    table, count
        The other rows, and how many were taken out.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    names = table.column_names
    known = pa.array([names[-1], _MARK + names[-1]], table[names[-1]].type)
    suspects = pc.indices_nonzero(pc.is_in(table[names[-1]], value_set=known))
    rows = table.take(suspects).to_pylist() if len(suspects) else []
    repeats = [is_header([row[name] for name in names], names) for row in rows]
    keep = np.ones(table.num_rows, dtype=bool)
    keep[suspects.to_numpy()[repeats]] = False
    return (table.filter(pa.array(keep)) if any(repeats) else table), sum(repeats)


def _bare(cell: str) -> str:
    """A cell without the byte-order mark of a file that was joined to another."""
    return cell.removeprefix(_MARK).strip()


def repeated_note(count: int) -> tuple[str, ...]:
    """The note on lines that were left out."""
    return (f"{count:,} lines repeat the header and were left out",) if count else ()
