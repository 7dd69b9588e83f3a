"""TF-IDF features times a matrix of weights: what the TF-IDF models train, test and export."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from utils.linear.tfidf import Arrays, TfidfFeatures

Floats = NDArray[np.float32]

POOLED_FEATURES = 64
# Scores of a batch of texts stay below this many cells (float32), whatever the number of classes.
_BATCH_CELLS = 8_000_000
_MAX_BATCH = 4096
# Dense weights are several times faster to multiply by; up to this many cells they are used.
_DENSE_CELLS = 60_000_000
# Decision values run from -1 to 1, probabilities from exp(-2) : 1 to exp(2) : 1.
STEEPNESS = np.float32(2)


@dataclass(frozen=True, kw_only=True)
class Paths:
    """How the scores of local classifiers add up to scores of paths.

    Attributes
    ----------
    along : (paths, classifiers) sparse ones: which classifiers stand on the way of a path.
    families : (classifiers,) int32, equal among siblings.
    """

    along: sp.csr_matrix
    families: NDArray[np.int32]

    @cached_property
    def _order(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        order = np.argsort(self.families, kind="stable")
        ordered = self.families[order]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        return order, starts, np.diff(np.append(starts, len(order)))

    def log_probability(self, decisions: Floats) -> Floats:
        """Log-probability of each class among its siblings and "none of them".

        Without the latter, a branch in which nothing fits would share out its whole probability
        all the same. It stands at the decision value -1, where a classifier is sure of its no.
        """
        if not len(self.families):
            return decisions
        order, starts, sizes = self._order
        ordered = STEEPNESS * decisions[:, order]
        top = np.maximum(np.maximum.reduceat(ordered, starts, axis=1), -STEEPNESS)
        shares = np.exp(ordered - np.repeat(top, sizes, axis=1))
        total = np.add.reduceat(shares, starts, axis=1) + np.exp(-STEEPNESS - top)
        result = np.empty_like(ordered)
        result[:, order] = ordered - np.repeat(top + np.log(total), sizes, axis=1)
        return result

    def score(self, decisions: Floats) -> Floats:
        """Log-probability of each path; shape (rows, paths)."""
        return np.ascontiguousarray((self.along @ self.log_probability(decisions).T).T)


class TfidfScorer:
    """TF-IDF features times a weight matrix.

    Parameters
    ----------
    features : the vocabulary.
    weights : (columns, features) sparse; empty rows allowed.
    intercepts : (columns,)
    paths : None, or what makes scores of paths from local classifiers; without it, each row of
        `weights` is a score column.
    """

    def __init__(
        self,
        features: TfidfFeatures,
        weights: sp.csr_matrix,
        intercepts: Floats,
        paths: Paths | None = None,
    ) -> None:
        self.features = features
        self.weights = weights
        self.intercepts = intercepts.astype(np.float32)
        self.paths = paths
        self._by_feature = self._fast_weights()

    def _fast_weights(self) -> Any:
        """Weights by (feature, column), in the form that multiplies fastest."""
        cells = self.weights.shape[0] * self.weights.shape[1]
        if cells <= _DENSE_CELLS and self.weights.nnz * 20 > cells:
            return self.weights.T.toarray(order="C")
        return self.weights.T.tocsr()

    @property
    def column_count(self) -> int:
        """Number of score columns."""
        return int((self.weights if self.paths is None else self.paths.along).shape[0])

    @property
    def feature_count(self) -> int:
        """Number of pooled features."""
        return min(POOLED_FEATURES, max(self.features.feature_count, 1))

    def score(self, texts: Sequence[str]) -> tuple[Floats, Floats]:
        """Score texts; a text's row does not depend on the texts beside it.

        Returns
        -------
        scores : (texts, columns) float32: decision values, or log-probabilities of paths.
        features : (texts, pooled features) float32, for the reference set.
        """
        scores, pooled = zip(*self.score_batches(texts), strict=True)
        return np.concatenate(scores), np.concatenate(pooled)

    def score_batches(self, texts: Sequence[str]) -> Iterator[tuple[Floats, Floats]]:
        """Yield what `score` gives in pieces of bounded memory; one empty piece for no texts."""
        width = max(self.column_count, self.weights.shape[0], 1)
        size = max(1, min(_MAX_BATCH, _BATCH_CELLS // width))
        for start in range(0, max(len(texts), 1), size):
            yield self._score_batch(texts[start : start + size])

    def _score_batch(self, texts: Sequence[str]) -> tuple[Floats, Floats]:
        matrix = self.features.transform(texts)
        return self.scores(matrix), pool(matrix, self.feature_count)

    def scores(self, matrix: sp.csr_matrix) -> Floats:
        """Return the scores of feature rows; shape (rows, score columns)."""
        decisions = self.decide(matrix)
        return decisions if self.paths is None else self.paths.score(decisions)

    def decide(self, matrix: sp.csr_matrix) -> Floats:
        """Return the decision values of feature rows; shape (rows, classifiers), dense."""
        product = matrix @ self._by_feature
        scores = product.toarray() if sp.issparse(product) else product
        return np.asarray(scores, dtype=np.float32) + self.intercepts

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """Return arrays and JSON values that `from_state` rebuilds this from."""
        arrays, settings = self.features.state()
        arrays["intercepts"] = self.intercepts
        # Sparse cells take twice the room of dense ones.
        dense = self.weights.nnz * 2 > self.weights.shape[0] * self.weights.shape[1]
        if dense:
            arrays["weights"] = self.weights.toarray()
        else:
            arrays["weights_data"] = self.weights.data
            arrays["weights_indices"] = self.weights.indices.astype(np.int32)
            arrays["weights_indptr"] = self.weights.indptr.astype(np.int64)
        if self.paths is not None:
            arrays["paths_indices"] = self.paths.along.indices.astype(np.int32)
            arrays["paths_indptr"] = self.paths.along.indptr.astype(np.int64)
            arrays["paths_families"] = self.paths.families
        return arrays, {"tfidf": settings}

    @classmethod
    def from_state(cls, arrays: Arrays, meta: dict[str, Any]) -> TfidfScorer:
        """Rebuild from `state`."""
        features = TfidfFeatures.from_state(arrays, meta["tfidf"])
        shape = (len(arrays["intercepts"]), features.feature_count)
        if "weights" in arrays:
            weights = sp.csr_matrix(arrays["weights"].reshape(shape))
        else:
            parts = (arrays[f"weights_{part}"] for part in ("data", "indices", "indptr"))
            weights = sp.csr_matrix(tuple(parts), shape=shape)
        paths = None
        if "paths_indptr" in arrays:
            indices, starts = arrays["paths_indices"], arrays["paths_indptr"]
            ones = np.ones(len(indices), dtype=np.float32)
            along = sp.csr_matrix((ones, indices, starts), shape=(len(starts) - 1, shape[0]))
            paths = Paths(along=along, families=arrays["paths_families"])
        # A wrong index would be followed into memory that is not ours.
        weights.check_format(full_check=True)
        if paths is not None:
            paths.along.check_format(full_check=True)
            if len(paths.families) != shape[0]:
                raise ValueError(f"{len(paths.families)} families of {shape[0]} classifiers")
        return cls(features, weights, arrays["intercepts"], paths)


def pool(matrix: sp.csr_matrix, groups: int) -> Floats:
    """Mean over groups of columns, by one sparse product; shape (rows, groups).

    Columns are dealt out in turn, so that every group has frequent and rare features.
    """
    columns = matrix.shape[1]
    group = np.arange(columns, dtype=np.int32) % groups
    share = (1 / np.maximum(np.bincount(group, minlength=groups), 1)).astype(np.float32)
    means = sp.csr_matrix((share[group], group, np.arange(columns + 1)), shape=(columns, groups))
    return np.asarray((matrix @ means).toarray(), dtype=np.float32)
