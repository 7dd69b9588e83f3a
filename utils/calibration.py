"""Confidence that means what it says: temperature scaling and its error.

Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.decode import Floats, leaf_log_probs
from utils.hierarchy import Hierarchy, Ints

BINS = 15
SEARCH = (math.log(1e-3), math.log(1e3))
STEPS = 40
SPREAD = 1.0
"""How far, on a natural logarithmic scale, temperatures are expected from the default: few rows, or
rows that are all right, say little about it."""
CELLS = 20_000_000  # scores looked at per trial; a temperature is one number


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
