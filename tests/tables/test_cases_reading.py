"""The cases of files that users brought, each with its right outcome."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from tests.adapters.test_flat import flat, report_of, rows_of
from tests.test_predict import encoder, model, quick_model, ran, root  # noqa: F401
from utils.common.paths import PROJECT_ROOT, Layout
from utils.hierarchy.dataset import load_dataset

CASES = PROJECT_ROOT.parent / "shared" / "cases"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="no cases folder")


def adapted(layout: Layout, file: str, *options: str) -> set[tuple[str, ...]]:
    """The classes that a case's file gives."""
    result = flat(CASES / file, "d", "-t", "text", *options)
    assert result.exit_code == 0, result.output
    return {path for _, path in rows_of(load_dataset(layout, "d"))}


@pytest.mark.parametrize("name", ["level2_merged", "both_merged"])
def test_merged_cells(name: str, layout: Layout) -> None:
    found = adapted(layout, f"merged_cells/{name}.xlsx", "-c", "level1,level2")
    assert found == {(letter, f"{letter}{i}") for letter in "ABC" for i in range(2)}
    assert report_of(layout)["rows"]["kept"] == 60


def test_excel_errors(layout: Layout) -> None:
    assert adapted(layout, "excel_errors/errors.xlsx", "-c", "label") == {("A",), ("B",), ("C",)}
    assert report_of(layout)["rows"]["dropped"] == {"empty_path": 10}
    assert "10 cells hold errors" in report_of(layout)["notes"][0]


def test_excel_sep_line(layout: Layout) -> None:
    assert adapted(layout, "excel_sep_line/t.csv", "-c", "label") == {("A",), ("B",), ("C",)}
    assert report_of(layout)["rows"]["kept"] == 60


def test_hf_class_label(layout: Layout) -> None:
    found = adapted(layout, "hf_class_label/t.parquet", "-c", "label")
    assert found == {("World",), ("Sports",), ("Business",)}


def test_old_xls() -> None:
    result = flat(CASES / "old_xls/t.xls", "d", "-t", "a", "-c", "b")
    assert result.exit_code == 1
    assert result.output.rstrip().endswith("is an old Office document: save it as xlsx or csv.")


@pytest.mark.parametrize("kind", ["csv", "xlsx"])
def test_title_rows(kind: str, layout: Layout) -> None:
    refused = flat(CASES / f"title_rows/t.{kind}", "d", "-t", "text", "-c", "label")
    assert refused.exit_code == 1
    assert "seems to be line 3: --header-row 3" in refused.output
    adapted(layout, f"title_rows/t.{kind}", "-c", "label", "--header-row", "3")
    assert report_of(layout)["rows"]["kept"] == 60


@pytest.mark.usefixtures("model")
def test_utf16_predict(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    shutil.copy(CASES / "utf16_predict/t.csv", path)
    ran(path, "-o", tmp_path / "out.csv")
    before = list(csv.DictReader(path.read_text("utf-16").splitlines()))
    after = list(csv.DictReader((tmp_path / "out.csv").read_text("utf-8").splitlines()))
    assert len(before) == 60
    assert [row["text"] for row in after] == [row["text"] for row in before]
    assert all(row["prediction"] for row in after)
