"""Which format a table has, and streams that know how far they have been read."""

from __future__ import annotations

import gzip
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from utils.errors import UserError
from utils.files import atomic_path

FORMATS = ("csv", "tsv", "jsonl", "parquet")
ENDINGS = {
    ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".json": "jsonl", ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
GZIP = ".gz"


def format_of(path: Path, option: str) -> str:
    """The format that a file's ending says.

    Parameters
    ----------
    option
        The one that says it for other endings.

    Raises
    ------
    UserError
        The ending says nothing.
    """
    ending = Path(path.stem).suffix if path.suffix.lower() == GZIP else path.suffix
    found = ENDINGS.get(ending.lower())
    if found is None:
        raise UserError(
            f"The ending {ending!r} of {path} is not known. Known: {', '.join(ENDINGS)}, also with "
            f"{GZIP}. Or say what it is: {option} {'|'.join(FORMATS)}."
        )
    return found


class Counted(io.RawIOBase):
    """A file that counts the bytes read from it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.done = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read some bytes, as many as are there."""
        count = cast(io.RawIOBase, self._file).readinto(buffer) or 0
        self.done += count
        return count

    def close(self) -> None:
        """Close the file, but not standard input."""
        if self._file is not sys.stdin.buffer:
            self._file.close()
        super().close()


def open_input(path: Path | None) -> tuple[Counted, io.BufferedIOBase]:
    """Open a file, packed or not, or standard input for None.

    Returns
    -------
    counted, stream
        What tells how far the file has been read, and its unpacked content.

    Raises
    ------
    UserError
        It cannot be read.
    """
    if path is None:
        counted = Counted(sys.stdin.buffer)
        return counted, io.BufferedReader(counted, 1 << 20)
    if path.is_dir():
        raise UserError(f"{path} is a folder. Name a file in it.")
    try:
        counted = Counted(path.open("rb", buffering=0))
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    if path.suffix.lower() == GZIP:
        return counted, gzip.GzipFile(fileobj=io.BufferedReader(counted, 1 << 20))
    return counted, io.BufferedReader(counted, 1 << 20)


@contextmanager
def open_output(path: Path | None) -> Iterator[IO[bytes]]:
    """A stream to a file that appears when all is written, or to standard output for None."""
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        if path.suffix.lower() == GZIP:
            with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=5) as packed:
                yield cast(IO[bytes], packed)
        else:
            yield file
