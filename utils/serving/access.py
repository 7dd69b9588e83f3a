"""Who may ask, and how much: the limits that a service takes from its environment."""

from __future__ import annotations

import hmac
import os

from utils.common.errors import UserError
from utils.serving.requests import MAX_CHARACTERS, Refusal

TOKEN = "KTT_API_TOKEN"
CHARACTERS = "KTT_MAX_CHARACTERS"
LONGEST_TOKEN = 4096  # characters; servers refuse headers of twice as many


def token() -> str:
    """The token that requests must bring, without spaces around it; empty: none.

    Raises
    ------
    UserError
        KTT_API_TOKEN is blank, or nothing that a header can hold. It is not quoted: it is a secret.
    """
    given = os.environ.get(TOKEN, "")
    found = given.strip()
    if given and not found:
        raise UserError(f"{TOKEN} is blank. Give it a token, or take the setting away.")
    if not found.isprintable():  # so are surrogates, which stand for what is not UTF-8
        raise UserError(
            f"{TOKEN} has a line break, another control character or what is not UTF-8 in it."
        )
    if len(found.encode()) > LONGEST_TOKEN:
        raise UserError(f"{TOKEN} is longer than {LONGEST_TOKEN} bytes.")
    return found


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
    wanted = token()
    if not wanted:
        return
    scheme, _, given = (authorization or "").partition(" ")
    known = hmac.compare_digest(given.strip().encode("utf-8", "replace"), wanted.encode())
    if scheme.lower() != "bearer" or not known:
        raise Refusal(401, "Send the service's token: Authorization: Bearer …")


def max_characters() -> int:
    """Characters that a text may have.

    Raises
    ------
    UserError
        KTT_MAX_CHARACTERS is no number that the service can allow.
    """
    given = os.environ.get(CHARACTERS, "")
    if not given:
        return MAX_CHARACTERS
    number = given.strip()
    if not (number.isascii() and number.isdecimal() and 0 < int(number[:8]) <= MAX_CHARACTERS):
        raise UserError(f"{CHARACTERS}={given!r} is none of 1 to {MAX_CHARACTERS}.")
    return int(number)
