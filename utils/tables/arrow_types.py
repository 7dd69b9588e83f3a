"""Arrow columns of every layout as plain ones, and the names that ids stand for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

_HUGGING_FACE = b"huggingface"


def plain_table(table: pa.Table) -> pa.Table:
    """A table without views, dictionaries, run ends and extensions, at any depth of its lists."""
    import pyarrow as pa

    columns = [_plain_column(column) for column in table.columns]
    return pa.table(columns, names=table.column_names)


def _plain_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow as pa

    if not _is_special(column.type):
        return column
    chunks = column.chunks or [pa.array([], column.type)]
    return pa.chunked_array([_plain(chunk) for chunk in chunks])


def _is_special(kind: pa.DataType) -> bool:
    import pyarrow as pa
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind):
        return _is_special(kind.value_type)
    return (
        isinstance(kind, pa.BaseExtensionType)
        or types.is_dictionary(kind) or types.is_run_end_encoded(kind)
        or types.is_string_view(kind) or types.is_binary_view(kind)
        or types.is_list_view(kind) or types.is_large_list_view(kind)
        or types.is_fixed_size_list(kind)
    )  # fmt: skip


def _plain(array: pa.Array) -> pa.Array:
    """One array; in a loop, since layouts may be nested in each other."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import types

    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        uuid = kind.extension_name == "arrow.uuid"
        return uuid_texts(array) if uuid else _plain(array.storage)
    if types.is_dictionary(kind):
        return _plain(array.dictionary).take(array.indices)
    if types.is_run_end_encoded(kind):
        return _plain(pc.run_end_decode(array))
    if types.is_string_view(kind):
        return array.cast(pa.large_string())
    if types.is_binary_view(kind):
        return array.cast(pa.large_binary())
    if types.is_list_view(kind) or types.is_large_list_view(kind):
        return _from_views(array)
    if _is_special(kind):
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        return _lists(lengths, _plain(pc.list_flatten(array)), array)
    return array


def uuid_texts(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """UUIDs as people write them, not as the bytes that they are stored as."""
    import pyarrow as pa

    texts = [None if one is None else str(one) for one in column.to_pylist()]
    return pa.array(texts, pa.large_string())


def _from_views(array: pa.Array) -> pa.Array:
    """Lists that each say where their items are: in any order, and shared.

    Arrow's own cast (26.0.1) gives wrong lists where they are not in order.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    sizes = pc.if_else(pc.is_valid(array), array.sizes, 0).to_numpy(zero_copy_only=False)
    starts = array.offsets.to_numpy(zero_copy_only=False)
    before = np.cumsum(sizes) - sizes
    places = np.arange(int(sizes.sum())) + np.repeat(starts - before, sizes)
    return _lists(sizes, _plain(array.values).take(pa.array(places)), array)


def _lists(lengths: Any, items: pa.Array, like: pa.Array) -> pa.Array:
    """Lists of these lengths, null where `like` is."""
    import pyarrow as pa

    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int64())
    return pa.LargeListArray.from_arrays(offsets, items, mask=like.is_null())


def named_classes(table: pa.Table) -> tuple[pa.Table, tuple[str, ...]]:
    """Put names for the ids of Hugging Face's ClassLabel columns.

    Parameters
    ----------
    table
        A plain one; its metadata may hold the features of a Hugging Face dataset.

    Returns
    -------
    table, notes
        Ids without a name, -1 among them, become nulls.
    """
    import pyarrow as pa

    notes = []
    for name, names in _class_names((table.schema.metadata or {}).get(_HUGGING_FACE)).items():
        if table.column_names.count(name) != 1 or not _holds_ids(table[name].type):
            continue
        chunks = [_named(chunk, names) for chunk in table[name].chunks]
        column = pa.chunked_array(chunks) if chunks else table[name].cast(pa.large_string())
        table = table.set_column(table.column_names.index(name), name, column)
        notes.append(f"column {name!r}: ids were read as the class names that the file holds")
    return table, tuple(notes)


def _holds_ids(kind: pa.DataType) -> bool:
    from pyarrow import types

    is_list = types.is_list(kind) or types.is_large_list(kind)
    return bool(types.is_integer(kind.value_type if is_list else kind))


def _named(array: pa.Array, names: Sequence[str]) -> pa.Array:
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import types

    if not types.is_integer(array.type):
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        return _lists(lengths, _named(pc.list_flatten(array), names), array)
    known = pc.and_(pc.greater_equal(array, 0), pc.less(array, len(names)))
    return pa.array(names, pa.large_string()).take(pc.if_else(known, array, None))


def _class_names(metadata: bytes | None) -> dict[str, list[str]]:
    """Class names by column, from what Hugging Face writes into a schema; anybody may have."""
    try:
        features = json.loads(metadata or b"{}")["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    found = {}
    for column, feature in features.items() if isinstance(features, Mapping) else ():
        names = _names_of(feature)
        if names and all(isinstance(name, str) for name in names):
            found[column] = names
    return found


def _names_of(feature: Any) -> list[Any]:
    """The names of a ClassLabel, also within a list: {"feature": …} or [...]."""
    while True:
        if isinstance(feature, list) and len(feature) == 1:
            feature = feature[0]
        elif isinstance(feature, Mapping) and "feature" in feature:
            feature = feature["feature"]
        else:
            break
    if not isinstance(feature, Mapping) or feature.get("_type") != "ClassLabel":
        return []
    names = feature.get("names")
    return names if isinstance(names, list) else []
