"""Tables of plain text that fit a width: words stay whole, and nothing is cut off."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

GAP = 2
INDENT = 2
_NUMBER = re.compile(r"[-+]?\d[\d,.]*( ?[A-Za-z%]{1,2})?|nan")
_JOINERS = "\u200c\u200d"  # letters of Persian and Indic words stand apart or together by them
_BREAKS = re.compile(r"(?<=[-_:/.,=>|·])")

Cells = Sequence[str]


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """A table as lines.

    Parameters
    ----------
    heads, lines
        In the order in which they are printed.
    """

    heads: list[str]
    lines: list[str]


def cell_width(text: str) -> int:
    """Columns of a terminal that a text takes: wide characters two, combining ones none."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def printable(text: str) -> str:
    """A text in one line without what a terminal would obey, wherever it came from."""
    if text.isprintable():
        return text
    return "".join(map(_printable_letter, text))


def _printable_letter(letter: str) -> str:
    if letter.isprintable() or letter in _JOINERS:
        return letter
    return " " if letter.isspace() else "?"


def lay_out(heads: Cells, rows: Sequence[Cells], width: int | None) -> TextTable:
    """Lay a table out in columns, or row by row where columns of whole words are too wide.

    Parameters
    ----------
    heads
        One for each column.
    rows
        One line each; numbers are aligned right.
    width
        In cells of a terminal; None for as many as it takes.
    """
    table = [[printable(cell) for cell in row] for row in (heads, *rows)]
    columns = list(zip(*table, strict=True))
    natural = [max(map(cell_width, column)) for column in columns]
    room = None if width is None else width - GAP * (len(columns) - 1)
    if room is None or sum(natural) <= room:
        return _in_columns(table, natural)
    least = [_least(column, width or 0, room) for column in columns]
    if sum(least) <= room:
        return _in_columns(table, _shrunk(natural, least, room))
    return TextTable(heads=[], lines=list(_row_by_row(table, max(width or 0, 1))))


def _least(column: Cells, width: int, room: int) -> int:
    """The width of a column's longest word; one that is broken anyway gets half the room."""
    longest = max(cell_width(word) for cell in column for word in cell.split(" "))
    return longest if longest <= width else room // 2


def _shrunk(natural: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """Widths that fit: the widest columns give way first, none below its longest word."""
    widths = list(natural)
    for cap in range(min(max(natural), room), 0, -1):
        widths = [max(low, min(high, cap)) for low, high in zip(least, natural, strict=True)]
        if sum(widths) <= room:
            break
    return widths


def _in_columns(table: Sequence[Cells], widths: Sequence[int]) -> TextTable:
    columns = list(zip(*table[1:], strict=True)) or [()] * len(widths)
    right = [place > 0 and _are_numbers(column) for place, column in enumerate(columns)]
    heads, *rows = [list(_joined(row, widths, right)) for row in table]
    return TextTable(heads=heads, lines=[line for row in rows for line in row])


def _are_numbers(column: Cells) -> bool:
    filled = [cell for cell in column if cell]
    return bool(filled) and all(map(_NUMBER.fullmatch, filled))


def _joined(row: Cells, widths: Sequence[int], right: Sequence[bool]) -> Iterator[str]:
    """The lines of one row, as many as its longest cell needs."""
    cells = [wrapped(cell, width) for cell, width in zip(row, widths, strict=True)]
    for number in range(max(map(len, cells), default=0)):
        parts = [
            _padded(lines[number] if number < len(lines) else "", width, end)
            for lines, width, end in zip(cells, widths, right, strict=True)
        ]
        yield (" " * GAP).join(parts).rstrip()


def _padded(text: str, width: int, right: bool) -> str:
    space = " " * (width - cell_width(text))
    return space + text if right else text + space


def _row_by_row(table: Sequence[Cells], width: int) -> Iterator[str]:
    """Each row as a block: its first cell, below it the others with their heads."""
    heads, *rows = table
    for number, row in enumerate(rows):
        if number:
            yield ""
        title = f"{heads[0]} {row[0]}" if _NUMBER.fullmatch(row[0]) else row[0]
        yield from wrapped(title.strip(), width)
        for head, cell in zip(heads[1:], row[1:], strict=True):
            if cell:
                lines = wrapped(f"{head}: {cell}", max(width - 2 * INDENT, 1))
                yield from (" " * INDENT * min(n, 2) + line for n, line in enumerate(lines, 1))


def wrapped(text: str, width: int) -> list[str]:
    """A text in lines of at most `width` cells, broken between words where that can be."""
    if cell_width(text) <= width:
        return [text]
    lines, line = [], ""
    for word in text.split(" "):
        longer = f"{line} {word}" if line else word
        if cell_width(longer) <= width:
            line = longer
            continue
        if line:
            lines.append(line)
        *whole, line = _folded(word, width)
        lines += whole
    return [*lines, line]


def _folded(word: str, width: int) -> list[str]:
    """A word in pieces of at most `width` cells, broken after a sign where there is one."""
    if cell_width(word) <= width:
        return [word]
    pieces, piece = [], ""
    for part in _BREAKS.split(word):
        for unit in [part] if cell_width(part) <= width else part:
            if piece and cell_width(piece + unit) > width:
                pieces.append(piece)
                piece = ""
            piece += unit
    return [*pieces, piece]
