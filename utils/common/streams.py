"""Standard streams of a command that are closed, full, or read by nobody any more."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import IO, Any, TextIO

from utils.common.errors import UserError

STOPPED_READING = 128 + 13
"""Exit status of what writes to a pipe that nobody reads: as SIGPIPE leaves it in a shell."""


class _Output(io.FileIO):
    """A standard stream that fails once and swallows what would follow, at exit for example."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._failed = False

    def write(self, data: Any) -> int:
        """Write some bytes."""
        if not self._failed:
            try:
                return super().write(data) or 0
            except OSError as error:
                self._failed = True
                self._stop(error)
        return memoryview(data).nbytes

    def _stop(self, error: OSError) -> None:
        """End the command, but not for messages that nobody sees."""
        if self.fileno() != 1:
            return
        if isinstance(error, BrokenPipeError):
            raise SystemExit(STOPPED_READING)
        raise UserError(f"Cannot write to standard output: {error.strerror}.")


def prepare_streams() -> None:
    """Let standard streams exist, and end the command in one line where output cannot be written.

    Nothing else may have the numbers of those that are closed: output would go into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
            os.set_inheritable(descriptor, True)
    sys.stdin = sys.stdin or _nothing("r")
    sys.stdout = _guarded(sys.stdout)
    sys.stderr = _guarded(sys.stderr)


def _nothing(mode: str) -> Any:
    return Path(os.devnull).open(mode, encoding="utf-8")


def _guarded(stream: TextIO | None) -> TextIO:
    if stream is None:
        return _nothing("w")
    raw: IO[bytes] = io.BufferedWriter(_Output(stream.fileno()))
    return io.TextIOWrapper(
        raw, encoding=stream.encoding, errors=stream.errors,
        line_buffering=stream.isatty() or stream is sys.stderr,
    )  # fmt: skip
