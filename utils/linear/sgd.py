"""Fits many linear classifiers at once: families of classes that are told from one another.

A family is the children of one node (or, for a flat model, all terminal classes). Every class of
a family gets one column of a common weight matrix: one against the rest, as scikit-learn's
`SGDClassifier` fits it. `utils/linear/sgd_kernel.py` does the work outside the interpreter lock, so
threads share it; it is imported on the first fit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from utils.common.config import key
from utils.common.errors import UserError

Ints = NDArray[np.int32] | NDArray[np.int64]
Progress = Callable[[int, int], None]

# One task fits so many classes at most: its dense weights stay small. Each class is fitted on all
# rows of its family in the same order, so that neither this nor the number of threads matters.
_BLOCK = 64
# Dense weights of all threads together stay below so many cells of 4 bytes.
_CELLS = 500_000_000
# Weights kept in all; beyond it each class keeps its largest. 8 bytes each on disk.
_MAX_WEIGHTS = 36_000_000
# The answer of a classifier that never saw its class: far below the margin, which is -1.
_NEVER = -10.0


@dataclass(frozen=True, kw_only=True)
class SgdSettings:
    """How each classifier learns; docs/tfidf.md tells how the defaults were chosen."""

    loss: str = key(
        "modified_huber",
        choices=("modified_huber", "squared_hinge", "hinge", "log_loss", "perceptron"),
        note="loss of scikit-learn's SGDClassifier",
    )
    alpha: float = key(1e-4, above=0, note="strength of the L2 penalty")
    max_iter: int = key(1000, low=1, note="stop after so many passes over the rows")
    tol: float = key(1e-3, above=0, note="or after five passes without so much improvement")
    average: bool = key(True, note="answer with the mean of the weights over all steps")
    class_weight_power: float = key(
        0.0, low=0, high=2, note="positives weigh (N / (C * N_c)) ** power: 0 none, 1 balanced"
    )


@dataclass(frozen=True, kw_only=True)
class Family:
    """Classes to tell apart.

    Attributes
    ----------
    rows : rows of the feature matrix that belong to one of the classes.
    labels : (rows,) which class, as an index into `columns`.
    columns : score column of each class.
    """

    rows: Ints
    labels: Ints
    columns: Ints


@dataclass(frozen=True, kw_only=True)
class _Task:
    """Some classes of a family, fitted by one thread; both are indices into its columns."""

    family: Family
    present: Ints
    chosen: Ints

    @property
    def work(self) -> int:
        """Rows times classes."""
        return len(self.family.rows) * len(self.chosen)


@dataclass(frozen=True, kw_only=True)
class _Block:
    """Fitted weights of some columns."""

    columns: Ints
    weights: sp.csr_matrix
    intercepts: NDArray[np.float32]


def fit_families(
    matrix: sp.csr_matrix,
    families: Sequence[Family],
    column_count: int,
    settings: SgdSettings,
    *,
    seed: int,
    progress: Progress | None = None,
) -> tuple[sp.csr_matrix, NDArray[np.float32]]:
    """Fit all families.

    Parameters
    ----------
    matrix : (rows, features) float32.
    column_count : number of score columns; those in no family score 0.
    seed : same seed, same weights, whatever the number of threads.
    progress : called with (rows done, rows in all): those of the matrix, as the share of the work.

    Returns
    -------
    weights : (columns, features) float32
    intercepts : (columns,) float32
    """
    tasks = list(_tasks(families))
    tasks.sort(key=lambda task: -len(task.family.rows))
    keep = _weights_per_class(matrix, families)
    blocks: list[_Block] = list(_absent(families, matrix.shape[1]))
    fitted, work = 0, sum(task.work for task in tasks)
    threads = min(_thread_count(), max(_CELLS // (3 * _BLOCK * max(matrix.shape[1], 1)), 1))
    with ThreadPoolExecutor(threads) as pool:
        done = pool.map(lambda task: _fit_task(matrix, task, settings, keep, seed), tasks)
        for task, block in zip(tasks, done, strict=True):
            blocks.append(block)
            fitted += task.work
            if progress is not None:
                progress(matrix.shape[0] * fitted // work, matrix.shape[0])
    return _assemble(blocks, column_count, matrix.shape[1])


def _thread_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tasks(families: Sequence[Family]) -> Iterator[_Task]:
    for family in families:
        present = np.flatnonzero(np.bincount(family.labels))
        if len(present) < 2:
            continue
        for chosen in np.array_split(present, -(-len(present) // _BLOCK)):
            yield _Task(family=family, present=present, chosen=chosen)


def _absent(families: Sequence[Family], features: int) -> Iterator[_Block]:
    """Yield constant scores for classes without a row, and for those that are alone."""
    for family in families:
        seen = np.bincount(family.labels, minlength=len(family.columns)) > 0
        if seen.all() and len(seen) > 1:
            continue
        missing = family.columns[~seen]
        if not seen.any() or len(seen) == 1:
            continue
        yield _Block(
            columns=missing,
            weights=sp.csr_matrix((len(missing), features), dtype=np.float32),
            intercepts=np.full(len(missing), _NEVER, dtype=np.float32),
        )


def _weights_per_class(matrix: sp.csr_matrix, families: Sequence[Family]) -> int:
    """Return how many weights a class may keep so that all together stay within the limit."""
    nonzero = np.diff(matrix.indptr)
    # A family cannot have more weights per class than its rows have entries.
    bounds = np.concatenate(
        [
            np.full(len(family.columns), min(int(nonzero[family.rows].sum()), matrix.shape[1]))
            for family in families
            if np.count_nonzero(np.bincount(family.labels)) > 1  # else nothing is fitted
        ]
        or [np.zeros(1, dtype=np.int64)]
    )
    bounds.sort()
    below = np.concatenate([[0], np.cumsum(bounds)[:-1]])
    room = (_MAX_WEIGHTS - below) // (len(bounds) - np.arange(len(bounds)))
    tight = np.flatnonzero(bounds > room)
    return int(room[tight[0]]) if len(tight) else int(bounds[-1])


def _fit_task(
    matrix: sp.csr_matrix, task: _Task, settings: SgdSettings, keep: int, seed: int
) -> _Block:
    family = task.family
    local, names = _compact(matrix[family.rows])
    coefficients, intercepts = _one_versus_rest(local, task, settings, seed)
    return _Block(
        columns=family.columns[task.chosen],
        weights=_largest(coefficients, keep, names, matrix.shape[1]),
        intercepts=intercepts.astype(np.float32),
    )


def _compact(matrix: sp.csr_matrix) -> tuple[sp.csr_matrix, Ints]:
    """Drop empty columns, so that the weights fit into the cache; return the kept ones."""
    used = np.zeros(matrix.shape[1], dtype=bool)
    used[matrix.indices] = True
    names = np.flatnonzero(used)
    place = np.cumsum(used, dtype=np.int32) - np.int32(1)
    shape = (matrix.shape[0], max(len(names), 1))
    compact = sp.csr_matrix((matrix.data, place[matrix.indices], matrix.indptr), shape=shape)
    return compact, names


def _one_versus_rest(
    matrix: sp.csr_matrix, task: _Task, settings: SgdSettings, seed: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return (classes, features) weights and (classes,) intercepts of a task's classes."""
    from utils.linear.sgd_kernel import descend

    # Two classes are one problem: the first is the negative side of the second.
    pair = len(task.present) == 2
    positives = task.chosen[1:] if pair else task.chosen
    fitted = descend(
        matrix,
        task.family.labels,
        positives,
        _positive_weights(task, positives, settings.class_weight_power),
        loss=settings.loss,
        alpha=settings.alpha,
        max_iter=settings.max_iter,
        tol=settings.tol,
        average=settings.average,
        seed=seed % 2**32,
    )
    if (fitted.epochs < 0).any():
        advice = "Raise" if settings.alpha < 1 else "Lower"
        raise UserError(
            f"Learning with loss {settings.loss!r} and alpha {settings.alpha:g} ran out of the "
            f"range of numbers. {advice} alpha."
        )
    weights, intercepts = fitted.weights, fitted.intercepts
    if pair:
        return np.concatenate([-weights, weights]), np.concatenate([-intercepts, intercepts])
    return weights, intercepts


