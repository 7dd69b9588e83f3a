"""The small failing inputs of ../shared/cases that are about labels."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.adapters.test_flat import flat, report_of, rows_of
from utils.common.paths import PROJECT_ROOT, Layout
from utils.hierarchy.dataset import load_dataset

CASES = PROJECT_ROOT.parent / "shared" / "cases"

pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="no folder of cases")


@pytest.mark.parametrize(
    "options",
    [
        ("two_paths.jsonl", "-c", "doc_label", "--delimiter", "--"),
        ("two_paths.csv", "-c", "tree", "--delimiter", " >> "),
    ],
    ids=["JSON lines", "CSV"],
)
def test_two_paths_in_a_list_are_never_joined(options: tuple[str, ...], layout: Layout) -> None:
    name, *given = options
    command: list[str | Path] = [CASES / "list_of_paths" / name, "d", "-t", "doc", *given]
    refused = flat(*command)
    assert refused.exit_code == 1
    assert "15 of 60 rows hold several paths" in refused.output
    assert "--several-paths" in refused.output
    for choice in ("first", "repeat", "drop"):
        assert flat(*command, "--several-paths", choice, "--force").exit_code == 0
        paths = {path for _, path in rows_of(load_dataset(layout, "d"))}
        assert paths == {("Home", "Light"), ("Home", "Seats", "Chairs"), ("Work", "Desks")}


def test_invisible_characters_make_no_classes(layout: Layout) -> None:
    result = flat(CASES / "invisible_characters" / "t.csv", "d", "-t", "text", "-c", "label")
    assert result.exit_code == 0, result.output
    assert {path for _, path in rows_of(load_dataset(layout, "d"))} == {("Tea",), ("Café",)}
    assert report_of(layout)["rows"]["kept"] == 60
