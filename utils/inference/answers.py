"""Answers as columns: labels are looked up by class, nothing is done row by row."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from utils.hierarchy.decode import Floats, Predictions
from utils.hierarchy.tree import Hierarchy, Ints

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """What is answered.

    Parameters
    ----------
    column
        Name of the label's column, and how the names of the others begin.
    min_confidence
        Answers end at the deepest class that is this sure; None for whole paths.
    top
        How many of the most probable paths are listed; 0 for none.
    """

    column: str = "prediction"
    min_confidence: float | None = None
    top: int = 0


class Labels:
    """The paths of a tree's classes as Arrow arrays to take from, plain and as JSON."""

    def __init__(self, hierarchy: Hierarchy) -> None:
        self.hierarchy = hierarchy
        self._paths = [hierarchy.path(node) for node in range(hierarchy.class_count)]
        self._labels = [hierarchy.label(node) for node in range(hierarchy.class_count)]

    @cached_property
    def text(self) -> pa.Array:
        """``A > B`` per class."""
        import pyarrow as pa

        return pa.array(self._labels, pa.string())

    @cached_property
    def names(self) -> pa.Array:
        """The list of names per class."""
        import pyarrow as pa

        return pa.array(self._paths, pa.list_(pa.string()))

    @cached_property
    def json_text(self) -> pa.Array:
        """`text` in JSON."""
        return _json_array(self._labels)

    @cached_property
    def json_names(self) -> pa.Array:
        """`names` in JSON."""
        return _json_array(self._paths)


def _json_array(values: list[Any]) -> pa.Array:
    import pyarrow as pa

    return pa.array([json.dumps(value, ensure_ascii=False) for value in values], pa.large_string())


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """The answers to some rows.

    Parameters
    ----------
    ends
        Class answered, -1 for none; shape (rows,).
    confidence
        Its probability; shape (rows,).
    stopped
        True where the most probable path goes on below it; shape (rows,).
    top, top_confidence
        The most probable paths' last classes and probabilities; shapes (rows, paths).
    there
        False for rows without a text; shape (rows,).
    """

    labels: Labels
    options: AnswerOptions
    ends: Ints
    confidence: Floats
    stopped: NDArray[np.bool_]
    top: Ints
    top_confidence: Floats
    there: NDArray[np.bool_]

    @classmethod
    def of(
        cls, found: Predictions, there: NDArray[np.bool_], labels: Labels, options: AnswerOptions
    ) -> Answers:
        """Pick from predictions what the options ask for."""
        ends, confidence = found.ends, found.confidence
        if options.min_confidence is not None:
            ends = found.ends_at(options.min_confidence)
            sure = (found.level_probs >= options.min_confidence).sum(axis=1) - 1
            confidence = found.level_probs[np.arange(len(found)), np.maximum(sure, 0)]
        return cls(
            labels=labels,
            options=options,
            ends=np.where(there, ends, -1),
            confidence=confidence,
            stopped=ends != found.ends,
            top=found.tree.ending[found.top[:, : options.top]],
            top_confidence=found.top_probs[:, : options.top],
            there=there,
        )

    def __len__(self) -> int:
        return len(self.ends)

    # -- columns --------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Names of `columns`."""
        endings = ["", "_path", "_confidence"]
        endings += ["_depth", "_stopped_early"] if self.options.min_confidence is not None else []
        endings += ["_alternatives"] if self.options.top else []
        return [self.options.column + ending for ending in endings]

    def columns(self) -> dict[str, pa.Array]:
        """Columns for formats that have lists and objects."""
        name, labels = self.options.column, self.labels
        found = {name: self._take(labels.text), f"{name}_path": self._take(labels.names)}
        found |= self._numbers()
        if self.options.top:
            found[f"{name}_alternatives"] = self._alternatives()
        return found

    def flat_columns(self) -> dict[str, pa.Array]:
        """Columns for formats that have strings and numbers only."""
        import pyarrow as pa

        name = self.options.column
        found = {name: self._take(self.labels.text), **self._numbers()}
        for rank in range(self.top.shape[1]):
            nodes = np.where(self.there, self.top[:, rank], -1)
            probs = self.top_confidence[:, rank]
            found[f"{name}_{rank + 1}"] = self._take(self.labels.text, nodes)
            found[f"{name}_{rank + 1}_confidence"] = pa.array(probs, mask=~self.there)
        return found

    def _take(self, values: pa.Array, nodes: Ints | None = None) -> pa.Array:
        """The value of each row's class, null where there is none."""
        import pyarrow as pa

        nodes = self.ends if nodes is None else nodes
        return values.take(pa.array(nodes, mask=nodes < 0))

    def _numbers(self) -> dict[str, pa.Array]:
        import pyarrow as pa

        name, none = self.options.column, self.ends < 0
        found = {f"{name}_confidence": pa.array(self.confidence, mask=none)}
        if self.options.min_confidence is not None:
            depth = np.where(none, 0, self.labels.hierarchy.levels[self.ends] + 1)
            found[f"{name}_depth"] = pa.array(depth.astype(np.int32), mask=~self.there)
            found[f"{name}_stopped_early"] = pa.array(self.stopped, mask=~self.there)
        return found

    def _alternatives(self) -> pa.Array:
        import pyarrow as pa

        rows, count = self.top.shape
        items = pa.StructArray.from_arrays(
            [
                self._take(self.labels.text, self.top.ravel()),
                pa.array(self.top_confidence.ravel()),
            ],
            ["prediction", "confidence"],
        )
        starts = pa.array(np.arange(rows + 1, dtype=np.int32) * count)
        return pa.ListArray.from_arrays(starts, items, mask=pa.array(~self.there))

    # -- JSON -----------------------------------------------------------------------------

    def json_members(self) -> list[str]:
        """For each row the members to be added to its object: ``"prediction": "A > B", …``."""
        name, labels = self.options.column, self.labels
        members = {
            name: self._take(labels.json_text),
            f"{name}_path": self._take(labels.json_names),
        }
        members |= {key: _texts(column) for key, column in self._numbers().items()}
        if self.options.top:
            members[f"{name}_alternatives"] = self._json_alternatives()
        pieces: list[Any] = []
        for key, column in members.items():
            pieces += [f"{', ' if pieces else ''}{json.dumps(key, ensure_ascii=False)}: ", column]
        return _joined(pieces).to_pylist()

    def _json_alternatives(self) -> pa.Array:
        import pyarrow as pa
        import pyarrow.compute as pc

        pieces: list[Any] = []
        for rank in range(self.top.shape[1]):
            label = self._take(self.labels.json_text, self.top[:, rank])
            probs = _texts(pa.array(self.top_confidence[:, rank]))
            start = ", {" if rank else "[{"
            pieces += [f'{start}"prediction": ', label, ', "confidence": ', probs, "}"]
        return pc.if_else(pa.array(self.there), _joined([*pieces, "]"]), None)


def _texts(column: pa.Array) -> pa.Array:
    import pyarrow as pa

    return column.cast(pa.large_string())


def _joined(pieces: list[Any]) -> pa.Array:
    """Join columns and constants row by row; null is written so."""
    import pyarrow as pa
    import pyarrow.compute as pc

    large = [
        pa.scalar(piece, pa.large_string()) if isinstance(piece, str) else piece for piece in pieces
    ]
    nothing = pa.scalar("", pa.large_string())
    return pc.binary_join_element_wise(
        *large, nothing, null_handling="replace", null_replacement="null"
    )
