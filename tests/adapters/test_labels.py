"""Labels: several paths in one, gaps, look-alike names, new names, names that say nothing."""

from __future__ import annotations

import csv
import gc
import itertools
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.adapters.test_flat import flat, report_of, rows_of
from utils.adapters.labels import BROKEN, EMPTY, LabelOptions, labels_of
from utils.adapters.renames import load_renames
from utils.common.errors import UserError
from utils.common.paths import PROJECT_ROOT, Layout
from utils.hierarchy.dataset import load_dataset

PATHS = [
    ("Home", "Light"), ("Home", "Seats", "Chairs"), ("Home", "Seats", "Sofas"),
    ("Work", "Desks"), ("Work", "Paper", "Pens"), ("Fun", "Games"),
]  # fmt: skip
TAXONOMIES = Path(os.environ.get("KTT_DATA") or PROJECT_ROOT.parent / "shared" / "data")


def labels(values: Sequence[object] | pa.Table, *columns: str, **options: Any) -> Any:
    table = values if isinstance(values, pa.Table) else pa.table({"c": pa.array(values)})
    return labels_of(table, columns or ("c",), LabelOptions(**options))


def paths_of(values: Sequence[object], **options: Any) -> list[tuple[str, ...] | int]:
    found = labels(values, **options)
    return [
        tuple(found.names[code] for code in found.paths[path] if code >= 0) if path >= 0
        else int(path)
        for path in found.path_of_row
    ]  # fmt: skip


def doubles(share: float, seed: int = 0, rows: int = 300) -> list[list[tuple[str, ...]]]:
    """One or two whole paths a row."""
    generator = np.random.default_rng(seed)
    return [
        [PATHS[i] for i in generator.permutation(len(PATHS))[: 1 + (generator.random() < share)]]
        for _ in range(rows)
    ]


SHAPES: dict[str, tuple[Callable[[list[tuple[str, ...]]], object], str | None]] = {
    "list of paths": (lambda row: [">".join(path) for path in row], ">"),
    "JSON list of paths": (lambda row: json.dumps([" > ".join(path) for path in row]), " > "),
    "JSON list of lists": (json.dumps, None),
    "joined list": (lambda row: [name for path in row for name in path], None),
    "joined JSON list": (lambda row: json.dumps([name for path in row for name in path]), None),
    "joined string": (lambda row: "/".join(name for path in row for name in path), "/"),
    "semicolons": (lambda row: "; ".join(" > ".join(path) for path in row), " > "),
    "bars": (lambda row: "|".join(">".join(path) for path in row), ">"),
    "commas": (lambda row: ", ".join(" > ".join(path) for path in row), " > "),
    "lines": (lambda row: "\n".join(" > ".join(path) for path in row), " > "),
    "two semicolons": (lambda row: ";;".join(" > ".join(path) for path in row), " > "),
}


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7])
@pytest.mark.parametrize(("shape", "delimiter"), SHAPES.values(), ids=SHAPES)
def test_two_paths_in_one_label(
    shape: Callable[[list[tuple[str, ...]]], object], delimiter: str | None, share: float
) -> None:
    rows = doubles(share)
    values = [shape(row) for row in rows]
    count = sum(len(row) > 1 for row in rows)
    with pytest.raises(
        UserError, match=f"^{count} of 300 rows hold several paths.*--several-paths"
    ):
        labels(values, delimiter=delimiter)
    assert paths_of(values, delimiter=delimiter, several_paths="first") == [row[0] for row in rows]
    repeated = paths_of(values, delimiter=delimiter, several_paths="repeat")
    assert repeated == [path for row in rows for path in row]


def sets(ordered: bool, smallest: int, seed: int = 0) -> list[list[str]]:
    generator = np.random.default_rng(seed)
    drawn = [
        generator.permutation(10)[: generator.integers(smallest, 4)].tolist() for _ in range(400)
    ]
    return [[f"n{n}" for n in (sorted(one) if ordered else one)] for one in drawn]


