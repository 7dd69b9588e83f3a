"""Cases of users that concern confidence, where they are there: ``../shared/cases``."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from click.testing import CliRunner

import adapt
import predict
import train
from utils.common.paths import PROJECT_ROOT, Layout

CASE = PROJECT_ROOT.parent / "shared" / "cases" / "calibration_worse"
pytestmark = pytest.mark.skipif(not CASE.is_dir(), reason="needs ../shared/cases")


@pytest.mark.parametrize("model", ["tfidf_hsgd", "tfidf_lsgd"])
def test_a_level_that_is_always_right_is_answered(
    layout: Layout, tmp_path: Path, model: str
) -> None:
    """Its leaf seldom is, which is no reason to be unsure of the level above."""
    table, out = str(CASE / "table.csv"), str(tmp_path / "answers.csv")
    for command, arguments in (
        (adapt.main, ["flat", table, "case", "-t", "text", "-c", "group,class"]),
        (train.main, ["-m", model, "-d", "case"]),
        (predict.main, ["-m", model, "-d", "case", table, "-t", "text", "-o", out,
                        "--min-confidence", "0.8"]),
    ):  # fmt: skip
        result = CliRunner().invoke(command, arguments)
        assert result.exit_code == 0, result.output
    with open(out, newline="") as file:
        depths = [int(row["prediction_depth"]) for row in csv.DictReader(file)]
    assert sum(depth >= 1 for depth in depths) > 0.99 * len(depths)
