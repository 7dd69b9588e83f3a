"""Archives: one plain tar file per model, which has exactly one right form.

First the manifest, which names every file with its size and sha256, then the manifest's own sum,
then the files by name. Times, owners and permissions are constant: the same model gives the same
bytes. Reading one means to compare it, byte by byte, with what would have been written for its
manifest. There is nothing to unpack: links, devices, holes, compression, other members, a second
member of a name and whatever else tar knows are differences, and a difference ends it.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from utils.common.errors import UserError
from utils.common.files import is_device
from utils.common.paths import checked_name
from utils.store.tags import Tag

ENDING = ".kttmodel"
FORMAT, VERSION = "ktt-model", 1
MANIFEST = "manifest.json"
SUM = "manifest.json.sha256"
MANIFEST_BYTES = 1 << 20
MOST_FILES, MOST_BYTES = 1_000, 1 << 50
CHUNK = 1 << 20
END = b"\0" * 2 * tarfile.BLOCKSIZE
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")
_SUM = re.compile(r"[0-9a-f]{64}")


class Readable(Protocol):
    """Bytes that come one after the other."""

    def read(self, size: int = -1, /) -> bytes:
        """At most so many bytes; none at the end."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Size and sha256 of a file."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Head:
    """What an archive says it holds."""

    model: str
    dataset: str
    time: str
    files: Mapping[str, Part]

    @property
    def tag(self) -> Tag:
        """What the store calls it."""
        return Tag(model=self.model, dataset=self.dataset, version=self.time)

    @property
    def checkpoint(self) -> str:
        """The file without which there is no model."""
        return f"best_{self.time}.pt"

    def to_json(self) -> bytes:
        """The manifest, in the one way that it is written."""
        files = {name: asdict(self.files[name]) for name in sorted(self.files)}
        values = {
            "format": FORMAT, "version": VERSION, "model": self.model, "dataset": self.dataset,
            "time": self.time, "files": files,
        }  # fmt: skip
        return (json.dumps(values, ensure_ascii=True, indent=2) + "\n").encode()


def archive_name(model: str, dataset: str, time: str) -> str:
    """The usual file name: without colons, which some systems do not take."""
    return f"{model}_{dataset}-{time.replace(':', '')}{ENDING}"


# -- writing --------------------------------------------------------------------------------


def write_archive(model: str, dataset: str, time: str, files: Sequence[Path], to: BinaryIO) -> Head:
    """Write files of a run, named as they are and as `file_name` says, one after the other.

    Raises
    ------
    UserError
        One is missing, or changed meanwhile.
    """
    names = {file_name(path, time): path for path in files}
    with ExitStack() as stack:
        try:
            opened = {name: stack.enter_context(path.open("rb")) for name, path in names.items()}
        except FileNotFoundError as error:
            raise UserError(f"{error.filename} is gone: the run was deleted meanwhile.") from error
        parts = {name: _measure(file) for name, file in opened.items()}
        head = Head(model=model, dataset=dataset, time=time, files=parts)
        for name, content in _preamble(head):
            to.write(_header(name, len(content)) + content + _padding(len(content)))
        for name in sorted(parts):
            opened[name].seek(0)
            to.write(_header(name, parts[name].bytes))
            if _copy(opened[name], parts[name].bytes, to) != parts[name].sha256:
                raise UserError(f"{names[name]} changed while it was exported. Export it again.")
            to.write(_padding(parts[name].bytes))
    to.write(END)
    return head


def file_name(path: Path, time: str) -> str:
    """The name within an archive: a file's own, with its folder if that is the custom objects'."""
    return f"objects/{path.name}" if path.parent.name == f"objects_{time}" else path.name


def _measure(file: BufferedReader) -> Part:
    digest = hashlib.file_digest(file, "sha256")
    return Part(bytes=file.tell(), sha256=digest.hexdigest())


def _preamble(head: Head) -> Iterator[tuple[str, bytes]]:
    """The manifest, and its sum in the form that ``sha256sum -c`` reads."""
    manifest = head.to_json()
    yield MANIFEST, manifest
    yield SUM, _sum_line(manifest)


def _sum_line(manifest: bytes) -> bytes:
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n".encode()


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")


def _padding(size: int) -> bytes:
    return b"\0" * (-size % tarfile.BLOCKSIZE)


def _copy(source: Readable, size: int, to: BinaryIO) -> str:
    """Copy so many bytes, or as many as there are, and tell their sha256."""
    digest = hashlib.sha256()
    while size and (chunk := source.read(min(size, CHUNK))):
        digest.update(chunk)
        to.write(chunk)
        size -= len(chunk)
    return digest.hexdigest()


# -- reading --------------------------------------------------------------------------------


