"""Column by column: any Arrow column to clean strings. Nothing here goes row by row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from utils.common.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

# One character that no cleaned text or name holds: it joins the pieces of a path.
UNIT = "\x1f"
_SLICE = 1 << 22
# First bytes of the white space outside ASCII: U+0085, U+00A0, U+1680, U+2000 …, U+3000.
_MAY_BE_SPACE = np.zeros(256, dtype=bool)
_MAY_BE_SPACE[[0xC2, 0xE1, 0xE2, 0xE3]] = True
_CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x{0080}-\x{009f}]"


def is_list(kind: Any) -> bool:
    """Whether an Arrow type is a list of any sort."""
    import pyarrow.types as types

    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def refuse_nested(table: pa.Table) -> None:
    """Refuse columns of anything but single values and lists of them.

    Raises
    ------
    UserError
        A column holds structs, maps, or lists of lists.
    """
    import pyarrow.types as types

    for field in table.schema:
        inner = field.type.value_type if is_list(field.type) else field.type
        if types.is_nested(inner):
            raise UserError(
                f"Column {field.name!r} holds values of the type {field.type}: it must hold "
                "single values, or lists of them."
            )


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


def without_nulls(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Make missing cells empty strings; a column without any is not copied."""
    import pyarrow.compute as pc

    return pc.fill_null(column, "") if column.null_count else column


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
        return without_nulls(columns[0])
    options = {"null_handling": "replace", "null_replacement": ""}
    end = pa.scalar(separator, pa.large_string())
    return pc.binary_join_element_wise(*columns, end, **options)


def clean_texts(column: pa.ChunkedArray) -> tuple[pa.Array, int]:
    """Strip white space at both ends; control characters (not tab, newline) become spaces.

    Rows that need it are found by their bytes: most texts need nothing, and a look at the bytes
    costs far less than a regular expression or a copy of every text.

    Returns
    -------
    texts, count
        Texts without nulls, and how many rows held control characters.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    whole = without_nulls(column)
    whole = whole.combine_chunks() if hasattr(whole, "combine_chunks") else whole
    dirty = _rows_with_control(whole)
    suspects = _rows_with_edges(whole)
    suspects[dirty] = True
    if not suspects.any():
        return whole, 0
    mask = pa.array(suspects)
    clean = whole.filter(mask)
    if len(dirty):
        clean = pc.replace_substring_regex(clean, _CONTROL, " ")
    return pc.replace_with_mask(whole, mask, pc.utf8_trim_whitespace(clean)), len(dirty)


def _bytes_of(texts: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Offsets and bytes of a large_string array."""
    _, offsets, data = texts.buffers()
    if data is None or not len(texts):
        return np.zeros(len(texts) + 1, dtype=np.int64), np.zeros(0, dtype=np.uint8)
    bounds = np.frombuffer(offsets, dtype=np.int64)[texts.offset : texts.offset + len(texts) + 1]
    return bounds, np.frombuffer(data, dtype=np.uint8)[: bounds[-1]]


def _rows_with_control(texts: pa.Array) -> NDArray[np.int64]:
    bounds, view = _bytes_of(texts)
    found = [np.zeros(0, dtype=np.int64)]
    for start in range(int(bounds[0]), len(view), _SLICE):
        part = view[start : start + _SLICE]
        found.append(start + np.flatnonzero((part < 32) | (part == 127) | (part == 0xC2)))
    places = np.concatenate(found)
    codes = view[places]
    places = places[(codes != 9) & (codes != 10) & (codes != 13)]
    lead = view[places] == 0xC2  # of U+0080 to U+009F, but of other characters too
    following = view[np.minimum(places + 1, max(len(view) - 1, 0))]
    real = places[~lead | (following < 0xA0)]
    return np.unique(np.searchsorted(bounds, real, side="right") - 1)


def _rows_with_edges(texts: pa.Array) -> NDArray[np.bool_]:
    """Rows that begin or end with a space, or with what may be one in another script."""
    bounds, view = _bytes_of(texts)
    if not len(view):
        return np.zeros(len(texts), dtype=bool)
    first = view[np.minimum(bounds[:-1], len(view) - 1)]
    last = view[np.maximum(bounds[1:] - 1, 0)]
    odd = (first <= 32) | _MAY_BE_SPACE[first] | (last <= 32) | (last >= 128)
    return odd & (np.diff(bounds) > 0)


def texts_of(table: pa.Table, names: Sequence[str]) -> tuple[pa.Array, int]:
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
        piece, dirty = clean_texts(column)
        pieces.append(piece)
        count += dirty
    texts = pieces[0]
    for piece in pieces[1:]:  # trimming takes away the newline beside an empty piece
        texts = pc.utf8_trim_whitespace(joined_columns([texts, piece], "\n"))
    return texts, count


def encoded(column: pa.Array | pa.ChunkedArray) -> tuple[NDArray[np.int64], pa.Array]:
    """Number a column without nulls: the code of each row, and the distinct values."""
    import pyarrow.compute as pc

    whole = column.combine_chunks() if hasattr(column, "combine_chunks") else column
    whole = pc.dictionary_encode(whole)
    return whole.indices.to_numpy(zero_copy_only=False).astype(np.int64), whole.dictionary
