"""``adapt.py flat``: files with one row per text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from utils.adapters.given import expand, path_columns
from utils.adapters.lookup import Lookup, looked_up
from utils.adapters.pipeline import (
    AdaptOptions,
    Columns,
    Provenance,
    adapt_table,
    check_target,
    recipe_of,
    with_renames,
)
from utils.common.errors import UserError
from utils.common.paths import Layout, given_path
from utils.tables.batches import SHOWN_LINES, Batch, Reader, ReadOptions
from utils.tables.kinds import TEXT_KINDS
from utils.tables.reading import open_reader, select_column, select_columns
from utils.tables.source_files import SourceFile, known_encoding, open_source

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class FlatOptions:
    """What ``adapt.py flat`` is told.

    Parameters
    ----------
    paths
        Files or globs, of one kind.
    text, classes
        Column names, comma-separated.
    split_column
        A column that holds train, val or test.
    parents
        File with the ancestors of the classes.
    lookups
        Columns whose values are keys of other tables.
    rename
        File with new names of classes.
    """

    paths: tuple[str, ...]
    text: str
    classes: str
    split_column: str | None = None
    parents: str | None = None
    lookups: tuple[Lookup, ...] = ()
    rename: str | None = None
    read: ReadOptions = field(default_factory=ReadOptions)
    adapt: AdaptOptions = field(default_factory=AdaptOptions)

    def recipe(self) -> dict[str, Any]:
        """The options that decide what the dataset holds, where they are not the defaults."""
        values = dataclasses.asdict(self)
        values.pop("adapt")
        read = values.pop("read")
        return recipe_of("flat", {**self.adapt.recipe(), **read, **values})


def adapt_flat(options: FlatOptions, name: str, layout: Layout) -> dict[str, Any]:
    """Make a dataset from files; for what it gives see `adapt_table`."""
    recipe = options.recipe()
    layout.dataset(name)  # refuses names that cannot be
    if options.read.encoding:
        known_encoding(options.read.encoding)
    adapt = with_renames(_with_parents(options), options.rename)
    # mistakes in options are named before "exists already", and that before rows are read
    try:
        batch, columns = _read(options, lambda: check_target(layout, name, recipe, options.adapt))
    except MemoryError as error:
        raise UserError("The input needs more memory than there is. Adapt a part of it.") from error
    wanted = (*columns.text, *columns.classes)
    table, unknown = looked_up(batch.table, options.lookups, wanted)
    source = Provenance(
        recipe=recipe,
        broken=batch.broken,
        broken_at=batch.broken_at,
        encodings=batch.encodings,
        notes=(*batch.notes, *unknown),
    )
    del batch
    return adapt_table(table, columns, name=name, options=adapt, source=source, layout=layout)


def _with_parents(options: FlatOptions) -> AdaptOptions:
    if options.parents is None:
        return options.adapt
    from utils.adapters.parents import load_parents

    parents = load_parents(given_path(options.parents), None)
    labels = dataclasses.replace(options.adapt.labels, parents=parents)
    return dataclasses.replace(options.adapt, labels=labels)


def _read(options: FlatOptions, check: Callable[[], object]) -> tuple[Batch, Columns]:
    """Read the wanted columns of all files into one table.

    Parameters
    ----------
    check
        Called when the columns of the first file are known.
    """
    sources = [open_source(path) for path in expand(options.paths)]
    kinds = sorted({source.kind for source in sources})
    if len(kinds) > 1:
        raise UserError(
            f"The files are of several kinds: {', '.join(kinds)}. Adapt one kind at a time."
        )
    _check_kind(kinds[0], options.read)
    hints = [*options.text.split(","), *options.classes.split(",")]
    if options.split_column:
        hints.append(options.split_column)
    batches: list[Batch] = []
    for source in sources:
        reader = open_reader(source, options.read, hints)
        try:
            columns = _columns([*reader.columns, *_from_path(reader, source)], options)
        except UserError as error:
            raise UserError(f"{source.path}: {error.message} {reader.hint(hints)}") from error
        if not batches:
            check()
        batches.append(_read_one(reader, source, columns))
    return _together(batches), columns


def _check_kind(kind: str, read: ReadOptions) -> None:
    """Refuse options that mean nothing for files of a kind: nothing is ignored in silence."""
    given = {
        "--lines": (read.lines, ("csv",)),
        "--records": (read.records, ("json",)),
        "--sheet": (read.sheet, ("xlsx",)),
        "--sep": (read.sep, ("csv",)),
        "--no-header": (not read.header, ("csv",)),
        "--header-row": (read.header_row, ("csv", "xlsx")),
        "--encoding": (read.encoding, TEXT_KINDS),
    }
    for option, (value, kinds) in given.items():
        if value and kind not in kinds:
            raise UserError(f"{option} is for {' and '.join(kinds)} files; these are {kind}.")


def _columns(names: Sequence[str], options: FlatOptions) -> Columns:
    text = select_columns(options.text, names)
    classes = select_columns(options.classes, names)
    both = [name for name in text if name in classes]
    if both:
        raise UserError(
            f"Column {both[0]!r} is named by both --text and --classes: the text would tell "
            "the class."
        )
    split = options.split_column
    return Columns(
        text=text,
        classes=classes,
        split=split and select_column(split, names, "--split-column"),
    )


def _from_path(reader: Reader, source: SourceFile) -> dict[str, str | None]:
    """Columns that the file does not have and its path does."""
    found = path_columns(source.path)
    return {name: value for name, value in found.items() if name not in reader.columns}


def _read_one(reader: Reader, source: SourceFile, columns: Columns) -> Batch:
    import pyarrow as pa

    wanted = dict.fromkeys([*columns.text, *columns.classes, columns.split or columns.text[0]])
    given = _from_path(reader, source)
    inside = [name for name in wanted if name not in given]
    if not inside:
        raise UserError(f"{source.path}: no column of the table itself is wanted.")
    batch = reader.read(inside)
    table = batch.table
    for name in wanted:
        if name in given:
            value = pa.scalar(given[name], pa.large_string())
            table = table.append_column(name, pa.repeat(value, table.num_rows))
    return dataclasses.replace(batch, table=table)


def _together(batches: Sequence[Batch]) -> Batch:
    if len(batches) == 1:
        return batches[0]
    return Batch(
        table=_stacked([batch.table for batch in batches]),
        broken=sum(batch.broken for batch in batches),
        broken_at=tuple(at for batch in batches for at in batch.broken_at)[:SHOWN_LINES],
        encodings=tuple(dict.fromkeys(code for batch in batches for code in batch.encodings)),
        notes=tuple(dict.fromkeys(note for batch in batches for note in batch.notes)),
    )


def _stacked(tables: Sequence[pa.Table]) -> pa.Table:
    import pyarrow as pa

    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
        raise UserError(
            f"The files' columns are of different types: {str(error).splitlines()[0]}"
        ) from error
