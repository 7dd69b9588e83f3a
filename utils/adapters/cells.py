"""From label columns to lists of names: every distinct cell is looked at once."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from utils.common.errors import UserError
from utils.common.names import tidy_name, visible
from utils.tables.columns import UNIT, encoded, is_list, joined_columns, joined_lists, strings

if TYPE_CHECKING:
    import pyarrow as pa

Path: TypeAlias = tuple[str, ...]
Label: TypeAlias = tuple[Path, ...]  # the paths of one cell; none where the cell is no label
MAX_DEPTH = 32
_COMMON = (" > ", " >> ", ">>", ">", " / ", "/", "|", " - ", "::", ":", ";", ",", "\\", ".")
_BRACKETS = {"[": "]", "(": ")", "{": "}"}
_QUOTED = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_NUMBERS = re.compile(r"-?\d+(?:\s+-?\d+)+")
_ITEM = re.compile(rf"(?:^|,)(?:\s*({_QUOTED})\s*(?=,|\Z)|([^,]*))", re.DOTALL)
_POSTGRES_ITEM = r'(?:"(?:[^"\\]|\\.)*"|[^\s{},"\\\'][^\s{},"\\]*)'
_POSTGRES = re.compile(rf"\{{{_POSTGRES_ITEM}(?:,{_POSTGRES_ITEM})*\}}", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Cells:
    """The labels of a table's rows as they are written, names tidied but for line breaks.

    Parameters
    ----------
    rows
        Index into `labels`; shape (rows,).
    labels
        Distinct labels.
    one_string
        Each label is one string that was neither a list nor divided by a delimiter.
    levels
        The labels come from one column per level.
    """

    rows: NDArray[np.int64]
    labels: list[Label]
    one_string: bool
    levels: bool


def read_cells(table: pa.Table, columns: Sequence[str], delimiter: str | None) -> Cells:
    """Read the label columns of a table.

    Raises
    ------
    UserError
        The delimiter stands in no label.
    """
    parts = [_one_string(table[name]) for name in columns]
    rows, distinct = encoded(joined_columns(parts, UNIT))
    words: list[str] = distinct.to_pylist()
    lists = len(columns) == 1 and is_list(table[columns[0]].type)
    labels: list[Label] = [(tuple(word.split(UNIT)),) for word in words]
    if len(columns) == 1 and not lists:
        labels, lists = _unpacked_cells(words)
    if delimiter:
        labels = _delimited(labels, delimiter, lists, columns)
    return Cells(
        rows=rows,
        labels=_tidied_labels(labels),
        one_string=not (delimiter or lists or len(columns) > 1),
        levels=len(columns) > 1,
    )


def _one_string(column: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow.compute as pc

    if is_list(column.type):
        return joined_lists(column)
    return pc.replace_substring(strings(column), UNIT, " ")


def _tidied_labels(labels: Iterable[Label]) -> list[Label]:
    """Tidy the names of all labels, line by line: line breaks and tabs may separate paths."""
    tidy: dict[str, str] = {}

    def tidied(name: str) -> str:
        if name not in tidy:
            lines = map(tidy_name, name.replace("\t", "\n").splitlines())
            tidy[name] = "\n".join(filter(None, lines))
        return tidy[name]

    return [tuple(tuple(map(tidied, path)) for path in label) for label in labels]


def _unpacked_cells(cells: Sequence[str]) -> tuple[list[Label], bool]:
    """Read cells that hold a list as JSON, Python, NumPy, Java, PostgreSQL or DuckDB write it.

    Returns
    -------
    labels, lists
        Whether any cell holds a list.
    """
    full = [cell for cell in map(str.strip, cells) if cell]
    loose = all(cell[-1] == _BRACKETS.get(cell[0]) for cell in full) and any(
        "," in cell for cell in full
    )
    labels, lists = [], False
    for cell in cells:
        inside = cell.strip()
        found = None
        if inside and inside[-1] == _BRACKETS.get(inside[0]):
            found = _unpacked(inside, loose)
        lists |= found is not None
        labels.append(((cell,),) if found is None else found)
    return labels, lists


def _unpacked(cell: str, loose: bool) -> Label | None:
    """Read one cell in brackets; `loose`: names need no quotes. None where it is no list."""
    try:
        value = json.loads(cell)
    except RecursionError:
        return ()
    except ValueError:
        value = _literal(cell)
    if (value is None and loose) or (isinstance(value, set) and _POSTGRES.fullmatch(cell)):
        value = _unquoted(cell)
    if value == {} and loose:
        value = []  # PostgreSQL's empty list
    if isinstance(value, set):
        return tuple((_text(item),) for item in sorted(value, key=str))
    if not isinstance(value, list | tuple):
        return None
    if value and all(isinstance(item, list | tuple) for item in value):
        inner = [item for path in value for item in path]
        return () if _nested(inner) else tuple(tuple(map(_text, path)) for path in value)
    return () if _nested(value) else (tuple(map(_text, value)),)


def _nested(items: Iterable[Any]) -> bool:
    return any(isinstance(item, list | tuple | dict | set) for item in items)


def _text(item: Any) -> str:
    return "" if item is None else str(item).replace(UNIT, " ")


def _literal(cell: str) -> Any:
    """Read Python's or NumPy's notation of a list."""
    if re.fullmatch(rf"\[\s*(?:{_QUOTED})(?:\s+(?:{_QUOTED}))+\s*\]", cell):
        return [ast.literal_eval(item) for item in re.findall(_QUOTED, cell)]
    if cell[0] == "[" and _NUMBERS.fullmatch(cell[1:-1].strip()):
        return cell[1:-1].split()
    try:
        return ast.literal_eval(cell)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _unquoted(cell: str) -> list[str] | None:
    """Read names between commas, quoted only if they must be: Java, PostgreSQL and DuckDB."""
    inside = cell[1:-1].strip()
    items = _ITEM.findall(inside) if inside else []
    odd = "[]{}:" if cell[0] == "{" else "[]{}"  # lists in lists, or objects
    if any(sign in bare for _, bare in items for sign in odd):
        return None
    return [
        re.sub(r"\\(.)", r"\1", quoted[1:-1], flags=re.DOTALL) if quoted else bare.strip()
        for quoted, bare in items
    ]


def _delimited(
    labels: Sequence[Label], delimiter: str, lists: bool, columns: Sequence[str]
) -> list[Label]:
    """Split names at the delimiter. Items of a list are whole paths if the column says so."""
    found = [tuple(tuple(map(visible, path)) for path in label) for label in labels]
    delimiter = visible(delimiter) or delimiter
    if not any(delimiter in name for label in found for path in label for name in path):
        _refuse_delimiter(found, delimiter, columns)
        return found
    parts = [[[name.split(delimiter) for name in path] for path in label] for label in found]
    whole = lists and _hold_paths(parts)
    return [
        tuple(tuple(item) for path in label for item in path) if whole or len(label) > 1
        else tuple(tuple(name for item in path for name in item) for path in label)
        for label in parts
    ]  # fmt: skip


def _refuse_delimiter(labels: Iterable[Label], delimiter: str, columns: Sequence[str]) -> None:
    joined = (", ".join(name for path in label for name in path) for label in labels)
    example = next((text for text in joined if text.strip(" ,")), None)
    if example is None:
        return  # no labels at all: the rows are counted as such
    other = next((f" Try --delimiter {d!r}." for d in _COMMON if d in example), "")
    raise UserError(
        f"The delimiter {delimiter!r} stands in no label of {', '.join(columns)} "
        f"(the first is {example[:80]!r}).{other}"
    )


def _hold_paths(labels: Iterable[list[list[list[str]]]]) -> bool:
    """Whether lists of several items hold a path in each item, rather than a name."""
    lists = [path for label in labels for path in label]
    roots = {items[0][0].strip() for items in lists if items} - {""}
    return any(
        any(len(item) > 1 for item in items) or any(item[0].strip() in roots for item in items[1:])
        for items in lists
        if len(items) > 1
    )


def spacing_hint(labels: Iterable[Label], delimiter: str) -> str | None:
    """Say that labels hold the delimiter without its spaces: behind the name of a root."""
    core = delimiter.strip()
    if core in ("", delimiter):
        return None
    firsts = {path[0] for label in labels for path in label if path}
    odd = sorted(
        name for name in firsts if core in name and name.partition(core)[0].strip() in firsts
    )
    if not odd:
        return None
    return (
        f"{len(odd):,} names at the root, such as {odd[0]!r}, hold {core!r} without the spaces of "
        f"the delimiter: --delimiter {core!r} divides both"
    )


def delimiter_hint(labels: Sequence[Label]) -> str | None:
    """Say that labels of one name look like whole paths: most hold the same separator."""
    names = [path[0] for label in labels for path in label[:1] if len(path) == 1]
    for candidate in (" >> ", " > ", ">>", ">", " / ", "|", "::"):
        if 2 * sum(candidate in name for name in names) > len(labels):
            return f"labels look like paths: did you forget --delimiter {candidate!r}?"
    return None
