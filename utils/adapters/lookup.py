"""Names for ids: ``--lookup COLUMN=FILE:key:name``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from utils.common.errors import UserError
from utils.common.paths import given_path
from utils.tables.batches import ReadOptions
from utils.tables.columns import is_list, strings
from utils.tables.reading import open_reader, select_column
from utils.tables.source_files import open_source

if TYPE_CHECKING:
    import pyarrow as pa

_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Lookup:
    """A column whose values are keys of another table.

    Parameters
    ----------
    column
        Of the table that is adapted.
    file, key, name
        The other table, and its columns of keys and of what they stand for.
    """

    column: str
    file: str
    key: str
    name: str

    @classmethod
    def parsed(cls, text: str) -> Lookup:
        """Read ``COLUMN=FILE:key:name``.

        Raises
        ------
        UserError
            It is written otherwise.
        """
        column, sign, rest = text.partition("=")
        parts = rest.rsplit(":", 2)
        if not sign or len(parts) != 3 or not all((column.strip(), *parts)):
            raise UserError(
                f"--lookup {text!r} is not COLUMN=FILE:key:name, such as label=names.csv:id:title."
            )
        return cls(column=column.strip(), file=parts[0], key=parts[1], name=parts[2])


def looked_up(
    table: pa.Table, lookups: Sequence[Lookup], wanted: Sequence[str]
) -> tuple[pa.Table, tuple[str, ...]]:
    """Put what the keys stand for in the place of the keys.

    Parameters
    ----------
    wanted
        The columns that are read.

    Returns
    -------
    table, notes
        Keys that the other table does not have are missing values, counted and named in a note.

    Raises
    ------
    UserError
        The other table has a key twice, or none of the keys; a column is not there.
    """
    notes = []
    for lookup in lookups:
        column = select_column(lookup.column, wanted, "--lookup")
        keys, values = _names(lookup)
        found, unknown = _replaced(table[column], keys, values)
        if unknown and found.null_count == len(found):
            raise UserError(
                f"--lookup {lookup.column}: none of its values is in the column {lookup.key!r} of "
                f"{lookup.file}, the first is {next(iter(unknown))!r}."
            )
        if unknown:
            notes.append(_unknown(lookup, unknown))
        table = table.set_column(table.column_names.index(column), column, found)
    return table, tuple(notes)


def _names(lookup: Lookup) -> tuple[pa.Array, pa.ChunkedArray]:
    """The keys and what they stand for."""
    import pyarrow.compute as pc

    path = given_path(lookup.file)
    if not path.is_file():
        raise UserError(f"No such file: {lookup.file} (--lookup {lookup.column}).")
    reader = open_reader(open_source(path), ReadOptions(), (lookup.key, lookup.name))
    try:
        key = select_column(lookup.key, reader.columns, "--lookup")
        name = select_column(lookup.name, reader.columns, "--lookup")
    except UserError as error:
        hint = reader.hint((lookup.key, lookup.name))
        raise UserError(f"{lookup.file} (--lookup): {error.message} {hint}") from error
    table = reader.read(list(dict.fromkeys((key, name)))).table
    keys = _keys(table[key]).combine_chunks()
    there = pc.and_kleene(pc.is_valid(keys), pc.not_equal(keys, ""))
    keys, values = keys.filter(there), table[name].filter(there)
    _refuse_twice(lookup, keys)
    return keys, values


def _keys(column: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow.compute as pc

    return pc.utf8_trim_whitespace(strings(column))


def _refuse_twice(lookup: Lookup, keys: pa.Array) -> None:
    import pyarrow.compute as pc

    counts = pc.value_counts(keys)
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(twice):
        first = twice[0].as_py()
        raise UserError(
            f"{lookup.file} has {len(twice):,} keys more than once in its column {lookup.key!r}, "
            f"the first is {first['values']!r} ({first['counts']} times): a key must have one name."
        )


def _replaced(
    column: pa.ChunkedArray, keys: pa.Array, values: pa.ChunkedArray
) -> tuple[pa.ChunkedArray, dict[str, int]]:
    """What the keys of a column stand for, and how often each unknown key stands in it."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if is_list(column.type):
        return _replaced_in_lists(column, keys, values)
    wanted = _keys(column)
    places = pc.index_in(wanted, value_set=keys)
    there = pc.and_kleene(pc.is_valid(wanted), pc.not_equal(wanted, ""))
    lost = wanted.filter(pc.and_(pc.fill_null(there, False), pc.is_null(places)))
    counts: dict[str, int] = {
        row["values"]: row["counts"] for row in pc.value_counts(lost).to_pylist()
    }
    found: Any = values.take(places)
    return pa.chunked_array([found]) if isinstance(found, pa.Array) else found, counts


def _replaced_in_lists(
    column: pa.ChunkedArray, keys: pa.Array, values: pa.ChunkedArray
) -> tuple[pa.ChunkedArray, dict[str, int]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    whole = column.combine_chunks()
    items, counts = _replaced(pa.chunked_array([pc.list_flatten(whole)]), keys, values)
    lengths = pc.fill_null(pc.list_value_length(whole), 0)
    offsets = pc.cumulative_sum(pa.concat_arrays([pa.array([0]), lengths.cast(pa.int64())]))
    lists = pa.LargeListArray.from_arrays(offsets, items.combine_chunks(), mask=pc.is_null(whole))
    return pa.chunked_array([lists]), counts


def _unknown(lookup: Lookup, counts: dict[str, int]) -> str:
    named = sorted(counts, key=lambda key: (-counts[key], key))
    shown = ", ".join(map(repr, named[:_SHOWN])) + (", …" if len(named) > _SHOWN else "")
    return (
        f"--lookup {lookup.column}: {sum(counts.values()):,} values are no keys of {lookup.file} "
        f"and were read as empty ({len(named):,} different: {shown})"
    )
