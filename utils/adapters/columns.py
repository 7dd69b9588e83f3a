"""Column by column: any Arrow column to clean strings. Nothing here goes row by row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

# One character that no cleaned text or name holds: it joins the pieces of a path.
UNIT = "\x1f"
_CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x{0080}-\x{009f}]"


def is_list(kind: Any) -> bool:
    """Whether an Arrow type is a list of any sort."""
    import pyarrow.types as types

    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def strings(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Cast a column to strings; NaN is null, bytes are read as UTF-8, objects are null."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.types as types

    if types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    if types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    if types.is_large_string(column.type):
        return column
    try:
        return pc.cast(column, pa.large_string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pa.chunked_array([_one_by_one(column)])


def _one_by_one(column: pa.ChunkedArray) -> pa.Array:
    """For types that Arrow cannot cast: bytes that are not UTF-8, nested values, …"""
    import pyarrow as pa

    values = [
        value.decode("utf-8", "replace") if isinstance(value, bytes)
        else None if value is None or isinstance(value, dict | list) else str(value)
        for value in column.to_pylist()
    ]  # fmt: skip
    return pa.array(values, pa.large_string())


def joined_lists(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Join the items of each list by `UNIT`; null items become empty, null lists too."""
    import pyarrow as pa
    import pyarrow.compute as pc

    parts = []
    for chunk in column.chunks:
        lengths = pc.fill_null(pc.list_value_length(chunk), 0).to_numpy(zero_copy_only=False)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        flat = strings(pa.chunked_array([pc.list_flatten(chunk)])).combine_chunks()
        flat = pc.replace_substring(pc.fill_null(flat, ""), UNIT, " ")
        lists = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), flat)
        parts.append(pc.binary_join(lists, pa.scalar(UNIT, pa.large_string())))
    return pa.chunked_array(parts, pa.large_string())


def joined_columns(columns: Sequence[pa.ChunkedArray], separator: str) -> pa.ChunkedArray:
    """Join columns row by row; missing cells count as empty strings."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if len(columns) == 1:
        return pc.fill_null(columns[0], "")
    options = {"null_handling": "replace", "null_replacement": ""}
    end = pa.scalar(separator, pa.large_string())
    return pc.binary_join_element_wise(*columns, end, **options)


def without_control(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, int]:
    """Turn control characters (not tab and newline) into spaces.

    Returns
    -------
    column, count
        The clean column and how many rows held one.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if not any(_may_hold_control(chunk) for chunk in column.chunks):
        return column, 0
    dirty = pc.fill_null(pc.match_substring_regex(column, _CONTROL), False)
    count = pc.sum(dirty).as_py() or 0
    if not count:
        return column, 0
    fixed = pc.replace_substring_regex(column.filter(dirty), _CONTROL, " ")
    whole, mask = column.combine_chunks(), dirty.combine_chunks()
    clean = pc.replace_with_mask(whole, mask, fixed.combine_chunks())
    return pa.chunked_array([clean]), count


def _may_hold_control(chunk: pa.Array) -> bool:
    """Look at the bytes: far quicker than a regular expression on clean data."""
    data = chunk.buffers()[2]
    if data is None:
        return False
    seen = np.zeros(256, dtype=bool)
    view = np.frombuffer(data, dtype=np.uint8)
    for start in range(0, len(view), 1 << 22):  # in slices: small temporaries
        seen |= np.bincount(view[start : start + (1 << 22)], minlength=256) > 0
    allowed = [9, 10, 13]
    seen[allowed] = False
    return bool(seen[:32].any() or seen[127] or seen[0xC2])


def trimmed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Strip white space, of any script, at both ends."""
    import pyarrow.compute as pc

    return pc.utf8_trim_whitespace(column)


def texts_of(table: pa.Table, names: Sequence[str]) -> tuple[pa.ChunkedArray, int]:
    """The text of each row: its trimmed columns, joined by newlines, empty ones left out.

    Returns
    -------
    texts, count
        Texts, empty where there is none; and how many rows held control characters.
    """
    import pyarrow.compute as pc

    pieces, count = [], 0
    for name in names:
        column = table[name]
        column = joined_lists(column) if is_list(column.type) else strings(column)
        column, dirty = without_control(column)
        pieces.append(trimmed(pc.fill_null(column, "")))
        count += dirty
    texts = pieces[0]
    for piece in pieces[1:]:  # trimming takes away the newline beside an empty piece
        texts = trimmed(joined_columns([texts, piece], "\n"))
    return texts, count


def encoded(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], pa.Array]:
    """Number a column without nulls: the code of each row, and the distinct values."""
    import pyarrow.compute as pc

    whole = pc.dictionary_encode(column).combine_chunks()
    return whole.indices.to_numpy(zero_copy_only=False).astype(np.int64), whole.dictionary
