"""Every figure of a test, by one function, for all models."""

from __future__ import annotations

import numpy as np

from utils.hierarchy.calibration import expected_calibration_error
from utils.hierarchy.decode import Predictions
from utils.hierarchy.tree import Ints


def class_scores(true: Ints, predicted: Ints, classes: int) -> tuple[float, float, float]:
    """Class-averaged precision, recall and F1.

    Parameters
    ----------
    true, predicted
        Class per row, -1 for none; shape (rows,).
    classes
        Number of classes.

    Returns
    -------
    precision, recall, f1
        Means over the classes present in `true` or `predicted`; a class never predicted has
        precision 0.
    """
    hits = np.bincount(true[(true == predicted) & (true >= 0)], minlength=classes)
    wanted = np.bincount(true[true >= 0], minlength=classes)
    given = np.bincount(predicted[predicted >= 0], minlength=classes)
    present = (wanted + given) > 0
    if not present.any():
        return (float("nan"),) * 3
    hits, wanted, given = hits[present], wanted[present], given[present]
    precision = hits / np.maximum(given, 1)
    recall = hits / np.maximum(wanted, 1)
    f1 = 2 * hits / (wanted + given)
    return float(precision.mean()), float(recall.mean()), float(f1.mean())


def _level_figures(predicted: Ints, codes: Ints, sizes: tuple[int, ...]) -> dict[str, float]:
    figures = {}
    for level, size in enumerate(sizes):
        true, found = codes[:, level], predicted[:, level]
        there = true >= 0
        name = f"level_{level + 1}"
        figures[f"{name}_accuracy"] = (
            float((true == found)[there].mean()) if there.any() else np.nan
        )
        figures[f"{name}_macro_f1"] = class_scores(true, found, size)[2]
    return figures


def _path_figures(predicted: Ints, codes: Ints) -> dict[str, float]:
    shared = ((predicted == codes) & (codes >= 0)).sum(axis=1)
    given, wanted = (predicted >= 0).sum(axis=1), (codes >= 0).sum(axis=1)
    precision, recall = shared.sum() / given.sum(), shared.sum() / wanted.sum()
    return {
        "path_accuracy": float((predicted == codes).all(axis=1).mean()),
        "path_precision": float((shared / given).mean()),
        "hierarchical_precision": float(precision),
        "hierarchical_recall": float(recall),
        "hierarchical_f1": float(2 * shared.sum() / (given.sum() + wanted.sum())),
    }


def _independent_coherence(predictions: Predictions) -> float:
    tree, codes = predictions.tree, predictions.independent
    coherent = np.ones(len(codes), dtype=bool)
    for level in range(1, tree.depth):
        parents = tree.parents[tree.level_slice(level)]
        coherent &= parents[codes[:, level]] == codes[:, level - 1]
    return float(coherent.mean())


def evaluate(predictions: Predictions, codes: Ints) -> dict[str, float]:
    """Compute all metrics of a test.

    Parameters
    ----------
    predictions
        The answers.
    codes
        The truth, -1 beyond a row's end; shape (rows, depth).

    Returns
    -------
    dict
        ``leaf_accuracy`` (the row's terminal class is answered), ``leaf_precision``,
        ``leaf_recall``, ``leaf_macro_f1`` (over terminal classes present in truth or answers),
        ``level_K_accuracy`` (over rows that reach level K) and ``level_K_macro_f1``,
        ``path_accuracy`` (the exact path), ``path_precision`` (mean share of the answered path
        that is right), ``hierarchical_precision``, ``_recall``, ``_f1`` (ancestor-closed sets,
        sums first: Kiritchenko et al. 2006), ``top_3_accuracy``, ``top_5_accuracy``,
        ``leaf_auprc`` (micro), ``coherence`` (answers that are paths of the tree; 1 by
        construction, measured all the same), ``independent_coherence`` (the same for per-level
        argmaxes), ``calibration_error`` and ``calibration_error_raw`` (before calibration),
        ``mean_confidence``, ``rows``. Figures that the rows do
        not define are left out; empty input gives only ``rows``.
    """
    if not len(codes):
        return {"rows": 0.0}
    hierarchy, tree = predictions.hierarchy, predictions.tree
    ends = hierarchy.end_classes(codes)
    last = tree.last_codes(codes, hierarchy)
    correct = predictions.ends == ends
    precision, recall, f1 = class_scores(ends, predictions.ends, hierarchy.class_count)
    ranked = predictions.top == last[:, None]
    figures = {
        "leaf_accuracy": float(correct.mean()),
        "leaf_precision": precision,
        "leaf_recall": recall,
        "leaf_macro_f1": f1,
        **_level_figures(predictions.codes, codes, hierarchy.level_sizes),
        **_path_figures(predictions.codes, codes),
        "top_3_accuracy": float(ranked[:, :3].any(axis=1).mean()),
        "top_5_accuracy": float(ranked.any(axis=1).mean()),
        "coherence": coherence(predictions),
        "independent_coherence": _independent_coherence(predictions),
        "calibration_error": expected_calibration_error(predictions.confidence, correct),
        "calibration_error_raw": expected_calibration_error(
            predictions.raw_confidence, predictions.raw_best == last
        ),
        "mean_confidence": float(predictions.confidence.mean()),
        "rows": float(len(codes)),
    }
    if predictions.histogram is not None:
        figures["leaf_auprc"] = predictions.histogram.average_precision()
    # a level that no row reaches has no accuracy
    return {name: value for name, value in figures.items() if not np.isnan(value)}


def coherence(predictions: Predictions) -> float:
    """Share of answers whose every class has the class answered above it as its parent."""
    hierarchy, codes = predictions.hierarchy, predictions.codes
    right = (codes[:, 0] >= 0).copy()
    for level in range(1, hierarchy.depth):
        here = codes[:, level]
        parents = hierarchy.parents[hierarchy.level_slice(level)]
        right &= (here < 0) | (parents[here] == codes[:, level - 1])
    return float(right.mean())
