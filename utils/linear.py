"""The TF-IDF and linear scorer: texts in, class scores out. No scikit-learn, no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from utils.files import atomic_path
from utils.tfidf import Arrays, TfidfFeatures

Floats = NDArray[np.float32]

FILE = "linear.safetensors"
POOLED_FEATURES = 64
# Scores of a batch of texts stay below this many cells (float32), whatever the number of classes.
_BATCH_CELLS = 8_000_000
_MAX_BATCH = 4096
# Dense weights are several times faster to multiply by; up to this many cells they are used.
_DENSE_CELLS = 60_000_000
_LEAST = np.float32(1e-3)
_SLOPE = np.float32(1e-2)


class TfidfScorer:
    """TF-IDF features times a weight matrix.

    Parameters
    ----------
    features : the vocabulary.
    weights : (columns, features) sparse; empty rows allowed.
    intercepts : (columns,)
    paths : (paths, columns) sparse ones, or None. With it, columns are local classifiers and a
        path's score is the logarithm of the product of their probabilities along it.
    """

    def __init__(
        self,
        features: TfidfFeatures,
        weights: sp.csr_matrix,
        intercepts: Floats,
        paths: sp.csr_matrix | None = None,
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
            return np.ascontiguousarray(self.weights.toarray().T)
        return self.weights.T.tocsr()

    @property
    def column_count(self) -> int:
        """Number of score columns."""
        return int((self.weights if self.paths is None else self.paths).shape[0])

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
        if self.paths is None:
            return decisions
        return np.ascontiguousarray((self.paths @ log_probability(decisions).T).T)

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
            arrays["paths_indices"] = self.paths.indices.astype(np.int32)
            arrays["paths_indptr"] = self.paths.indptr.astype(np.int64)
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
            paths = sp.csr_matrix((ones, indices, starts), shape=(len(starts) - 1, shape[0]))
        return cls(features, weights, arrays["intercepts"], paths)

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the scorer into a folder; return the entry that `load` needs."""
        from safetensors.numpy import save_file

        arrays, meta = self.state()
        solid = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        with atomic_path(folder / FILE) as temporary:
            save_file(solid, temporary)
        return {"kind": "linear", "file": FILE, **meta}

    @classmethod
    def load(cls, folder: Path, entry: dict[str, Any]) -> TfidfScorer:
        """Read what `save` wrote; `entry` is what it returned."""
        from safetensors.numpy import load_file

        return cls.from_state(load_file(folder / entry["file"]), entry)


def log_probability(decisions: Floats) -> Floats:
    """Log-probability of "yes" by one-versus-rest decision values.

    The estimate that belongs to the modified Huber loss (Zhang, ICML 2004), (1 + d) / 2 within
    [0, 1]. It is not renormalised among siblings: where none of them fits, the whole branch
    loses. Beyond its bounds a slight slope keeps the order of the decision values.
    """
    share = (1 + np.clip(decisions, -1, 1)) / 2
    return np.asarray(np.log(np.maximum(share, _LEAST)) + _SLOPE * decisions, dtype=np.float32)


def pool(matrix: sp.csr_matrix, groups: int) -> Floats:
    """Mean over groups of columns, by one sparse product; shape (rows, groups).

    Columns are dealt out in turn, so that every group has frequent and rare features.
    """
    columns = matrix.shape[1]
    group = np.arange(columns, dtype=np.int32) % groups
    share = (1 / np.maximum(np.bincount(group, minlength=groups), 1)).astype(np.float32)
    means = sp.csr_matrix((share[group], group, np.arange(columns + 1)), shape=(columns, groups))
    return np.asarray((matrix @ means).toarray(), dtype=np.float32)
