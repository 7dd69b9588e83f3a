"""The files that processes count in, for a disk that is full or refuses.

As released they are mapped before the disk has room for them: on a full one the first number that
is written ends its process with SIGBUS, and so it does the one that is started in its place.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
from pathlib import Path
from typing import Any

from prometheus_client import mmap_dict, values

log = logging.getLogger("bentoml.server")
SIZE = mmap_dict._INITIAL_MMAP_SIZE
LARGEST_NUMBER = 40
"""Bytes of an entry besides its name."""
_reported: set[str] = set()


def guard() -> None:
    """Let all metrics of this process, and of those that it forks, count in such files."""
    module: Any = values
    module.MmapedDict = Counts


class Counts(mmap_dict.MmapedDict):
    """Numbers in a mapped file or, where there is no room for it, in memory that nobody reads."""

    _f: Any
    _m: mmap.mmap

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        try:
            self._open(filename)
        except OSError as error:
            report_loss(error)
            with contextlib.suppress(OSError):
                Path(filename).unlink()  # a part of a file cannot be read
            self._f, self._fname, self._positions = None, filename, {}
            self._m, self._capacity, self._used = mmap.mmap(-1, SIZE), SIZE, 8

    def _open(self, filename: str) -> None:
        descriptor = os.open(filename, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            _fill(descriptor, SIZE)
        finally:
            os.close(descriptor)
        super().__init__(filename)  # type: ignore[no-untyped-call]

    def _init_value(self, key: str) -> None:
        needed = self._used + len(key.encode()) + LARGEST_NUMBER
        while needed > self._capacity:
            self._grow(2 * self._capacity)
        super()._init_value(key)  # type: ignore[no-untyped-call]

    def _grow(self, size: int) -> None:
        try:
            if self._f:
                _fill(self._f.fileno(), size)
            larger = mmap.mmap(self._f.fileno() if self._f else -1, size)
        except OSError as error:
            report_loss(error)
            self._f, larger = None, mmap.mmap(-1, size)
        if not self._f:
            larger[: self._capacity] = self._m[:]
        self._m, self._capacity = larger, size


def _fill(descriptor: int, size: int) -> None:
    """Let a file that is open for appending have this size, without holes."""
    missing = memoryview(bytes(max(0, size - os.fstat(descriptor).st_size)))
    while missing:
        missing = missing[os.write(descriptor, missing) :]


def report_loss(error: OSError) -> None:
    """Log that metrics are lost, once in a process."""
    if not _reported:
        log.warning("Metrics are lost, answers are not: %s.", error)
        _reported.add(str(error))