def _positive_weights(task: _Task, positives: Ints, power: float) -> NDArray[Any]:
    labels = task.family.labels
    return (len(labels) / (len(task.present) * np.bincount(labels)[positives])) ** power


def _largest(weights: NDArray[Any], keep: int, names: Ints, width: int) -> sp.csr_matrix:
    """Keep each class's largest weights, as sparse rows over all features."""
    kept = weights
    if keep < kept.shape[1]:
        bound = np.partition(np.abs(kept), -keep, axis=1)[:, -keep]
        kept[np.abs(kept) < bound[:, None]] = 0
    there = kept != 0
    starts = np.concatenate([[0], np.cumsum(np.count_nonzero(there, axis=1))])
    indices = np.broadcast_to(names.astype(np.int32), kept.shape)[there]
    return sp.csr_matrix((kept[there], indices, starts), shape=(len(kept), width))


def _assemble(
    blocks: list[_Block], column_count: int, features: int
) -> tuple[sp.csr_matrix, NDArray[np.float32]]:
    """Put all columns into their places, those without a classifier as zeros."""
    intercepts = np.zeros(column_count, dtype=np.float32)
    if not blocks:
        return sp.csr_matrix((column_count, features), dtype=np.float32), intercepts
    columns = np.concatenate([block.columns for block in blocks])
    intercepts[columns] = np.concatenate([block.intercepts for block in blocks])
    stacked = sp.vstack([block.weights for block in blocks], format="csr")
    blocks.clear()
    lengths = np.zeros(column_count, dtype=np.int64)
    lengths[columns] = np.diff(stacked.indptr)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    order = np.full(column_count, -1, dtype=np.int64)
    order[columns] = np.arange(len(columns))
    filled = stacked[order[order >= 0]]
    weights = sp.csr_matrix((filled.data, filled.indices, starts), shape=(column_count, features))
    return weights, intercepts
