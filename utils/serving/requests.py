"""From the body of a request to a text, or to the reason why there is none."""

from __future__ import annotations

import json
import re
import zlib
from typing import Any

MAX_CHARACTERS = 1_000_000


def bytes_of(characters: int) -> int:
    """Bytes of the longest body: a text so long in JSON, each character escaped as two surrogates.

    There is room for a few other keys.
    """
    return 12 * characters + 1024


MAX_BYTES = bytes_of(MAX_CHARACTERS)

CHARSETS = {
    "UTF-8": ("utf-8", "utf8", "utf-8-sig", "unicode-1-1-utf-8", "csutf8", "cp65001"),
    "UTF-16": ("utf-16", "utf16", "csutf16"),
    "UTF-16LE": ("utf-16le", "utf-16-le", "utf16le", "csutf16le"),
    "UTF-16BE": ("utf-16be", "utf-16-be", "utf16be", "csutf16be"),
    "UTF-32": ("utf-32", "utf32", "csutf32"),
    "UTF-32LE": ("utf-32le", "utf-32-le", "utf32le", "csutf32le"),
    "UTF-32BE": ("utf-32be", "utf-32-be", "utf32be", "csutf32be"),
    "ASCII": ("ascii", "us-ascii", "iso646-us", "iso-646.irv:1991", "ansi-x3.4-1968", "csascii"),
    "ISO-8859-1": (
        "iso-8859-1", "iso8859-1", "iso88591", "8859", "iso-8859-1:1987", "iso-ir-100",
        "latin-1", "latin1", "latin", "l1", "ibm819", "cp819", "csisolatin1",
    ),
    "Windows-1252": (
        "windows-1252", "windows1252", "cp1252", "cp-1252", "x-cp1252", "1252", "cswindows1252",
    ),
}  # fmt: skip
"""Character sets that a body may be in, and what clients call them."""

_CODECS = {alias: name for name, aliases in CHARSETS.items() for alias in aliases}
_CHARSET = re.compile(r';\s*charset\*?\s*=\s*("[^"]*"|[^;,]*)', re.IGNORECASE)
_PIECE = 4096
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


def decode_body(
    body: bytes,
    content_type: str | None = None,
    content_encoding: str | None = None,
    limit: int = MAX_BYTES,
) -> str:
    """Turn the bytes of a request into characters: the same for every route.

    Parameters
    ----------
    body
        As received.
    content_type, content_encoding
        The request's headers of those names.
    limit
        Bytes allowed, after unpacking.

    Raises
    ------
    Refusal
        Too large, not decodable.
    """
    codec = _codec(content_type or "")
    unpacked = _unpacked(body, (content_encoding or "").strip().lower(), limit)
    if max(len(body), len(unpacked)) > limit:
        raise Refusal(413, f"The body is larger than {limit} bytes.")
    try:
        return unpacked.decode(codec or json.detect_encoding(unpacked)).removeprefix("\ufeff")
    except UnicodeError:
        raise Refusal(400, f"The body is not {codec or 'UTF-8'}.") from None


def _codec(content_type: str) -> str | None:
    """Return the codec of a Content-Type that names a character set.

    No other is looked up by the client's name for it: some take hours over a megabyte, some
    unpack or execute, and Python remembers every name that it was ever asked for.
    """
    named = _CHARSET.findall(content_type)
    names = {name.strip("\"' ").lower().replace("_", "-") for name in named}
    codecs = {_CODECS.get(name) for name in names - {""}}
    if len(codecs) > 1 or None in codecs:
        raise Refusal(415, f"The charset of the Content-Type is not one of {', '.join(CHARSETS)}.")
    return codecs.pop() if codecs else None


def _unpacked(body: bytes, encoding: str, limit: int) -> bytes:
    if encoding in {"", "identity"} or len(body) > limit:
        return body
    if encoding not in {"gzip", "x-gzip"}:
        raise Refusal(415, "The Content-Encoding is not gzip.")
    try:
        return _gunzipped(body, limit)
    except (zlib.error, EOFError):
        raise Refusal(400, "The body is not gzip, as its Content-Encoding says.") from None


def _gunzipped(body: bytes, limit: int) -> bytes:
    """Unpack to the limit and a byte at most: a small body may hold gigabytes of zeros.

    Raises
    ------
    EOFError
        Its end, with the checksum, is missing.
    zlib.error
        It is damaged, or something else.
    """
    found, place = bytearray(), 0
    while place < len(body) or not place:
        member = zlib.decompressobj(wbits=31)  # a file may have several, one after another
        while not member.eof and len(found) <= limit:
            # In pieces, as each member returns a copy of what follows it.
            piece = body[place : place + _PIECE]
            if not piece:
                raise EOFError
            found += member.decompress(piece, limit + 1 - len(found))
            place += len(piece) - len(member.unused_data) - len(member.unconsumed_tail)
        if len(found) > limit:
            break
    return bytes(found)


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
