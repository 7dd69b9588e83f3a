"""Workbooks: one sheet as a table, with the values that a person sees in its cells."""

from __future__ import annotations

import datetime
import re
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from utils.common.errors import UserError, unknown
from utils.tables.batches import Batch, BrokenRows, Reader, ReadOptions, damaged, to_array
from utils.tables.headers import HEADER_LINES, header_hint, is_header, matches, repeated_note
from utils.tables.source_files import SourceFile
from utils.tables.unpacking import check_zip

# Whatever openpyxl meets in a damaged file; XML's ParseError is a SyntaxError.
FAILURES = (
    zipfile.BadZipFile, zlib.error, SyntaxError, LookupError, ValueError, TypeError,
    AttributeError, OSError, EOFError, RuntimeError,
)  # fmt: skip
_ERRORS = ("#N/A", "#REF!", "#DIV/0!", "#VALUE!", "#NAME?", "#NUM!", "#NULL!", "#SPILL!", "#CALC!")
_NO_TIME = datetime.time()
_ESCAPED = re.compile(r"_x([0-9A-Fa-f]{4})_")  # characters that XML cannot hold

Row = tuple[tuple[int, ...], tuple[Any, ...]]
"""Columns that have a value, from 1, and the values."""


@dataclass(kw_only=True)
class Sheet:
    """What a sheet holds.

    Parameters
    ----------
    rows
        Rows with values by their number, from 1.
    errors
        Cells that show an error, such as ``#N/A``, by row and column.
    unknown
        Formulas whose result is not in the file, by row and column.
    merged
        First row, first column, last row and last column of merged cells.
    """

    rows: dict[int, Row] = field(default_factory=dict)
    errors: dict[tuple[int, int], str] = field(default_factory=dict)
    unknown: list[tuple[int, int]] = field(default_factory=list)
    merged: list[tuple[int, int, int, int]] = field(default_factory=list)

    def values(self, row: int) -> dict[int, Any]:
        """The values of a row by column."""
        return dict(zip(*self.rows.get(row, ((), ())), strict=True))

    def first_rows(self) -> dict[int, list[str]]:
        """The rows in which a header may stand, as text."""
        numbers = sorted(self.rows)[:HEADER_LINES]
        return {row: [shown(cell) or "" for cell in self.rows[row][1]] for row in numbers}

    def anchors(self) -> dict[int, dict[int, Any]]:
        """The values of all rows in which merged cells begin."""
        return {top: self.values(top) for top in {area[0] for area in self.merged}}

    def merged_in(self, column: int) -> list[tuple[int, int, Any]]:
        """Where a column has merged cells: first row, last row and value, the lowest first."""
        above = self.anchors()
        return sorted(
            (
                (top, bottom, above[top].get(left))
                for top, left, bottom, right in self.merged
                if left <= column <= right
            ),
            key=lambda area: area[:2],
            reverse=True,
        )


class WorkbookReader(Reader):
    """One sheet of an xlsx workbook: a header and the rows below it."""

    def __init__(self, source: SourceFile, options: ReadOptions) -> None:
        contents = source.contents()
        check_zip(source.path, contents)
        self._path = source.path
        try:
            with _quiet():
                self._book = _opened(contents)
                self._name, self._notes = _chosen(self._book, source, options.sheet)
                self._sheet = _read_sheet(self._book, self._name)
        except FAILURES as error:
            raise damaged(source, "an xlsx workbook", error) from error
        if not self._sheet.rows:
            raise UserError(f"{source.path} is empty.")
        self._header = self._last_header_row(options.header_row or min(self._sheet.rows))
        names = self._names(self._header)
        if not names:
            raise UserError(f"{source.path}: line {self._header} is empty: it is no header.")
        self.columns = tuple(names)

    def _last_header_row(self, row: int) -> int:
        """The last row of cells that are merged from the header row downwards."""
        return max([row, *(last for first, _, last, _ in self._sheet.merged if first == row)])

    def _names(self, row: int) -> list[str]:
        """Names of the columns; cells merged from above have the name that stands there."""
        values, above = self._sheet.values(row), self._sheet.anchors()
        for top, left, bottom, _ in self._sheet.merged:
            if top < row <= bottom and left in above[top]:
                values[left] = above[top][left]
        return [shown(values.get(i)) or "" for i in range(1, max(values, default=0) + 1)]

    def hint(self, names: Sequence[str]) -> str:
        """Say where columns are that are not in the header: in another row, or on a sheet."""
        if found := header_hint(self._sheet.first_rows(), self._header, names):
            return found
        here = matches(self.columns, names)
        for other in self._book.worksheets:
            with _quiet():
                sheet = _read_sheet(self._book, other.title, HEADER_LINES)
            hits = {row: matches(cells, names) for row, cells in sheet.first_rows().items()}
            row = max(hits, key=lambda one: hits[one], default=0)
            if hits.get(row, 0) > here:
                above = f" --header-row {row}" if row > min(hits) else ""
                return f"They seem to be on another sheet: --sheet {other.title!r}{above}."
        return ""

    def read(self, wanted: Sequence[str]) -> Batch:
        """Turn the wanted columns into strings; rows longer than the header are broken."""
        import pyarrow as pa

        broken, good, repeated = BrokenRows(), [], 0
        places = [self.columns.index(name) + 1 for name in wanted]
        for cells in self._filled(places, broken):
            texts = [shown(cell) for cell in cells]
            if is_header(texts, wanted):
                repeated += 1
            else:
                good.append(texts)
        columns = dict(zip(wanted, zip(*good, strict=True), strict=True)) if good else {}
        table = pa.table({name: to_array(columns.get(name, ())) for name in wanted})
        return Batch(
            table=table,
            broken=broken.count,
            broken_at=tuple(broken.places),
            notes=(*self._notes, *repeated_note(repeated), *self._doubts(set(places))),
        )

    def _filled(self, places: Sequence[int], broken: BrokenRows) -> Iterator[list[Any]]:
        """Cells of some columns, row by row; merged cells all have the value of the first.

        A row without any cell of its own is no row, but part of the one above.
        """
        merged = [self._sheet.merged_in(place) for place in places]
        for number in sorted(self._sheet.rows):
            if number <= self._header:
                continue
            values = self._sheet.values(number)
            if max(values) > len(self.columns):
                broken.add(f"{self._path.name}:{number}")
                continue
            cells = []
            for place, areas in zip(places, merged, strict=True):
                while areas and areas[-1][1] < number:
                    areas.pop()
                inside = areas and areas[-1][0] <= number
                cells.append(areas[-1][2] if inside else values.get(place))
            yield cells

    def _doubts(self, places: set[int]) -> Iterator[str]:
        """Notes on cells of the columns that are read."""
        from openpyxl.utils import get_column_letter

        below = self._header
        errors = Counter(
            word for (row, at), word in self._sheet.errors.items() if row > below and at in places
        )
        if errors:
            kinds = ", ".join(f"{word} {count:,}" for word, count in errors.most_common())
            yield f"{errors.total():,} cells hold errors and were read as empty: {kinds}"
        formulas = [cell for cell in self._sheet.unknown if cell[1] in places]
        if formulas:
            row, at = formulas[0]
            yield (
                f"{len(formulas):,} formulas have no stored value and were read as empty (the "
                f"first in {get_column_letter(at)}{row}): open and save the workbook in a "
                "spreadsheet program"
            )
        merged = sum(
            last > below and not places.isdisjoint(range(left, min(right, len(self.columns)) + 1))
            for _, left, last, right in self._sheet.merged
        )
        if merged:
            yield f"{merged:,} groups of merged cells were read: each of their cells has the value"


