"""What scorers of any runtime have in common: the way from texts to rows, and threads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from utils.common.errors import UserError
from utils.common.ragged import Rows

THREADS = "KTT_THREADS"
MOST_THREADS = max(64, os.cpu_count() or 1)


class FrontEnd(Protocol):
    """Texts to rows of a graph's input."""

    def __call__(self, texts: Sequence[str]) -> Rows:
        """Rows of some texts."""
        ...

    def edge_rows(self) -> Rows:
        """Rows with the largest ids that there can be, as many as there can be: a graph that takes
        them belongs to this."""
        ...


def thread_count() -> int:
    """Threads per graph: what ``KTT_THREADS`` says, else the cores this process may use."""
    given = os.environ.get(THREADS, "")
    if given:
        if not given.isdecimal() or not 0 < int(given[:6]) <= MOST_THREADS:
            raise UserError(
                f"{THREADS}={given!r} is no number of threads. Give one from 1 to {MOST_THREADS}."
            )
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def front_end(folder: Path, entry: dict[str, Any]) -> FrontEnd:
    """What stands before the graph: texts to rows of its input.

    Parameters
    ----------
    entry
        The manifest's `scorer`.
    """
    if "tokenizer" in entry:
        from utils.neural.tokenizer import TextTokenizer

        definition = (folder / entry["tokenizer"]).read_text(encoding="utf-8")
        return TextTokenizer(definition, int(entry["max_len"]), int(entry["pad_id"]))
    if "vocabulary" in entry:
        from utils.linear.tfidf import TfidfFeatures

        return TfidfFeatures.load(folder / entry["vocabulary"], entry["tfidf"])
    raise UserError(f"{folder}: its manifest names no front end. Export again.")


def files_of(entry: dict[str, Any]) -> list[str]:
    """Files that a scorer reads."""
    return [entry[key] for key in ("file", "tokenizer", "vocabulary") if key in entry]
