"""Files that put flat labels into a tree: which ancestors does each class have?"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from utils.common.errors import UserError
from utils.common.names import tidy_name
from utils.tables.batches import ReadOptions
from utils.tables.columns import UNIT, is_list, joined_columns, joined_lists, strings
from utils.tables.reading import open_reader
from utils.tables.source_files import SourceFile, decode, open_source

Paths = list[tuple[str, ...]]


def load_parents(path: Path, encoding: str | None = None) -> dict[str, tuple[str, ...]]:
    """Read the ancestors, root first, of each class.

    Parameters
    ----------
    path
        JSON ``{parent: [children]}`` (nested objects for more levels) or ``{child: parent}``, or
        a table of any kind with one path per row: its list column, else all its columns, root
        first.

    Raises
    ------
    UserError
        The file cannot be read, or puts a class under two parents.
    """
    if not path.exists():
        raise UserError(f"No such file: {path} (--parents).")
    source = open_source(path)
    if source.kind == "json":
        try:
            paths = _paths_of_json(json.loads(decode(source, encoding).data), path)
        except ValueError as error:
            raise UserError(f"{path} is not valid JSON: {error}.") from error
        except RecursionError as error:
            raise UserError(f"{path} is nested too deeply for a tree of classes.") from error
    else:
        paths = _paths_of_table(source, encoding)
    tidy = _tidy({name for one in paths for name in one})
    return _ancestors([tuple(tidy[name] for name in one) for one in paths], path)


def _tidy(names: Iterable[str]) -> dict[str, str]:
    """Each name as the labels of the data are written, so that they meet."""
    return {name: tidy_name(name) for name in names}


def _ancestors(paths: Paths, file: Path) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for *above, leaf in paths:
        if found.setdefault(leaf, tuple(above)) != tuple(above):
            raise UserError(
                f"{file} puts {leaf!r} under both {' > '.join(found[leaf]) or 'no parent'!r} and "
                f"{' > '.join(above) or 'no parent'!r}. Name whole paths in the data instead."
            )
    for one in paths:
        for place, name in enumerate(one):
            found.setdefault(name, one[:place])
    return found


def _paths_of_json(value: Any, file: Path) -> Paths:
    if isinstance(value, dict) and value:
        if all(isinstance(parent, str) for parent in value.values()):
            tidy = _tidy({*value, *value.values()})
            parent_of = {tidy[child]: tidy[parent] for child, parent in value.items()}
            return [_climbed(child, parent_of, file) for child in parent_of]
        if all(isinstance(children, list | dict) for children in value.values()):
            return list(_descended(value, ()))
    raise UserError(f"{file} is neither {{parent: [children]}} nor {{child: parent}}.")


def _climbed(child: str, parent_of: dict[str, str], file: Path) -> tuple[str, ...]:
    path = [child]
    while path[-1] in parent_of and parent_of[path[-1]]:
        if parent_of[path[-1]] in path:
            raise UserError(f"{file} goes round in a circle at {path[-1]!r}.")
        path.append(parent_of[path[-1]])
    return tuple(reversed(path))


def _descended(value: Any, above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if above and not value and isinstance(value, dict | list):
        yield above
    elif isinstance(value, dict):
        for name, children in value.items():
            yield from _descended(children, (*above, str(name)))
    elif isinstance(value, list):
        for child in value:
            yield from _descended(child, above)
    else:
        yield (*above, str(value)) if value is not None else above


def _paths_of_table(source: SourceFile, encoding: str | None) -> Paths:
    reader = open_reader(source, ReadOptions(encoding=encoding), ())
    table = reader.read(reader.columns).table
    lists = [name for name in table.column_names if is_list(table[name].type)]
    parts = [joined_lists(table[name]) if is_list(table[name].type) else strings(table[name])
             for name in lists[:1] or table.column_names]  # fmt: skip
    distinct = joined_columns(parts, UNIT).unique().to_pylist()
    return [names for line in distinct if (names := tuple(filter(str.strip, line.split(UNIT))))]
