"""From label columns to paths: every distinct label is looked at once, whatever the row count."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from utils.adapters.columns import UNIT, encoded, is_list, joined_columns, joined_lists, strings
from utils.errors import UserError
from utils.names import tidy_name

if TYPE_CHECKING:
    import pyarrow as pa

MAX_DEPTH = 32
_GAP = UNIT + "nested"  # no path: its first name is missing
EMPTY, BROKEN, ORPHAN = -1, -2, -3
_COMMON = (" > ", " >> ", ">>", ">", " / ", "/", "|", " - ", "::", ":", ";", ",", "\\", ".")


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """How labels become paths.

    Parameters
    ----------
    delimiter
        Separates the names inside one string.
    depth
        Longest path; deeper names are cut off. None keeps all.
    drop_names
        Names that match this regular expression (RE2) are taken out of their path.
    parents
        For each name, its ancestors, root first; put before a path that begins with it.
    """

    delimiter: str | None = None
    depth: int | None = None
    drop_names: str | None = None
    parents: Mapping[str, tuple[str, ...]] | None = None

    def __post_init__(self) -> None:
        if self.drop_names is not None:
            import pyarrow as pa

            _matching(pa.array([""]), self.drop_names)  # before anything is read


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The paths of a table's rows.

    Parameters
    ----------
    names
        Distinct class names.
    paths
        Distinct paths as indices into `names`, -1 beyond the end; shape (paths, depth).
    path_of_row
        Index into `paths`, or `EMPTY`, `BROKEN` (a gap in the path), `ORPHAN` (not among
        `LabelOptions.parents`); shape (rows,).
    note
        What a person should look at.
    """

    names: list[str]
    paths: NDArray[np.int64]
    path_of_row: NDArray[np.int64]
    note: str | None = None


def labels_of(table: pa.Table, columns: Sequence[str], options: LabelOptions) -> Labels:
    """Read the label columns of a table.

    Raises
    ------
    UserError
        The delimiter stands in no label, or paths are absurdly long.
    """
    parts = [_one_string(table[name]) for name in columns]
    rows, distinct = encoded(joined_columns(parts, UNIT))
    if len(columns) == 1 and not is_list(table[columns[0]].type):
        distinct = _unpacked_cells(distinct)
    note = None
    if options.delimiter:
        distinct = _delimited(distinct, options.delimiter, columns)
    elif len(columns) == 1:
        note = _delimiter_hint(distinct)
    names, matrix = _name_matrix(distinct, options)
    paths, found = _distinct_paths(matrix)
    if options.parents is not None:
        names, paths, found = _with_parents(names, paths, found, options)
    return Labels(names=names, paths=paths, path_of_row=found[rows], note=note)


