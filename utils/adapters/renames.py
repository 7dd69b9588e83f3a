"""``--rename FILE``: classes that are to be called otherwise, or that belong elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path as FilePath
from typing import TypeAlias

from utils.adapters.cells import MAX_DEPTH, Path
from utils.common.errors import UserError
from utils.common.names import tidy_name
from utils.tables.batches import ReadOptions
from utils.tables.columns import strings, without_nulls
from utils.tables.reading import open_reader
from utils.tables.source_files import open_source

Renames: TypeAlias = Mapping[Path, Path]
_SEPARATOR = " > "


def load_renames(file: FilePath, delimiter: str | None) -> Renames:
    """Read a table of two columns: a name or a path, and what it becomes.

    Parameters
    ----------
    delimiter
        Separates the names of a path, by default `` > ``.

    Returns
    -------
    Mapping
        By path (one name alone: wherever it stands) the new path; an empty one takes the label
        away. The first line is a rule like any other, as a header meets no class.

    Raises
    ------
    UserError
        There is no such file, it has another number of columns, or two rules for one name.
    """
    if not file.exists():
        raise UserError(f"No such file: {file} (--rename).")
    reader = open_reader(open_source(file), ReadOptions(), ())
    if len(reader.columns) != 2:
        raise UserError(
            f"{file} has {len(reader.columns)} columns ({', '.join(reader.columns)[:80]}): "
            "--rename takes two, the old name or path and the new one."
        )
    table = reader.read(reader.columns).table
    old, new = (without_nulls(strings(table[name])).to_pylist() for name in reader.columns)
    rules: dict[Path, Path] = {}
    for before, after in [reader.columns, *zip(old, new, strict=True)]:
        key, value = _path(before, delimiter), _path(after, delimiter)
        if key and rules.setdefault(key, value) != value:
            raise UserError(
                f"{file} renames {before!r} twice, to {_SEPARATOR.join(rules[key])!r} and "
                f"{after!r}."
            )
    return rules


def _path(text: str, delimiter: str | None) -> Path:
    names = tuple(map(tidy_name, text.split(delimiter or _SEPARATOR)))
    return names if any(names) else ()


def renamed(path: Path, rules: Renames, used: set[Path]) -> Path:
    """Apply the rule of the longest beginning, else those of single names.

    A new name for a path takes the place of its last name; a new path that of the whole path.

    Parameters
    ----------
    used
        Gets the rules that were applied.
    """
    for end in range(min(len(path), MAX_DEPTH), 1, -1):
        new = rules.get(path[:end])
        if new is not None:
            used.add(path[:end])
            kept = path[: end - 1] if len(new) == 1 else ()
            return (*kept, *new, *path[end:]) if new else ()
    used.update((name,) for name in path if (name,) in rules)
    return tuple(new for name in path for new in rules.get((name,), (name,)) or ("",))


def unused_note(rules: Renames, used: Iterable[Path]) -> list[str]:
    """Name the rules that met no label: likely misspelt."""
    left = [_SEPARATOR.join(rule) for rule in list(rules)[1:] if rule not in set(used)]
    shown = ", ".join(map(repr, left[:3])) + (", …" if len(left) > 3 else "")
    return [f"--rename: {len(left)} old names meet no label: {shown}"] if left else []
