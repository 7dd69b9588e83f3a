"""Custom objects: what a user keeps beside a model, as files that cannot run code."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from utils.common.errors import UserError
from utils.common.paths import checked_name

KINDS = "text, bytes, NumPy arrays and JSON values"


def write_objects(folder: Path, objects: Mapping[str, Any]) -> None:
    """Write objects into a folder, one file each.

    Raises
    ------
    UserError
        One is of a kind that only a pickle could hold, and pickles run code when they are read.
    """
    folder.mkdir()
    for name, value in objects.items():
        checked_name("Custom object", name)
        ending, content = _encoded(name, value)
        path = folder / f"{name}{ending}"
        if callable(content):
            content(path)
        else:
            path.write_bytes(content)


def _encoded(name: str, value: Any) -> tuple[str, bytes | Callable[[Path], None]]:
    if isinstance(value, str):
        return ".txt", value.encode()
    if isinstance(value, bytes):
        return ".bin", value
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return ".npy", lambda path: np.save(path, value, allow_pickle=False)
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        same = json.loads(text) == value
    except (TypeError, ValueError, RecursionError):
        same = False
    if not same:
        raise UserError(
            f"Custom object {name!r} is a {type(value).__name__} that would not come back as it "
            f"is: the store keeps {KINDS}, never pickles."
        )
    return ".json", text.encode()


_READERS: dict[str, Callable[[Path], Any]] = {
    ".txt": lambda path: path.read_text(encoding="utf-8"),
    ".bin": Path.read_bytes,
    ".npy": lambda path: np.load(path, allow_pickle=False),
    ".json": lambda path: json.loads(path.read_text(encoding="utf-8")),
}


class Objects(Mapping[str, Any]):
    """The custom objects of an entry by name; each is read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self))})"

    def _files(self) -> dict[str, Path]:
        found = sorted(self._folder.glob("*")) if self._folder.is_dir() else []
        return {path.stem: path for path in found if path.suffix in _READERS}

    def __getitem__(self, name: str) -> Any:
        path = self._files()[name]
        try:
            return _READERS[path.suffix](path)
        except (ValueError, EOFError, MemoryError, RecursionError) as error:
            raise UserError(f"{path} is damaged: {error}.") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._files())

    def __len__(self) -> int:
        return len(self._files())
