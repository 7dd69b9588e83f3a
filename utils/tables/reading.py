"""Read tables: any of the supported kinds of file to an Arrow table of the wanted columns."""

from __future__ import annotations

from collections.abc import Sequence

from utils.common.errors import UserError, unknown
from utils.tables.batches import Reader, ReadOptions
from utils.tables.source_files import SourceFile


def open_reader(source: SourceFile, options: ReadOptions, hints: Sequence[str]) -> Reader:
    """Open a file with the reader of its kind.

    Parameters
    ----------
    hints
        Names that the user expects among the columns; they settle the separator and the shape
        of JSON where several would do.
    """
    from utils.tables import columnar, delimited, json_files, workbooks

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
