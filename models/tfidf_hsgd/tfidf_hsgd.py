"""Tfidf_HSGD: one linear classifier per inner node, stacked into one matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from models.model import Progress
from models.model_sklearn import SklearnConfig, SklearnModel
from utils.hierarchy.decode import Floats
from utils.hierarchy.tree import Hierarchy, Ints
from utils.linear.scorer import Paths
from utils.linear.sgd import Family, fit_families


@dataclass(frozen=True, kw_only=True)
class HSGDConfig(SklearnConfig):
    """Hyperparameters of Tfidf_HSGD."""


class Tfidf_HSGD(SklearnModel):
    """Siblings against one another; a path's probability is the product along it.

    There is one classifier for each class of the full-depth tree that has siblings.
    """

    Config = HSGDConfig

    def fit_weights(
        self, matrix: sp.csr_matrix, codes: Ints, *, seed: int, progress: Progress | None
    ) -> tuple[sp.csr_matrix, Floats]:
        """Fit the children of every node as one family."""
        families = list(sibling_families(self.tree, codes))
        count = int(has_siblings(self.tree).sum())
        return fit_families(
            matrix, families, count, self.config.sgd(), seed=seed, progress=progress
        )

    def paths(self) -> Paths:
        """Classifiers of the classes on the way to each last-level class that have siblings."""
        tree = self.tree
        classes = tree.path_codes[tree.level_slice(tree.depth - 1)] + tree.level_offsets[:-1]
        column = classifier_columns(tree)[classes]
        rows, levels = np.nonzero(column >= 0)
        ones = np.ones(len(rows), dtype=np.float32)
        shape = (len(classes), int(has_siblings(tree).sum()))
        along = sp.csr_matrix((ones, (rows, column[rows, levels])), shape=shape)
        families = tree.parents_global[has_siblings(tree)]
        return Paths(along=along, families=families.astype(np.int32))


def has_siblings(tree: Hierarchy) -> NDArray[np.bool_]:
    """Tell for each class whether its parent has other children; shape (classes,)."""
    alone = tree.child_counts[tree.parents_global] == 1
    return np.where(tree.levels == 0, tree.level_sizes[0] > 1, ~alone)


def classifier_columns(tree: Hierarchy) -> NDArray[np.int64]:
    """Return the classifier of each class, -1 for an only child; shape (classes,)."""
    several = has_siblings(tree)
    return np.where(several, np.cumsum(several) - 1, -1)


def sibling_families(tree: Hierarchy, codes: Ints) -> Iterator[Family]:
    """Yield the children of each node that has rows and more than one child.

    Parameters
    ----------
    tree
        A full-depth tree.
    codes
        Codes of the rows in it; shape (rows, depth). A code counts within its level: the class
        is `level_offsets` further on.
    """
    column = classifier_columns(tree)
    for level in range(tree.depth):
        classes = tree.level_offsets[level] + codes[:, level]
        parents = tree.parents_global[classes]
        order = np.argsort(parents, kind="stable")
        order = order[column[classes[order]] >= 0]
        starts = np.flatnonzero(np.r_[True, np.diff(parents[order]) != 0])
        for rows in np.split(order, starts[1:]) if len(order) else []:
            parent = int(parents[rows[0]])
            siblings = tree.children(parent) if parent >= 0 else np.arange(tree.level_sizes[0])
            labels = np.searchsorted(siblings, classes[rows])
            yield Family(rows=rows, labels=labels, columns=column[siblings])
