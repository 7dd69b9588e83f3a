"""The tree of classes from rows of (id, parent, name): any depth, checked, without recursion."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from utils.adapters.labels import EMPTY, ORPHAN, LabelOptions, Labels, labels_of
from utils.adapters.several import JOIN
from utils.common.errors import UserError
from utils.common.names import tidy_name
from utils.tables.arrow_types import uuid_texts
from utils.tables.columns import encoded, strings

if TYPE_CHECKING:
    import pyarrow as pa

_SHOWN = 3
_WHOLE = 2.0**53  # up to here a float holds every whole number


@dataclass(frozen=True, kw_only=True)
class ClassTree:
    """Classes and their parents.

    Parameters
    ----------
    ids
        Of each class, as text.
    names
        Of each class; siblings differ.
    parents
        Index of the parent; ``len(ids)`` for a root, ``len(ids) + 1`` where the parent is missing.
    whole
        Whether the way to a root is there; shape (classes,).
    notes
        What a person should know.
    """

    ids: list[str]
    names: list[str]
    parents: NDArray[np.int64]
    whole: NDArray[np.bool_]
    notes: tuple[str, ...] = ()

    def path(self, index: int) -> list[str]:
        """Names from the root to a class."""
        names = []
        while index < len(self.ids):
            names.append(self.names[index])
            index = int(self.parents[index])
        return names[::-1]


def identifiers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Ids as text: trimmed, whole numbers without a point; null where there is none.

    Bytes that are no UTF-8 become hexadecimal, so that two ids stay two.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.types as types

    kind: Any = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return identifiers(_stored(column))
    if types.is_decimal(kind):
        column = _without_zeros(strings(column))
    if types.is_floating(kind) and _all_whole(column):
        column = pc.cast(column, pa.int64(), safe=False)
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        texts = [None if value is None else text_of_bytes(value) for value in column.to_pylist()]
        column = pa.chunked_array([pa.array(texts, pa.large_string())])
    trimmed = pc.utf8_trim_whitespace(strings(column))
    return pc.if_else(pc.equal(trimmed, ""), None, trimmed)


def _stored(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """What a column of a type of its own is kept as: numbers and UUIDs as they are written."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind: Any = column.type
    if kind.extension_name == "arrow.uuid":
        return pa.chunked_array([uuid_texts(column)])
    stored = pc.cast(column, kind.storage_type)
    return _without_zeros(stored) if getattr(kind, "type_name", "") == "numeric" else stored


