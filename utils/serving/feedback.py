"""From the body of a feedback request to true paths by request id."""

from __future__ import annotations

import difflib
import heapq
import itertools
import re
from collections.abc import Iterable
from typing import Any, TypeAlias

from utils.common.names import tidy_name
from utils.hierarchy.tree import label_of
from utils.serving.requests import Refusal, object_of

MAX_BYTES = 1_048_576
MAX_ENTRIES = 1000
EXAMPLE = 'send {"request_id": "…", "path": ["…"]} or {"data": [{…}]}'
COMPARED = 200
MOST_LIKELY = 20
REQUEST_ID = re.compile(r"[0-9a-f]{32}")

Path: TypeAlias = tuple[str, ...]


class KnownPaths:
    """The paths of a tree's classes, found in whatever way a client spells their names.

    Parameters
    ----------
    paths
        None: any path is known.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = frozenset(paths)
        self._tidy: dict[Path, list[Path]] = {}
        for known in sorted(self._paths):
            self._tidy.setdefault(_tidied(known), []).append(known)

    def find(self, path: Path) -> Path | None:
        """Return the tree's own spelling of a path, None if it has none such."""
        if not self._paths or path in self._paths:
            return path
        found = self._tidy.get(_tidied(path), [])
        return found[0] if len(found) == 1 else None

    def nearest(self, path: Path) -> str | None:
        """Name the class that is most like a path.

        Few classes are compared in earnest: with thousands that took seconds, which whoever sends
        wrong paths would take from the answers of texts.
        """
        path = _tidied(path)
        wanted = _compared(path)
        same_end = [known for known in self._tidy if known[-1:] == path[-1:]]
        labels = {_compared(known): known for known in same_end or self._tidy}
        pairs = _pairs(wanted)
        likely = heapq.nlargest(MOST_LIKELY, labels, key=lambda label: len(pairs & _pairs(label)))
        close = difflib.get_close_matches(wanted, likely, n=1, cutoff=0.5)
        return label_of(self._tidy[labels[close[0]]][0]) if close else None


def feedback_of(document: str, known: KnownPaths) -> list[tuple[str, Path]]:
    """Read ``{"request_id": "…", "path": […]}`` or ``{"data": [{…}, …]}``: all of it or nothing.

    Returns
    -------
    list of tuple
        Request ids with true paths, spelt as in the tree.

    Raises
    ------
    Refusal
        It is something else, or a path is not in the tree.
    """
    value = object_of(document, EXAMPLE)
    entries = value.get("data", [value])
    if not isinstance(entries, list) or not entries:
        raise Refusal(400, f"'data' is no list of feedback: {EXAMPLE}.")
    if len(entries) > MAX_ENTRIES:
        raise Refusal(413, f"'data' has {len(entries)} entries; {MAX_ENTRIES} are allowed.")
    return [_entry(entry, place, known) for place, entry in enumerate(entries)]


def _entry(entry: Any, place: int, known: KnownPaths) -> tuple[str, Path]:
    if not isinstance(entry, dict):
        raise Refusal(400, f"Entry {place} is no object: {EXAMPLE}.")
    name, path = entry.get("request_id"), entry.get("path")
    if not isinstance(name, str) or not REQUEST_ID.fullmatch(name):
        raise Refusal(400, f"Entry {place}: 'request_id' is not the id of an answer (32 digits).")
    if not isinstance(path, list) or not path or not all(isinstance(part, str) for part in path):
        raise Refusal(400, f"Entry {place}: 'path' is no list of class names, root first.")
    found = known.find(tuple(path))
    if found is None:
        nearest = known.nearest(tuple(path))
        hint = f" The nearest is: {' '.join(nearest.split())}." if nearest else ""
        raise Refusal(400, f"Entry {place}: no class has this 'path'.{hint}")
    return name, found


def _tidied(path: Path) -> Path:
    return tuple(map(tidy_name, path))


def _compared(path: Path) -> str:
    return label_of(path).casefold()[:COMPARED]


def _pairs(text: str) -> set[tuple[str, str]]:
    return set(itertools.pairwise(text))
