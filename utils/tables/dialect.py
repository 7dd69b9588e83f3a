"""How a text table is written: its separator, the lines above its header, its escapes."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import StringIO

from utils.common.errors import UserError
from utils.tables.batches import ReadOptions
from utils.tables.headers import matches
from utils.tables.quotes import start_of_line

SEPARATORS = (",", "\t", ";", "|", "^", "~", "\x01")
STAND_IN = "\x1e"
"""Takes the place of a separator of several characters."""
CERTAIN, POSSIBLE = 2, 1
_SNIFFED = 1 << 18
_SAMPLE_ROWS = 50
_NAMED_SEPARATORS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|"}
_DECLARED = re.compile(
    rb'"?sep=(\\t|[^\r\n"\x80-\xff]|[\xc2-\xf4][\x80-\xbf]{1,3})"?[ \t]*(?:\r\n|\r|\n)',
    re.IGNORECASE,
)
_NO_TEXT = b"\xff"  # UTF-8 has no such byte


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How a text table is written.

    Parameters
    ----------
    skipped
        Lines above the header.
    rows
        The first rows by line number, the header being the first of them.
    """

    sep: str
    skipped: int
    rows: dict[int, list[str]]


def dialect_of(data: bytes, options: ReadOptions, hints: Sequence[str]) -> Dialect:
    """Find out how a text table in UTF-8 is written.

    Parameters
    ----------
    hints
        Names that should be among the columns.

    Raises
    ------
    UserError
        The given separator cannot be one.
    """
    declared = declared_separator(data)
    if options.header_row and start_of_line(data, options.header_row - 1) == len(data):
        raise UserError(f"--header-row is {options.header_row}: there are not so many lines.")
    skipped = options.header_row - 1 if options.header_row else int(declared is not None)
    start = start_of_line(data, skipped)
    end = max(start + _SNIFFED, start_of_line(data, skipped + 1))  # the header must be whole
    head = data[start:end].decode("utf-8", "replace")
    whole = len(data) <= _SNIFFED
    if options.sep is not None:
        separators: Sequence[str] = [separator(options.sep, options.quote)]
    else:
        separators = [declared] if declared else SEPARATORS
    samples = {sep: _sample(head, whole, sep, options.quote, skipped) for sep in separators}
    names = hints if options.header else ()
    sep = max(samples, key=lambda one: _fit(samples[one], names))
    return Dialect(sep=sep, skipped=skipped, rows=samples[sep])


def declared_separator(data: bytes) -> str | None:
    """The separator that a first line ``sep=;`` names, as Excel writes and reads it."""
    found = _DECLARED.match(data)
    if not found:
        return None
    return found[1].decode("utf-8", "replace").replace("\\t", "\t")


def separator(given: str, quote: str = '"') -> str:
    """The separator that an option names: itself, or a word such as ``tab``.

    Raises
    ------
    UserError
        It cannot be one.
    """
    sep = _NAMED_SEPARATORS.get(given, given)
    if not sep or sep in ("\n", "\r", quote):
        raise UserError(f"--sep {given!r} cannot separate columns.")
    return sep


def _fit(rows: dict[int, list[str]], names: Sequence[str]) -> tuple[float, ...]:
    """How well a separator explains the first rows: wanted columns, even rows, columns."""
    if not rows:
        return (0, 0, 0)
    wanted = max(matches(row, names) for row in rows.values())
    width, even = Counter(map(len, rows.values())).most_common(1)[0]
    return (wanted, even / len(rows) if width > 1 else 0, width)


def _sample(head: str, whole: bool, sep: str, quote: str, skipped: int) -> dict[int, list[str]]:
    """The first rows of a table by the number of their first line."""
    if len(sep.encode()) > 1:
        head, sep = head.replace(sep, STAND_IN), STAND_IN
    style = {"quotechar": quote} if quote else {"quoting": csv.QUOTE_NONE}
    reader = csv.reader(StringIO(head, newline=""), delimiter=sep, **style)
    rows: dict[int, list[str]] = {}
    line = skipped + 1
    try:
        for row in reader:
            if row:
                rows[line] = row
            line = skipped + reader.line_num + 1
            if len(rows) == _SAMPLE_ROWS:
                break
    except csv.Error:  # a cell beyond csv's limit: the rows so far tell enough
        return rows
    if not whole and 2 <= len(rows) < _SAMPLE_ROWS:
        rows.popitem()  # cut off in the middle
    return rows


def escape_signs(data: bytes, sep: str, quote: str) -> int:
    """Whether quotes inside quoted cells have a backslash before them, as MySQL writes them.

    Returns
    -------
    int
        `CERTAIN` where a cell goes on behind such a quote, as ``"a 5\\" pipe"`` does; `POSSIBLE`
        where it may end there, as ``"a pipe of 5\\""`` does; 0 where there is no sign of it.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if not quote or b"\\" + quote.encode() not in data:
        return 0
    q, s = re.escape(quote), re.escape(sep)
    inside = rf"(?:[^{q}\\]|\\[^{q}]|{q}{q})*"
    sign = rf"(?:^|[\r\n]|{s}){q}{inside}\\{q}[^{q}{s}\r\n]"
    text = pa.array([data], pa.large_binary())
    if pc.match_substring_regex(text, sign)[0].as_py():  # RE2: linear
        return CERTAIN
    return POSSIBLE if re.search(rf"\\{q}{q}(?:{s}|[\r\n]|$)".encode(), data) else 0


def has_escapes(head: bytes, sep: str, quote: str) -> bool:
    """Whether the first rows of a table have backslashes before quotes, or are read better so."""
    doubt = escape_signs(head, sep, quote)
    if doubt != POSSIBLE:
        return doubt == CERTAIN
    plain = without_escapes(head, quote)
    return _rows_that_fit(plain, sep, quote) > _rows_that_fit(head, sep, quote)


def _rows_that_fit(head: bytes, sep: str, quote: str) -> int:
    """Rows as wide as the first one."""
    text = StringIO(head.decode("utf-8", "replace"), newline="")
    reader = csv.reader(text, delimiter=sep, quotechar=quote)
    widths: list[int] = []
    with suppress(csv.Error):  # a cell beyond csv's limit
        widths.extend(len(row) for row in reader if row)
    return widths.count(widths[0]) if widths else 0


def without_escapes(data: bytes, quote: str) -> bytes:
    """Double the quotes that have a backslash before them; a doubled backslash is one."""
    mark = quote.encode()
    data = data.replace(b"\\\\", _NO_TEXT).replace(b"\\" + mark, mark * 2)
    return data.replace(b"\\\n", b"\n").replace(_NO_TEXT, b"\\")
