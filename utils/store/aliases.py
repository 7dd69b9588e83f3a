"""Aliases: names of a pair that lead to one of its runs until they are moved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from utils.common.errors import UserError
from utils.common.files import is_plain, read_json, write_json

FILE = "aliases.json"


def read_aliases(folder: Path) -> dict[str, str]:
    """Time of the run that each alias of a pair leads to.

    Parameters
    ----------
    folder
        Of the pair's checkpoints.

    Raises
    ------
    UserError
        They cannot be read.
    """
    file = folder / FILE
    if not file.exists():
        return {}
    try:
        found = read_json(file)
    except UserError as error:
        raise _unread(file, error.message) from error
    fits = isinstance(found, dict) and all(isinstance(one, str) for one in found.values())
    if not fits or not is_plain(found):
        raise _unread(file, f"{file} is damaged.")
    return dict(found)


def _unread(file: Path, reason: str) -> UserError:
    return UserError(f"{reason} Remove {file.name} and set the aliases again.")


def known_aliases(folder: Path) -> tuple[dict[str, str], str]:
    """The aliases of a pair; or none, and why they are not known."""
    try:
        return read_aliases(folder), ""
    except UserError as error:
        return {}, error.message


def write_aliases(folder: Path, aliases: Mapping[str, str]) -> None:
    """Write the aliases of a pair, whole."""
    write_json(folder / FILE, aliases)
