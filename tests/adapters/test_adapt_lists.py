"""Cells that hold a list, in the notations of the programs that write them."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.adapters.test_flat import flat, report_of, rows_of
from utils.adapters.labels import LabelOptions, labels_of
from utils.common.paths import Layout
from utils.hierarchy.dataset import load_dataset

PLAIN = ["Toys", "Kites", "Tools", "N-1", "2 x 4", "Café"]
ODD = ["Men's", "Home, Garden", 'The "Big" One', "C:\\Drive", "Sci-fi: new", "a {b} [c]"]


def paths_of(cells: Sequence[str]) -> list[tuple[str, ...]]:
    """The path of each cell, which holds one or none."""
    found = labels_of(pa.table({"c": list(cells)}), ["c"], LabelOptions(several_paths="refuse"))
    assert min(found.path_of_row) >= -1
    return [
        tuple(found.names[code] for code in found.paths[path] if code >= 0) if path >= 0 else ()
        for path in found.path_of_row
    ]


def postgresql(names: Sequence[str]) -> str:
    """As array_out writes them: quoted if there is a reason."""
    quoted = [
        '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
        if not name or any(sign in name for sign in ' {},"\\') else name
        for name in names
    ]  # fmt: skip
    return "{" + ",".join(quoted) + "}"


def java(names: Sequence[str]) -> str:
    return f"[{', '.join(names)}]"


def duckdb(names: Sequence[str]) -> str:
    quoted = [
        "'" + name.replace("\\", "\\\\").replace("'", "\\'") + "'"
        if any(sign in name for sign in "[]{},'\"\\:()=") else name
        for name in names
    ]  # fmt: skip
    return f"[{', '.join(quoted)}]"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("written", [postgresql, duckdb, java])
def test_names_of_a_list_may_hold_what_they_like(written: object, seed: int) -> None:
    generator = np.random.default_rng(seed)
    names = PLAIN + (["Men's", "Sci-fi: new"] if written is java else ODD)
    lists = [
        [f"root {i % 5}", *generator.choice(names, 1 + i % 3, replace=False)] for i in range(60)
    ]
    assert callable(written)
    assert paths_of([written(one) for one in lists]) == [tuple(one) for one in lists]


def test_empty_lists_are_no_classes() -> None:
    assert paths_of(["{a,b}", "{}", "{a}"]) == [("a", "b"), (), ("a",)]
    assert paths_of(["[a, b]", "[]", "[a]"]) == [("a", "b"), (), ("a",)]


def test_lists_that_could_be_sets_of_python_keep_their_order() -> None:
    assert paths_of(["{3,1}", "{3,2}", "{4}"]) == [("3", "1"), ("3", "2"), ("4",)]
    assert paths_of(['{"b b","a a"}', "{b,c}"]) == [("b b", "a a"), ("b", "c")]


def test_objects_are_no_lists() -> None:
    cells = ["{'name': A, 'id': 3}", "{'name': B, 'id': 4}"]
    assert paths_of(cells) == [(cell,) for cell in cells]


def test_missing_items_of_pandas_lists_are_read() -> None:
    assert paths_of(["['A', nan]", "['A', 'B']"]) == [("A", "nan"), ("A", "B")]


@pytest.mark.parametrize("pieces", ['"a,', "a',", '\\",', " ", "[", ","])
def test_reading_a_list_is_linear(pieces: str) -> None:
    def seconds(count: int) -> float:
        best = float("inf")
        for _ in range(3):
            start = time.process_time()
            labels_of(
                pa.table({"c": ["{a,b}", "{x" + pieces * count + "y}"]}),
                ["c"],
                LabelOptions(depth=3),
            )
            best = min(best, time.process_time() - start)
        return best

    assert seconds(120_000) < 6 * max(seconds(30_000), 0.01)


@pytest.mark.parametrize("odd", [["A", ["B"]], ["A", {"x": "B"}], [["A", "B"], ["A", "C"]]])
@pytest.mark.parametrize("kind", ["json", "jsonl", "csv"])
def test_a_list_with_lists_in_it_costs_its_row(
    odd: object, kind: str, layout: Layout, tmp_path: Path
) -> None:
    labels = [odd if i == 7 else ["A", "BC"[i % 2]] for i in range(20)]
    rows = [{"t": f"text {i}", "c": label} for i, label in enumerate(labels)]
    if kind == "json":
        contents = json.dumps(rows)
    elif kind == "jsonl":
        contents = "\n".join(map(json.dumps, rows))
    else:
        stream = io.StringIO()
        csv.writer(stream).writerows(
            [("t", "c"), *((row["t"], json.dumps(row["c"])) for row in rows)]
        )
        contents = stream.getvalue()
    (tmp_path / f"d.{kind}").write_text(contents)
    result = flat(tmp_path / f"d.{kind}", "d", "-t", "t", "-c", "c", "--several-paths", "drop")
    assert result.exit_code == 0, result.output
    assert {path for _, path in rows_of(load_dataset(layout, "d"))} == {("A", "B"), ("A", "C")}
    assert sum(report_of(layout)["rows"]["dropped"].values()) == 1


@pytest.mark.parametrize(("delimiter", "odd"), [(" > ", "A>x"), (" - ", "A-x"), (" / ", "A/ x")])
def test_a_delimiter_without_its_spaces_is_noted(delimiter: str, odd: str) -> None:
    cells = [f"A{delimiter}x", f"A{delimiter}T-shirt", f"B{delimiter}y>z"]

    def notes(values: Sequence[str]) -> tuple[str, ...]:
        table = pa.table({"c": list(values)})
        return tuple(labels_of(table, ["c"], LabelOptions(delimiter=delimiter)).notes)

    assert not notes(cells)
    (note,) = notes([*cells, odd])
    assert note.startswith(f"1 names at the root, such as {odd!r}, hold {delimiter.strip()!r} ")
