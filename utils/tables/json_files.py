"""JSON in its many shapes, and JSON lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from utils.common.errors import UserError, unknown
from utils.tables.batches import Batch, BrokenRows, Reader, ReadOptions, numbered, to_array
from utils.tables.source_files import Decoded, SourceFile, decode

if TYPE_CHECKING:
    import pyarrow as pa

RECORDS_COLUMN = "records"
_PEEKED = 1000
_SHARED_LINE = re.compile(rb"\}[ \t\r]*\{")  # or a text that looks like it


class JsonReader(Reader):
    """Rows of a parsed JSON value: lists of one width, or objects."""

    def __init__(
        self, columns: Sequence[str], rows: Sequence[Any], source: SourceFile, text: Decoded
    ) -> None:
        self.columns = tuple(columns)
        self._rows, self._name, self._text = rows, source.path.name, text

    def read(self, wanted: Sequence[str]) -> Batch:
        """Pick the wanted fields; a row that is neither object nor list of the width is broken."""
        broken = BrokenRows()
        good = list(self._checked(broken))
        places = {name: place for place, name in enumerate(self.columns)}
        cells = {n: [_field(row, n, places[n]) for row in good] for n in wanted}
        for name, values in cells.items():
            _refuse_nested(name, values)
        return Batch(
            table=_table(cells),
            broken=broken.count,
            broken_at=tuple(broken.places),
            encodings=(self._text.encoding,),
            notes=(self._text.note,) if self._text.note else (),
        )

    def _checked(self, broken: BrokenRows) -> Iterator[Any]:
        objects = any(isinstance(row, dict) for row in self._rows)
        for number, row in enumerate(self._rows, 1):
            # Among objects a list's items belong to no column.
            fits = not objects and isinstance(row, list) and len(row) == len(self.columns)
            if fits or isinstance(row, dict):
                yield row
            else:
                broken.add(f"{self._name}: row {number}")


class JsonLinesReader(Reader):
    """One JSON object, or one list, a line; the first line tells which."""

    def __init__(self, source: SourceFile, options: ReadOptions, hints: Sequence[str]) -> None:
        self._source = source
        self._text = decode(source, options.encoding)
        self._kind: type[Any] | tuple[type[Any], ...] = (dict, list)
        head = list(self._rows(BrokenRows(), _PEEKED))
        if not head:
            raise UserError(f"{source.path} holds no line of JSON.")
        self._kind = type(head[0])
        head = [row for row in head if isinstance(row, self._kind)]
        self.columns = _columns_of(head)
        if not {hint.strip() for hint in hints} <= {name.strip() for name in self.columns}:
            self.columns = _columns_of(self._rows(BrokenRows()))  # some begin further down
        self._types = {
            name: _arrow_type([_peek(row, name) for row in head]) for name in self.columns
        }

    def read(self, wanted: Sequence[str]) -> Batch:
        """Read the wanted fields: by Arrow where every line is in order, else line by line."""
        fast = self._fast(wanted)
        if fast is None:
            return self._slow(wanted)
        note = (self._text.note,) if self._text.note else ()
        return Batch(table=fast, encodings=(self._text.encoding,), notes=note)

    def _rows(self, broken: BrokenRows, limit: int | None = None) -> Iterator[Any]:
        """Parse the lines; None for all."""
        data = self._text.data
        lines = data.split(b"\n") if limit is None else data.split(b"\n", limit)[:limit]
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, self._kind):
                yield row
            else:
                broken.add(f"{self._source.path.name}:{number}")

    def _fast(self, wanted: Sequence[str]) -> pa.Table | None:
        import pyarrow as pa
        from pyarrow import json as arrow_json

        types = {name: self._types[name] for name in wanted}
        if None in types.values() or _SHARED_LINE.search(self._text.data):
            return None
        options = arrow_json.ParseOptions(
            explicit_schema=pa.schema(list(types.items())), unexpected_field_behavior="ignore"
        )
        try:
            return arrow_json.read_json(
                pa.BufferReader(self._text.data),
                read_options=arrow_json.ReadOptions(block_size=1 << 24),
                parse_options=options,
            ).select(list(wanted))
        except (pa.ArrowException, KeyError):
            return None  # some line is odd: the slow way finds and counts it

    def _slow(self, wanted: Sequence[str]) -> Batch:
        broken = BrokenRows()
        inner = JsonReader(self.columns, list(self._rows(broken)), self._source, self._text)
        batch = inner.read(wanted)
        return Batch(
            table=batch.table,
            broken=broken.count + batch.broken,
            broken_at=(*broken.places, *batch.broken_at),
            encodings=batch.encodings,
            notes=batch.notes,
        )


def open_json(source: SourceFile, options: ReadOptions, hints: Sequence[str]) -> Reader:
    """Open a JSON file of any pandas orient, a nested one with `records`, or JSON lines.

    Raises
    ------
    UserError
        It is not JSON, or its shape is not a table's.
    """
    text = decode(source, options.encoding)
    try:
        value = json.loads(text.data)
    except (ValueError, RecursionError) as error:
        if _looks_like_lines(text.data):
            return JsonLinesReader(source, options, hints)
        raise UserError(f"{source.path} is not valid JSON: {error}.") from error
    if options.records:
        columns, rows = _nested(value, options.records, source)
    else:
        columns, rows = _oriented(value, hints, source)
    if not rows:
        raise UserError(f"{source.path} holds no rows.")
    return JsonReader(columns, rows, source, text)


def _looks_like_lines(data: bytes) -> bool:
    lines = data.lstrip().split(b"\n", 2)
    try:
        return len(lines) > 1 and isinstance(json.loads(lines[0]), dict | list)
    except ValueError:
        return False


def _nested(
    value: Any, keys: Sequence[str], source: SourceFile
) -> tuple[tuple[str, ...], list[Any]]:
    """Rows under some keys of an object, with the key itself as one more column."""
    rows: list[Any] = []
    columns: dict[str, None] = {}
    for key in keys:
        names, found = _oriented(_under(value, key, source), (), source)
        columns.update(dict.fromkeys(names))
        rows += [
            {**row, RECORDS_COLUMN: key} if isinstance(row, dict)
            else [*row, key] if isinstance(row, list) else row
            for row in found
        ]  # fmt: skip
    return (*columns, RECORDS_COLUMN), rows


def _under(value: Any, key: str, source: SourceFile) -> Any:
    """The value at a key, or at ``a.b`` deeper down."""
    inner = value
    for part in [key] if isinstance(value, dict) and key in value else key.split("."):
        if not isinstance(inner, dict) or part not in inner:
            choices = value if isinstance(value, dict) else ()
            raise unknown("key of --records", key, map(str, choices))
        inner = inner[part]
    return inner


def _oriented(
    value: Any, hints: Sequence[str], source: SourceFile
) -> tuple[tuple[str, ...], list[Any]]:
    """Columns and rows of a JSON table."""
    if isinstance(value, list):
        return _from_list(value)
    if not isinstance(value, dict) or not value:
        raise UserError(f"{source.path} holds {str(value)[:40]!r}, which is no table.")
    if isinstance(value.get("data"), list) and ("columns" in value or "schema" in value):
        names, rows = _from_list(value["data"])
        given = value.get("columns")
        return (tuple(map(str, given)) if isinstance(given, list) else names), rows
    if all(isinstance(inner, dict) for inner in value.values()):
        return _from_objects(value, hints)
    if all(isinstance(inner, list) for inner in value.values()):
        return _from_columns(value, source)
    raise UserError(f"{source.path} is no table: {_shape(value)}. {_advice(value)}")


def _from_list(rows: list[Any]) -> tuple[tuple[str, ...], list[Any]]:
    if any(isinstance(row, dict) for row in rows):
        return tuple(dict.fromkeys(k for row in rows if isinstance(row, dict) for k in row)), rows
    first = next((row for row in rows if isinstance(row, list)), None)
    if first is None:
        return numbered(1), [[row] for row in rows]
    return numbered(len(first)), rows


def _from_objects(
    value: Mapping[str, dict[str, Any]], hints: Sequence[str]
) -> tuple[tuple[str, ...], list[Any]]:
    """{column: {index: cell}} or {index: {column: cell}}: the hinted names tell which."""
    inner = tuple(dict.fromkeys(key for part in value.values() for key in part))
    by_column = sum(hint in value for hint in hints)
    by_index = sum(hint in inner for hint in hints)
    if by_index > by_column or (by_index == by_column and len(inner) < len(value)):
        return inner, list(value.values())
    columns = tuple(value)
    return columns, [{name: value[name].get(key) for name in columns} for key in inner]


def _from_columns(
    value: Mapping[str, list[Any]], source: SourceFile
) -> tuple[tuple[str, ...], list[Any]]:
    lengths = set(map(len, value.values()))
    cells = [part[0] for part in value.values() if part]
    if len(lengths) != 1 or all(isinstance(cell, dict) for cell in cells):
        raise UserError(f"{source.path} is no table: {_shape(value)}. {_advice(value)}")
    return tuple(value), [list(row) for row in zip(*value.values(), strict=True)]


def _shape(value: Mapping[str, Any]) -> str:
    return "an object with the keys " + ", ".join(list(map(str, value))[:8])


def _advice(value: Mapping[str, Any]) -> str:
    lists = [str(key) for key, inner in value.items() if isinstance(inner, list | dict)]
    return f"If rows lie under some of them, name these: --records {','.join(lists[:3]) or 'KEY'}"


def _columns_of(rows: Iterable[Any]) -> tuple[str, ...]:
    """All keys of objects; the places of the first list."""
    names: dict[str, None] = {}
    for row in rows:
        if isinstance(row, list):
            return numbered(len(row))
        names.update(dict.fromkeys(row))
    return tuple(names)


def _field(row: Any, name: str, place: int) -> Any:
    return row.get(name) if isinstance(row, dict) else row[place]


def _refuse_nested(name: str, values: Sequence[Any]) -> None:
    """Refuse a column of nothing but objects, or lists of objects or lists."""
    there = [value for value in values if value is not None]
    items = [item for value in there for item in (value if isinstance(value, list) else [value])]
    if items and all(isinstance(item, dict | list) for item in items):
        kind = "objects" if isinstance(items[0], dict) else "lists of lists"
        raise UserError(
            f"Column {name!r} holds {kind}, such as {json.dumps(there[0])[:60]}: it must hold "
            "single values, or lists of them."
        )


def _peek(row: Any, name: str) -> Any:
    return row.get(name) if isinstance(row, dict) else None


def _arrow_type(values: Sequence[Any]) -> Any:
    """String or list<string> if all peeked values are; None: read it the slow way."""
    import pyarrow as pa

    there = [value for value in values if value is not None]
    if there and all(isinstance(value, str) for value in there):
        return pa.string()
    if there and all(isinstance(v, list) and all(isinstance(i, str) for i in v) for v in there):
        return pa.list_(pa.string())
    return None


def _table(columns: Mapping[str, Sequence[Any]]) -> Any:
    import pyarrow as pa

    return pa.table({name: to_array(values) for name, values in columns.items()})
