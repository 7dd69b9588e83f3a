"""A mistake is one clear line, and the user's mistake comes before the work and before "exists"."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import adapt
import evaluate
import predict
import store as store_command
import train
from utils.common.paths import Layout


def run(command: Any, *arguments: str) -> Result:
    return CliRunner().invoke(command.main, list(arguments))


def refusal(result: Result) -> str:
    """The one line of an error."""
    assert isinstance(result.exception, SystemExit), result.exception
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert result.exit_code in (1, 2)
    return line


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table from which the dataset ``shop`` has been made."""
    path = tmp_path / "rows.csv"
    rows = [f"text number {row},{'A' if row % 2 else 'B'},train" for row in range(40)]
    path.write_text("\n".join(["title,class,part", *rows]))
    return path


MISTAKES = {
    "text": (["-t", "titel", "-c", "class"], "Unknown column 'titel'. Did you mean 'title'?"),
    "class": (["-t", "title", "-c", "clas"], "Unknown column 'clas'. Did you mean 'class'?"),
    "split": (["-t", "title", "-c", "class", "--split-column", "prt"], "Unknown column 'prt'"),
    "both": (["-t", "title", "-c", "title"], "both --text and --classes"),
    "expression": (["-t", "title", "-c", "class", "--drop-names", "("], "no regular expression"),
    "lines": (["-t", "title", "-c", "class", "--lines", "("], "no regular expression"),
    "encoding": (["-t", "title", "-c", "class", "--encoding", "utf-99"], "Unknown encoding"),
    "parents": (["-t", "title", "-c", "class", "--parents", "no.json"], "No such file: no.json"),
    "sheet": (["-t", "title", "-c", "class", "--sheet", "1"], "--sheet is for xlsx"),
    "share": (["-t", "title", "-c", "class", "--proportion", "nan"], "--proportion is nan"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_comes_before_a_dataset_that_exists(
    layout: Layout, table: Path, mistake: str
) -> None:
    good = ["flat", str(table), "shop", "-t", "title", "-c", "class"]
    assert run(adapt, *good).exit_code == 0
    arguments, expected = MISTAKES[mistake]
    assert expected in refusal(run(adapt, "flat", str(table), "shop", *arguments))
    assert "No such file" in refusal(run(adapt, "flat", "no.csv", "shop", *arguments[:4]))
    other = [*good, "--seed", "1"]
    assert "exists already" in refusal(run(adapt, *other))
    assert "cannot be used" in refusal(run(adapt, *[one.replace("shop", "a/b") for one in good]))


def test_nothing_is_read_into_a_dataset_that_exists(
    layout: Layout, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(adapt, "flat", str(table), "shop", "-t", "title", "-c", "class").exit_code == 0

    def read(*_: Any) -> None:
        raise AssertionError("rows were read")

    monkeypatch.setattr("utils.adapters.flat._read_one", read)
    other = run(adapt, "flat", str(table), "shop", "-t", "title", "-c", "part")
    assert "exists already" in refusal(other)


ODD = {
    "epochs 0": (train, ["-d", "tiny", "-m", "db_linear", "-e", "0"], "'-e'"),
    "epochs -1": (train, ["-d", "tiny", "-m", "db_linear", "-e", "-1"], "'-e'"),
    "epochs 1e30": (train, ["-d", "tiny", "-m", "db_linear", "-e", "1" + 30 * "0"], "'-e'"),
    "run name": (train, ["-d", "no", "-m", "tfidf_lsgd", "--name", "a/b"], "Run name 'a/b'"),
    "model": (train, ["-d", "tiny", "-m", "tfidf_lsdg"], "Did you mean 'tfidf_lsgd'"),
    "demo rows": (adapt, ["demo", "d", "--rows", "9" * 14], f"--rows is {'9' * 14}"),
    "nan": (predict, ["-d", "tiny", "-m", "db_linear", "x", "--min-confidence", "nan"], "nan is"),
    "folder": (evaluate, ["-d", "tiny", "-m", "tfidf_lsgd", "-o", "/"], "-o / is a folder"),
    "one tag": (store_command, ["compare", "db_linear_tiny"], "at least two tags"),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
def test_odd_values_are_one_line(layout: Layout, tiny: str, case: str) -> None:
    command, arguments, expected = ODD[case]
    result = run(command, *arguments)
    assert expected in refusal(result)
    assert "rows to train" not in result.output
    assert not re.search(r"Traceback|Scoring", result.output)


def test_a_misspelt_column_of_a_query_comes_before_a_dataset_that_exists(
    layout: Layout, tmp_path: Path
) -> None:
    file = tmp_path / "shop.db"
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        database.execute("CREATE TABLE items (name, class_id)")
        database.execute("CREATE TABLE classes (id, parent_id, name)")
        database.executemany("INSERT INTO classes VALUES (?, NULL, ?)", [(1, "A"), (2, "B")])
        rows = [(f"text number {row}", row % 2 + 1) for row in range(40)]
        database.executemany("INSERT INTO items VALUES (?, ?)", rows)
    config = tmp_path / "adapter_sql.json"

    def adapted(text: str, *more: str) -> Result:
        values = {
            "connection": {"kind": "sqlite", "database": str(file)},
            "items": "SELECT * FROM items", "classes": "SELECT * FROM classes",
            "columns": {"text": [text]},
        }  # fmt: skip
        config.write_text(json.dumps(values))
        return run(adapt, "sql", "shop", "--config", str(config), *more)

    assert adapted("name").exit_code == 0
    assert "Unknown column 'nam'" in refusal(adapted("nam"))
    assert "Unknown column 'part'" in refusal(adapted("name", "--split-column", "part"))
    assert "exists already" in refusal(adapted("name", "--seed", "1"))
