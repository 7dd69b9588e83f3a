"""Unpack compressed files, within bounds."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from utils.common.errors import UserError

SMALL = 1 << 26
"""What a file may unpack to whatever its size: text that repeats itself packs very well."""
RATIO = 200
"""How many times its size a larger one may unpack to; tables reach 5 to 50."""
_BLOCK = 1 << 20
_OPENERS: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open
}  # fmt: skip
ENDINGS = (*_OPENERS, ".zip")
FAILURES = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError)


def unpacked(path: Path) -> tuple[str, bytes | None]:
    """Unpack a file if its name says that it is packed.

    Returns
    -------
    name, contents
        The name of what was packed; None instead of contents if nothing was.

    Raises
    ------
    UserError
        It is damaged, unpacks to far more than a table would, or holds several files.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".zip":
            return _unzipped(path)
        if suffix in _OPENERS:
            with _OPENERS[suffix](path) as stream:
                return path.stem, _bounded(stream, path, path.stat().st_size)
    except FAILURES as error:
        raise UserError(f"Cannot unpack {path}: {error}.") from error
    return path.name, None


def _unzipped(path: Path) -> tuple[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        names = [
            info.filename
            for info in archive.infolist()
            if not info.is_dir() and "__MACOSX" not in info.filename
            and not Path(info.filename).name.startswith(".")
        ]  # fmt: skip
        if len(names) != 1:
            more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
            shown = ", ".join(f"{name[:80]!a}"[1:-1] for name in names[:5]) or "no file"
            raise UserError(f"{path} holds {shown}{more}: unpack it and name the files to read.")
        if Path(names[0]).suffix.lower() in ENDINGS:
            raise UserError(f"{path} is packed twice ({names[0][:80]!a} inside): unpack it once.")
        with archive.open(names[0]) as stream:
            return names[0], _bounded(stream, path, path.stat().st_size)


def _bounded(stream: IO[bytes], path: Path, size: int) -> bytes:
    """Read all, as long as it is not absurdly more than was packed."""
    blocks, total = [], 0
    while block := stream.read(_BLOCK):
        total += len(block)
        check_ratio(path, total, size)
        blocks.append(block)
    return b"".join(blocks)


def check_ratio(path: Path, total: int, size: int) -> None:
    """Refuse a file of `size` bytes that unpacks to `total` or more.

    Raises
    ------
    UserError
        It is more than any table's.
    """
    if total > max(SMALL, RATIO * size):
        raise UserError(
            f"{path} unpacks to more than {RATIO} times its {size:,} bytes: no table does. If it "
            "is one, unpack it yourself and name the unpacked file."
        )


def check_zip(path: Path, contents: bytes) -> None:
    """Refuse a workbook whose parts unpack to far more than a workbook's.

    Raises
    ------
    UserError
        They do, or it is no zip.
    """
    try:
        with zipfile.ZipFile(BytesIO(contents)) as archive:
            total = sum(info.file_size for info in archive.infolist())
    except FAILURES as error:
        raise UserError(f"{path} cannot be read as an xlsx workbook: {error}.") from error
    check_ratio(path, total, len(contents))
