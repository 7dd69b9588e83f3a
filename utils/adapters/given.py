"""The files that a user names: paths, globs and folders, and what their paths say."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote

from utils.common.errors import UserError
from utils.common.paths import given_path
from utils.tables.kinds import KINDS
from utils.tables.unpacking import ENDINGS

FILE_COLUMN = "file"
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
_HIDDEN = (".", "_")  # what Spark and others leave beside their tables


def expand(patterns: Sequence[str]) -> list[Path]:
    """Resolve paths, globs and folders to files.

    Raises
    ------
    UserError
        A path does not exist, a folder holds no tables, or a glob matches nothing.
    """
    files: list[Path] = []
    for pattern in patterns:
        try:
            files += _found(pattern, given_path(pattern))
        except OSError as error:
            raise UserError(f"Cannot read {pattern}: {error.strerror or error}.") from error
    return list(dict.fromkeys(files))


def _found(pattern: str, path: Path) -> list[Path]:
    if path.is_dir():
        return _tables_in(path, pattern)
    if path.exists():
        return [path]
    found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207
    files = [name for name in found if name.is_file()]
    files += [file for name in found if name.is_dir() for file in _tables_in(name, str(name))]
    if not files:
        raise UserError(f"No such file: {pattern}.{_neighbours(path)}")
    return files


def _tables_in(folder: Path, name: str) -> list[Path]:
    """All tables below a folder, without what other programs put beside them."""
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if not any(part.startswith(_HIDDEN) for part in path.relative_to(folder).parts)
        and _is_table(path)
    ]
    if not found:
        raise UserError(f"{name} is a folder without tables. Name its files, or a glob of them.")
    return found


def _is_table(path: Path) -> bool:
    packed = path.suffix.lower() in ENDINGS
    kind = Path(path.stem).suffix if packed else path.suffix
    named = kind.lower() in KINDS or (packed and not kind)
    return named and path.is_file() and path.stat().st_size > 0


def _neighbours(path: Path) -> str:
    import difflib

    if not path.parent.is_dir():
        return f" The folder {path.parent} does not exist either."
    names = [other.name for other in path.parent.iterdir()]
    close = difflib.get_close_matches(path.name, names, n=1)
    return f" Did you mean {path.parent / close[0]}?" if close else ""


def path_columns(path: Path) -> Mapping[str, str | None]:
    """What a file's path says of its rows: its name, and ``key=value`` of its folders."""
    pairs = (part.partition("=") for part in path.parts[:-1])
    found: dict[str, str | None] = {
        unquote(key): None if value == _NO_VALUE else unquote(value)
        for key, sign, value in pairs
        if sign and key
    }
    return {**found, FILE_COLUMN: path.name}
