"""Who may ask, and how much: the limits that a service takes from its environment."""

from __future__ import annotations

import hmac
import os

from utils.errors import UserError
from utils.serving_text import MAX_CHARACTERS, Refusal

TOKEN = "KTT_API_TOKEN"
CHARACTERS = "KTT_MAX_CHARACTERS"


def _token() -> str:
    return os.environ.get(TOKEN, "").strip()


def has_token() -> bool:
    """Whether requests need the token."""
    return bool(_token())


def check_token(authorization: str | None) -> None:
    """Let a request pass that brings the token, or any if the service has none.

    Parameters
    ----------
    authorization
        The request's header of that name.

    Raises
    ------
    Refusal
        401.
    """
    token = _token()
    if not token:
        return
    scheme, _, given = (authorization or "").partition(" ")
    known = hmac.compare_digest(given.strip().encode("utf-8", "replace"), token.encode())
    if scheme.lower() != "bearer" or not known:
        raise Refusal(401, "Send the service's token: Authorization: Bearer …")


def max_characters() -> int:
    """Characters that a text may have.

    Raises
    ------
    UserError
        KTT_MAX_CHARACTERS is no number that the service can allow.
    """
    given = os.environ.get(CHARACTERS, "").strip()
    if not given:
        return MAX_CHARACTERS
    if not (given.isascii() and given.isdecimal() and 0 < int(given[:8]) <= MAX_CHARACTERS):
        raise UserError(f"{CHARACTERS}={given!r} is none of 1 to {MAX_CHARACTERS}.")
    return int(given)
