"""``adapt.py sql``: one query for the texts, one for the tree of classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.adapters.pipeline import (
    AdaptOptions,
    Columns,
    Provenance,
    adapt_table,
    check_target,
    recipe_of,
    with_renames,
)
from utils.adapters.sql_classes import ClassTree, class_tree, labels_by_id
from utils.adapters.sql_config import SqlColumns, SqlConfig, load_sql_config
from utils.adapters.sql_connect import Session, open_session, read_query
from utils.common.errors import UserError
from utils.common.paths import Layout
from utils.tables.reading import select_columns

if TYPE_CHECKING:
    import pyarrow as pa

Progress = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class SqlOptions:
    """What ``adapt.py sql`` is told.

    Parameters
    ----------
    config
        Path of adapter_sql.json.
    split_column
        A column of the items that holds train, val or test.
    rename
        File with new names of classes.
    """

    config: Path
    split_column: str | None = None
    rename: str | None = None
    adapt: AdaptOptions = field(default_factory=AdaptOptions)


def adapt_sql(
    options: SqlOptions, name: str, layout: Layout, progress: Progress = lambda rows: None
) -> dict[str, Any]:
    """Make a dataset from a database; for what it gives see `adapt_table`.

    Parameters
    ----------
    progress
        Is told the rows read so far.
    """
    config = load_sql_config(options.config)
    adapt = with_renames(options.adapt, options.rename)
    values = {
        **config.recipe(), **options.adapt.recipe(), "split_column": options.split_column,
        "rename": options.rename,
    }  # fmt: skip
    recipe = recipe_of("sql", values)
    layout.dataset(name)  # refuses names that cannot be
    with open_session(config.connection) as session:
        tree, nameless = _read_tree(session, config)
        # mistakes in columns are named before "exists already", and that before items are read
        table, columns = _read_items(
            session, config, options.split_column, progress,
            lambda: check_target(layout, name, recipe, options.adapt),
        )  # fmt: skip
    labels, strangers = labels_by_id(table[columns.classes[0]], tree, adapt.labels)
    source = Provenance(recipe=recipe, notes=(*nameless, *tree.notes, *strangers))
    return adapt_table(
        table, columns, name=name, options=adapt, source=source, layout=layout,
        labels=labels,
    )  # fmt: skip


def _read_tree(session: Session, config: SqlConfig) -> tuple[ClassTree, list[str]]:
    """The tree, and what a person should know of the query's columns."""
    wanted = config.columns
    found: list[str] = []
    notes: list[str] = []

    def choose(there: Sequence[str]) -> Sequence[str]:
        names = [wanted.id, wanted.parent]
        if wanted.name or "name" in there:
            names.append(wanted.name or "name")
        else:
            notes.append(
                f"the classes query has no column 'name' (it gives {', '.join(there)}): classes "
                "are called by their ids. Name it under 'columns'"
            )
        found.extend(_column("classes", name, there) for name in names)
        return list(dict.fromkeys(found))

    table = read_query(
        session, config.connection, "classes", config.classes, choose, lambda rows: None
    )
    ids, parents, *names = (table[name] for name in found)
    return class_tree(ids, parents, names[0] if names else None), notes


def _read_items(
    session: Session,
    config: SqlConfig,
    split: str | None,
    progress: Progress,
    check: Callable[[], object],
) -> tuple[pa.Table, Columns]:
    found: list[Columns] = []

    def choose(there: Sequence[str]) -> Sequence[str]:
        found.append(_item_columns(config.columns, split, there))
        check()
        columns = found[0]
        extra = [columns.split] if columns.split else []
        return list(dict.fromkeys([*columns.text, *columns.classes, *extra]))

    table = read_query(session, config.connection, "items", config.items, choose, progress)
    return table, found[0]


def _item_columns(wanted: SqlColumns, split: str | None, there: Sequence[str]) -> Columns:
    text = tuple(_column("items", name, there) for name in wanted.text)
    class_ = _column("items", wanted.class_, there)
    if class_ in text:
        raise UserError(
            f"Column {class_!r} is named by both 'columns.text' and 'columns.class': the text "
            "would tell the class."
        )
    return Columns(
        text=tuple(dict.fromkeys(text)),
        classes=(class_,),
        split=_column("items", split, there) if split else None,
    )


def _column(what: str, name: str, there: Sequence[str]) -> str:
    """A column of a query's answer, by name."""
    try:
        return select_columns(name, there)[0]
    except UserError as error:
        raise UserError(
            f"The {what} query: {error.message} Name it with AS, or under 'columns'."
        ) from error