SETS: dict[str, tuple[Callable[[list[str]], object], str | None]] = {
    "list": (list, None),
    "numbers": (lambda row: [int(n[1:]) for n in row], None),
    "JSON": (json.dumps, None),
    "Python set": (lambda row: repr(set(row)), None),
    "Python tuple": (lambda row: repr(tuple(row)), None),
    "Java": (lambda row: f"[{', '.join(row)}]", None),
    "PostgreSQL": (lambda row: f"{{{','.join(row)}}}", None),
    "NumPy": (lambda row: f"[{' '.join(row).replace('n', '')}]", None),
    "commas": (",".join, None),
    "bars": ("|".join, None),
    "semicolons": ("; ".join, None),
    "slashes": (" / ".join, None),
    "spaces": (lambda row: " ".join(row).replace("n", ""), None),
    "numbers with commas": (lambda row: ",".join(row).replace("n", ""), None),
    "lines": ("\n".join, None),
    "a delimiter": (",".join, ","),
}


@pytest.mark.parametrize(("ordered", "smallest"), list(itertools.product([True, False], [1, 2])))
@pytest.mark.parametrize(("shape", "delimiter"), SETS.values(), ids=SETS)
def test_sets_are_no_paths(
    shape: Callable[[list[str]], object], delimiter: str | None, ordered: bool, smallest: int
) -> None:
    rows = sets(ordered, smallest)
    values = [shape(row) for row in rows]
    with pytest.raises(UserError, match=f"^{sum(len(row) > 1 for row in rows)} of 400 rows"):
        labels(values, delimiter=delimiter)
    repeated = paths_of(values, delimiter=delimiter, several_paths="repeat")
    found = sorted(f"n{path[0].removeprefix('n')}" for path in repeated if isinstance(path, tuple))
    assert found == sorted(name for row in rows for name in row)


@pytest.mark.parametrize(
    "paths",
    [
        [("Home", "Garden", "Home"), ("Home", "Garden"), ("Home",), ("Work", "Desks")],
        [("Home", "Garden", "Home"), ("Garden", "Home"), ("Home", "Kitchen")],
        [("Home", "Decor"), ("Home", "Garden", "Home"), ("Work", "Home", "Desk"), ("Work", "X")],
        [("Dresses", "Dresses"), ("Dresses", "Dresses", "Mini"), ("Tops", "Tops"), ("Tops", "A")],
        [("comp", "os", "misc"), ("misc", "forsale"), ("talk", "misc"), ("rec", "autos")],
        [("Women", "Shoes"), ("Men", "Shoes"), ("Shoes", "Care"), ("Men", "Hats"), ("Home", "A")],
        list(itertools.product("123", "1234", "12345")),
        list(itertools.product("123", "123456789", "123", "123456789")),
    ],
    ids=["ends as it began", "and a root below", "root inside", "child like its parent", "misc",
         "one name under all", "numbers within levels", "numbers within four levels"],
)  # fmt: skip
def test_one_path_that_repeats_names_is_one_path(paths: list[tuple[str, ...]]) -> None:
    for values, delimiter in (
        ([list(path) for path in paths], None),
        ([json.dumps(path) for path in paths], None),
        ([" > ".join(path) for path in paths], " > "),
    ):
        assert paths_of(values * 3, delimiter=delimiter) == paths * 3


def test_ancestors_listed_beside_a_path_are_no_further_paths() -> None:
    facets = [[" > ".join(path[:end]) for end in range(1, len(path) + 1)] for path in PATHS]
    assert paths_of(facets, delimiter=" > ") == PATHS


def test_flat_names_with_commas_are_one_name() -> None:
    names = ["Cups, Plates", "Herbs, Spices", "Health, Fitness & Diets", "Cups", "Tea / Coffee",
             "AC/DC", "C++", "A+B", "Plates"]  # fmt: skip
    assert paths_of(names) == [(name,) for name in names]


