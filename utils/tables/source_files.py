"""Files as bytes: which ones, what kind, unpacked, and decoded to UTF-8."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from pathlib import Path

from utils.common.errors import UserError
from utils.tables.kinds import KINDS, TEXT_KINDS, refuse_foreign, sniffed_kind
from utils.tables.unpacking import unpacked

_HEAD = 1 << 16
_IN_TEXT = (1, 9, 10, 12, 13)
_SLICE = 1 << 16  # small enough for the cache
_COMMON = ["cp1250", "cp1251", "cp1252", "iso8859_2", "koi8_r", "cp1253", "cp1254", "cp1257",
           "cp932", "euc_jp", "gb18030", "big5", "euc_kr"]  # fmt: skip
_OLD = ["cp850", "cp866", "mac_roman"]  # only where none of the others will do
# What Western European texts hold beyond ASCII. Of cp1252's characters those are missing that
# stand where other encodings (cp1250, cp1254, …) have frequent letters.
_WESTERN = frozenset(
    "àáâãäåæçèéêëìíîïñòóôõöøùúûüßœÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜŒ“”„‘’‚«»–—…•·€£§©®™°´¡¿ºª½×²\xa0"
)
_WITHIN_WORD = re.compile(r"[^\W\d_][£¡¿][^\W\d_]")


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One input file: where it lies, how it is read, and its bytes if it was packed."""

    path: Path
    kind: str
    packed: bytes | None = None

    def contents(self) -> bytes:
        """Return the (unpacked) contents."""
        return self.path.read_bytes() if self.packed is None else self.packed

    def head(self) -> bytes:
        """Return the first 64 KiB of the (unpacked) contents."""
        if self.packed is not None:
            return self.packed[:_HEAD]
        with self.path.open("rb") as stream:
            return stream.read(_HEAD)


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """A text file in UTF-8, and what it was before."""

    data: bytes
    encoding: str
    note: str | None = None


def open_source(path: Path, kind: str | None = None) -> SourceFile:
    """Find out what a file is, and unpack it if it is compressed.

    Parameters
    ----------
    kind
        The kind to use whatever the file's name says.

    Raises
    ------
    UserError
        The file is empty, unreadable, or not what its name says.
    """
    try:
        if not (path.is_file() or path.is_fifo()):
            raise UserError(f"{path} is not a regular file.")
        # A pipe can be read once only.
        name, packed = (path.name, path.read_bytes()) if path.is_fifo() else unpacked(path)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    source = SourceFile(path=path, kind="csv", packed=packed)
    head = source.head()
    if not head.strip(b"\xef\xbb\xbf \t\r\n"):
        raise UserError(f"{path} is empty.")
    known = kind or KINDS.get(Path(name).suffix.lower()) or sniffed_kind(head)
    refuse_foreign(path, known, head, packed)
    if known in TEXT_KINDS and not _is_text(head):
        raise UserError(f"{path} is a binary file, not {known.upper()}.")
    return SourceFile(path=path, kind=known, packed=packed)


def _is_text(head: bytes) -> bool:
    if marked_encoding(head):
        return True
    # A NUL or two among letters is dirt; characters that separate columns are no sign either.
    control = sum(head.count(bytes([code])) for code in range(28) if code not in _IN_TEXT)
    return control * 25 < len(head) + 75


def _utf16_guess(head: bytes) -> str | None:
    """UTF-16 without a mark: every other byte of mostly Latin text is NUL."""
    even, odd = head[::2].count(0), head[1::2].count(0)
    half = len(head) // 2 or 1
    if odd > 0.6 * half and even < 0.1 * half:
        return "utf-16-le"
    return "utf-16-be" if even > 0.6 * half and odd < 0.1 * half else None


def decode(source: SourceFile, encoding: str | None) -> Decoded:
    """Bring a text file to UTF-8.

    Without `encoding`: a byte-order mark, then strict UTF-8, then UTF-8 with a few broken bytes,
    then cp1252 if that gives a Western European text, then what `charset_normalizer` finds among
    common encodings, then latin-1. If a quarter of the lines in question are UTF-8, they stay so.

    Raises
    ------
    UserError
        The given encoding does not exist or does not fit.
    """
    data = source.contents()
    if encoding:
        return _decode_as(source.path, data, encoding)
    if marked := marked_encoding(data):
        return _decode_as(source.path, data, marked)
    if _is_utf8(data):
        return Decoded(data=data.removeprefix(codecs.BOM_UTF8), encoding="utf-8")
    return _rescued(data) or _guessed(data)


def known_encoding(encoding: str) -> str:
    """Return Python's name of an encoding, or raise `UserError`."""
    try:
        "".encode(encoding)  # refuses codecs that are none of text, too
        return codecs.lookup(encoding).name
    except (LookupError, ValueError) as error:
        raise UserError(
            f"Unknown encoding {encoding!r}. Try utf-8, utf-16, cp1252, cp1250, latin-1, …"
        ) from error


