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

from utils.hierarchy.confidence import NOTHING_FITTED, Calibration, leaving_levels, other_paths
from utils.hierarchy.tree import Floats as Floats
from utils.hierarchy.tree import Hierarchy, Ints

TOP = 5
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
    top_probs
        Confidence in each of them; same shape.
    level_probs
        Confidence in the best path's class on each level; shape (rows, depth).
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
    top_probs: Floats
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
    def confidence(self) -> Floats:
        """Confidence in each answer; shape (rows,)."""
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
    calibration: Calibration = NOTHING_FITTED,
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
    calibration
        How probabilities become confidences. The answers do not depend on its maps; the order of
        the other paths may.
    truth, histogram
        True last-level codes (rows,) and where to count scores against them.
    """
    temperature = calibration.temperature
    log_probs = leaf_log_probs(scores, tree, temperature)
    raw = leaf_log_probs(scores, tree, 1.0) if temperature != 1.0 else log_probs
    probs = np.exp(log_probs)
    if histogram is not None and truth is not None:
        histogram.add(probs, truth)
    top = _best(log_probs, min(TOP, log_probs.shape[1]))
    raw_best = raw.argmax(axis=1).astype(np.int32)
    level_probs = _answer_levels(probs, top[:, 0], tree)
    confidences = calibration.level_confidences(level_probs)
    top, top_probs = _ranked(probs, top, level_probs, confidences, tree, calibration)
    return Predictions(
        hierarchy=hierarchy,
        tree=tree,
        top=top,
        top_probs=top_probs,
        level_probs=confidences,
        independent=independent_codes(np.asarray(scores), tree),
        raw_best=raw_best,
        raw_confidence=np.exp(raw[np.arange(len(scores)), raw_best]),
        histogram=histogram,
    )


def _answer_levels(probs: Floats, answer: Ints, tree: Hierarchy) -> Floats:
    """Probability of the answer's class on each level; shape (rows, depth)."""
    paths, rows = tree.path_codes[tree.level_slice(tree.depth - 1)][answer], np.arange(len(answer))
    levels = [level[rows, paths[:, h]] for h, level in enumerate(marginals(probs, tree))]
    return np.minimum(np.stack(levels, axis=1), 1.0)


def _ranked(
    probs: Floats,
    top: Ints,
    level_probs: Floats,
    confidences: Floats,
    tree: Hierarchy,
    calibration: Calibration,
) -> tuple[Ints, Floats]:
    """The most probable paths by confidence, the answer first, and their confidences."""
    found = np.minimum(np.take_along_axis(probs, top, axis=1), 1.0)
    if not calibration.levels:
        return top, found
    found = other_paths(found, level_probs, confidences, leaving_levels(top, top[:, 0], tree))
    found[:, 0] = np.inf
    order = np.argsort(-found, axis=1, kind="stable")
    found[:, 0] = confidences[:, -1]
    return np.take_along_axis(top, order, axis=1), np.take_along_axis(found, order, axis=1)


def leaf_confidences(
    scores: Floats, tree: Hierarchy, calibration: Calibration
) -> tuple[Ints, Floats]:
    """Confidence in every root-to-end path.

    Returns
    -------
    answers, confidences
        Last-level codes of the answers, shape (rows,), and of shape (rows, last-level classes) the
        confidences, none of which is above the answer's.
    """
    probs = np.exp(leaf_log_probs(scores, tree, calibration.temperature))
    answer = probs.argmax(axis=1).astype(np.int32)
    if not calibration.levels:
        return answer, np.minimum(probs, 1.0)
    level_probs = _answer_levels(probs, answer, tree)
    confidences = calibration.level_confidences(level_probs)
    paths = tree.path_codes[tree.level_slice(tree.depth - 1)]
    same, depths = np.ones(probs.shape, dtype=bool), np.zeros(probs.shape, dtype=np.int32)
    for level in range(tree.depth - 1):
        same &= paths[:, level] == paths[answer, level][:, None]
        depths += same
    found = other_paths(probs, level_probs, confidences, depths)
    found[np.arange(len(found)), answer] = confidences[:, -1]
    return answer, found


def join(parts: Iterable[Predictions]) -> Predictions:
    """Put the predictions of consecutive batches together."""
    found = list(parts)
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in found])
        for name in (
            "top", "top_probs", "level_probs", "independent", "raw_best", "raw_confidence",
        )
    }  # fmt: skip
    first = found[0]
    return Predictions(
        hierarchy=first.hierarchy, tree=first.tree, histogram=first.histogram, **arrays
    )
