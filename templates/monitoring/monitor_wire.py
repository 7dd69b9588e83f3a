"""What is posted: checked value by value, so that a body is taken whole or not at all."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from monitor_drift import Rows
from monitor_tree import Tree

MAX_SCORES = 32
KEPT_SCORES = 5
MAX_ID = 64
MAX_LENGTH = 1e9
NUMBERS = {int, float}
OPTIONAL = ("confidence", "length", "scores", "id")

Scores = tuple[tuple[int, float], ...]


class Refused(Exception):
    """A body that is not taken: one line, without anything that a user has written."""

    def __init__(self, message: str, rows: int = 1) -> None:
        super().__init__(message)
        self.rows = rows


@dataclass(frozen=True, eq=False, kw_only=True)
class Answered:
    """Rows that were posted.

    Parameters
    ----------
    scores
        Per row (score column, probability) of the best classes, best first.
    ids
        Request id per row, None for a row without.
    """

    rows: Rows
    scores: tuple[Scores, ...]
    ids: tuple[str | None, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Columns:
    """What a row of the reference set holds.

    Parameters
    ----------
    tree
        The classes.
    features
        Number of pooled features.
    classes
        Class that each score column stands for.
    checkpoint
        Weights that answered; features of others mean something else.
    """

    tree: Tree
    features: int
    classes: tuple[int, ...]
    checkpoint: str = ""


def parse_json(body: bytes) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        values = orjson.loads(body)
    except ValueError:
        raise Refused("The body is no JSON.") from None
    if not isinstance(values, dict):
        raise Refused("The body must be a JSON object.")
    return values


def read_rows(body: bytes, columns: Columns) -> Answered:
    """Read what is posted to /iterate.

    Raises
    ------
    Refused
        Any of it is malformed.
    """
    values = parse_json(body)
    data = values.get("data")
    if not isinstance(data, list):
        raise Refused("'data' must be a list of rows.")
    try:
        if not all(isinstance(row, list) for row in data):
            raise Refused("Each row in 'data' must be a list.")
        names = values.get("columns")
        return _seeds(data, columns) if names is None else _named(data, names, columns)
    except Refused as error:
        raise Refused(str(error), rows=max(1, len(data))) from None


def _named(data: list[list[Any]], names: Any, columns: Columns) -> Answered:
    places = _places(names, columns)
    features = _picker([places[str(index)] for index in range(columns.features)])
    for number, row in enumerate(data):
        if len(row) != len(names):
            raise Refused(f"Row {number} has {len(row)} values for {len(names)} columns.")

    def column(name: str, read: Callable[[Any, str, Columns], Any], missing: Any) -> list[Any]:
        if name not in places:
            return [missing] * len(data)
        place = places[name]
        return [read(row[place], f"Row {i}: {name}", columns) for i, row in enumerate(data)]

    scores = column("scores", read_scores, ())
    confidence = column("confidence", _probability, None)
    rows = Rows(
        classes=np.array(column("targets", _terminal, 0), dtype=np.int64),
        features=_features(list(map(features, data)), columns),
        confidence=np.array(
            [
                _best(pairs) if known is None else known
                for known, pairs in zip(confidence, scores, strict=True)
            ],
            dtype=np.float64,
        ),
        length=np.array(column("length", _length, math.nan), dtype=np.float64),
    )
    return Answered(rows=rows, scores=tuple(scores), ids=tuple(column("id", _id, None)))


def _picker(places: list[int]) -> Callable[[list[Any]], list[Any]]:
    """What takes values from a row; a slice where they stand side by side, as they do here."""
    first = places[0] if places else 0
    if places == list(range(first, first + len(places))):
        return operator.itemgetter(slice(first, first + len(places)))
    return lambda row: [row[place] for place in places]


def _places(names: Any, columns: Columns) -> dict[str, int]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise Refused("'columns' must be a list of names.")
    needed = {"targets", *(str(index) for index in range(columns.features))}
    known = needed.union(OPTIONAL)
    if len(set(names)) != len(names) or not needed <= set(names) <= known:
        raise Refused(
            f"'columns' must be targets, the {columns.features} features '0', '1', … of the "
            f"reference set, and some of: {', '.join(OPTIONAL)}."
        )
    if "confidence" not in names and "scores" not in names:
        raise Refused("'columns' needs confidence or scores.")
    return {name: place for place, name in enumerate(names)}


def _seeds(data: list[list[Any]], columns: Columns) -> Answered:
    """Rows without names: the reference set's first columns."""
    first = 1 + columns.features
    width = first + len(columns.classes)
    for number, row in enumerate(data):
        if len(row) != width:
            raise Refused(f"Row {number} has {len(row)} values; the reference set has {width}.")
    features = _features([row[1:first] for row in data], columns)
    scores = tuple(_ranked(row[first:], f"Row {number}: scores") for number, row in enumerate(data))
    classes = [
        _seeds_class(row[0], best[0][0], f"Row {number}: targets", columns)
        for number, (row, best) in enumerate(zip(data, scores, strict=True))
    ]
    rows = Rows(
        classes=np.array(classes, dtype=np.int64),
        features=features,
        confidence=np.array([_best(best) for best in scores], dtype=np.float64),
        length=np.full(len(data), math.nan),
    )
    return Answered(rows=rows, scores=scores, ids=(None,) * len(data))