def _without_zeros(numbers: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whole numbers, written with a point, without it."""
    import pyarrow.compute as pc

    return pc.replace_substring_regex(numbers, r"\.0*$", "")


def _all_whole(column: pa.ChunkedArray) -> bool:
    values = column.to_numpy()
    values = values[~np.isnan(values)]
    return bool((np.floor(values) == values).all() and (np.abs(values) < _WHOLE).all())


def text_of_bytes(value: bytes) -> str:
    """Bytes as the text that they are, else in hexadecimal."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.hex()


def class_tree(ids: pa.ChunkedArray, parents: pa.ChunkedArray, names: Any | None) -> ClassTree:
    """Build the tree.

    A class is a root if its parent is null, empty, its own id, or 0 where no class has the id 0.

    Parameters
    ----------
    ids, parents, names
        Columns of one row per class; a class without a name, or all without `names`, is called by
        its id.

    Raises
    ------
    UserError
        No class, classes in a circle, one id with two parents or two names.
    """
    rows = _distinct_rows(identifiers(ids), identifiers(parents), names)
    if not rows.ids:
        raise UserError("The classes query gives no class: every row lacks an id.")
    place = {one: index for index, one in enumerate(rows.ids)}
    root, missing = len(place), len(place) + 1
    pairs = zip(rows.ids, rows.parents, strict=True)
    found = np.array([_place(one, up, place) for one, up in pairs])
    anchors = _anchors(found)
    if (anchors < root).any():
        raise UserError(_circle(rows.ids, found, int(np.flatnonzero(anchors < root)[0])))
    distinct, renamed = _told_apart(rows.ids, rows.names, found)
    lost = [f"{rows.ids[i]} (parent {rows.parents[i]})" for i in np.flatnonzero(found == missing)]
    notes = [
        f"rows of the classes query without an id: {rows.without_id:,}" if rows.without_id else "",
        f"classes whose parent is no class ({len(lost):,}): {_some(lost)}" if lost else "",
        f"siblings of one name, which have their ids added ({len(renamed):,}): {_some(renamed)}"
        if renamed else "",
    ]  # fmt: skip
    return ClassTree(
        ids=rows.ids, names=distinct, parents=found, whole=anchors == root,
        notes=tuple(filter(None, notes)),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Rows:
    ids: list[str]
    parents: list[str | None]
    names: list[str]
    without_id: int


def _distinct_rows(ids: Any, parents: Any, names: Any | None) -> _Rows:
    """One entry per class; rows that repeat one are fine, rows that contradict one are not."""

    words = strings(ids if names is None else names).combine_chunks()
    clean = [tidy_name(word or "") for word in words.to_pylist()]
    found: dict[str, tuple[str | None, str]] = {}
    for one, parent, name in zip(ids.to_pylist(), parents.to_pylist(), clean, strict=True):
        if one is None:
            continue
        entry = (parent, name or one)
        before = found.setdefault(one, entry)
        if before != entry:
            what, which = ("parents", 0) if before[0] != parent else ("names", 1)
            raise UserError(
                f"The classes query gives class {one!r} two {what}, {before[which]!r} and "
                f"{entry[which]!r}: one row per class is needed."
            )
    return _Rows(
        ids=list(found),
        parents=[parent for parent, _ in found.values()],
        names=[name for _, name in found.values()],
        without_id=ids.null_count,
    )


def _place(one: str, parent: str | None, place: dict[str, int]) -> int:
    if parent is None or parent == one or (parent == "0" and parent not in place):
        return len(place)
    return place.get(parent, len(place) + 1)


def _anchors(parents: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the way up ends: a root's mark, the mark of a missing parent, or inside a circle."""
    top = np.concatenate([parents, [len(parents), len(parents) + 1]])
    for _ in range(len(parents).bit_length()):
        top = top[top]  # twice as far each time
    return top[: len(parents)]


def _circle(ids: list[str], parents: NDArray[np.int64], start: int) -> str:
    for _ in ids:
        start = int(parents[start])  # by now within the circle, not on the way to it
    circle = [start]
    while int(parents[circle[-1]]) != start:
        circle.append(int(parents[circle[-1]]))
    first = circle.index(min(circle))
    circle = circle[first:] + circle[:first]
    shown = [repr(ids[index]) for index in circle[:6]]
    last = "…" if len(circle) > len(shown) else shown[0]
    return (
        f"Classes go round in a circle of {len(circle)}: {' → '.join([*shown, last])} (child "
        "→ parent). Correct the parents; a root has none."
    )


def _told_apart(
    ids: list[str], names: list[str], parents: NDArray[np.int64]
) -> tuple[list[str], list[str]]:
    """Add the id to names that siblings share.

    Returns
    -------
    names, renamed
        All names, and those that were changed.
    """
    ups = parents.tolist()
    taken = Counter(zip(ups, names, strict=True))
    renamed, result = [], list(names)
    for index, (up, name) in enumerate(zip(ups, names, strict=True)):
        if taken[up, name] > 1:
            longer = f"{name} ({ids[index]})"
            while (up, longer) in taken:
                longer = f"{longer} ({ids[index]})"
            taken[up, longer] = 1
            result[index] = longer
            renamed.append(repr(longer))
    return result, renamed


def _some(examples: list[str]) -> str:
    return ", ".join(examples[:_SHOWN]) + (", …" if len(examples) > _SHOWN else "")


def labels_by_id(
    column: pa.ChunkedArray, tree: ClassTree, options: LabelOptions
) -> tuple[Labels, tuple[str, ...]]:
    """Read the class of each row from its id; each class in use is looked at once.

    Returns
    -------
    labels, notes
        Rows of a class that is not there, or whose way to a root is not, are `ORPHAN`.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    ids = identifiers(column)
    found = pc.index_in(ids, value_set=pa.array(tree.ids, pa.large_string()))
    codes, used = encoded(pc.fill_null(found, -1))
    classes = used.to_numpy(zero_copy_only=False).astype(np.int64)
    whole = (classes >= 0) & np.append(tree.whole, False)[classes]
    paths = [tree.path(one) if ok else [] for one, ok in zip(classes.tolist(), whole, strict=True)]
    table = pa.table({"": pa.array(paths, pa.large_list(pa.large_string()))})
    single = dataclasses.replace(options, several_paths=JOIN)
    inner = labels_of(table, ("",), single, np.bincount(codes, minlength=len(paths)))
    path_of_row = np.where(whole, inner.path_of_row, ORPHAN)[codes]
    path_of_row[pc.is_null(ids).to_numpy()] = EMPTY
    strangers = pc.unique(pc.drop_null(ids.filter(pc.is_null(found)))).to_pylist()
    notes = (
        (f"class ids of items that no class has ({len(strangers):,}): {_some(strangers)}",)
        if strangers else ()
    )  # fmt: skip
    return dataclasses.replace(inner, path_of_row=path_of_row), notes
