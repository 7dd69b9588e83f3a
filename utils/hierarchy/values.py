"""The plain values of a hierarchy.json, which may come from anywhere."""

from __future__ import annotations

import re
from typing import Any

_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""What adapt.py leaves in no name: answers are names line by line, in UTF-8."""


def mistake_in(sizes: Any, names: Any, parents: Any, ends: Any) -> str | None:
    """What is wrong with the values of a hierarchy.json by themselves, if anything."""
    if not _are_numbers(sizes, 1) or not _is_list_of(names, str) or len(names) != sum(sizes):
        return "'classes' does not fit 'level_sizes'"
    if not _is_list_of(parents, list) or len(parents) != len(sizes):
        return "'parent_of' does not fit 'level_sizes'"
    if not all(_are_numbers(level, 0) for level in parents[1:]):
        return "'parent_of' holds something else than codes"
    if not _are_numbers(ends, 0) or any(node >= len(names) for node in ends):
        return "'terminal_inner' holds something else than classes"
    if wrong := next(filter(_UNSEEN.search, names), None):
        return f"the name {wrong!r} has line breaks, control characters or half characters"
    return "a class has no name" if not all(name.strip() for name in names) else None


def _is_list_of(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)


def _are_numbers(values: Any, least: int) -> bool:
    """Whether it is a list of whole numbers from `least` on that fit into 32 bits."""
    return _is_list_of(values, int) and all(least <= value < 2**31 for value in values)