class Archive:
    """An archive from anywhere, read once from its beginning to its end.

    Parameters
    ----------
    stream
        Its bytes.
    origin
        What it is called in messages.
    size
        How long it is, if that is known.

    Raises
    ------
    UserError
        It is none, or not what its manifest says.
    """

    def __init__(self, stream: Readable, origin: str, size: int | None = None) -> None:
        self._stream = stream
        self._origin = origin
        self.head = self._read_head()
        if size is not None and size != self.length:
            raise self._refused(f"it has {size:,} bytes, its manifest says {self.length:,}")

    @property
    def length(self) -> int:
        """Bytes of the whole archive, by its manifest."""
        sizes = {name: len(content) for name, content in _preamble(self.head)}
        sizes |= {name: part.bytes for name, part in self.head.files.items()}
        return len(END) + sum(
            len(_header(name, size)) + size + len(_padding(size)) for name, size in sizes.items()
        )

    def verify(self) -> None:
        """Read it to its end and write nothing.

        Raises
        ------
        UserError
            The archive was damaged or tampered with.
        """
        with Path(os.devnull).open("wb") as nothing:
            for name in sorted(self.head.files):
                self._take(name, nothing)
        self._end()

    def extract(self, folder: Path) -> None:
        """Write the files into a folder; if one is not what it should be, stop there.

        Raises
        ------
        UserError
            The archive was damaged or tampered with, or there is no room for it.
        """
        free = shutil.disk_usage(folder).free
        if self.length > free:
            raise self._refused(f"it says {self.length:,} bytes, and {free:,} are free")
        for name in sorted(self.head.files):
            path = folder / self.place(name)
            path.parent.mkdir(exist_ok=True)
            with path.open("xb") as file:
                self._take(name, file)
        self._end()

    def _take(self, name: str, to: BinaryIO) -> None:
        """Read the next file, which is this one."""
        part = self.head.files[name]
        self._expect(_header(name, part.bytes), f"before {name}")
        if _copy(self._stream, part.bytes, to) != part.sha256:
            raise self._refused(f"{name} is not the file that was exported")
        self._expect(_padding(part.bytes), f"after {name}")

    def _end(self) -> None:
        self._expect(END, "at its end")
        if self._stream.read(1):
            raise self._refused("something follows its end")

    def place(self, name: str) -> str:
        """Where a file belongs in the run's folder."""
        return name.replace("objects/", f"objects_{self.head.time}/")

    def _read_head(self) -> Head:
        first = self._exactly(tarfile.BLOCKSIZE)
        try:
            info = tarfile.TarInfo.frombuf(first, "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError) as error:
            raise self._refused("it is no archive that 'store.py export' wrote") from error
        if info.name != MANIFEST or not 0 < info.size <= MANIFEST_BYTES:
            raise self._refused("it is no archive that 'store.py export' wrote")
        manifest = self._exactly(info.size)
        self._expect(_padding(len(manifest)), f"after {MANIFEST}")
        sums = _sum_line(manifest)
        self._expect(_header(SUM, len(sums)) + sums + _padding(len(sums)), f"in {SUM}")
        head = self._parse(manifest)
        if first + manifest != _header(MANIFEST, len(manifest)) + head.to_json():
            raise self._refused("its manifest is not as one is written")
        return head

    def _parse(self, manifest: bytes) -> Head:
        try:
            values = json.loads(manifest)
            if values["format"] != FORMAT:
                raise ValueError("format")
            if values["version"] != VERSION:
                raise UserError(
                    f"{self._origin} has version {values['version']}, this KTT reads {VERSION}."
                )
            return self._checked(values)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise self._refused("its manifest is none") from error

    def _checked(self, values: dict[str, Any]) -> Head:
        time, files = str(values["time"]), values["files"]
        if not _TIME.fullmatch(time) or not 0 < len(files) <= MOST_FILES:
            raise ValueError("time or files")
        datetime.datetime.fromisoformat(time)  # a time that there is
        for name in files:
            if not _allowed(name, time):
                raise self._refused(f"it holds {name!r}, which no model has")
        head = Head(
            model=checked_name("Model", values["model"]),
            dataset=checked_name("Dataset", values["dataset"]),
            time=time,
            files={name: _part(part) for name, part in files.items()},
        )
        if head.checkpoint not in files:
            raise self._refused(f"it holds no {head.checkpoint}")
        return head

    def _expect(self, content: bytes, where: str) -> None:
        if self._exactly(len(content)) != content:
            raise self._refused(f"it is not as it was written {where}")

    def _exactly(self, size: int) -> bytes:
        parts = []
        while size and (part := self._stream.read(size)):
            parts.append(part)
            size -= len(part)
        if size:
            raise self._refused("it is cut off, or no archive of a model")
        return b"".join(parts)

    def _refused(self, reason: str) -> UserError:
        return UserError(
            f"{self._origin} was refused: {reason}. Nothing was imported; export or fetch it again."
        )


def _part(values: dict[str, Any]) -> Part:
    part = Part(**values)
    if (
        type(part.bytes) is not int
        or not 0 <= part.bytes < MOST_BYTES
        or not _SUM.fullmatch(part.sha256)
    ):
        raise ValueError("bytes or sha256")
    return part


def _allowed(name: str, time: str) -> bool:
    """Whether a file of this name belongs to a run: a list of what may be, not of what may not."""
    own = rf"(best_{time}(_[\w.-]{{1,180}})?\.(pt|json|parquet)|entry_{time}\.json)"
    objects = r"objects/[A-Za-z0-9][A-Za-z0-9._-]{0,127}\.(txt|bin|npy|json)"
    return bool(re.fullmatch(f"{own}|{objects}", name, re.ASCII))


@contextmanager
def read_file(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open an archive on this machine; its size is known before anything is read.

    Raises
    ------
    UserError
        There is no such file.
    """
    if is_device(path):
        raise UserError(f"{path} is a device or a pipe, not a file.")
    try:
        with path.open("rb") as file:
            yield file, path.stat().st_size
    except OSError as error:
        if error.filename != str(path):
            raise
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
