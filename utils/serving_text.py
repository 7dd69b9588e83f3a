"""From the body of a request to a text, or to the reason why there is none."""

from __future__ import annotations

import json
import zlib
from typing import Any

MAX_CHARACTERS = 1_000_000
MAX_BYTES = 12 * MAX_CHARACTERS + 1024
"""The longest text allowed, written in JSON with every character escaped as two surrogates."""

_EXAMPLE = 'send {"text": "…"}'
_KINDS = {
    type(None): "null",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
}


class Refusal(Exception):
    """A request that gets no answer.

    Parameters
    ----------
    status
        HTTP status, 4xx.
    message
        One line for the client; it never repeats the request.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    @property
    def headers(self) -> dict[str, str]:
        """Of the response."""
        headers = {"Content-Type": "text/plain; charset=utf-8"}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def decode_body(body: bytes, charset: str | None, encoding: str) -> str:
    """Turn the bytes of a request into characters.

    Parameters
    ----------
    body
        As received.
    charset
        Of the Content-Type, if it names one.
    encoding
        The Content-Encoding, ``""`` for none.

    Raises
    ------
    Refusal
        Too large, not decodable.
    """
    body = unpacked(body, encoding)
    if len(body) > MAX_BYTES:
        raise Refusal(413, f"The body is larger than {MAX_BYTES} bytes.")
    try:
        return body.decode(charset or "utf-8-sig")
    except UnicodeError:
        raise Refusal(400, f"The body is not {charset or 'UTF-8'}.") from None
    except (LookupError, ValueError):
        raise Refusal(415, "The charset of the Content-Type is not known.") from None


def unpacked(body: bytes, encoding: str) -> bytes:
    """Unpack no more than the limit and a byte: a small body may hold gigabytes of zeros.

    Raises
    ------
    Refusal
        Not packed, or in another way than its Content-Encoding says.
    """
    if encoding in {"", "identity"}:
        return body
    if encoding not in {"gzip", "x-gzip"}:
        raise Refusal(415, "The Content-Encoding is not gzip.")
    try:
        return zlib.decompressobj(wbits=31).decompress(body, MAX_BYTES + 1)
    except zlib.error:
        raise Refusal(400, "The body is not gzip, as its Content-Encoding says.") from None


def object_of(document: str | bytes, example: str) -> dict[str, Any]:
    """Read a JSON object.

    Parameters
    ----------
    example
        What to send instead of anything else.

    Raises
    ------
    Refusal
        It is none.
    """
    if not document:
        raise Refusal(400, f"The body is empty: {example}.")
    try:
        value = json.loads(document)
    except (ValueError, RecursionError):  # also a number of 5,000 digits, and 10,000 times "["
        raise Refusal(400, f"The body is not JSON: {example}.") from None
    if not isinstance(value, dict):
        raise Refusal(400, f"The body is {_kind(value)}, not an object: {example}.")
    return value


def text_of(document: str | bytes, limit: int = MAX_CHARACTERS) -> str:
    """Take the text out of ``{"text": "…"}``; other keys are ignored.

    Parameters
    ----------
    limit
        Characters allowed.

    Raises
    ------
    Refusal
        Anything else than one non-empty text within the limit.
    """
    value = object_of(document, _EXAMPLE)
    if "text" not in value:
        raise Refusal(400, f"The body has no 'text': {_EXAMPLE}.")
    return _checked(value["text"], limit)


def _checked(text: Any, limit: int) -> str:
    if not isinstance(text, str):
        raise Refusal(400, f"'text' is {_kind(text)}, not a string: {_EXAMPLE}.")
    if len(text) > limit:
        raise Refusal(413, f"'text' has {len(text)} characters; {limit} are allowed.")
    if not text.strip():
        raise Refusal(400, "'text' is empty.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Refusal(400, "'text' holds half a surrogate pair: that is not Unicode.") from None
    return text


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "something else")
