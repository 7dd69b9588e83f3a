"""Confidence that means what it says: fitting it on validation rows, and its error.

First one temperature (Guo et al., On Calibration of Modern Neural Networks, ICML 2017), under which
the true paths are most likely; then a map per level (`LevelMap`), under which the
answers that are right are, where that holds for rows that it was not fitted on.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.hierarchy.confidence import LARGEST, Calibration, LevelMap, log_odds_parts
from utils.hierarchy.decode import decode, leaf_log_probs
from utils.hierarchy.tree import Floats, Hierarchy, Ints

BINS = 15
SEARCH = (math.log(1e-3), math.log(1e3))
STEPS = 40
SPREAD = 1.0
"""How far, on a natural logarithmic scale, temperatures are expected from the default: few rows, or
rows that are all right, say little about it."""
CELLS = 20_000_000  # scores looked at per trial; a temperature is one number
LEVEL_SPREAD = 1.0
"""How far the three numbers of a level's map are expected from those that change nothing."""
FOLDS = 5
LEAST_ROWS = 50
"""Validation rows below which levels have no maps of their own."""


def negative_log_likelihood(
    scores: Floats, truth: Ints, tree: Hierarchy, temperature: float
) -> float:
    """Mean of -log P(true path); `truth` are last-level codes of shape (rows,)."""
    log_probs = leaf_log_probs(scores, tree, temperature)
    return float(-log_probs[np.arange(len(truth)), truth].mean())


def fit_temperature(scores: Floats, truth: Ints, tree: Hierarchy, default: float = 1.0) -> float:
    """Find the temperature under which the true paths are most likely.

    The most probable one if its logarithm is normally distributed around that of `default`; the
    rows outweigh that as soon as there are some dozens. Golden-section search.

    Parameters
    ----------
    scores
        Tree scores or flat scores of validation rows.
    truth
        True last-level codes; shape (rows,).
    """
    if not len(truth):
        return default
    rows = np.unique(np.linspace(0, len(truth) - 1, max(1, CELLS // scores.shape[1])).astype(int))
    picked, wanted = scores[rows], truth[rows]

    def cost(log_temperature: float) -> float:
        away = (log_temperature - math.log(default)) / SPREAD
        loss = negative_log_likelihood(picked, wanted, tree, math.exp(log_temperature))
        return loss + away**2 / (2 * len(wanted))

    low, high = SEARCH
    ratio = (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = cost(left), cost(right)
    for _ in range(STEPS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = cost(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = cost(right)
    return float(np.float32(math.exp((low + high) / 2)))


def fit_calibration(
    scores: Floats, truth: Ints, hierarchy: Hierarchy, tree: Hierarchy, default: float = 1.0
) -> Calibration:
    """Find how scores become confidences that hold on other rows.

    Parameters
    ----------
    scores
        Tree scores or flat scores of validation rows.
    truth
        True last-level codes; shape (rows,).
    hierarchy, tree
        The ragged tree and its `full_depth`.
    default
        Temperature where nothing speaks for another.
    """
    plain = Calibration(temperature=fit_temperature(scores, truth, tree, default))
    if len(truth) < LEAST_ROWS:
        return plain
    found = decode(scores, hierarchy, tree, plain)
    paths = tree.path_codes[tree.level_slice(tree.depth - 1)]
    correct = paths[found.top[:, 0]] == paths[truth]
    if not _maps_hold(found.level_probs, correct):
        return plain
    levels = tuple(fit_level(found.level_probs[:, h], correct[:, h]) for h in range(tree.depth))
    return Calibration(temperature=plain.temperature, levels=levels)


def fit_level(probs: Floats, correct: NDArray[np.bool_]) -> LevelMap:
    """Fit a level's map: the most probable one, if its numbers are normally distributed.

    Parameters
    ----------
    probs
        Probability of the class answered on the level; shape (rows,).
    correct
        Whether it is the true one; shape (rows,).
    """
    from scipy.optimize import minimize

    yes, no = log_odds_parts(probs)
    parts = np.stack([yes, -no, np.ones_like(yes)], axis=1)
    signs = np.where(correct, -1.0, 1.0)
    prior = np.array([1.0, 1.0, 0.0])

    def cost(numbers: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margin = signs * (parts @ numbers)
        away = (numbers - prior) / LEVEL_SPREAD
        wrong = 1 / (1 + np.exp(-np.clip(margin, -50, 50)))
        slope = parts.T @ (signs * wrong) + away / LEVEL_SPREAD
        return float(np.logaddexp(0, margin).sum() + away @ away / 2), slope

    bounds = [(0, LARGEST), (0, LARGEST), (-LARGEST, LARGEST)]
    a, c, b = minimize(cost, prior, jac=True, method="L-BFGS-B", bounds=bounds).x.tolist()
    return LevelMap(a=a, c=c, b=b)


def _maps_hold(level_probs: Floats, correct: NDArray[np.bool_]) -> bool:
    """Whether maps make the right answers more likely on rows that they were not fitted on."""
    fold = np.arange(len(correct)) % FOLDS
    gain = 0.0
    for level in range(correct.shape[1]):
        probs, right = level_probs[:, level], correct[:, level]
        for part in range(FOLDS):
            inside, outside = fold != part, fold == part
            mapped = fit_level(probs[inside], right[inside])(probs[outside])
            after = _log_likelihood(mapped, right[outside])
            gain += float((after - _log_likelihood(probs[outside], right[outside])).sum())
    return gain > 0


def _log_likelihood(probs: NDArray[np.floating], correct: NDArray[np.bool_]) -> NDArray[np.float64]:
    yes, no = log_odds_parts(probs)
    return np.where(correct, yes, no)


def reliability(
    confidence: NDArray[np.floating], correct: NDArray[np.bool_]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Rows, hits and sum of confidences in each of 15 bins of equal width; shapes (bins,)."""
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    rows = np.bincount(bins, minlength=BINS)
    hits = np.bincount(bins, weights=correct, minlength=BINS)
    sure = np.bincount(bins, weights=confidence, minlength=BINS)
    return rows, hits, sure


def expected_calibration_error(
    confidence: NDArray[np.floating], correct: NDArray[np.bool_]
) -> float:
    """Mean gap between confidence and accuracy over 15 equal-width bins, weighted by rows."""
    if not len(correct):
        return float("nan")
    rows, hits, sure = reliability(confidence, correct)
    return float(np.abs(hits - sure)[rows > 0].sum() / len(correct))
