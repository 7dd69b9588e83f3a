"""Stray quotes: one opens a cell, and another, lines below, closes it, or none does."""

from __future__ import annotations

import io
import re
from typing import IO, Any, cast

from utils.common.errors import UserError

BUFFER = 1 << 20
LINE_END = re.compile(rb"\r\n|\r|\n")
REMEDY = "where quotes are ordinary characters"


class StrayQuotes:
    """Finds quoted cells of several lines behind whose last quote the cell goes on, as none is
    written, and such that no quote ends; in a text that comes piece by piece.

    Parameters
    ----------
    skipped
        Lines above the table, whose quotes are none.
    """

    def __init__(self, sep: str, quote: str, skipped: int) -> None:
        q, s = re.escape(quote.encode()), re.escape(sep.encode())
        inside = b"[^%b]*+(?:%b%b[^%b]*+)*+" % (q, q, q, q)
        self._cell = re.compile(b"(?:(?<=[\r\n])|(?<=%b))%b(%b)(%b?)" % (s, q, inside, q))
        self._goes_on = re.compile(b"(?!%b|[\r\n]|$)" % s)
        self._kept = b"\n"
        self._line, self._skipped = 0, skipped

    def feed(self, data: bytes, *, last: bool = False) -> dict[int, int]:
        """Find those that end in the next piece.

        Returns
        -------
        dict
            How many lines they join, by the line of the first quote.
        """
        data = self._kept + data
        start = start_of_line(data, self._skipped + 1) if self._skipped else 1
        if start == len(data) and not last:
            self._kept = data  # more of what is above the table may come
            return {}
        self._skipped = 0
        found: dict[int, int] = {}
        counted, kept = 0, len(data) - 1
        first = ended = 0  # lines on which such cells begin and end, of one row after another
        for cell in self._cell.finditer(data, start):
            if cell.end() == len(data) and not last:
                kept = cell.start() - 1
                break
            lines = _line_ends(cell[1] if cell[2] else cell[1].rstrip())
            if lines and (not cell[2] or self._goes_on.match(data, cell.end())):
                self._line += _line_ends(data[counted : cell.start()])
                counted = cell.start()
                first = first if self._line == ended else self._line
                ended = self._line + lines
                found[first] = ended - first + 1
        self._line += _line_ends(data[counted:kept])
        self._kept = data[kept:]
        return found


def _line_ends(data: bytes) -> int:
    return len(LINE_END.findall(data))


def joined_lines(data: bytes, sep: str, quote: str, skipped: int = 0) -> dict[int, int]:
    """Find the rows that stray quotes joined of several lines.

    Parameters
    ----------
    skipped
        Lines above the table.

    Returns
    -------
    dict
        How many lines they join, by the line of the first quote.
    """
    if not quote or _is_well_quoted(data[start_of_line(data, skipped) :], sep, quote):
        return {}
    return StrayQuotes(sep, quote, skipped).feed(data, last=True)


def start_of_line(data: bytes, number: int) -> int:
    """Where a line begins; lines are counted from 0."""
    start = 0
    for _ in range(number):
        end = LINE_END.search(data, start)
        if end is None:
            return len(data)
        start = end.end()
    return start


def _is_well_quoted(data: bytes, sep: str, quote: str) -> bool:
    """Whether quotes stand at the edges of cells or in pairs; whole columns of bytes at once."""
    import numpy as np

    view = np.frombuffer(b"\n" + data + b"\n", dtype=np.uint8)
    quotes = np.flatnonzero(view == ord(quote))
    edges = np.isin(np.arange(256), [10, 13, ord(quote), *sep.encode()])
    before, behind = view[quotes[::2] - 1], view[quotes[1::2] + 1]
    return len(quotes) % 2 == 0 and bool(edges[before].all() and edges[behind].all())


class WellQuoted(io.RawIOBase):
    """A text table as it is; where stray quotes join lines, reading it is an error.

    Parameters
    ----------
    skipped
        Lines above the table.
    """

    def __init__(self, stream: IO[bytes], *, sep: str, quote: str, skipped: int, name: str) -> None:
        self._stream, self._name = stream, name
        self._quotes = StrayQuotes(sep, quote, skipped)
        self._rest = memoryview(b"")
        self._ended = False

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read some bytes, as many as are there."""
        if not self._rest and not self._ended:
            self._rest = memoryview(self._checked())
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size

    def _checked(self) -> bytes:
        data: bytes = cast(Any, self._stream).read1(BUFFER)
        self._ended = not data
        for line, count in self._quotes.feed(data, last=self._ended).items():
            raise UserError(
                f"{self._name}: line {line:,}: a stray quote joins {count:,} lines to one row. "
                f"Mend it, or add --quote '' {REMEDY}."
            )
        return data
