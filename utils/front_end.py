"""What stands before a scorer of any runtime: texts to rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.ragged import Rows

FrontEnd = Callable[[Sequence[str]], Rows]


def front_end(folder: Path, entry: dict[str, Any]) -> FrontEnd:
    """What stands before the graph: texts to rows of its input.

    Parameters
    ----------
    entry
        The manifest's `scorer`.
    """
    if "tokenizer" in entry:
        from utils.tokenizer import TextTokenizer

        definition = (folder / entry["tokenizer"]).read_text(encoding="utf-8")
        return TextTokenizer(definition, int(entry["max_len"]), int(entry["pad_id"]))
    if "vocabulary" in entry:
        from utils.tfidf import TfidfFeatures

        return TfidfFeatures.load(folder / entry["vocabulary"], entry["tfidf"]).rows
    raise UserError(f"{folder}: its manifest names no front end. Export again.")


def files_of(entry: dict[str, Any]) -> list[str]:
    """Files that a scorer reads."""
    return [entry[key] for key in ("file", "tokenizer", "vocabulary") if key in entry]
