"""The TF-IDF models as ONNX graphs: features × weights, families and paths, in linear time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import scipy.sparse as sp
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from utils.common.errors import UserError
from utils.linear.scorer import STEEPNESS, Paths, TfidfScorer

Array: TypeAlias = NDArray[Any]

INPUTS = ("feature_ids", "feature_values")
SCATTER_OPSET = 16
"""From here on values can be added up where they belong, which sparse weights need."""
DENSE_CELLS = 60_000_000
NOTHING = np.float32(-1e30)
"""A decision value that no exponential is left of."""


class Graph:
    """An ONNX graph that grows node by node; a value is known by its name."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def constant(self, array: Array | np.generic, name: str = "") -> str:
        """Add a tensor."""
        name = name or f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def ints(self, *values: int) -> str:
        """Add a short list of numbers."""
        return self.constant(np.array(values, dtype=np.int64))

    def op(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Add a node; return its output."""
        name = name or f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def model(self, columns: int, features: int) -> onnx.ModelProto:
        """The whole, with (feature_ids, feature_values) → (scores, features)."""
        shape, kinds = ["batch", "length"], (TensorProto.INT64, TensorProto.FLOAT)
        widths = {"scores": columns, "features": features}
        graph = helper.make_graph(
            self._nodes,
            "tfidf",
            [
                helper.make_tensor_value_info(x, k, shape)
                for x, k in zip(INPUTS, kinds, strict=True)
            ],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])
                for name, width in widths.items()
            ],
            self._constants,
        )
        opsets = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(
            graph,
            producer_name="ktt",
            opset_imports=opsets,
            ir_version=helper.find_min_ir_version_for(opsets),
        )
        onnx.checker.check_model(model)
        return model


def write_graph(scorer: TfidfScorer, path: Path, opset: int, *, int8: bool = False) -> None:
    """Write a scorer as a graph.

    It takes the features of texts, padded: `feature_ids` and `feature_values`, both (batch,
    length), any id with the value 0 as padding.

    Parameters
    ----------
    int8
        Whether weights are stored as 8-bit integers with one scale per classifier.

    Raises
    ------
    UserError
        The operator set cannot express weights of this size.
    """
    graph = Graph(opset)
    # MatMul wants (batch, 1, length); 0 keeps a dimension, -1 takes what is left.
    values = graph.op("Reshape", INPUTS[1], graph.ints(0, 1, -1))
    decisions = _decisions(graph, scorer, values, int8=int8)
    if scorer.paths is None:
        graph.op("Identity", decisions, name="scores")
    else:
        _path_scores(graph, scorer.paths, decisions)
    _pooled(graph, scorer, values)
    onnx.save_model(graph.model(scorer.column_count, scorer.feature_count), path)


def opset_of(path: Path) -> int:
    """Operator set of a graph."""
    return int(onnx.load(path).opset_import[0].version)


# -- features × weights -------------------------------------------------------------------


def _decisions(graph: Graph, scorer: TfidfScorer, values: str, *, int8: bool) -> str:
    """Decision values (batch, classifiers), of local classifiers two more: see `_path_scores`."""
    weights, intercepts = scorer.weights.tocsc(), scorer.intercepts
    if scorer.paths is not None:
        fixed = np.array([-1, NOTHING / STEEPNESS], dtype=np.float32)
        intercepts = np.concatenate([intercepts, fixed])
    width = len(intercepts)
    # One more feature without any weight is what rows are padded with.
    starts = np.append(weights.indptr, weights.indptr[-1]).astype(np.int64)
    shape = (len(starts) - 1, width)
    by_feature = sp.csr_matrix((weights.data, weights.indices, starts), shape=shape)
    scale = None
    if int8:
        scale = _scales(by_feature)
        by_feature.data = np.rint(by_feature.data / scale[by_feature.indices]).astype(np.int8)
    if _is_dense(by_feature, graph.opset):
        product = _dense_product(graph, by_feature, values)
    else:
        product = _sparse_product(graph, by_feature)
    if scale is not None:
        product = graph.op("Mul", product, graph.constant(scale, "scales"))
    return graph.op("Add", product, graph.constant(intercepts, "intercepts"))


def _is_dense(weights: sp.csr_matrix, opset: int) -> bool:
    """Whether a table with a cell for every weight is faster, and not too large.

    Raises
    ------
    UserError
        It is too large, but there is no other way.
    """
    cells = weights.shape[0] * weights.shape[1]
    if opset < SCATTER_OPSET and cells > DENSE_CELLS:
        raise UserError(
            f"--opset {opset} has no sparse products, and {cells:,} weights are too many for a "
            f"dense one ({DENSE_CELLS:,}). Take --opset {SCATTER_OPSET} or above."
        )
    few = weights.nnz * 20 <= cells
    return opset < SCATTER_OPSET or (cells <= DENSE_CELLS and not few)


def _scales(weights: sp.csr_matrix) -> NDArray[np.float32]:
    """The largest weight of each column is 127; shape (columns,)."""
    largest = abs(weights).max(axis=0).toarray().ravel()
    return np.where(largest > 0, largest / 127, 1).astype(np.float32)


def _floats(graph: Graph, weights: str) -> str:
    return graph.op("Cast", weights, to=TensorProto.FLOAT)


def _dense_product(graph: Graph, weights: sp.csr_matrix, values: str) -> str:
    rows = _floats(graph, graph.op("Gather", _table(graph, weights), INPUTS[0]))
    product = graph.op("MatMul", values, rows)
    return graph.op("Reshape", product, graph.ints(-1, weights.shape[1]))


def _table(graph: Graph, weights: sp.csr_matrix) -> str:
    """Weights by feature and classifier, dense; if most are 0, the file holds the others only.

    A runtime that folds constants, as ONNX Runtime does, spreads them out once, at its start.
    """
    features, columns = weights.shape
    if weights.nnz * 2 > features * columns:
        return graph.constant(weights.toarray(), "weights")
    found = weights.tocoo()
    places = (found.row.astype(np.int64) * columns + found.col).astype(np.int32)
    zeros = _zeros(graph, graph.ints(features * columns), weights.dtype)
    stored = graph.constant(found.data, "weights")
    table = graph.op("ScatterElements", zeros, graph.constant(places, "places"), stored, axis=0)
    return graph.op("Reshape", table, graph.ints(features, columns))


def _sparse_product(graph: Graph, weights: sp.csr_matrix) -> str:
    """Go through the stored weights of each feature of each row, and through no others.

    The weights of all features lie in a row. `owner` tells for each weight that is touched which
    cell of the input it is for: the number of cells whose weights end before it.
    """
    columns = weights.shape[1]
    place = np.uint16 if columns <= np.iinfo(np.uint16).max else np.int32
    stored = graph.constant(weights.data, "weights")
    classifiers = graph.constant(weights.indices.astype(place), "classifiers")
    starts = graph.constant(weights.indptr[:-1].astype(np.int64), "starts")
    counts = graph.constant(np.diff(weights.indptr).astype(np.int64), "counts")
    ids = graph.op("Reshape", INPUTS[0], graph.ints(-1))
    zero, one, width = (graph.constant(np.int64(number)) for number in (0, 1, columns))

    sizes = graph.op("Gather", counts, ids)
    ends = graph.op("CumSum", sizes, zero)
    total = graph.op("ReduceMax", graph.op("Concat", ends, graph.ints(0), axis=0), keepdims=0)
    marks = _zeros(graph, graph.op("Add", total, one), np.int64)
    marks = _add_at(graph, marks, ends, graph.op("Expand", one, graph.op("Shape", ends)))
    until = graph.op("Reshape", total, graph.ints(1))
    owner = graph.op("Slice", graph.op("CumSum", marks, zero), graph.ints(0), until)
    shift = graph.op("Sub", graph.op("Gather", starts, ids), graph.op("Sub", ends, sizes))
    there = graph.op("Add", graph.op("Range", zero, total, one), graph.op("Gather", shift, owner))

    values = graph.op("Reshape", INPUTS[1], graph.ints(-1))
    found = _floats(graph, graph.op("Gather", stored, there))
    shares = graph.op("Mul", found, graph.op("Gather", values, owner))
    shape = graph.op("Shape", INPUTS[0])
    batch, length = (graph.op("Gather", shape, graph.ints(axis)) for axis in (0, 1))
    cell = graph.op("Range", zero, graph.op("Size", ids), one)
    base = graph.op("Mul", graph.op("Div", cell, length), width)
    column = graph.op("Cast", graph.op("Gather", classifiers, there), to=TensorProto.INT64)
    places = graph.op("Add", graph.op("Gather", base, owner), column)
    product = _add_at(
        graph, _zeros(graph, graph.op("Mul", batch, width), np.float32), places, shares
    )
    return graph.op("Reshape", product, graph.ints(-1, columns))


def _zeros(graph: Graph, size: str, kind: Any) -> str:
    shape = graph.op("Reshape", size, graph.ints(1))
    return graph.op("ConstantOfShape", shape, value=numpy_helper.from_array(np.zeros(1, kind)))


def _add_at(graph: Graph, cells: str, places: str, values: str) -> str:
    return graph.op("ScatterElements", cells, places, values, axis=0, reduction="add")


# -- families and paths -------------------------------------------------------------------


def _path_scores(graph: Graph, paths: Paths, decisions: str) -> None:
    """What `utils.linear.scorer.Paths.score` computes.

    Behind the classifiers stand two columns: "none of them", and one without any share. Families
    of similar size are looked at together, each with "none" and filled up with the other.
    """
    count = len(paths.families)
    none, nothing = count, count + 1
    steep = graph.op("Mul", decisions, graph.constant(STEEPNESS))
    # Alone in its family a column has probability 1: for the levels that a path has no choice on.
    parts, width = [_among(graph, steep, np.array([[nothing]]))], 1
    column = np.zeros(count, dtype=np.int64)
    for members in _families(paths.families):
        table = np.full((len(members), _power_of_two(len(members[0]) + 1)), nothing)
        table[:, 0] = none
        for row, family in enumerate(members):
            table[row, 1 : len(family) + 1] = family
            column[family] = width + row * table.shape[1] + 1 + np.arange(len(family))
        parts.append(_among(graph, steep, table))
        width += table.size
    logs = graph.op("Concat", *parts, axis=1)
    steps = [
        graph.op("Gather", logs, graph.constant(step), axis=1)
        for step in _steps(paths.along, column)
    ]
    total = steps[0]
    for step in steps[1:]:
        total = graph.op("Add", total, step)
    graph.op("Identity", total, name="scores")


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _families(families: NDArray[np.int32]) -> Iterator[list[Array]]:
    """Columns of families, those together whose sizes are filled up to the same."""
    order = np.argsort(families, kind="stable")
    breaks = np.flatnonzero(np.diff(families[order])) + 1
    groups: dict[int, list[Array]] = {}
    for family in np.split(order, breaks) if len(order) else []:
        groups.setdefault(_power_of_two(len(family) + 1), []).append(family)
    yield from groups.values()


def _among(graph: Graph, steep: str, table: Array) -> str:
    """Log-probabilities within each row of a table of columns; shape (batch, cells)."""
    picked = graph.op("Gather", steep, graph.constant(table.ravel().astype(np.int64)), axis=1)
    rows = graph.op("Reshape", picked, graph.ints(-1, table.shape[1]))
    logs = graph.op("LogSoftmax", rows, axis=1)
    return graph.op("Reshape", logs, graph.ints(-1, table.size))


def _steps(along: sp.csr_matrix, column: Array) -> list[Array]:
    """For the first, second, … classifier of each path its column, 0 where there is none."""
    lengths = np.diff(along.indptr)
    place = np.arange(max(int(lengths.max(initial=0)), 1))
    table = np.zeros((along.shape[0], len(place)), dtype=np.int64)
    table[place < lengths[:, None]] = column[along.indices]
    return list(table.T)


# -- pooled features ----------------------------------------------------------------------


def _pooled(graph: Graph, scorer: TfidfScorer, values: str) -> None:
    """Means over every 64th feature, as `utils.linear.scorer.pool` takes them."""
    groups = scorer.feature_count
    members = np.bincount(np.arange(scorer.features.feature_count) % groups, minlength=groups)
    shares = np.diag(1 / np.maximum(members, 1)).astype(np.float32)
    group = graph.op("Mod", INPUTS[0], graph.constant(np.int64(groups)))
    rows = graph.op("Gather", graph.constant(shares, "groups"), group)
    product = graph.op("MatMul", values, rows)
    graph.op("Reshape", product, graph.ints(-1, groups), name="features")
