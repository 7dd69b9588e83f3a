"""From scores to coherent answers: numpy only, the same at train and at serve time.

Scores come in two shapes. *Tree scores* have one column per class of the full-depth tree and are
comparable among siblings: they are normalised within each family, and a path's probability is
the product along it. *Flat scores* have one column per class of the last level: one softmax over
them gives the paths' probabilities, and an inner class has the sum of its leaves. Either way the
answer is a path of the tree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from utils.hierarchy import Hierarchy, Ints

Floats = NDArray[np.float32]

TOP = 5
TEMPERATURES = (1e-4, 1e4)  # calibration looks from 1e-3 to 1e3
PRECISION_BITS = 12  # mantissa bits dropped by ScoreHistogram: 11 are kept, 0.05 % resolution


class Scorer(Protocol):
    """What turns texts into scores; the same object trains, tests and serves."""

    def score(self, texts: Sequence[str]) -> tuple[Floats, Floats]:
        """Score a batch of texts.

        Returns
        -------
        scores
            Tree scores (rows, classes of the full-depth tree) or flat scores (rows, last-level
            classes).
        features
            Pooled features for the reference set, shape (rows, features).
        """
        ...


def log_softmax(values: Floats) -> Floats:
    """Log-softmax over the last axis."""
    shifted = values - values.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def family_log_softmax(scores: Floats, tree: Hierarchy) -> Floats:
    """Log-probability of each class among its siblings; shapes (rows, classes)."""
    order, starts = tree.family_order, tree.family_starts
    sizes = np.diff(np.append(starts, len(order)))
    ordered = scores[:, order]
    ordered = ordered - np.repeat(np.maximum.reduceat(ordered, starts, axis=1), sizes, axis=1)
    totals = np.log(np.add.reduceat(np.exp(ordered), starts, axis=1))
    ordered -= np.repeat(totals, sizes, axis=1)
    result = np.empty_like(ordered)
    result[:, order] = ordered
    return result


def check_temperature(temperature: float) -> None:
    """Refuse what no calibration gives, and 32 bits cannot divide by.

    Raises
    ------
    ValueError
        It is out of range, or no number.
    """
    if not TEMPERATURES[0] <= temperature <= TEMPERATURES[1]:
        raise ValueError(f"its temperature is {temperature}")


def leaf_log_probs(scores: Floats, tree: Hierarchy, temperature: float) -> Floats:
    """Log-probability of every root-to-end path.

    Parameters
    ----------
    scores
        Tree scores or flat scores.
    tree
        A full-depth tree.
    temperature
        Scores are divided by it first.

    Returns
    -------
    Floats
        Shape (rows, last-level classes); each row's probabilities sum to 1.
    """
    scaled = np.asarray(scores, dtype=np.float32) / np.float32(temperature)
    if scores.shape[1] == tree.level_sizes[-1]:
        return log_softmax(scaled)
    local = family_log_softmax(scaled, tree)
    path = local[:, tree.level_slice(0)]
    for level in range(1, tree.depth):
        here = tree.level_slice(level)
        path = path[:, tree.parents[here]] + local[:, here]
    return path


def marginals(leaf_probs: Floats, tree: Hierarchy) -> list[Floats]:
    """Probability of every class per level, as sums over leaves.

    Returns
    -------
    list of Floats
        Per level shape (rows, classes of the level).
    """
    found = [leaf_probs]
    for level in range(tree.depth - 1, 0, -1):
        parents = tree.parents[tree.level_slice(level)]
        order = np.argsort(parents, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(parents[order]) > 0])
        # Every inner class of a full-depth tree has children, so there is one segment each.
        found.append(np.add.reduceat(found[-1][:, order], starts, axis=1))
    return found[::-1]


def independent_codes(scores: Floats, tree: Hierarchy) -> Ints:
    """The best class of each level on its own, which need not be a path; shape (rows, depth)."""
    if scores.shape[1] == tree.level_sizes[-1]:
        levels = marginals(np.exp(log_softmax(scores)), tree)
    else:
        levels = [scores[:, tree.level_slice(level)] for level in range(tree.depth)]
    return np.stack([level.argmax(axis=1) for level in levels], axis=1).astype(np.int32)


class ScoreHistogram:
    """Counts of hits and misses by score, for precision-recall figures in constant memory.

    Scores in [0, 1] are grouped by their leading float32 bits, finer than 0.1 % everywhere.
    """

    def __init__(self) -> None:
        bins = (int(np.float32(1.0).view(np.uint32)) >> PRECISION_BITS) + 2
        self.all = np.zeros(bins, dtype=np.int64)
        self.hits = np.zeros(bins, dtype=np.int64)

    def add(self, probabilities: Floats, true_column: Ints) -> None:
        """Count one batch: probabilities (rows, columns), and each row's true column."""
        keys = np.ascontiguousarray(probabilities, dtype=np.float32).view(np.uint32)
        keys = np.minimum(keys >> PRECISION_BITS, len(self.all) - 1)
        self.all += np.bincount(keys.ravel(), minlength=len(self.all))
        true_keys = keys[np.arange(len(keys)), true_column]
        self.hits += np.bincount(true_keys, minlength=len(self.hits))

    def average_precision(self) -> float:
        """Area under the precision-recall steps, ties taken together, no invented samples."""
        hits, everything = self.hits[::-1], self.all[::-1]
        if not hits.sum():
            return float("nan")
        precision = np.cumsum(hits) / np.maximum(np.cumsum(everything), 1)
        return float((precision * hits).sum() / hits.sum())


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """Answers for a set of rows.

    Parameters
    ----------
    hierarchy
        The ragged tree, whose classes are answered.
    tree
        The same at full depth.
    top
        Most probable last-level codes, best first; shape (rows, up to 5).
    log_probs
        Their calibrated log-probabilities; same shape.
    level_probs
        Calibrated probability of the best path's class on each level; shape (rows, depth).
    independent
        Best class of each level on its own; shape (rows, depth).
    raw_best, raw_confidence
        Last-level code and its probability before calibration; shape (rows,).
    histogram
        Scores against truth, where the truth was given.
    """

    hierarchy: Hierarchy
    tree: Hierarchy
    top: Ints
    log_probs: Floats
    level_probs: Floats
    independent: Ints
    raw_best: Ints
    raw_confidence: Floats
    histogram: ScoreHistogram | None = None

    def __len__(self) -> int:
        return len(self.top)

    @cached_property
    def ends(self) -> Ints:
        """Class of the ragged tree at which each answer ends; shape (rows,)."""
        return self.tree.ending[self.top[:, 0]]

    @cached_property
    def codes(self) -> Ints:
        """Answered codes, -1 beyond the answer's end; shape (rows, depth)."""
        return self.hierarchy.path_codes[self.ends]

    @property
    def top_probs(self) -> Floats:
        """Calibrated probabilities of the most probable paths; shape (rows, up to 5)."""
        return np.minimum(np.exp(self.log_probs), 1.0)

    @property
    def confidence(self) -> Floats:
        """Calibrated probability of each answer; shape (rows,)."""
        return self.top_probs[:, 0]

    def ends_at(self, min_confidence: float) -> Ints:
        """Where answers end if they stop at the deepest class that is sure enough.

        Parameters
        ----------
        min_confidence
            Least probability of the class answered.

        Returns
        -------
        Ints
            Class of the ragged tree, -1 where not even the first level is sure; shape (rows,).
        """
        sure = (self.level_probs >= min_confidence).sum(axis=1) - 1
        last = self.tree.level_slice(self.tree.depth - 1)
        codes = self.tree.path_codes[last][self.top[:, 0], np.maximum(sure, 0)]
        node = self.tree.origin[self.tree.level_offsets[np.maximum(sure, 0)] + codes]
        return np.where(sure < 0, -1, node).astype(np.int32)