def _seeds_class(value: Any, best: int, place: str, columns: Columns) -> int:
    # A model that knows no true label sends 0 or null here: its scores say what it answered.
    if value is None or (type(value) in NUMBERS and value == 0):
        return columns.classes[best]
    return _terminal(value, place, columns)


# -- single values --------------------------------------------------------------------------


def _features(rows: Sequence[list[Any]], columns: Columns) -> np.ndarray[Any, Any]:
    for number, row in enumerate(rows):
        if not set(map(type, row)) <= NUMBERS:
            raise Refused(f"Row {number}: a feature is no number.")
    with np.errstate(over="ignore"):  # what no 32-bit float can hold is infinite in one
        found = np.array(rows, dtype=np.float32).reshape(len(rows), columns.features)
    if not np.isfinite(found).all():
        raise Refused("A feature is no finite number.")
    return found


def _number(value: Any, place: str, high: float) -> float:
    if type(value) not in NUMBERS or not -1e-6 <= value <= high:
        raise Refused(f"{place} must be a number in 0–{high:g}.")
    return max(0.0, float(value))


def _probability(value: Any, place: str, columns: Columns | None = None) -> float:
    return min(1.0, _number(value, place, 1 + 1e-6))


def _length(value: Any, place: str, columns: Columns) -> float:
    return math.nan if value is None else _number(value, place, MAX_LENGTH)


def _terminal(value: Any, place: str, columns: Columns) -> int:
    found = columns.tree.by_label.get(value) if isinstance(value, str) else None
    if found is None:
        raise Refused(f"{place} is no class of this model. Is it this model that sends here?")
    return found


def _id(value: Any, place: str, columns: Columns | None = None) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ID or not value.isprintable():
        raise Refused(f"{place} must be a text of 1–{MAX_ID} characters.")
    return value


def read_scores(value: Any, place: str, columns: Columns) -> Scores:
    """Read the best classes of a row, best first.

    Raises
    ------
    Refused
        They are something else.
    """
    pairs = value if isinstance(value, list) else None
    if pairs is None or not 0 < len(pairs) <= MAX_SCORES:
        raise Refused(f"{place} must be 1–{MAX_SCORES} pairs of a column and a probability.")
    found = []
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or type(pair[0]) is not int:
            raise Refused(f"{place} must be pairs of a column and a probability.")
        if not 0 <= pair[0] < len(columns.classes):
            raise Refused(f"{place}: there are {len(columns.classes)} score columns.")
        found.append((pair[0], _probability(pair[1], place)))
    if len({column for column, _ in found}) != len(found):
        raise Refused(f"{place}: a column comes twice.")
    return tuple(sorted(found, key=lambda pair: -pair[1])[:KEPT_SCORES])


def _ranked(values: list[Any], place: str) -> Scores:
    if not set(map(type, values)) <= NUMBERS:
        raise Refused(f"{place} must be numbers.")
    checked = [_probability(value, place) for value in values]
    best = sorted(range(len(checked)), key=lambda column: -checked[column])[:KEPT_SCORES]
    return tuple((column, checked[column]) for column in best)


def _best(scores: Scores) -> float:
    return scores[0][1]


# -- feedback -------------------------------------------------------------------------------


def read_feedback(body: bytes, tree: Tree) -> list[tuple[str, int | None]]:
    """Read what is posted to /feedback: request id and true class, None for an unknown path."""
    values = parse_json(body)
    items = values.get("data", [values])
    if not isinstance(items, list):
        raise Refused("'data' must be a list of feedback.")
    return [_feedback(item, number, tree) for number, item in enumerate(items)]


def _feedback(item: Any, number: int, tree: Tree) -> tuple[str, int | None]:
    if not isinstance(item, dict):
        raise Refused(f"Feedback {number} must be an object with request_id and path.")
    name = _id(item.get("request_id"), f"Feedback {number}: request_id")
    if name is None:
        raise Refused(f"Feedback {number} needs a request_id.")
    path = item.get("path")
    if not isinstance(path, list) or not path or not all(isinstance(part, str) for part in path):
        raise Refused(f"Feedback {number}: path must be a list of class names.")
    return name, tree.by_path.get(tuple(path))
