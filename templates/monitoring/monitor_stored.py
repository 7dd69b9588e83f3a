"""What is read from the window's file: checked, as SQLite holds any value in any column."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from monitor_drift import Rows
from monitor_tree import Ints
from monitor_wire import MAX_LENGTH, Columns, Refused, Scores, read_scores

LATEST = 253_402_300_799  # the last second whose year has four digits

Record = tuple[Any, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Kept:
    """The window's rows.

    Parameters
    ----------
    rows
        Oldest first.
    since, until
        When the first and the last of them came, in seconds since 1970; NaN without rows.
    damaged
        Numbers of rows that cannot be what was once kept.
    """

    rows: Rows
    since: float = math.nan
    until: float = math.nan
    damaged: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class Labelled:
    """Answers whose true class is known.

    Parameters
    ----------
    predicted, true
        Class per row.
    scores
        Per row (score column, probability) of the best classes.
    damaged
        Numbers of answers that cannot be what was once kept.
    """

    predicted: Ints
    true: Ints
    confidence: np.ndarray[tuple[int, ...], np.dtype[np.float64]]
    scores: tuple[Scores, ...]
    damaged: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.true)


def kept_of(found: Sequence[Record], columns: Columns) -> Kept:
    """Read (number, class, confidence, length, features, time) of rows, oldest first."""
    good = [record for record in found if _is_row(record, columns)]
    features = np.frombuffer(b"".join(record[4] for record in good), dtype=np.float32)
    rows = Rows(
        classes=np.array([record[1] for record in good], dtype=np.int64),
        features=features.reshape(len(good), columns.features).astype(np.float64),
        confidence=np.array([record[2] for record in good], dtype=np.float64),
        length=np.array([math.nan if record[3] is None else record[3] for record in good]),
    )
    finite = np.asarray(np.isfinite(rows.features).all(axis=1))
    good = list(itertools.compress(good, finite))
    came = [record[5] for record in good] or [math.nan]  # in no order, if the clock has been set
    return Kept(
        rows=rows.take(finite), since=min(came), until=max(came), damaged=_others(found, good)
    )


def labelled_of(found: Sequence[Record], columns: Columns) -> Labelled:
    """Read (number, class, true class, confidence, scores) of answers, oldest first."""
    scores = [_scores_of(record, columns) for record in found]
    good = [
        (record, pairs) for record, pairs in zip(found, scores, strict=True) if pairs is not None
    ]
    return Labelled(
        predicted=np.array([record[1] for record, _ in good], dtype=np.int64),
        true=np.array([record[2] for record, _ in good], dtype=np.int64),
        confidence=np.array([record[3] for record, _ in good], dtype=np.float64),
        scores=tuple(known for _, known in good),
        damaged=_others(found, [record for record, _ in good]),
    )


def _is_row(record: Record, columns: Columns) -> bool:
    _, node, confidence, length, features, came = record
    return (
        _is_class(node, columns)
        and _is_number(confidence, 1)
        and (length is None or _is_number(length, MAX_LENGTH))
        and isinstance(features, bytes)
        and len(features) == 4 * columns.features
        and _is_number(came, LATEST)
    )


def _scores_of(record: Record, columns: Columns) -> Scores | None:
    """The best classes of an answer; None if it is not one that was kept."""
    _, node, truth, confidence, text = record
    if not (_is_class(node, columns) and _is_class(truth, columns) and _is_number(confidence, 1)):
        return None
    try:
        scores = json.loads(text)
        return read_scores(scores, "scores", columns) if scores != [] else ()
    except (Refused, TypeError, ValueError, RecursionError):
        return None


def _is_class(value: Any, columns: Columns) -> bool:
    return type(value) is int and 0 <= value < len(columns.tree.paths)


def _is_number(value: Any, high: float) -> bool:
    return type(value) in (int, float) and 0 <= value <= high


def _others(found: Sequence[Record], good: Sequence[Record]) -> tuple[int, ...]:
    """Numbers of the records that are not among the good ones."""
    left = {record[0] for record in good}
    return tuple(record[0] for record in found if record[0] not in left)
