"""From the body of a feedback request to true paths by request id."""

from __future__ import annotations

import difflib
import heapq
import itertools
import re
from collections.abc import Collection
from typing import Any, TypeAlias

from utils.hierarchy import label_of
from utils.serving_text import Refusal, object_of

MAX_BYTES = 1_048_576
MAX_ENTRIES = 1000
EXAMPLE = 'send {"request_id": "…", "path": ["…"]} or {"data": [{…}]}'
COMPARED = 200
MOST_LIKELY = 20
REQUEST_ID = re.compile(r"[0-9a-f]{32}")

Path: TypeAlias = tuple[str, ...]


def feedback_of(document: bytes, paths: Collection[Path]) -> list[tuple[str, Path]]:
    """Read ``{"request_id": "…", "path": […]}`` or ``{"data": [{…}, …]}``: all of it or nothing.

    Parameters
    ----------
    paths
        Of the tree's classes; none: any path will do.

    Returns
    -------
    list of tuple
        Request ids with true paths.

    Raises
    ------
    Refusal
        It is something else, or a path is not in the tree.
    """
    if len(document) > MAX_BYTES:
        raise Refusal(413, f"The body is larger than {MAX_BYTES} bytes.")
    value = object_of(document, EXAMPLE)
    entries = value.get("data", [value])
    if not isinstance(entries, list) or not entries:
        raise Refusal(400, f"'data' is no list of feedback: {EXAMPLE}.")
    if len(entries) > MAX_ENTRIES:
        raise Refusal(413, f"'data' has {len(entries)} entries; {MAX_ENTRIES} are allowed.")
    return [_entry(entry, place, paths) for place, entry in enumerate(entries)]


def _entry(entry: Any, place: int, paths: Collection[Path]) -> tuple[str, Path]:
    if not isinstance(entry, dict):
        raise Refusal(400, f"Entry {place} is no object: {EXAMPLE}.")
    name, path = entry.get("request_id"), entry.get("path")
    if not isinstance(name, str) or not REQUEST_ID.fullmatch(name):
        raise Refusal(400, f"Entry {place}: 'request_id' is not the id of an answer (32 digits).")
    if not isinstance(path, list) or not path or not all(isinstance(part, str) for part in path):
        raise Refusal(400, f"Entry {place}: 'path' is no list of class names, root first.")
    found = tuple(path)
    if paths and found not in paths:
        raise Refusal(400, f"Entry {place}: no class has this 'path'.{_nearest(found, paths)}")
    return name, found


def _nearest(path: Path, paths: Collection[Path]) -> str:
    """Name the class that is most like a path, as a hint.

    Few classes are compared in earnest: with thousands that took seconds, which whoever sends
    wrong paths would take from the answers of texts.
    """
    wanted = label_of(path)[:COMPARED]
    same_end = [known for known in paths if known[-1:] == path[-1:]]
    labels = {label_of(known)[:COMPARED]: None for known in same_end or paths}
    pairs = _pairs(wanted)
    likely = heapq.nlargest(MOST_LIKELY, labels, key=lambda label: len(pairs & _pairs(label)))
    close = difflib.get_close_matches(wanted, likely, n=1, cutoff=0.5)
    return " The nearest is: " + " ".join(close[0].split()) + "." if close else ""


def _pairs(text: str) -> set[tuple[str, str]]:
    return set(itertools.pairwise(text))