def _best(log_probs: Floats, count: int) -> Ints:
    """Columns of the largest values, best first, ties to the first; shape (rows, count)."""
    if count < log_probs.shape[1] // 4:
        picked = np.sort(np.argpartition(-log_probs, count, axis=1)[:, :count], axis=1)
        values = np.take_along_axis(log_probs, picked, axis=1)
        inner = np.argsort(-values, axis=1, kind="stable")
        best = np.take_along_axis(picked, inner, axis=1)
        best[:, 0] = log_probs.argmax(axis=1)
        return best.astype(np.int32)
    return np.argsort(-log_probs, axis=1, kind="stable")[:, :count].astype(np.int32)


def decode(
    scores: Floats,
    hierarchy: Hierarchy,
    tree: Hierarchy,
    temperature: float = 1.0,
    truth: Ints | None = None,
    histogram: ScoreHistogram | None = None,
) -> Predictions:
    """Answer one batch of scores.

    Parameters
    ----------
    scores
        Tree scores or flat scores; all finite.
    hierarchy, tree
        The ragged tree and its `full_depth`.
    temperature
        Calibration.
    truth, histogram
        True last-level codes (rows,) and where to count scores against them.
    """
    log_probs = leaf_log_probs(scores, tree, temperature)
    raw = leaf_log_probs(scores, tree, 1.0) if temperature != 1.0 else log_probs
    probs = np.exp(log_probs)
    if histogram is not None and truth is not None:
        histogram.add(probs, truth)
    top = _best(log_probs, min(TOP, log_probs.shape[1]))
    paths = tree.path_codes[tree.level_slice(tree.depth - 1)][top[:, 0]]
    rows = np.arange(len(scores))
    per_level = [level[rows, paths[:, h]] for h, level in enumerate(marginals(probs, tree))]
    raw_best = raw.argmax(axis=1).astype(np.int32)
    return Predictions(
        hierarchy=hierarchy,
        tree=tree,
        top=top,
        log_probs=np.take_along_axis(log_probs, top, axis=1),
        level_probs=np.minimum(np.stack(per_level, axis=1), 1.0),
        independent=independent_codes(np.asarray(scores), tree),
        raw_best=raw_best,
        raw_confidence=np.exp(raw[rows, raw_best]),
        histogram=histogram,
    )


def join(parts: Iterable[Predictions]) -> Predictions:
    """Put the predictions of consecutive batches together."""
    found = list(parts)
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in found])
        for name in (
            "top", "log_probs", "level_probs", "independent", "raw_best", "raw_confidence",
        )
    }  # fmt: skip
    first = found[0]
    return Predictions(
        hierarchy=first.hierarchy, tree=first.tree, histogram=first.histogram, **arrays
    )
