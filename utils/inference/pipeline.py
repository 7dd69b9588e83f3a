"""Reading, tokenising, scoring and writing at once, with a few thousand rows in memory."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from utils.hierarchy.confidence import Calibration
from utils.hierarchy.decode import Floats, decode
from utils.hierarchy.tree import Hierarchy
from utils.inference.answers import AnswerOptions, Answers, Labels
from utils.inference.writing import Writer
from utils.tables.rows import Chunk, Rows

T = TypeVar("T")

WINDOW_ROWS = 4096
"""Rows sorted by length together. More of them would pad little less and hold more memory."""
WINDOW_CELLS = 8_000_000
"""Scores per window; decoding holds several arrays of this size."""
AHEAD = 1  # windows that wait between two steps
_POLL = 0.1  # seconds


@dataclass(frozen=True, kw_only=True)
class Source:
    """A trained model in two steps, so that one can run ahead of the other.

    Parameters
    ----------
    encode, run
        Texts to whatever the model tokenises to; that to scores and pooled features.
    checkpoint
        The file that its weights are in, or came from.
    description
        What it is, in a few words.
    form
        ``onnx_fp32`` or ``onnx_int8`` for an export, else empty.
    fingerprint
        Of the dataset that it was trained on; empty where that is not known.
    """

    hierarchy: Hierarchy
    tree: Hierarchy
    calibration: Calibration
    encode: Callable[[list[str]], Any]
    run: Callable[[Any], tuple[Floats, Floats]]
    checkpoint: str
    description: str
    form: str = ""
    fingerprint: str = ""


@dataclass(frozen=True, kw_only=True)
class Count:
    """How many rows were answered, and how many had no text."""

    rows: int
    without_text: int


def window_rows(classes: int) -> int:
    """Rows per window for a tree of so many classes."""
    return min(WINDOW_ROWS, max(64, WINDOW_CELLS // max(classes, 1)))


def ahead(
    items: Iterable[T], depth: int = AHEAD, stop: Callable[[], None] | None = None
) -> Generator[T, None, None]:
    """Yield items that a thread makes in advance; its exceptions appear here.

    Parameters
    ----------
    stop
        Called at the end, so that the thread waits for nothing more.
    """
    made: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(kind: str, value: Any = None) -> bool:
        while not stopped.is_set():
            try:
                made.put((kind, value), timeout=_POLL)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put("item", item):
                    break
            put("end")
        except BaseException as error:
            put("error", error)
        finally:
            if isinstance(items, Generator):
                items.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = made.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stopped.set()
        if stop:
            stop()
        thread.join()


def answers(
    source: Source,
    chunks: Iterable[Chunk],
    options: AnswerOptions,
    stop: Callable[[], None] | None = None,
) -> Iterator[tuple[Chunk, Answers]]:
    """Answer chunks in order; tokenising and scoring run in threads of their own."""
    labels = Labels(source.hierarchy)
    encoded = ahead((chunk, source.encode(chunk.texts or [""])) for chunk in chunks)
    found = ((chunk, _answer(source, chunk, rows, labels, options)) for chunk, rows in encoded)
    return ahead(found, stop=stop)


def _answer(
    source: Source, chunk: Chunk, rows: Any, labels: Labels, options: AnswerOptions
) -> Answers:
    scores = source.run(rows)[0][: len(chunk)]
    found = decode(scores, source.hierarchy, source.tree, source.calibration)
    there = np.fromiter(map(bool, chunk.texts), dtype=bool, count=len(chunk))
    return Answers.of(found, there, labels, options)


def answer_rows(
    source: Source,
    rows: Rows,
    writer: Writer,
    options: AnswerOptions,
    progress: Callable[[int, float | None], None] | None = None,
) -> Count:
    """Answer a whole table.

    Parameters
    ----------
    progress
        Called with the rows done and the share of the table that has been read.
    """
    done = without = 0
    chunks = rows.chunks(window_rows(source.tree.class_count))
    stream = answers(source, chunks, options, rows.stop)
    with closing(stream):  # type: ignore[type-var]
        for chunk, answered in stream:
            writer.write(chunk, answered)
            done += len(chunk)
            without += len(chunk) - int(answered.there.sum())
            if progress:
                progress(done, rows.part())
    writer.finish()
    return Count(rows=done, without_text=without)
