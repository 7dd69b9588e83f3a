"""Figures of every epoch as TensorBoard event files."""

from __future__ import annotations

import functools
import logging
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


Entry = dict[str, float]
"""One epoch: ``epoch``, ``seconds``, ``loss`` and validation figures."""


def tag(figure: str) -> str:
    """The name under which TensorBoard shows a figure."""
    group = {"loss": "train", "seconds": "train"}.get(figure, "val")
    return f"{group}/{figure}"


@contextmanager
def tracker(folder: Path, history: Sequence[Entry]) -> Iterator[Callable[[Entry], None]]:
    """Yield a function that appends an epoch to the event files in `folder`.

    Every step stands there once: what of `history` was not written before a crash is written
    first, and what is there already is not written again. Without the tensorboard package, or
    where the folder cannot be written, nothing is tracked and one warning is logged.

    Parameters
    ----------
    folder
        That of one run, whether it was resumed or not.
    history
        The epochs before those to come.
    """
    writer = _Writer(folder) if _available() else None

    def add(entry: Entry) -> None:
        nonlocal writer
        try:
            if writer:
                writer.add(entry)
        except OSError as error:
            log.warning("TensorBoard events are not written any more: %s", error)
            writer = None

    for entry in history:
        add(entry)
    try:
        yield add
    finally:
        if writer:
            with suppress(OSError):
                writer.close()


@functools.cache
def _available() -> bool:
    try:
        with warnings.catch_warnings():  # what it imports brings an old copy of six
            warnings.simplefilter("ignore", ImportWarning)
            from tensorboard.backend.event_processing import event_file_loader  # noqa: F401
            from tensorboard.summary.writer import record_writer  # noqa: F401
    except ImportError as error:
        log.warning("No TensorBoard events are written: %s. Try: pip install tensorboard", error)
        return False
    return True


class _Writer:
    """An event file of this process, made when there is something to write."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: Any = None
        self._known: set[int] | None = None

    def add(self, entry: Entry) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        step = int(entry["epoch"])
        if self._known is None:
            self._known = written_steps(self._folder)
        if step in self._known:
            return
        values = [
            Summary.Value(tag=tag(name), simple_value=value)
            for name, value in entry.items()
            if name != "epoch"
        ]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        self._known.add(step)

    def _write(self, event: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            moment = time.time()
            mine = f"{os.getpid()}.{len(list(self._folder.iterdir()))}"
            name = f"events.out.tfevents.{moment:.0f}.{socket.gethostname()}.{mine}"
            self._file = (self._folder / name).open("xb")
            first = Event(wall_time=moment, file_version="brain.Event:2")
            RecordWriter(self._file).write(first.SerializeToString())
        RecordWriter(self._file).write(event.SerializeToString())
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def read_events(folder: Path) -> Iterator[tuple[int, str, float]]:
    """Read (step, tag, value) of all event files in `folder`, up to where one was cut off."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                yield event.step, value.tag, value.simple_value


def written_steps(folder: Path) -> set[int]:
    """Steps that stand in the event files of a folder."""
    return {step for step, _, _ in read_events(folder)}
