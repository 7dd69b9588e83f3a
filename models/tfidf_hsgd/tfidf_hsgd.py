"""Tfidf_HSGD: one linear classifier per inner node, stacked into one matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from models.model import Progress
from models.model_sklearn import SklearnConfig, SklearnModel
from utils.decode import Floats
from utils.hierarchy import Hierarchy, Ints
from utils.sgd import Family, fit_families


@dataclass(frozen=True, kw_only=True)
class HSGDConfig(SklearnConfig):
    """Hyperparameters of Tfidf_HSGD."""


class Tfidf_HSGD(SklearnModel):
    """Siblings against one another; a score column per class of the full-depth tree."""

    Config = HSGDConfig

    def fit_weights(
        self, matrix: sp.csr_matrix, codes: Ints, *, seed: int, progress: Progress | None
    ) -> tuple[sp.csr_matrix, Floats]:
        """Fit the children of every node as one family."""
        families = list(sibling_families(self.tree, codes))
        settings = self.config.sgd()
        return fit_families(
            matrix, families, self.tree.class_count, settings, seed=seed, progress=progress
        )


def sibling_families(tree: Hierarchy, codes: Ints) -> Iterator[Family]:
    """Yield the children of each node that has rows and more than one child.

    Parameters
    ----------
    tree
        A full-depth tree.
    codes
        Codes of the rows in it; shape (rows, depth). A code counts within its level: as a score
        column it is the class, `level_offsets` further on.
    """
    for level in range(tree.depth):
        classes = tree.level_offsets[level] + codes[:, level]
        parents = tree.parents_global[classes]
        order = np.argsort(parents, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(parents[order]) != 0])
        for rows in np.split(order, starts[1:]):
            parent = int(parents[rows[0]])
            columns = tree.children(parent) if parent >= 0 else np.arange(tree.level_sizes[0])
            if len(columns) > 1:
                labels = np.searchsorted(columns, classes[rows])
                yield Family(rows=rows, labels=labels, columns=columns)