@pytest.mark.skipif(not (TAXONOMIES / "taxonomies").is_dir(), reason="no data folder")
@pytest.mark.parametrize("name", ["google_product_taxonomy", "shopify_en"])
def test_real_taxonomies_are_single_paths(name: str) -> None:
    table = pq.read_table(TAXONOMIES / "taxonomies" / f"{name}.parquet")
    paths = [tuple(path) for path in table["path"].to_pylist()]
    for values, delimiter in (
        ([list(path) for path in paths], None),
        ([json.dumps(path) for path in paths], None),
        ([" > ".join(path) for path in paths], " > "),
        ([" | ".join(path) for path in paths], " | "),
    ):
        found = labels(values, delimiter=delimiter)
        assert len(found.paths) == len(paths)
        assert found.notes == ()
    for level in range(4):
        flat_names = [path[level] for path in paths if len(path) > level]
        assert labels(flat_names).notes == ()


def test_tags_in_columns_are_noted() -> None:
    rows = [(*row, None, None)[:2] for row in sets(ordered=False, smallest=2)]
    table = pa.table({"x": [row[0] for row in rows], "y": [row[1] for row in rows]})
    assert "root of another path" in " ".join(labels(table, "x", "y").notes)


def write(path: Path, rows: Sequence[Sequence[object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def test_rows_of_several_paths_are_counted(layout: Layout, tmp_path: Path) -> None:
    rows = [(f"text {i}", "A > B; C > D" if i % 4 == 0 else "A > B" if i % 4 == 1 else "C > D")
            for i in range(40)]  # fmt: skip
    file = write(tmp_path / "t.csv", [("t", "c"), *rows])
    command: list[str | Path] = [file, "d", "-t", "t", "-c", "c", "--delimiter", " > "]
    refused = flat(*command)
    assert refused.exit_code == 1
    assert "10 of 40 rows" in refused.output
    assert not layout.dataset("d").exists()
    assert flat(*command, "--several-paths", "drop").exit_code == 0
    report = report_of(layout)
    assert report["rows"] == {"read": 40, "kept": 30, "dropped": {"several_paths": 10}}
    result = flat(*command, "--several-paths", "repeat", "--force")
    assert "repeated for further paths" in result.output
    report = report_of(layout)
    assert report["rows"] == {"read": 40, "repeated": 10, "kept": 50, "dropped": {}}
    assert rows_of(load_dataset(layout, "d")) == {
        (text, tuple(path.split(" > "))) for text, label in rows for path in label.split("; ")
    }
    assert flat(*command, "--several-paths", "join", "--force").exit_code == 0
    assert ("text 0", ("A", "B; C", "D")) in rows_of(load_dataset(layout, "d"))


def test_gaps() -> None:
    values = [["a", "", "c"], ["a", None, "c", "d"], ["", "b"], ["a", "b", ""], ["", ""]]
    given: dict[str, list[tuple[str, ...] | int]] = {
        "drop": [BROKEN, BROKEN, BROKEN, ("a", "b"), EMPTY],
        "close": [("a", "c"), ("a", "c", "d"), ("b",), ("a", "b"), EMPTY],
        "stop": [("a",), ("a",), EMPTY, ("a", "b"), EMPTY],
    }
    for gaps, expected in given.items():
        assert paths_of(values, gaps=gaps) == expected
    table = pa.table({"x": ["a", "a"], "y": ["", "b"], "z": ["c", "c"]})
    assert len(labels(table, "x", "y", "z", gaps="close").paths) == 2


def test_classes_that_vanish_are_named(layout: Layout, tmp_path: Path) -> None:
    rows = [(f"t{i}", "A", "B", "C") for i in range(10)] + [
        (f"u{i}", "A", "X", "") for i in range(9)
    ]
    rows += [("v", "A", "", "Lost"), ("w", "A", "", "C"), ("", "Gone", "", ""), ("", "A", "", "")]
    file = write(tmp_path / "t.csv", [("t", "x", "y", "z"), *rows])
    result = flat(file, "d", "-t", "t", "-c", "x,y,z")
    assert result.exit_code == 0, result.output
    notes = report_of(layout)["notes"]
    assert notes == ["classes of which no row is left (2): 'Gone', 'Lost'"]
    closed = flat(file, "d", "-t", "t", "-c", "x,y,z", "--gaps", "close", "--force")
    assert closed.exit_code == 0
    assert report_of(layout)["notes"] == ["classes of which no row is left (1): 'Gone'"]


@pytest.mark.parametrize(("inner", "said"), [(0, False), (5, True)])
def test_rows_at_inner_classes_are_what_is_said(
    layout: Layout, tmp_path: Path, inner: int, said: bool
) -> None:
    rows = [(f"t{i}", "A > B > C > D") for i in range(5)] + [(f"u{i}", "X") for i in range(90)]
    rows += [(f"v{i}", "A > B") for i in range(inner)]
    file = write(tmp_path / "t.csv", [("t", "c"), *rows])
    output = flat(file, "d", "-t", "t", "-c", "c", "--delimiter", " > ").output
    assert "deepest level" not in output
    assert (
        "rows that end at a class which others go on from: 5.0%, at 1 class\n" in output
    ) == said
    assert report_of(layout)["inner_share"] == pytest.approx(inner / (95 + inner), abs=1e-6)


def tea(*names: str) -> list[str]:
    """Each name as a label, the first one most often."""
    return [name for place, name in enumerate(names) for _ in range(len(names) - place)]


LOOKALIKE = {
    "case": ("Tea Pots", "tea pots", "TEA POTS"),
    "space": ("A&B", "A & B"),
    "entities": ("A & B", "A &amp; B", "A &amp;amp; B", "A &#38; B", "A&nbsp;&#x26; B"),
    "punctuation": (
        "Men's T-Shirts",
        "Men\u2019s T-Shirts",
        "Men`s T\u2010Shirts",
        "Men's T–Shirts",
    ),
    "width": ("Tea 1", "\uff34\uff45\uff41 1", "Tea \u2460"),
    "letters": ("Tea", "T\u0435a", "\u03a4ea"),
}


@pytest.mark.parametrize("kind", LOOKALIKE)
def test_lookalike_names_are_noted_and_folded(kind: str, layout: Layout, tmp_path: Path) -> None:
    values = [*tea(*LOOKALIKE[kind]), *["Other"] * 5]
    file = write(tmp_path / "t.csv", [("t", "c"), *((f"t{i}", c) for i, c in enumerate(values))])
    assert flat(file, "d", "-t", "t", "-c", "c").exit_code == 0
    assert f"--fold {kind}" in " ".join(report_of(layout)["notes"])
    result = flat(file, "d", "-t", "t", "-c", "c", "--fold", f" {kind}", "--force")
    assert result.exit_code == 0, result.output
    assert report_of(layout)["levels"][0]["classes"] == 2
    assert not [note for note in report_of(layout)["notes"] if "--fold" in note]
    names = {path[0] for _, path in rows_of(load_dataset(layout, "d"))}
    assert names == {LOOKALIKE[kind][0], "Other"}


def test_several_kinds_of_difference_at_several_levels(layout: Layout, tmp_path: Path) -> None:
    values = ["Home > Tea &amp; Co", "home > tea & co", "HOME > Tea&Co", "Home > Pans"] * 3
    file = write(tmp_path / "t.csv", [("t", "c"), *((f"t{i}", c) for i, c in enumerate(values))])
    command: list[str | Path] = [file, "d", "-t", "t", "-c", "c", "--delimiter", " > "]
    assert flat(*command).exit_code == 0
    notes = " ".join(report_of(layout)["notes"])
    assert "'HOME' / 'home'" in notes
    assert "differ in case and space only" in notes
    assert flat(*command, "--fold", "case,space,entities", "--force").exit_code == 0
    assert [level["classes"] for level in report_of(layout)["levels"]] == [1, 2]
    unknown = flat(*command, "--fold", "cse")
    assert unknown.exit_code == 1
    assert "'cse'" in unknown.output
    assert "entities" in unknown.output


def test_a_delimiter_meets_spaces_that_look_like_it() -> None:
    values = ["a > b", "a\u00a0>\u00a0b", "a\u200b > b", "a >\u2009b", "a > b\ufeff"]
    assert paths_of(values, delimiter=" > ") == [("a", "b")] * 5
    assert paths_of(["a > b", "c > d"], delimiter="\u00a0> ") == [("a", "b"), ("c", "d")]


def test_parents_are_folded_as_the_labels_are() -> None:
    found = paths_of(["Tea", "tea", "Tea"], parents={"TEA": ("Food",)}, fold=("case",))
    assert found == [("Food", "Tea")] * 3


@pytest.mark.parametrize(
    "name", ["N/A", "-", r"\N", "none", "NULL", "nan", "#N/A", "?", ".", "#REF!", "c"]
)
def test_names_that_say_nothing(name: str, layout: Layout, tmp_path: Path) -> None:
    rows = [(f"t{i}", "A" if i % 2 else "B") for i in range(20)] + [("x", name), ("y", name)]
    file = write(tmp_path / "t.csv", [("t", "c"), *rows])
    assert flat(file, "d", "-t", "t", "-c", "c").exit_code == 0
    notes = " ".join(report_of(layout)["notes"])
    if not report_of(layout)["rows"]["dropped"]:  # else the reader knows it
        assert f"{name!r} (2 rows)" in notes
        assert "--missing" in notes
    result = flat(file, "d", "-t", "t", "-c", "c", "--missing", f"zz,{name.lower()}", "--force")
    assert result.exit_code == 0, result.output
    assert report_of(layout)["rows"]["dropped"] == {"empty_path": 2}
    assert "--missing" not in " ".join(report_of(layout)["notes"])


def test_missing_names_inside_a_path_are_gaps() -> None:
    values = ["a > N/A > c", "a > b > n/a", "n/a"]
    assert paths_of(values, delimiter=" > ", missing=("N/A",)) == [BROKEN, ("a", "b"), EMPTY]


def test_names_are_renamed_and_moved(tmp_path: Path) -> None:
    file = write(
        tmp_path / "r.csv",
        [
            ("old", "new"), ("Kitchn", "Kitchen"), ("Home > Lamp", "Light"),
            ("Home > Desk", "Work > Desk"), ("junk", ""), ("Caf\u00e9\u200b", "Café Bar"),
            ("nowhere", "x"), ("flat", "Deep > Tree"),
        ],
    )  # fmt: skip
    values = ["Home > Kitchn > Pans", "Home > Lamp > Oil", "Home > Desk > Oak", "junk", "Lamp",
              "Cafe\u0301", "flat > x"]  # fmt: skip
    renames = load_renames(file, " > ")
    assert paths_of(values, delimiter=" > ", renames=renames) == [
        ("Home", "Kitchen", "Pans"), ("Home", "Light", "Oil"), ("Work", "Desk", "Oak"), EMPTY,
        ("Lamp",), ("Café Bar",), ("Deep", "Tree", "x"),
    ]  # fmt: skip
    notes = labels(values, delimiter=" > ", renames=renames).notes
    assert notes == ("--rename: 1 old names meet no label: 'nowhere'",)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", "b", "c"), ("1", "2", "3")], "takes two"),
        ([("old", "new"), ("a", "b"), ("a", "c")], "twice"),
    ],
)
def test_files_of_new_names_that_cannot_be(
    rows: list[tuple[str, ...]], message: str, layout: Layout, tmp_path: Path
) -> None:
    names = write(tmp_path / "r.csv", rows)
    file = write(tmp_path / "t.csv", [("t", "c"), *((f"t{i}", "ab"[i % 2]) for i in range(9))])
    result = flat(file, "d", "-t", "t", "-c", "c", "--rename", names)
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert message in result.output
    missing = flat(file, "d", "-t", "t", "-c", "c", "--rename", tmp_path / "no.csv")
    assert "No such file" in missing.output


GROWING: dict[str, tuple[Callable[[int], list[str]], dict[str, Any]]] = {
    "distinct paths": (lambda n: [f"a{i % 99} > b{i}" for i in range(n)], {"delimiter": " > "}),
    "sets": (lambda n: [f"{i},{i + 1}" for i in range(n)], {"several_paths": "first"}),
    "one long list": (lambda n: [json.dumps([f"x{i}" for i in range(n)])], {"depth": 3}),
    "a list of roots": (
        lambda n: [*(f'["{i}"]' for i in range(n)), json.dumps([str(i) for i in range(n)] * 2)],
        {"depth": 3, "several_paths": "first"},
    ),
    "two long paths": (
        lambda n: [json.dumps([["a", *map(str, range(n))], ["b", *map(str, range(n))]])],
        {"depth": 3, "several_paths": "first"},
    ),
    "one long name": (lambda n: ["é \u200b&amp;" * n], {"fold": ("entities", "case")}),
    "brackets": (lambda n: ["[" * (5 * n)], {}),
    "joiners": (lambda n: ["\u200d\u0645\u200c" * n], {}),
    "tags": (lambda n: ["\U0001f3f4" + "\U000e0061" * n], {}),
}


@pytest.mark.parametrize(("make", "options"), GROWING.values(), ids=GROWING)
def test_cost_grows_with_the_labels(
    make: Callable[[int], list[str]], options: dict[str, Any]
) -> None:
    def cost(count: int) -> float:
        values = make(count)
        times = []
        gc.disable()  # which takes longer with everything that the other tests hold
        for _ in range(4):
            start = time.process_time()
            labels(values, **options)
            times.append(time.process_time() - start)
        gc.enable()
        return min(times)

    assert cost(20_000) < 6 * max(cost(5_000), 0.002)


BETWEEN = [" && ", " & ", " and ", "<br>", "<br />", "\t", " · ", " • "]


@pytest.mark.parametrize("between", BETWEEN)
def test_paths_are_divided_whatever_stands_between_them(between: str) -> None:
    cells = ["Home > Light", "Home > Seats > Chairs", "Toys > Cars and vans", "Art > Oil & ink"]
    paths = [tuple(cell.split(" > ")) for cell in cells]
    pairs = [between.join(pair) for pair in itertools.pairwise(cells)]
    found = paths_of([*cells, *pairs], delimiter=" > ", several_paths="repeat")
    assert sorted(found) == sorted([*paths, *paths[:-1], *paths[1:]])


@pytest.mark.parametrize("between", [*BETWEEN, " #"])
def test_sets_are_divided_whatever_stands_between_their_names(between: str) -> None:
    names = [f"{'#' * between.endswith('#')}{name}" for name in ("red", "big", "old")]
    cells = [*names, *(between.strip("#").join(pair) for pair in itertools.permutations(names, 2))]
    found = paths_of(cells, several_paths="repeat")
    assert sorted(found) == sorted((name,) for name in names for _ in range(5))


def test_names_made_up_of_others_are_noted(layout: Layout, tmp_path: Path) -> None:
    rows = [f"t {i},{('cat', 'dog', 'cat;dog', 'R & D', 'a;b')[i % 5]},x" for i in range(50)]
    (tmp_path / "t.csv").write_text("\n".join(["text,a,b", *rows]))
    for columns in ("a", "a,b"):
        result = flat(str(tmp_path / "t.csv"), "d", "-t", "text", "-c", columns, "--force")
        assert result.exit_code == 0
        assert "1 names of level 1, such as 'cat;dog', are made up of other names" in " ".join(
            result.output.split()
        )


def test_all_names_that_say_nothing_are_in_the_option(layout: Layout, tmp_path: Path) -> None:
    names = ("A", "B", "N/A", "none", "-", "?", "NULL", "label")
    rows = [f"t {i},{names[i % 8]}" for i in range(80)]
    (tmp_path / "t.csv").write_text("\n".join(["text,label", *rows]))
    command = (str(tmp_path / "t.csv"), "d", "-t", "text", "-c", "label", "--force")
    assert flat(*command).exit_code == 0
    (note,) = [note for note in report_of(layout)["notes"] if "--missing" in note]
    given = note.split("--missing ")[1].split("'")[1]
    assert flat(*command, "--missing", given).exit_code == 0
    assert report_of(layout)["rows"]["kept"] == 20
