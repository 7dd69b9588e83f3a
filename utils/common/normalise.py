"""Unicode normalisation whose cost grows with the length of a text and no faster.

Only the standard library is imported, as every bundle holds a copy of this module.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from itertools import count, groupby
from typing import Literal

MOST_MARKS = 30
"""Combining marks in a row that are kept, as in Unicode's stream-safe format. The longest runs of
real languages have about five."""

_FIRST_ASTRAL = 0x10000
_END = 0x1F000
"""No combining mark stands above."""

Form = Literal["NFC", "NFD", "NFKC", "NFKD"]


def normalise(form: Form, text: str) -> str:
    """Normalise a text after cutting its runs of combining marks to 30.

    `unicodedata.normalize` sorts each run by insertion: a run of 60,000 marks takes seconds, one
    of a million half an hour.
    """
    likely, certain = _long_runs()
    if likely.search(text):
        text = certain.sub(lambda run: run[0][:MOST_MARKS], text)
    return unicodedata.normalize(form, text)


@cache
def _long_runs() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Patterns of a run of more marks than are kept: one that is quick, one that is exact.

    The quick one takes all characters beyond the first plane for marks: their many small ranges
    make a search thirty times as slow.
    """
    marks = [code for code in range(0x300, _END) if _is_mark(chr(code))]
    first_plane = [code for code in marks if code < _FIRST_ASTRAL]
    likely = [*first_plane, *range(_FIRST_ASTRAL, _END)]
    return _run_of(likely), _run_of(marks)


def _is_mark(char: str) -> bool:
    """Whether a character turns into nothing but combining marks, in any form.

    Some are letters until then, as the half-width voicing marks of katakana.
    """
    return all(map(unicodedata.combining, unicodedata.normalize("NFKD", char)))


def _run_of(codes: list[int]) -> re.Pattern[str]:
    ranges = character_ranges(codes)
    # A search looks for the first character; with a repetition at its start it would try each.
    return re.compile(f"[{ranges}][{ranges}]{{{MOST_MARKS},}}")


def character_ranges(codes: list[int]) -> str:
    """Write ascending code points as the ranges of a character class."""
    places = count()
    runs = [list(run) for _, run in groupby(codes, lambda code: code - next(places))]
    return "".join(f"{chr(run[0])}-{chr(run[-1])}" for run in runs)
