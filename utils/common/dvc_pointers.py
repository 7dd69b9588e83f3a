"""DVC's small files, before DVC is given one: each stands for the one file or folder beside it.

They come with a dataset or a model from anywhere, and DVC writes wherever they say. So they are
read here first, as text in the one form that ``dvc add`` writes: two readers of YAML may differ.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from utils.common.errors import UserError
from utils.common.files import POINTER

LONGEST = 10_000  # characters of a pointer
FOLDER = ".dir"
"""Ends the hash of a folder: that of the list of its files."""
_LINE = re.compile(r"(?P<key>\w+): (?P<quote>['\"]?)(?P<value>[\w.:@+-]+)(?P=quote)", re.ASCII)
_SUM = re.compile(r"[0-9a-f]{32}(\.dir)?")
_NUMBER = re.compile(r"[0-9]{1,18}")
_KNOWN = {"size": _NUMBER, "nfiles": _NUMBER, "isexec": re.compile("true|false")}
_NAME = re.compile(r"\w[\w.:@+-]*", re.ASCII)
_PLACE = re.compile(r"[^./\\\0][^/\\\0]*(/[^./\\\0][^/\\\0]*)*")


def pointer_of(path: Path) -> Path:
    """The pointer to a file or folder, which stands beside it."""
    return path.with_name(path.name + POINTER)


def checked_sum(root: Path, path: Path) -> str:
    """Return the hash in a pointer that stands for nothing but `path`.

    Raises
    ------
    UserError
        It says more or something else, or leads out of the folder that it lies in.
    """
    pointer, shown = pointer_of(path), path.relative_to(root)
    links = [x for x in (pointer, path, *path.parents) if x.is_relative_to(root) and x.is_symlink()]
    if links:
        raise _refused(shown, f"{links[0].relative_to(root)} is a link")
    found = _fields(pointer)
    if found is None:
        raise _refused(shown, "it is not as 'dvc add' writes it")
    if found["path"] != path.name or not _NAME.fullmatch(path.name):
        raise _refused(shown, f"it stands for {found['path']!r}, not for what is beside it")
    return found["md5"]


def _refused(shown: Path, reason: str) -> UserError:
    return UserError(
        f"{shown} is missing, and DVC cannot fetch it by {shown.name}{POINTER}: {reason}. Get that "
        "file again from whoever tracks it, or remove it."
    )


def _fields(pointer: Path) -> dict[str, str] | None:
    """What a pointer says of its only output; None if it is not in the usual form."""
    try:
        with pointer.open(encoding="utf-8") as file:
            text = file.read(LONGEST + 1)
    except (OSError, UnicodeDecodeError):
        return None
    head, *lines = text.rstrip("\n").split("\n")
    if head != "outs:" or not lines or len(text) > LONGEST:
        return None
    marks = ["- ", *["  "] * (len(lines) - 1)]
    parts = [
        _LINE.fullmatch(line[2:]) if line.startswith(mark) else None
        for line, mark in zip(lines, marks, strict=True)
    ]
    found = {part["key"]: part["value"] for part in parts if part}
    known = {"md5": _SUM, "path": _NAME, "hash": re.compile("md5"), **_KNOWN}
    fits = all(key in known and known[key].fullmatch(value) for key, value in found.items())
    return found if fits and len(found) == len(lines) and found.keys() >= {"md5", "path"} else None


def check_listing(cache: Path, sum_: str, shown: Path) -> None:
    """Make sure that the files of a tracked folder lie in it.

    Parameters
    ----------
    cache
        DVC's, where the list of the files is.
    sum_
        Hash of the list.
    shown
        The folder, for the message.

    Raises
    ------
    UserError
        One leads out of it, or there is no such list.
    """
    try:
        content = (cache / "files" / "md5" / sum_[:2] / sum_[2:]).read_bytes()
        entries = json.loads(content)
        places = [entry["relpath"] for entry in entries]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise _refused(shown, "the list of the folder's files is missing or damaged") from error
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != sum_.removesuffix(FOLDER):
        raise _refused(shown, "the list of the folder's files is damaged")
    for place in places:
        if not isinstance(place, str) or not _PLACE.fullmatch(place):
            raise _refused(shown, f"a file of the folder would be written to {place!r}")
