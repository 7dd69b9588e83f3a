"""Which format a table has, and streams that know how far they have been read."""

from __future__ import annotations

import codecs
import gzip
import io
import select
import sys
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

from utils.common.errors import UserError
from utils.common.files import atomic_path, followed, is_device
from utils.tables.dialect import without_escapes
from utils.tables.source_files import known_encoding, marked_encoding

FORMATS = ("csv", "tsv", "jsonl", "parquet")
ENDINGS = {
    ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".json": "jsonl", ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
WORKBOOKS = (".xlsx", ".xlsm", ".xlsb", ".xls", ".ods")
SEPARATORS = {"csv": ",", "tsv": "\t"}
GZIP = ".gz"
BUFFER = 1 << 20
POLL = 0.1  # seconds


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
    if ending.lower() in WORKBOOKS:
        raise UserError(f"{path} is a workbook: save its sheet as CSV, which is read and written.")
    if found is None:
        raise UserError(
            f"The ending {ending!r} of {path} is not known. Known: {', '.join(ENDINGS)}, also with "
            f"{GZIP}. Or say what it is: {option} {'|'.join(FORMATS)}."
        )
    return found


class Counted(io.RawIOBase):
    """A file that counts the bytes read from it, and whose reader does not wait once stopped."""

    def __init__(self, file: IO[bytes], *, waits: bool = False) -> None:
        self._file = file
        self._waits = waits
        self.done = 0
        self.stopped = False

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read some bytes, as many as are there."""
        while self._waits and not select.select([self._file], [], [], POLL)[0]:
            if self.stopped:
                return 0
        data = self._file.read(min(len(buffer), BUFFER))
        buffer[: len(data)] = data
        self.done += len(data)
        return len(data)


class Recoded(io.RawIOBase):
    """A text in UTF-8, whatever its encoding was."""

    def __init__(self, stream: IO[bytes], encoding: str, name: str) -> None:
        self._stream, self._encoding, self._name = stream, encoding, name
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._rest = memoryview(b"")
        self._ended = False

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Decode some bytes, as many as are there."""
        while not self._rest and not self._ended:
            data = cast(Any, self._stream).read1(BUFFER)
            self._ended = not data
            try:
                text = self._decoder.decode(data, final=self._ended)
            except (UnicodeError, AssertionError) as error:
                raise UserError(
                    f"{self._name} is not {self._encoding}: it cannot be decoded. Give the right "
                    "--encoding."
                ) from error
            self._rest = memoryview(text.encode("utf-8", "replace"))
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


class Unescaped(io.RawIOBase):
    """A text table whose quotes are doubled where they had a backslash before them."""

    def __init__(self, stream: IO[bytes], quote: str = '"') -> None:
        self._stream, self._quote = stream, quote
        self._kept = b""  # a backslash whose next character is still to be read
        self._rest = memoryview(b"")
        self._ended = False

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read some bytes, as many as are there."""
        while not self._rest and not self._ended:
            read = cast(Any, self._stream).read1(BUFFER)
            self._ended = not read
            data = self._kept + read
            odd = (len(data) - len(data.rstrip(b"\\"))) % 2 and not self._ended
            self._kept = b"\\" if odd else b""
            self._rest = memoryview(without_escapes(data[:-1] if odd else data, self._quote))
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


def unescaped(source: Input, quote: str) -> Input:
    """The same text table with doubled quotes in the place of backslashes and quotes."""
    stream = io.BufferedReader(Unescaped(source.stream, quote), BUFFER)
    return replace(source, stream=cast(IO[bytes], stream))


def as_utf8(source: Input, encoding: str | None = None) -> Input:
    """The same text in UTF-8: from the given encoding, or from UTF-16 and UTF-32 by their marks.

    Raises
    ------
    UserError
        There is no such encoding.
    """
    found = known_encoding(encoding) if encoding else marked_encoding(peeked(source))
    if found is None:
        return source
    recoded = io.BufferedReader(Recoded(source.stream, found, source.name), BUFFER)
    return replace(source, stream=cast(IO[bytes], recoded))


def peeked(source: Input) -> bytes:
    """Some of the first bytes, which are still to be read."""
    try:
        return bytes(cast(Any, source.stream).peek(BUFFER))
    except (OSError, EOFError, zlib.error):
        return b""  # reading will say what is wrong


def _standard_input() -> Counted:
    try:
        descriptor = sys.stdin.fileno()
    except (OSError, ValueError):  # something that stands for it, in a test
        return Counted(sys.stdin.buffer)
    raw = io.FileIO(descriptor, closefd=False)
    return Counted(cast(IO[bytes], raw), waits=True)


@dataclass(frozen=True, kw_only=True)
class Input:
    """An open file or standard input.

    Parameters
    ----------
    name
        For messages.
    path
        None for standard input.
    size
        Bytes of the file, None if that is not known.
    counted, stream
        What tells how far it has been read, and its unpacked content.
    opened
        What is closed with it.
    """

    name: str
    path: Path | None
    size: int | None
    counted: Counted
    stream: IO[bytes]
    opened: ExitStack

    @property
    def part(self) -> float | None:
        """Share of it that has been read."""
        return min(self.counted.done / self.size, 1.0) if self.size else None

    @property
    def is_packed(self) -> bool:
        """Whether it is packed by gzip."""
        return self.path is not None and self.path.suffix.lower() == GZIP


@contextmanager
def open_input(path: Path | None) -> Iterator[Input]:
    """Open a file, packed or not, or standard input for None.

    Raises
    ------
    UserError
        It cannot be read.
    """
    if path is not None and path.is_dir():
        raise UserError(f"{path} is a folder. Name a file in it.")
    with ExitStack() as opened:
        try:
            counted = (
                _standard_input()
                if path is None
                else Counted(cast(IO[bytes], opened.enter_context(path.open("rb", buffering=0))))
            )
        except OSError as error:
            raise UserError(f"Cannot read {path}: {error.strerror}.") from error
        found = Input(
            name="standard input" if path is None else str(path),
            path=path,
            size=path.stat().st_size if path is not None and path.is_file() else None,
            counted=counted,
            stream=cast(IO[bytes], io.BufferedReader(counted, BUFFER)),
            opened=opened,
        )
        if found.is_packed:
            unpacked = gzip.GzipFile(fileobj=found.stream)
            found = replace(found, stream=cast(IO[bytes], opened.enter_context(unpacked)))
        yield found


@contextmanager
def open_output(path: Path | None, *, named: bool = True) -> Iterator[IO[bytes]]:
    """A stream to a file that appears when all is written, or to standard output for None.

    Parameters
    ----------
    named
        Whether a person named the path: then devices and named pipes are written to as they are,
        and links to files are followed. What came with other files is not.
    """
    if path is None or (named and is_device(path)):
        with _direct(path) as stream:
            yield stream
        return
    place = followed(path) if named else path
    with atomic_path(place) as temporary, temporary.open("wb") as file:
        if path.suffix.lower() == GZIP:
            with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=5) as packed:
                yield cast(IO[bytes], packed)
        else:
            yield file


@contextmanager
def _direct(path: Path | None) -> Iterator[IO[bytes]]:
    """Standard output, or something that is no file."""
    if path is None and sys.__stdout__ is None:
        raise UserError("Standard output is closed. Name a file to write to: -o FILE.")
    try:
        with nullcontext(sys.stdout.buffer) if path is None else path.open("wb") as stream:
            yield stream
            stream.flush()
    except BrokenPipeError:
        raise  # who reads has had enough
    except OSError as error:
        name = path or "standard output"
        raise UserError(f"Cannot write to {name}: {error.strerror}.") from error
