"""Figures and tables at fixed places, as other programs read them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.tiny import columns_of, random_tree
from tests.training.test_report import answered, facts
from utils.hierarchy.calibration import BINS
from utils.hierarchy.decode import Predictions
from utils.hierarchy.metrics import evaluate
from utils.hierarchy.tree import Hierarchy
from utils.training import metrics_files

Table = list[dict[str, str]]


def written(
    hierarchy: Hierarchy, codes: Any, folder: Path, rng: np.random.Generator
) -> tuple[dict[str, Any], dict[str, Table], Predictions]:
    """Write figures and read them again as another program would."""
    predictions, split = answered(hierarchy, codes, [str(k) for k in range(len(codes))], rng)
    told = facts(test=evaluate(predictions, codes))
    metrics_files.write_figures(folder / "metrics.json", folder / "plots", told, predictions, split)
    tables = {}
    for path in (folder / "plots").iterdir():
        with path.open(encoding="utf-8", newline="") as file:
            tables[path.stem] = list(csv.DictReader(file))
    return json.loads((folder / "metrics.json").read_text("utf-8")), tables, predictions


def test_figures_are_those_of_the_test(rng: np.random.Generator, tmp_path: Path) -> None:
    hierarchy, codes = random_tree(rng)
    metrics, tables, predictions = written(hierarchy, codes, tmp_path, rng)
    tested = evaluate(predictions, codes)
    assert metrics.pop("checkpoint") == "best_x.pt"
    assert {name: tested[name] for name in metrics} == metrics
    assert {"leaf_accuracy", "level_1_accuracy", "calibration_error", "rows"} <= set(metrics)
    assert [row["epoch"] for row in tables["learning"]] == ["1", "2", "3"]
    assert [float(row["nll"]) for row in tables["learning"]] == [2, 1, pytest.approx(2 / 3)]
    levels = [float(row["accuracy"]) for row in tables["levels"]]
    assert levels == [tested[f"level_{k + 1}_accuracy"] for k in range(len(levels))]
    assert len(levels) == hierarchy.depth


def test_reliability_adds_up_to_the_calibration_error(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    metrics, tables, _ = written(*random_tree(rng), tmp_path, rng)
    rows = tables["reliability"]
    assert 1 < len(rows) <= BINS
    gaps = [
        abs(float(row["accuracy"]) - float(row["perfect"])) * float(row["rows"]) for row in rows
    ]
    assert sum(float(row["rows"]) for row in rows) == metrics["rows"]
    assert sum(gaps) / metrics["rows"] == pytest.approx(metrics["calibration_error"], abs=1e-6)


def test_confusions_of_many_rows_and_classes_stay_few(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_files, "ROWS", 100)
    paths = [(f"top, {k}", f"leaf {k}") for k in range(30) for _ in range(40 - k)]
    hierarchy, codes = Hierarchy.from_paths(columns_of(paths))
    _, tables, predictions = written(hierarchy, codes, tmp_path, rng)
    pairs = tables["confusion"]
    assert len(pairs) == 100
    assert (pairs[0]["true"], pairs[-1]["true"]) == ("top, 0", metrics_files.OTHER)
    names = {row["true"] for row in pairs}
    assert len(names) == metrics_files.CLASSES + 1
    assert {row["answered"] for row in pairs} <= names
    assert pairs[0]["answered"] in (hierarchy.names[predictions.codes[0, 0]], metrics_files.OTHER)


def test_without_test_rows_there_are_heads_alone(rng: np.random.Generator, tmp_path: Path) -> None:
    hierarchy, codes = random_tree(rng)
    metrics, tables, _ = written(hierarchy, codes[:0], tmp_path, rng)
    assert metrics == {"rows": 0.0, "checkpoint": "best_x.pt"}
    assert tables["reliability"] == tables["confusion"] == tables["levels"] == []
