"""Fits many linear classifiers at once: families of classes that are told from one another.

A family is the children of one node (or, for a flat model, all terminal classes). Every class of
a family gets one column of a common weight matrix: one-versus-rest by scikit-learn's
`SGDClassifier`, whose inner loop runs outside the interpreter lock, so threads share the work.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from utils.config import key

if TYPE_CHECKING:
    from sklearn.linear_model import SGDClassifier

Ints = NDArray[np.int32] | NDArray[np.int64]
Progress = Callable[[int, int], None]

# One task fits so many classes: its dense weights stay small, and the result cannot depend on
# the number of threads.
_CHUNK = 32
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
    max_negatives: int = key(
        20_000, low=1, note="of more rows of other classes, 32 classes share a sample of so many"
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
    """Some classes of a family, fitted by one thread; `chosen` are indices into its columns."""

    family: Family
    present: Ints
    chosen: Ints
    seed: int


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
    progress : called with (tasks done, tasks in all).

    Returns
    -------
    weights : (columns, features) float32
    intercepts : (columns,) float32
    """
    tasks = list(_tasks(families, seed))
    tasks.sort(key=lambda task: -len(task.family.rows))
    keep = _weights_per_class(matrix, tasks)
    blocks: list[_Block] = list(_absent(families, matrix.shape[1]))
    with warnings.catch_warnings():
        # Reaching max_iter is the user's choice, and said in the documentation of the key.
        warnings.filterwarnings("ignore", message="Maximum number of iteration reached")
        with ThreadPoolExecutor(_thread_count()) as pool:
            done = pool.map(lambda task: _fit_task(matrix, task, settings, keep), tasks)
            for number, block in enumerate(done, start=1):
                blocks.append(block)
                if progress is not None:
                    progress(number, len(tasks))
    return _assemble(blocks, column_count, matrix.shape[1])


def _thread_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tasks(families: Sequence[Family], seed: int) -> Iterator[_Task]:
    seeds = np.random.SeedSequence(seed)
    for family in families:
        present = np.flatnonzero(np.bincount(family.labels))
        if len(present) < 2:
            continue
        size = len(present) if len(present) <= _CHUNK * 3 // 2 else _CHUNK
        for start in range(0, len(present), size):
            (child,) = seeds.spawn(1)
            yield _Task(
                family=family,
                present=present,
                chosen=present[start : start + size],
                seed=int(child.generate_state(1)[0]),
            )


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


def _weights_per_class(matrix: sp.csr_matrix, tasks: Sequence[_Task]) -> int:
    """Return how many weights a class may keep so that all together stay within the limit."""
    families = {id(task.family): task.family for task in tasks}
    nonzero = np.diff(matrix.indptr)
    # A family cannot have more weights per class than its rows have entries.
    bounds = np.concatenate(
        [
            np.full(len(family.columns), min(int(nonzero[family.rows].sum()), matrix.shape[1]))
            for family in families.values()
        ]
        or [np.zeros(1, dtype=np.int64)]
    )
    bounds.sort()
    below = np.concatenate([[0], np.cumsum(bounds)[:-1]])
    room = (_MAX_WEIGHTS - below) // (len(bounds) - np.arange(len(bounds)))
    tight = np.flatnonzero(bounds > room)
    return int(room[tight[0]]) if len(tight) else int(bounds[-1])


def _fit_task(matrix: sp.csr_matrix, task: _Task, settings: SgdSettings, keep: int) -> _Block:
    family = task.family
    rows, labels = _task_rows(task, settings)
    local, names = _compact(matrix[family.rows[rows]])
    coefficients, intercepts = _one_versus_rest(local, labels, task, settings)
    weights = _largest(coefficients, keep, names, matrix.shape[1])
    return _Block(
        columns=family.columns[task.chosen],
        weights=weights,
        intercepts=intercepts.astype(np.float32),
    )


def _task_rows(task: _Task, settings: SgdSettings) -> tuple[Ints, Ints]:
    """Choose the rows a task learns from, and label the rows of other classes -1."""
    labels = task.family.labels
    if len(task.chosen) == len(task.present):
        return np.arange(len(labels)), labels
    own = np.zeros(int(task.present[-1]) + 1, dtype=bool)
    own[task.chosen] = True
    others = np.flatnonzero(~own[labels])
    if len(others) > settings.max_negatives:
        random = np.random.default_rng(task.seed)
        others = random.choice(others, settings.max_negatives, replace=False, shuffle=False)
    rows = np.sort(np.concatenate([np.flatnonzero(own[labels]), others]))
    return rows, np.where(own[labels[rows]], labels[rows], -1)


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
    matrix: sp.csr_matrix, labels: Ints, task: _Task, settings: SgdSettings
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return (classes, features) weights and (classes,) intercepts of a task's classes.

    Each class is a fit of its own: scikit-learn's loop over classes sets process-wide warning
    filters, which threads would take from one another.
    """
    import sklearn

    # Two classes are one problem: the first is the negative side of the second.
    pair = len(task.present) == 2 and len(task.chosen) == 2
    positives = task.chosen[1:] if pair else task.chosen
    weights = np.empty((len(task.chosen), matrix.shape[1]), dtype=np.float32)
    intercepts = np.empty(len(task.chosen))
    # The matrix is ours; it need not be searched for NaN once per class.
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        for place, label in enumerate(positives):
            found = _classifier(task, int(label), place, settings)
            found.fit(matrix, np.where(labels == label, 1, -1))
            weights[place], intercepts[place] = found.coef_[0], found.intercept_[0]
    if pair:
        weights = np.stack([-weights[0], weights[0]])
        intercepts = np.array([-intercepts[0], intercepts[0]])
    return weights, intercepts


def _classifier(task: _Task, label: int, place: int, settings: SgdSettings) -> SGDClassifier:
    from sklearn.linear_model import SGDClassifier

    return SGDClassifier(
        loss=settings.loss,
        alpha=settings.alpha,
        max_iter=settings.max_iter,
        tol=settings.tol,
        average=settings.average,
        class_weight=_class_weight(task, label, settings),
        random_state=(task.seed + place) % 2**31,
    )


def _class_weight(task: _Task, label: int, settings: SgdSettings) -> dict[int, float] | None:
    if not settings.class_weight_power:
        return None
    labels = task.family.labels
    balanced = len(labels) / (len(task.present) * np.count_nonzero(labels == label))
    return {-1: 1.0, 1: float(balanced**settings.class_weight_power)}


def _largest(weights: NDArray[Any], keep: int, names: Ints, width: int) -> sp.csr_matrix:
    """Keep each class's largest weights, as sparse rows over all features."""
    kept = weights
    if keep < kept.shape[1]:
        bound = np.partition(np.abs(kept), -keep, axis=1)[:, -keep]
        kept[np.abs(kept) < bound[:, None]] = 0
    sparse = sp.csr_matrix(kept)
    indices = names[sparse.indices].astype(np.int32)
    return sp.csr_matrix((sparse.data, indices, sparse.indptr), shape=(len(kept), width))


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
