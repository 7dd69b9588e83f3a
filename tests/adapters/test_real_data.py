"""The documented command of each real data set, run on its original source where it is there.

The folder is $KTT_DATA, else ../shared/data beside the project. docs/datasets.md shows the same
commands and figures.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.adapters.test_flat import flat, report_of, rows_of
from utils.common.paths import PROJECT_ROOT, Layout
from utils.hierarchy.dataset import load_dataset

DATA = Path(os.environ.get("KTT_DATA") or PROJECT_ROOT.parent / "shared" / "data")
PAGE = PROJECT_ROOT / "docs" / "datasets.md"

# Rows read and left out, and classes per level, as NOTES.md of each set explains them.
FIGURES: dict[str, tuple[int, dict[str, int], list[int]]] = {
    "clinc150": (22500, {"duplicate": 1}, [10, 150]),
    "trec": (5943, {"broken_row": 1, "duplicate": 80}, [6, 50]),
    "womens_clothing": (
        23486, {"empty_text": 844, "empty_path": 13, "duplicate": 4}, [3, 12, 32]
    ),
    "newsgroups20": (18846, {"duplicate": 14}, [7, 16, 11, 3, 1]),
    "flipkart_1050": (1050, {}, [7, 62, 238]),
    "wos_1k": (1000, {}, [7, 132]),
    "ecoicop_pl": (16630, {}, [2, 11, 61]),
}  # fmt: skip
# Here the text is put together otherwise than in data.parquet.
OTHER_TEXTS = {"womens_clothing", "flipkart_1050"}


def documented(name: str) -> list[str]:
    """The arguments of the command that docs/datasets.md gives for a set."""
    page = PAGE.read_text(encoding="utf-8").replace("\\\n", " ")
    found = [
        shlex.split(line.replace("$KTT_DATA", str(DATA)))
        for line in re.findall(r"^python adapt\.py flat .*$", page, re.MULTILINE)
    ]
    return next(command[3:] for command in found if name in command)


def test_every_set_has_a_documented_command() -> None:
    assert all(documented(name) for name in FIGURES)


@pytest.mark.skipif(not DATA.is_dir(), reason="no data folder")
@pytest.mark.parametrize("name", FIGURES)
def test_the_documented_command_gives_the_documented_rows(name: str, layout: Layout) -> None:
    if not (DATA / name).is_dir():
        pytest.skip(f"no {name}")
    result = flat(*documented(name))
    assert result.exit_code == 0, result.output
    report = report_of(layout, name)
    read, dropped, sizes = FIGURES[name]
    assert report["rows"]["read"] == read
    assert report["rows"]["dropped"] == dropped
    assert [level["classes"] for level in report["levels"]] == sizes
    figures = "|".join(f" {n:,} " for n in (read, sum(dropped.values()), report["rows"]["kept"]))
    assert f"| {name} |{figures}|" in PAGE.read_text(encoding="utf-8")
    if name not in OTHER_TEXTS:
        prepared = pq.read_table(DATA / name / "data.parquet").to_pylist()
        expected = {(_text(row["text"]), tuple(row["classes"])) for row in prepared}
        assert rows_of(load_dataset(layout, name)) == expected


def _text(text: str) -> str:
    return re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", " ", text).strip()