def shown(value: Any) -> str | None:
    """A cell's value as a spreadsheet shows it: 1 for 1.0, a date without midnight, TRUE."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.15g}"
    if isinstance(value, datetime.datetime) and value.time() == _NO_TIME:
        return value.date().isoformat()
    return str(value)


def _unescaped(value: Any) -> Any:
    """A cell's value with the characters that a workbook writes as ``_x000D_``."""
    if not isinstance(value, str) or "_x" not in value:
        return value
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without openpyxl's warnings of styles, which nobody needs here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _opened(contents: bytes) -> Any:
    import openpyxl

    return openpyxl.load_workbook(BytesIO(contents), read_only=True, data_only=True)


def _chosen(book: Any, source: SourceFile, sheet: str | None) -> tuple[str, tuple[str, ...]]:
    """The sheet to read: the named one, else the first that is not hidden; and a note on it."""
    names = [one.title for one in book.worksheets]  # charts, too, may stand on sheets
    if not names:
        raise UserError(
            f"{source.path} has no sheet that can be read: open it in a spreadsheet program and "
            "save it as xlsx (not as Strict Open XML) or csv."
        )
    if sheet is not None and sheet not in names:
        raise unknown("sheet", sheet, names)
    visible = [one.title for one in book.worksheets if one.sheet_state == "visible"]
    name = sheet or (visible or names)[0]
    if sheet or len(names) == 1:
        return name, ()
    hidden = ", ".join(repr(one) for one in names if one not in visible)
    more = f" (hidden: {hidden})" if hidden and visible else ""
    return name, (f"sheet {name!r} of {len(names)} was read{more}",)


def _read_sheet(book: Any, name: str, limit: int | None = None) -> Sheet:
    """Read a sheet's cells, at most down to the row `limit`."""
    from openpyxl.worksheet._reader import WorkSheetParser

    found = Sheet()

    class Parser(WorkSheetParser):
        """Notices what a cell's value alone does not tell."""

        def parse_cell(self, element: Any) -> dict[str, Any]:
            cell: dict[str, Any] = super().parse_cell(element)
            place = cell["row"], cell["column"]
            formula = any(child.tag.endswith("}f") for child in element)
            if cell["data_type"] == "e" or (formula and cell["value"] in _ERRORS):
                if cell["value"] is not None:
                    found.errors[place] = str(cell["value"])
                cell["value"] = None
            elif formula and cell["value"] is None and element.get("t") != "str":
                found.unknown.append(place)
            return cell

    sheet = book[name]
    layouts: dict[tuple[int, ...], tuple[int, ...]] = {}  # most rows have the same columns
    with sheet._get_source() as stream:
        parser = Parser(
            stream, sheet._shared_strings, data_only=True, epoch=book.epoch,
            date_formats=book._date_formats, timedelta_formats=book._timedelta_formats,
        )  # fmt: skip
        for number, cells in parser.parse():
            parser.row_dimensions.clear()  # one for each styled row, which nobody asks for
            if limit and number > limit:
                break
            values = {
                c["column"]: _unescaped(c["value"]) for c in cells if c["value"] not in (None, "")
            }
            if values:
                columns = tuple(values)
                found.rows[number] = layouts.setdefault(columns, columns), tuple(values.values())
        ranges = parser.merged_cells.mergeCell if parser.merged_cells else ()
    found.merged = [(r.min_row, r.min_col, r.max_row, r.max_col) for r in ranges]
    return found
