"""The one error type for mistakes that a user can mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import click

LONG = 12
"""More names than that are not listed where one of them is what was meant."""


class UserError(click.ClickException):
    """A mistake in the input: shown as one line, ``Error: …``, with exit status 1."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def unknown(kind: str, value: str, choices: Iterable[str]) -> UserError:
    """Build the error for a name that is not among the known ones.

    Parameters
    ----------
    kind
        What the name stands for: ``"model"``, ``"column"``, …
    value
        The name that was given.
    choices
        All names that would have been right.
    """
    known = list(choices)
    close = difflib.get_close_matches(value, known, n=1) or [
        name for name in known if name.lower() == value.lower()
    ]
    hint = f" Did you mean {close[0]!r}?" if close else ""
    if close and len(known) > LONG:
        return UserError(f"Unknown {kind} {value!r}.{hint}")
    shown = ", ".join(known[:40]) + (f", … ({len(known)} in all)" if len(known) > 40 else "")
    return UserError(f"Unknown {kind} {value!r}.{hint} Known: {shown or 'none'}.")
