"""What a training tells other programs, such as DVC: figures and plots at places without a time."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.common.files import atomic_dir, atomic_path, write_json
from utils.hierarchy.calibration import reliability
from utils.hierarchy.dataset import Split
from utils.hierarchy.decode import Predictions
from utils.hierarchy.tree import Ints

Row = Sequence[Any]

ROWS = 5_000  # of the confusions: DVC's template counts them itself, in the browser
CLASSES = 20  # of level 1 with a name of their own among the confusions
OTHER = "(other classes)"

SHOWN = ("leaf_accuracy", "leaf_macro_f1", "hierarchical_f1", "top_3_accuracy",
         "calibration_error", "rows")  # fmt: skip
LEARNED = ("loss", "nll", "leaf_accuracy", "leaf_macro_f1", "hierarchical_f1")


def write_figures(
    metrics_file: Path,
    plots: Path,
    facts: Mapping[str, Any],
    predictions: Predictions,
    split: Split,
) -> None:
    """Write the headline figures of a test, and a folder of tables to plot, each whole.

    Parameters
    ----------
    metrics_file
        JSON, with the checkpoint that the figures are of.
    plots
        Folder of ``learning.csv``, ``levels.csv``, ``reliability.csv`` and ``confusion.csv``.
    facts
        ``checkpoint``, ``test`` (what `evaluate` found) and ``info``, the model's.
    predictions, split
        The answers to the rows of a split with their truth.

    Raises
    ------
    UserError
        They cannot be written.
    """
    with atomic_dir(plots) as folder:
        history = facts["info"].get("history", [])
        _table(folder / "learning.csv", ("epoch", *LEARNED), learning_rows(history))
        _table(
            folder / "levels.csv", ("level", "accuracy", "macro_f1"),
            level_rows(facts["test"], predictions.hierarchy.depth),
        )  # fmt: skip
        _table(
            folder / "reliability.csv", ("confidence", "accuracy", "perfect", "rows"),
            reliability_rows(predictions, split),
        )  # fmt: skip
        _table(folder / "confusion.csv", ("true", "answered"), top_pairs(predictions, split.codes))
    write_json(metrics_file, headline(facts))


def headline(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The figures that one compares trainings by."""
    test = facts["test"]
    levels = [name for name in test if name.startswith("level_") and name.endswith("_accuracy")]
    names = (*SHOWN[:3], *levels, *SHOWN[3:])
    return {name: test[name] for name in names if name in test} | {
        "checkpoint": facts["checkpoint"]
    }


def learning_rows(history: Iterable[Mapping[str, float]]) -> list[Row]:
    """Per epoch its number and figures, empty where a model has none."""
    return [[entry["epoch"], *(entry.get(name, "") for name in LEARNED)] for entry in history]


def level_rows(metrics: Mapping[str, float], depth: int) -> list[Row]:
    """Per level that test rows reach: its number, accuracy and macro-F1."""
    return [
        [level, metrics[f"level_{level}_accuracy"], metrics.get(f"level_{level}_macro_f1", "")]
        for level in range(1, depth + 1)
        if f"level_{level}_accuracy" in metrics
    ]


def reliability_rows(predictions: Predictions, split: Split) -> list[Row]:
    """Per bin of confidence with answers: mean confidence, accuracy, what it ought to be, rows."""
    if not len(split):
        return []
    last = predictions.tree.last_codes(split.codes, predictions.hierarchy)
    rows, hits, sure = reliability(predictions.confidence, predictions.top[:, 0] == last)
    kept = np.flatnonzero(rows)
    means = (sure[kept] / rows[kept]).tolist()
    right = (hits[kept] / rows[kept]).tolist()
    return list(zip(means, right, means, rows[kept].tolist(), strict=True))


def top_pairs(predictions: Predictions, codes: Ints) -> list[Row]:
    """True and answered class of level 1, of some thousand rows taken evenly."""
    if not len(codes):
        return []
    picked = np.unique(np.linspace(0, len(codes) - 1, ROWS).astype(int))
    true, found = codes[picked, 0].tolist(), predictions.codes[picked, 0].tolist()
    named = {code for code, _ in Counter(true).most_common(CLASSES)}
    names = predictions.hierarchy.names
    return [
        [names[code] if code in named else OTHER for code in pair]
        for pair in zip(true, found, strict=True)
    ]


def _table(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
