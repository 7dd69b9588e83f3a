"""Parquet, Feather and Arrow files, and workbooks."""

from __future__ import annotations

import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from typing import Any

from utils.adapters.reading import Batch, BrokenRows, ReadOptions, to_array
from utils.adapters.sources import SourceFile
from utils.errors import UserError, unknown

# Whatever openpyxl meets in a damaged file; XML's ParseError is a SyntaxError.
_XLSX_FAILURES = (
    zipfile.BadZipFile, zlib.error, SyntaxError, LookupError, ValueError, TypeError,
    AttributeError, OSError, EOFError, RuntimeError,
)  # fmt: skip


class ParquetReader:
    """A Parquet file; only the wanted columns are read."""

    def __init__(self, source: SourceFile) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._source = source
        try:
            self.columns = tuple(pq.read_schema(_handle(source)).names)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(source, "a Parquet file", error) from error

    def read(self, wanted: Sequence[str]) -> Batch:
        """Read the wanted columns."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return Batch(table=pq.read_table(_handle(self._source), columns=list(wanted)))
        except (pa.ArrowException, OSError) as error:
            raise _damaged(self._source, "a Parquet file", error) from error


class ArrowReader:
    """A Feather file (any version), or an Arrow IPC file or stream."""

    def __init__(self, source: SourceFile) -> None:
        import pyarrow as pa
        from pyarrow import feather, ipc

        contents = source.contents()
        old_feather: Any = feather.read_table
        attempts: tuple[Callable[[], Any], ...] = (
            lambda: ipc.RecordBatchFileReader(pa.py_buffer(contents)).read_all(),
            lambda: ipc.RecordBatchStreamReader(pa.py_buffer(contents)).read_all(),
            lambda: old_feather(pa.BufferReader(contents)),
        )
        for attempt in attempts:
            try:
                self._table = attempt()
                self.columns = tuple(self._table.column_names)
                return
            except (pa.ArrowException, OSError) as error:
                failure: Exception = error
        raise _damaged(source, "an Arrow or Feather file", failure)

    def read(self, wanted: Sequence[str]) -> Batch:
        """Pick the wanted columns."""
        return Batch(table=self._table.select(list(wanted)))


class WorkbookReader:
    """One sheet of an xlsx workbook, its first row being the header."""

    def __init__(self, source: SourceFile, options: ReadOptions) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # openpyxl warns of styles, which nobody needs here
                self._notes, rows = _sheet_rows(source, options.sheet)
        except _XLSX_FAILURES as error:
            raise _damaged(source, "an xlsx workbook", error) from error
        if not rows:
            raise UserError(f"{source.path} is empty.")
        width = max(i for row in rows[:1] for i, name in enumerate(row, 1) if name is not None)
        names = ["" if name is None else str(name) for name in rows[0][:width]]
        self.columns = tuple(names)
        self._path, self._rows = source.path, rows[1:]

    def read(self, wanted: Sequence[str]) -> Batch:
        """Turn the wanted columns into strings; rows longer than the header are broken."""
        import pyarrow as pa

        width, broken, good = len(self.columns), BrokenRows(), []
        for number, row in enumerate(self._rows, 2):
            if any(cell is not None for cell in row[width:]):
                broken.add(f"{self._path.name}:{number}")
            elif any(cell is not None for cell in row):
                good.append((*row[:width], *(None,) * (width - len(row))))
        columns = dict(zip(self.columns, zip(*good, strict=True), strict=True)) if good else {}
        table = pa.table({name: to_array(columns.get(name, ())) for name in wanted})
        return Batch(
            table=table, broken=broken.count, broken_at=tuple(broken.places), notes=self._notes
        )


def _sheet_rows(
    source: SourceFile, sheet: str | None
) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    import openpyxl

    book = openpyxl.load_workbook(BytesIO(source.contents()), read_only=True, data_only=True)
    names = [one.title for one in book.worksheets]  # charts, too, may stand on sheets
    if not names:
        raise UserError(f"{source.path} has no sheet with cells.")
    if sheet is not None and sheet not in names:
        raise unknown("sheet", sheet, names)
    chosen = book[sheet or names[0]]
    chosen.reset_dimensions()
    notes = () if sheet or len(names) == 1 else (f"sheet {names[0]!r} of {len(names)} was read",)
    return notes, _without_blank_start(chosen.iter_rows(values_only=True))


def _without_blank_start(rows: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    kept = list(rows)
    start = next((i for i, row in enumerate(kept) if any(c is not None for c in row)), len(kept))
    return kept[start:]


def _handle(source: SourceFile) -> Any:
    return str(source.path) if source.packed is None else BytesIO(source.packed)


def _damaged(source: SourceFile, kind: str, error: Exception) -> UserError:
    return UserError(f"{source.path} cannot be read as {kind}: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