def _decode_as(path: Path, data: bytes, encoding: str) -> Decoded:
    name = known_encoding(encoding)
    try:
        text = data.decode(name)
    except (UnicodeError, AssertionError) as error:
        place = f" at byte {error.start}" if isinstance(error, UnicodeDecodeError) else ""
        raise UserError(
            f"{path} is not {encoding}: it cannot be decoded{place}. "
            "Give the right --encoding, or leave it out to have it detected."
        ) from error
    return Decoded(data=text.removeprefix("\ufeff").encode("utf-8", "replace"), encoding=name)


def marked_encoding(data: bytes) -> str | None:
    """UTF-16 or UTF-32 where a byte-order mark, or every other byte being NUL, says so."""
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    return _utf16_guess(data[:_HEAD]) if b"\0" in data[:_HEAD] else None


def _is_utf8(data: bytes) -> bool:
    """Decode the slices that are not plain ASCII; a character may straddle two of them."""
    import numpy as np

    codes, view = np.frombuffer(data, dtype=np.uint8), memoryview(data)
    start = 0
    try:
        while start < len(data):
            end = min(start + _SLICE, len(data))
            if codes[start:end].max() < 128:
                start = end
            else:
                start += codecs.utf_8_decode(view[start:end], "strict", end == len(data))[1]
    except UnicodeDecodeError:
        return False
    return True


def _rescued(data: bytes) -> Decoded | None:
    """UTF-8 in which a few bytes are broken: at most one for ten good characters."""
    text = data.decode("utf-8", "replace")
    broken = text.count("\ufffd") - data.count("\ufffd".encode())
    good = sum(map(len, re.findall(r"[^\x00-\x7f\ufffd]+", text)))
    if broken * 10 > good:
        return None
    note = f"{broken:,} bytes are not UTF-8 and were replaced by �"
    return Decoded(data=text.encode("utf-8"), encoding="utf-8", note=note)


def _guessed(data: bytes) -> Decoded:
    lines = data.split(b"\n")
    wide = [number for number, line in enumerate(lines) if not line.isascii()]
    foreign = [number for number in wide if not _is_utf8(lines[number])]
    others = len(wide) - len(foreign)
    if others < len(foreign) / 3:  # by chance, unless many
        encoding, text = _best_guess(data)
        note = f"the encoding was guessed: {encoding}; give --encoding if names look wrong"
        return Decoded(data=text.encode("utf-8", "replace"), encoding=encoding, note=note)
    encoding, text = _best_guess(b"\n".join(lines[number] for number in foreign))
    for number, line in zip(foreign, text.split("\n"), strict=True):
        lines[number] = line.encode("utf-8", "replace")
    note = f"{len(foreign):,} lines are not UTF-8 as {others:,} others are: read as {encoding}"
    return Decoded(data=b"\n".join(lines), encoding=f"utf-8, {encoding}", note=note)


def likely_encoding(data: bytes) -> str:
    """The most likely encoding of a text that is not UTF-8."""
    return _best_guess(data)[0]


def _best_guess(data: bytes) -> tuple[str, str]:
    """The most likely encoding, and the text that it gives."""
    wide = re.findall(rb"[^\n]*[\x80-\xff][^\n]*", data[: 1 << 22])
    sample = b"\n".join(wide)[:_HEAD]
    western = "cp1252" if _is_western(sample) else None
    for encoding in filter(None, (western, _normalizer_guess(sample), "cp1252")):
        try:
            return encoding, data.decode(encoding)
        except (UnicodeError, LookupError):
            continue
    return "latin-1", data.decode("latin-1")


def _is_western(sample: bytes) -> bool:
    """Whether cp1252 gives words of Western European letters, few of them beyond ASCII."""
    text = sample.decode("cp1252", "replace")
    wide = [letter for letter in text if letter > "\x7f"]
    odd = sum(letter not in _WESTERN for letter in wide)
    if "õ" in wide and not {"ã", "ä"} & set(wide):  # Hungarian ő: no language has õ alone
        return False
    within = "".join(re.findall(r"[^\W\d_]*[^\W\d_\x00-\x7f][^\W\d_]*", text))
    mostly_ascii = sum(letter > "\x7f" for letter in within) <= 0.7 * len(within)
    return mostly_ascii and odd <= 0.02 * len(wide) and not _WITHIN_WORD.search(text)


def _normalizer_guess(sample: bytes) -> str | None:
    from charset_normalizer import from_bytes

    for encodings in (_COMMON, _OLD):
        best = from_bytes(sample, threshold=0.3, cp_isolation=encodings).best()
        if best:
            return best.encoding
    return None
