"""How right the answers are, where true classes are known."""

from __future__ import annotations

import math

import numpy as np

from monitor_drift import Floats
from monitor_settings import CLASSIFICATION, PROBABILITIES, REGRESSION, Settings
from monitor_stored import Labelled
from monitor_tree import Ints, Tree
from monitor_wire import Columns

LEAST_ROWS = 30
CALIBRATION_BINS = 15
RANKED_ROWS = 2_000  # newest ones, for the area under the curve
LEAST_PROBABILITY = 1e-12

Figures = dict[tuple[str, str], float]


def metric_names(settings: Settings, tree: Tree) -> list[tuple[str, str]]:
    """Monitor and metric of all figures, as chosen."""
    levels = [f"level_{level + 1}_accuracy" for level in range(tree.depth)]
    names = {
        CLASSIFICATION: ["accuracy", *levels, "macro_f1", "hierarchical_f1"],
        PROBABILITIES: ["log_loss", "calibration_error", "roc_auc"],
        REGRESSION: ["mean_error", "mean_absolute_error", "root_mean_squared_error"],
    }
    return [(m, name) for m in settings.monitors if m in names for name in names[m]]


def performance(rows: Labelled, settings: Settings, columns: Columns) -> Figures:
    """All figures that the chosen monitors have; NaN while too few true classes are known."""
    names = metric_names(settings, columns.tree)
    if len(rows) < LEAST_ROWS:
        return dict.fromkeys(names, math.nan)
    made = {
        CLASSIFICATION: lambda: classification(rows, columns.tree),
        PROBABILITIES: lambda: probabilities(rows, columns),
        REGRESSION: lambda: forecast(rows),
    }
    held = {monitor: made[monitor]() for monitor in {monitor for monitor, _ in names}}
    return {(monitor, name): held[monitor][name] for monitor, name in names}


def classification(rows: Labelled, tree: Tree) -> dict[str, float]:
    """Whether the answers are right: as a whole, on each level, and in part."""
    true, found = tree.ancestors[rows.true], tree.ancestors[rows.predicted]
    shared = ((true == found) & (true >= 0)).sum()
    named = (true >= 0).sum() + (found >= 0).sum()
    figures = {
        "accuracy": float((rows.true == rows.predicted).mean()),
        "macro_f1": macro_f1(rows.true, rows.predicted, len(tree.paths)),
        "hierarchical_f1": float(2 * shared / named),
    }
    for level in range(tree.depth):
        there = true[:, level] >= 0
        same = (true[:, level] == found[:, level])[there]
        figures[f"level_{level + 1}_accuracy"] = float(same.mean()) if there.any() else math.nan
    return figures


def macro_f1(true: Ints, predicted: Ints, classes: int) -> float:
    """F1 averaged over the classes that are true or predicted in any row."""
    hits = np.bincount(true[true == predicted], minlength=classes)
    named = np.bincount(true, minlength=classes) + np.bincount(predicted, minlength=classes)
    there = named > 0
    return float((2 * hits[there] / named[there]).mean())


def forecast(rows: Labelled) -> dict[str, float]:
    """Confidence as a forecast of whether the answer is right."""
    error = rows.confidence - (rows.true == rows.predicted)
    return {
        "mean_error": float(error.mean()),
        "mean_absolute_error": float(np.abs(error).mean()),
        "root_mean_squared_error": float(np.sqrt((error**2).mean())),
    }


def probabilities(rows: Labelled, columns: Columns) -> dict[str, float]:
    """How good the probabilities are. What the best classes leave is spread over the others."""
    column_of = {node: column for column, node in enumerate(columns.classes)}
    wanted = np.array([column_of.get(int(node), -1) for node in rows.true])
    rest = np.array([_rest(scores, len(columns.classes)) for scores in rows.scores])
    given = np.array(
        [dict(s).get(int(c), r) for s, c, r in zip(rows.scores, wanted, rest, strict=True)]
    )
    known = np.array([bool(scores) for scores in rows.scores]) & (wanted >= 0)
    loss = -np.log(np.maximum(given[known], LEAST_PROBABILITY))
    return {
        "log_loss": float(loss.mean()) if known.any() else math.nan,
        "calibration_error": calibration_error(rows.confidence, rows.true == rows.predicted),
        "roc_auc": _ranking(rows, wanted, rest, known),
    }


def _rest(scores: tuple[tuple[int, float], ...], columns: int) -> float:
    left = max(0.0, 1 - sum(sure for _, sure in scores))
    return left / max(1, columns - len(scores))


def calibration_error(confidence: Floats, correct: np.ndarray) -> float:
    """Mean gap between confidence and accuracy over 15 equal-width bins, weighted by rows."""
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights=correct - confidence, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def _ranking(rows: Labelled, wanted: Ints, rest: Floats, known: np.ndarray) -> float:
    """Area under the curve of each class against the others, averaged over the true classes."""
    newest = np.flatnonzero(known)[-RANKED_ROWS:]
    place_of = {int(row): place for place, row in enumerate(newest)}
    classes = np.unique(wanted[newest])
    held: dict[int, list[tuple[int, float]]] = {int(column): [] for column in classes}
    for row in newest:
        for column, sure in rows.scores[row]:
            if column in held:
                held[column].append((place_of[int(row)], sure))
    areas = []
    for column in classes:
        scores = rest[newest].copy()
        for place, sure in held[int(column)]:
            scores[place] = sure
        own = wanted[newest] == column
        if not own.all():
            areas.append(area_under_curve(scores, own))
    return float(np.mean(areas)) if areas else math.nan


def area_under_curve(scores: Floats, own: np.ndarray) -> float:
    """Chance that a row of the class is ranked above one that is not; ties count half."""
    _, ranks, counts = np.unique(scores, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2
    inside = int(own.sum())
    total = middle[ranks][own].sum() - inside * (inside + 1) / 2
    return float(total / (inside * (len(own) - inside)))