def _one_string(column: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow.compute as pc

    if is_list(column.type):
        return joined_lists(column)
    return pc.replace_substring(strings(column), UNIT, " ")


def _unpacked_cells(distinct: pa.Array) -> pa.Array:
    """Cells that hold a list written as JSON or Python become names joined by `UNIT`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    packed = pc.match_substring_regex(distinct, r"^\s*\[(.|\n)*\]\s*$")
    if not pc.any(packed).as_py():
        return distinct
    cells = pa.array(map(_unpacked, distinct.filter(packed).to_pylist()), pa.large_string())
    return pc.replace_with_mask(distinct, packed, cells)


def _unpacked(cell: str) -> str:
    try:
        items = json.loads(cell)
    except RecursionError:
        return _GAP
    except ValueError:
        items = _python_list(cell)
    if not isinstance(items, list):
        return cell
    if any(isinstance(item, list | dict) for item in items):
        return _GAP
    return UNIT.join("" if item is None else str(item).replace(UNIT, " ") for item in items)


def _python_list(cell: str) -> Any:
    quoted = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
    if re.fullmatch(rf"\s*\[\s*(?:{quoted})(?:\s+(?:{quoted}))+\s*\]\s*", cell):
        return [ast.literal_eval(item) for item in re.findall(quoted, cell)]  # NumPy's notation
    try:
        return ast.literal_eval(cell.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _delimited(distinct: pa.Array, delimiter: str, columns: Sequence[str]) -> pa.Array:
    import pyarrow.compute as pc

    if not pc.any(pc.match_substring(distinct, delimiter)).as_py():
        example = next((value for value in distinct.to_pylist() if value.strip()), None)
        if example is None:
            return distinct  # no labels at all: the rows are counted as such
        other = next((f" Try --delimiter {d!r}." for d in _COMMON if d in example), "")
        raise UserError(
            f"The delimiter {delimiter!r} stands in no label of {', '.join(columns)} "
            f"(the first is {example.replace(UNIT, ', ')[:80]!r}).{other}"
        )
    return pc.replace_substring(distinct, delimiter, UNIT)


def _delimiter_hint(distinct: pa.Array) -> str | None:
    """Say that labels look like whole paths when nearly all hold the same separator."""
    import pyarrow.compute as pc

    if not len(distinct) or pc.any(pc.match_substring(distinct, UNIT)).as_py():
        return None
    for candidate in (" >> ", " > ", ">>", ">", " / ", "|", "::"):
        share = pc.mean(pc.match_substring(distinct, candidate)).as_py()
        if share > 0.5:
            return f"labels look like paths: did you forget --delimiter {candidate!r}?"
    return None


def _name_matrix(distinct: pa.Array, options: LabelOptions) -> tuple[list[str], NDArray[np.int64]]:
    """Split labels into names; -1 marks an empty one. Shape (labels, longest path)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    lists = pc.split_pattern(distinct, UNIT)
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    codes, words = encoded(pa.chunked_array([pc.list_flatten(lists)]))
    names, renamed = _clean_names(words, options.drop_names)
    codes = renamed[codes]
    label = np.repeat(np.arange(len(lengths)), lengths)
    kept = codes != BROKEN  # here: taken out by drop_names
    label, codes = label[kept], codes[kept]
    counts = np.bincount(label, minlength=len(lengths))
    place = np.arange(len(label)) - np.repeat(np.cumsum(counts) - counts, counts)
    # With parents to come the cut waits until they are there.
    limit = options.depth if options.depth and options.parents is None else None
    width = _checked_width(place[codes >= 0], limit, options)
    fits = place < width
    matrix = np.full((len(lengths), width), -1, dtype=np.int64)
    matrix[label[fits], place[fits]] = codes[fits]
    return names, matrix


def _checked_width(places: NDArray[Any], limit: int | None, options: LabelOptions) -> int:
    longest = int(places.max()) + 1 if len(places) else 1
    width = min(longest, limit or longest)
    if width > MAX_DEPTH:
        doubt = f"Is the delimiter {options.delimiter!r} right? " if options.delimiter else ""
        raise UserError(
            f"A path has {longest} names, more than {MAX_DEPTH}. {doubt}Cut paths with --depth."
        )
    return width


def tidied(words: pa.Array) -> pa.Array:
    """Names as `tidy_name` writes them."""
    import pyarrow as pa

    names = (None if word is None else tidy_name(word) for word in words.to_pylist())
    return pa.array(names, pa.large_string())


def _clean_names(words: pa.Array, drop: str | None) -> tuple[list[str], NDArray[np.int64]]:
    """Clean distinct names.

    Returns
    -------
    names, code_of_word
        Code per word: index into `names`, `EMPTY`, or `BROKEN` where `drop` matches.
    """
    import pyarrow as pa

    codes, distinct = encoded(pa.chunked_array([tidied(words)]))
    state = np.arange(len(distinct))
    if drop:
        state[_matching(distinct, drop)] = BROKEN
    names: list[str] = distinct.to_pylist()
    if "" in names:
        state[names.index("")] = EMPTY
    return names, state[codes]


def _matching(names: pa.Array, pattern: str) -> NDArray[np.bool_]:
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        return pc.match_substring_regex(names, pattern).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid as error:
        raise UserError(f"--drop-names {pattern!r} is no regular expression: {error}.") from error


def _distinct_paths(matrix: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Distinct whole paths, and for each label its path, `EMPTY` or `BROKEN`."""
    there = matrix >= 0
    found = np.zeros(len(matrix), dtype=np.int64)
    found[(there[:, 1:] & ~there[:, :-1]).any(axis=1)] = BROKEN
    found[~there.any(axis=1)] = EMPTY
    good = found == 0
    rows = np.ascontiguousarray(matrix[good])
    keys = np.zeros(len(rows), dtype=np.int64)
    for column in rows.T:  # level by level, so that numbers stay small
        keys = np.unique(keys * (matrix.max(initial=0) + 2) + column + 1, return_inverse=True)[1]
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    found[good] = inverse
    return rows[first], found


def _with_parents(
    names: list[str],
    paths: NDArray[np.int64],
    found: NDArray[np.int64],
    options: LabelOptions,
) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
    """Put the ancestors of each path's first name before it."""
    parents = options.parents or {}
    codes = {name: code for code, name in enumerate(names)}
    longer: list[list[int]] = []
    for path in paths.tolist():
        above = parents.get(names[path[0]])
        here = [code for code in path if code >= 0]
        chain = [codes.setdefault(name, len(codes)) for name in above or ()]
        longer.append([*chain, *here] if above is not None else [])
    if not any(longer):
        first = names[paths[0][0]] if len(paths) else ""
        raise UserError(f"No label is in the --parents file (the first label is {first!r}).")
    width = min(max(map(len, longer)), options.depth or MAX_DEPTH)
    matrix = np.array([(path + [-1] * width)[:width] for path in longer], dtype=np.int64)
    again, place = _distinct_paths(matrix)
    place[place == EMPTY] = ORPHAN
    return list(codes), again, np.where(found >= 0, place[found], found)
