"""``adapt.py sql`` through the real command on SQLite files: trees, ids, every mistake."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import time
import types
from collections.abc import Sequence
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

import adapt
from tests.adapters.test_flat import rows_of
from utils.adapters import sql_connect
from utils.adapters.sql_classes import class_tree, identifiers
from utils.adapters.sql_config import FILE_KINDS, KINDS, Connection
from utils.adapters.sql_connect import conninfo, open_session, read_query
from utils.common.errors import UserError
from utils.common.paths import PROJECT_ROOT, Layout
from utils.hierarchy.dataset import load_dataset

Row = tuple[Any, ...]
CLASSES: list[Row] = [
    (1, None, "Health"), (2, None, "Beauty"), (10, 1, "Oral  Care"), (11, 1, "Equate"),
    (20, 2, "Equate"), (100, 10, "Brushes"), (101, 10, None), (1000, 100, "Soft, & [round]"),
]  # fmt: skip
PATHS: dict[int, tuple[str, ...]] = {
    1: ("Health",), 2: ("Beauty",), 10: ("Health", "Oral Care"), 11: ("Health", "Equate"),
    20: ("Beauty", "Equate"), 100: ("Health", "Oral Care", "Brushes"),
    101: ("Health", "Oral Care", "101"),
    1000: ("Health", "Oral Care", "Brushes", "Soft, & [round]"),
}  # fmt: skip


def item_rows(count: int = 160, ids: Sequence[Any] = tuple(PATHS)) -> list[Row]:
    """Distinct texts, evenly over the classes."""
    return [(n, f"Item {n}, żółw", ids[n % len(ids)], 0.5) for n in range(count)]


def database(path: Path, items: Sequence[Row], classes: Sequence[Row]) -> Path:
    """Write a SQLite file with both tables; its columns take values of any type."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE items (id, name, class_id, price)")
        connection.execute("CREATE TABLE classes (id, parent_id, name)")
        connection.executemany("INSERT INTO items VALUES (?, ?, ?, ?)", items)
        connection.executemany("INSERT INTO classes VALUES (?, ?, ?)", classes)
        connection.commit()
    return path


def config(folder: Path, **changes: Any) -> Path:
    """Write adapter_sql.json for `folder`/shop.db."""
    values: dict[str, Any] = {
        "connection": {"kind": "sqlite", "database": "shop.db"},
        "items": "SELECT * FROM items ORDER BY id",
        "classes": "SELECT id, parent_id, name FROM classes;\n",
    } | changes
    path = folder / "adapter_sql.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def sql(path: Path, *options: str) -> Result:
    """Run the command."""
    return CliRunner().invoke(adapt.main, ["sql", "shop", "--config", str(path), *options])


def adapted(path: Path, *options: str) -> Result:
    """Run the command, which must go well."""
    result = sql(path, *options)
    assert result.exit_code == 0, result.output
    return result


def refused(result: Result) -> str:
    """The one line of a user's mistake."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    lines = result.output.strip().splitlines()
    assert len(lines) == 1, result.output
    assert lines[0].startswith("Error: ")
    return lines[0]


def report_of(layout: Layout) -> dict[str, Any]:
    """The dataset's report."""
    return json.loads((layout.dataset("shop") / "report.json").read_text(encoding="utf-8"))


def found(layout: Layout) -> set[tuple[str, tuple[str, ...]]]:
    """All (text, path) of the dataset."""
    return rows_of(load_dataset(layout, "shop"))


def test_a_ragged_tree_is_found(layout: Layout, tmp_path: Path) -> None:
    database(tmp_path / "shop.db", item_rows(), CLASSES)
    adapted(config(tmp_path))
    assert found(layout) == {(f"Item {n}, żółw", PATHS[one]) for n, _, one, _ in item_rows()}
    assert [level["classes"] for level in report_of(layout)["levels"]] == [2, 3, 2, 1]


@pytest.mark.parametrize(
    "options",
    [[], ["--depth", "2"], ["--min-class-size", "20", "--seed", "3"], ["--proportion", "0.5"],
     ["--drop-names", "^Equate$", "--train-ratio", "0.6"], ["--keep-duplicates"]],
    ids=lambda options: " ".join(options) or "plain",
)  # fmt: skip
def test_it_is_the_dataset_that_flat_makes(
    layout: Layout, tmp_path: Path, rng: np.random.Generator, options: list[str]
) -> None:
    rows = [
        (n, f"Item {n % 140}\x07", list(PATHS)[which], 0.5)
        for n, which in enumerate(rng.integers(len(PATHS), size=200))
    ]
    rows += [(900, "  ", 1, 0.5), (901, "no class", None, 0.5)]
    database(tmp_path / "shop.db", rows, CLASSES)
    adapted(config(tmp_path), *options)
    paths = pa.array([PATHS.get(row[2], ()) for row in rows], pa.list_(pa.string()))
    pq.write_table(
        pa.table({"name": [row[1] for row in rows], "path": paths}), tmp_path / "f.parquet"
    )
    flat = ["flat", str(tmp_path / "f.parquet"), "flat", "-t", "name", "-c", "path", *options]
    assert CliRunner().invoke(adapt.main, flat).exit_code == 0
    for file in ("train.parquet", "val.parquet", "test.parquet", "hierarchy.json"):
        ours, theirs = (layout.dataset(name) / file for name in ("shop", "flat"))
        assert ours.read_bytes() == theirs.read_bytes(), file
    old = json.loads((layout.dataset("flat") / "report.json").read_text(encoding="utf-8"))
    assert report_of(layout)["rows"] == old["rows"]


def test_columns_are_named_and_split_is_taken(layout: Layout, tmp_path: Path) -> None:
    database(tmp_path / "shop.db", item_rows(), CLASSES)
    path = config(
        tmp_path,
        items="SELECT id % 3 AS split_no, CASE id % 3 WHEN 0 THEN 'test' ELSE 'train' END AS side,"
        " class_id AS c, name AS title, id AS number FROM items ORDER BY id",
        classes="SELECT name AS label, parent_id AS up, id AS key FROM classes",
        columns={"text": ["title", "number"], "class": "c", "id": "key", "parent": "up",
                 "name": "label"},
    )  # fmt: skip
    adapted(path, "--split-column", "side")
    data = load_dataset(layout, "shop")
    assert {int(text.split("\n")[1]) % 3 for text in data.test.texts} == {0}
    assert ("Item 3, żółw\n3", PATHS[11]) in found(layout)


@pytest.mark.parametrize(
    "roots", [None, "", 0, "0", "self", " "], ids=["null", "empty", "0", "text 0", "self", "blank"]
)
def test_what_marks_a_root(layout: Layout, tmp_path: Path, roots: Any) -> None:
    classes = [
        (one, (one if roots == "self" else roots) if up is None else up, name)
        for one, up, name in CLASSES
    ]
    database(tmp_path / "shop.db", item_rows(), classes)
    adapted(config(tmp_path))
    assert {path for _, path in found(layout)} == set(PATHS.values())


def test_a_column_may_be_taken_twice(layout: Layout, tmp_path: Path) -> None:
    database(tmp_path / "shop.db", item_rows(), CLASSES)
    adapted(config(tmp_path, columns={"name": "id", "text": ["name", "name"]}))
    assert ("Item 1, żółw", ("2",)) in found(layout)


@given(data=st.data())
def test_the_tree_is_the_one_that_a_walk_finds(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    parents = data.draw(
        st.lists(st.integers(0, count + 1) | st.none(), min_size=count, max_size=count)
    )
    columns = [pa.chunked_array([pa.array(c, pa.int64())]) for c in (range(1, count + 1), parents)]

    def walk(one: int) -> list[int] | str:
        seen = [one]
        while (up := parents[seen[-1] - 1]) not in (None, 0, seen[-1]):
            if up > count:
                return "lost"
            if up in seen:
                return "circle"
            seen.append(up)
        return seen[::-1]

    ways = [walk(one) for one in range(1, count + 1)]
    if "circle" in ways:
        with pytest.raises(UserError, match="circle"):
            class_tree(*columns, None)
        return
    tree = class_tree(*columns, None)
    assert tree.whole.tolist() == [way != "lost" for way in ways]
    for index, way in enumerate(ways):
        assert way == "lost" or tree.path(index) == [str(one) for one in way]


def test_0_is_a_class_where_there_is_one() -> None:
    tree = class_tree(*(pa.chunked_array([c]) for c in ([0, 1], [None, 0], ["Root", "Inner"])))
    assert tree.path(1) == ["Root", "Inner"]


def test_ids_meet_whatever_their_type(layout: Layout, tmp_path: Path) -> None:
    kinds = [int, str, float, lambda one: f" {one} ", lambda one: str(one).encode()]
    items = [(n, text, kinds[n % 5](one), price) for n, text, one, price in item_rows()]
    database(tmp_path / "shop.db", items, CLASSES)
    adapted(config(tmp_path))
    assert report_of(layout)["rows"] == {"read": 160, "kept": 160, "dropped": {}}


def test_identifiers_of_arrow_columns() -> None:
    def of(values: list[Any], kind: pa.DataType) -> list[str | None]:
        return identifiers(pa.chunked_array([pa.array(values, kind)])).to_pylist()

    assert of([1, None, 2**62], pa.int64()) == ["1", None, str(2**62)]
    assert of([1.0, None, 2e9], pa.float64()) == ["1", None, "2000000000"]
    assert of([1.5, 2.0], pa.float64()) == ["1.5", "2"]
    assert of(["a ", "", None], pa.string()) == ["a", None, None]
    assert of([b"a", b"\xff\x00"], pa.binary()) == ["a", "ff00"]
    assert len(set(of([b"\xff", b"\xfe"], pa.binary(1)))) == 2
    assert of([Decimal("10.00"), None, Decimal("2.50")], pa.decimal128(9, 2)) == [
        "10",
        None,
        "2.50",
    ]
    numeric = pa.opaque(pa.string(), "numeric", "PostgreSQL")
    assert of(["10.000", None, "-2.5", "300"], numeric) == ["10", None, "-2.5", "300"]
    one = UUID(bytes=b"0123456789abcdef")  # which is UTF-8
    assert of([one.bytes, None], pa.uuid()) == [str(one), None]


def test_siblings_of_one_name_stay_two_classes(layout: Layout, tmp_path: Path) -> None:
    classes = [
        (1, None, "A"),
        (2, None, "B"),
        (3, 1, "X"),
        (4, 1, " X "),
        (5, 1, "X (4)"),
        (6, 2, "X"),
    ]
    database(tmp_path / "shop.db", item_rows(60, [3, 4, 5, 6]), classes)
    adapted(config(tmp_path))
    names = {path for _, path in found(layout)}
    assert names == {("A", "X (3)"), ("A", "X (4) (4)"), ("A", "X (4)"), ("B", "X")}
    assert any("siblings of one name" in note for note in report_of(layout)["notes"])


def test_orphans_are_counted_with_examples(layout: Layout, tmp_path: Path) -> None:
    classes = [*CLASSES, (50, 49, "Lost"), (51, 50, "Below lost"), (None, 1, "No id")]
    items = [
        *item_rows(),
        (200, "a", 50, 0),
        (201, "b", 51, 0),
        (202, "c", 777, 0),
        (203, "d", "", 0),
    ]
    database(tmp_path / "shop.db", items, classes)
    adapted(config(tmp_path))
    report = report_of(layout)
    assert report["rows"]["dropped"] == {"empty_path": 1, "no_parent": 3}
    assert "class ids of items that no class has (1): 777" in report["notes"]
    assert "classes whose parent is no class (1): 50 (parent 49)" in report["notes"]
    assert "rows of the classes query without an id: 1" in report["notes"]


def test_nothing_but_orphans(layout: Layout, tmp_path: Path) -> None:
    database(tmp_path / "shop.db", item_rows(20, [7, 8]), CLASSES)
    line = refused(sql(config(tmp_path)))
    assert "None of the 20 rows can be used: 20 with a class that has no place in the tree" in line
    assert "that no class has (2): 7, 8" in line


@pytest.mark.parametrize("length", [1, 2, 3, 9])
def test_a_circle_is_named(layout: Layout, tmp_path: Path, length: int) -> None:
    """Length 1 is a root: its own parent."""
    circle = [(500 + n, 500 + (n + 1) % length, f"C{n}") for n in range(length)]
    into = [(600 + n, 599 + n if n else 500, "into") for n in range(20)]
    database(tmp_path / "shop.db", item_rows(), [*into, *CLASSES, *circle])
    result = sql(config(tmp_path))
    if length == 1:
        assert result.exit_code == 0
    else:
        line = refused(result)
        assert f"circle of {length}: '500' → '501'" in line
        assert "into" not in line
    assert layout.dataset("shop").exists() == (length == 1)


@pytest.mark.parametrize(
    ("extra", "words"),
    [((11, 2, "Equate"), "class '11' two parents, '1' and '2'"),
     ((11, 1, "Equal"), "class '11' two names, 'Equate' and 'Equal'")],
)  # fmt: skip
def test_rows_that_contradict(layout: Layout, tmp_path: Path, extra: Row, words: str) -> None:
    database(tmp_path / "shop.db", item_rows(), [*CLASSES, CLASSES[3], extra])
    assert words in refused(sql(config(tmp_path)))


def test_deep_trees(layout: Layout, tmp_path: Path) -> None:
    deep: list[Row] = [(n, n - 1 if n else None, f"level {n}") for n in range(5000)]
    database(tmp_path / "shop.db", item_rows(60, [31, 4, 5]), deep)
    adapted(config(tmp_path))
    assert len(report_of(layout)["levels"]) == 32
    database(tmp_path / "deep.db", item_rows(60, [4999, 4, 5]), deep)
    deeper = config(tmp_path, connection={"kind": "sqlite", "database": "deep.db"})
    assert "5000 names, more than 32. Cut paths with --depth" in refused(sql(deeper, "--force"))
    adapted(deeper, "--force", "--depth", "6")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"items": "SELECT name, class_id FROM itemz"}, "items query fails: no such table: itemz"),
        ({"classes": "SELECT id, up FROM classes"}, "classes query fails: no such column: up"),
        ({"items": "SELECT name AS title, class_id FROM items"},
         "Unknown column 'name'. Known: title, class_id. Name it with AS"),
        ({"classes": "SELECT id, name FROM classes"}, "Unknown column 'parent_id'"),
        ({"columns": {"name": "label"}}, "Unknown column 'label'"),
        ({"items": "SELECT name, name, class_id FROM items"}, "more than once"),
        ({"items": "SELECT name, class_id FROM items WHERE 0"}, "items query gives no rows"),
        ({"classes": "SELECT id, parent_id FROM classes WHERE 0"}, "classes query gives no rows"),
        ({"classes": "SELECT NULL AS id, 1 AS parent_id"}, "every row lacks an id"),
        ({"items": "DELETE FROM items RETURNING name, class_id"}, "readonly database"),
        ({"items": "SELECT 1; SELECT 2"}, "one statement at a time"),
        ({"items": "CREATE TABLE x (a)"}, "readonly database"),
        ({"items": "ATTACH DATABASE 'other.db' AS other"}, "too many attached databases"),
        ({"columns": {"text": "class_id"}}, "named by both"),
        ({"connection": {"kind": "sqlite", "database": "none.db"}}, "No such file"),
        ({"connection": {"kind": "sqlite", "database": "adapter_sql.json"}},
         "file is not a database. Check 'connection.database'"),
        ({"connection": {"kind": "sqlite", "database": "."}}, "Not a file but a folder: "),
        ({"connection": {"kind": "sqlite", "database": "shop.db", "options": {"timeout": "x"}}},
         "cannot be read as a sqlite file"),
    ],
)  # fmt: skip
def test_mistakes_in_the_queries(
    layout: Layout, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    database(tmp_path / "shop.db", item_rows(), CLASSES)
    before = (tmp_path / "shop.db").read_bytes()
    assert words in refused(sql(config(tmp_path, **changes)))
    assert not layout.dataset("shop").exists()
    assert (tmp_path / "shop.db").read_bytes() == before


def test_a_query_that_takes_long_can_be_interrupted(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database(tmp_path / "shop.db", item_rows(), CLASSES)
    endless = (
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 1000000000) "
        "SELECT count(*) AS name, 4 AS class_id FROM n"
    )
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)

    def soon_interrupted(session: Any, place: Any, what: str, *rest: Any) -> Any:
        if what == "items":
            signal.setitimer(signal.ITIMER_REAL, 0.5)
        return read_query(session, place, what, *rest)

    monkeypatch.setattr("utils.adapters.sql.read_query", soon_interrupted)
    try:
        started = time.monotonic()
        assert "interrupted" in refused(sql(config(tmp_path, items=endless)))
        assert time.monotonic() - started < 30  # of many minutes
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_all_mistakes_of_the_configuration_in_one_line(tmp_path: Path, layout: Layout) -> None:
    secret = "s3cret@:/ %"
    path = config(
        tmp_path, items=3, classes=" ; ", tables="x", columns={"txt": "a", "id": 5, "text": []},
        connection={"kind": "postgresql", "prot": 1, "port": True, "user": f"postgres://{secret}",
                    "password": secret, "password_env": "X",
                    "options": {"sslmod": 1, "sslcert": []}},
    )  # fmt: skip
    line = refused(sql(path))
    for words in (
        "'items' must be text", "'classes' is empty", "unknown key 'tables'", "'columns.txt'",
        "'columns.id' must be", "'columns.text' must be",
        "'connection.prot' (did you mean 'port'?)",
        "'connection.port' must be a whole number", "'connection.user' is an address",
        "'connection.database' is missing", "not both", "did you mean 'sslmode'?",
        "'connection.options.sslcert' must be",
    ):  # fmt: skip
        assert words in line, words
    assert secret not in line
    same = refused(sql(config(tmp_path, columns={"parent": "id"})))
    assert "'columns.id' and 'columns.parent' must be two" in same


@pytest.mark.parametrize(
    ("connection", "words"),
    [
        ({"kind": "oracle", "database": "x"}, "unknown kind 'oracle' (known: postgresql, mysql"),
        ({"kind": "postgres", "database": "x"}, "'postgres' (did you mean 'postgresql'?)"),
        ({"kind": "MariaDB", "database": "x"}, "'MariaDB' (did you mean 'mysql'?)"),
        ({"kind": "sqlite", "database": "x", "user": "a"}, "takes no 'connection.user'"),
        ({"kind": "mysql", "database": "x", "password_env": "KTT_NONE"},
         "environment variable 'KTT_NONE' of 'connection.password_env' is not set"),
        ({"kind": "mysql", "database": "x", "port": 70000}, "between 1 and 65535"),
        ({"database": "x"}, "'connection.kind' is missing"),
        ({"kind": "mysql", "database": "x", "host": "u:pass@h"}, "'connection.host' is an address"),
        ({"kind": "sqlite", "database": "x" * 5000}, "File name too long"),
        ({"kind": "sqlite", "database": "~nobody-9/x"}, "Cannot read ~nobody-9/x"),
        ("mysql://u:pass@h/db", "'connection' must be an object"),
    ],
)  # fmt: skip
def test_mistakes_in_the_connection(
    layout: Layout, tmp_path: Path, connection: Any, words: str
) -> None:
    line = refused(sql(config(tmp_path, connection=connection)))
    assert words in line
    assert "pass@" not in line


def test_a_key_given_twice(layout: Layout, tmp_path: Path) -> None:
    path = config(tmp_path)
    path.write_text(path.read_text().replace('"items"', '"items": "SELECT 1", "items"'))
    assert "the key 'items' is given twice" in refused(sql(path))


@pytest.mark.parametrize(
    "cause",
    ["ERROR:  permission denied for table categories",
     "(1142, \"SELECT command denied to user 'reader'@'h' for table 'categories'\")",
     "The SELECT permission was denied on the object 'categories'"],
)  # fmt: skip
def test_a_missing_right_is_no_mistake_in_the_query(cause: str) -> None:
    class Refusing:
        def ask(self, query: str) -> sql_connect.Answer:
            raise sqlite3.OperationalError(cause)

    place = Connection(kind="sqlite", database="x", user="reader")
    with pytest.raises(UserError, match=r"denied.* The user 'reader' needs the right") as caught:
        sql_connect.read_query(Refusing(), place, "classes", "x", list, print)
    assert "Correct" not in caught.value.message


def test_classes_without_a_column_of_names_are_told(layout: Layout, tmp_path: Path) -> None:
    database(tmp_path / "shop.db", item_rows(), CLASSES)
    nameless = "SELECT id, parent_id, name AS title FROM classes"
    result = adapted(config(tmp_path, classes=nameless))
    note = (
        "the classes query has no column 'name' (it gives id, parent_id, title): classes are "
        "called by their ids. Name it under 'columns'"
    )
    assert note in report_of(layout)["notes"]
    assert note in " ".join(result.output.split())
    assert ("Item 0, żółw", ("1",)) in found(layout)
    adapted(config(tmp_path), "--force")
    assert note not in report_of(layout)["notes"]
    explicit = config(tmp_path, classes=nameless, columns={"name": "name"})
    assert "Unknown column 'name'. Known: id, parent_id, title" in refused(sql(explicit, "--force"))


@pytest.mark.parametrize("password", ["\ud800", "a\0b"])
def test_texts_that_no_driver_takes(layout: Layout, tmp_path: Path, password: str) -> None:
    place = {"kind": "postgresql", "database": "x", "password": password}
    assert "holds NUL or half a character" in refused(sql(config(tmp_path, connection=place)))


def test_a_missing_configuration_names_the_example(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(adapt.main, ["sql", "shop"])
    assert "No such file: adapter_sql.json" in refused(result)
    assert "docs/adapter_sql.json" in result.output
    (tmp_path / "adapter_sql.json").write_text("[]")
    assert "must hold a JSON object" in refused(CliRunner().invoke(adapt.main, ["sql", "shop"]))


def test_the_example_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    from utils.adapters.sql_config import load_sql_config

    monkeypatch.setenv("SHOP_PASSWORD", "x")
    copy = PROJECT_ROOT / "docs" / "adapter_sql.json"
    shown = (PROJECT_ROOT / "docs" / "sql.md").read_text(encoding="utf-8").split("```json\n")[1]
    assert copy.read_text(encoding="utf-8") == shown.split("```")[0]
    example = load_sql_config(copy)
    assert example.connection.password == "x"
    assert "x" not in repr(example.connection.user)


@pytest.mark.parametrize("kind", ["postgresql", "mysql", "mssql", "duckdb"])
def test_a_driver_that_is_not_installed(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(sql_connect.importlib, "import_module", missing)
    (tmp_path / "shop.db").touch()
    line = refused(sql(config(tmp_path, connection={"kind": kind, "database": "shop.db"})))
    assert f"Reading {kind} needs the package" in line
    assert "pip install -r requirements" in line


@pytest.mark.parametrize("kind", ["postgresql", "mysql", "mssql"])
def test_a_server_that_is_not_there(layout: Layout, tmp_path: Path, kind: str) -> None:
    secret = "p@:/ %w"
    connection = {"kind": kind, "host": "127.0.0.1", "port": 1, "database": "x", "user": "u",
                  "password": secret}  # fmt: skip
    line = refused(sql(config(tmp_path, connection=connection)))
    assert "Cannot connect to" in line
    assert "127.0.0.1:1" in line
    assert secret not in line
    if kind == "mssql":  # in words, not as the driver's tuple of a number and bytes
        assert ": Unable to connect: " in line
        assert "(127.0.0.1): Connection refused (111). Check" in line


def test_an_option_that_a_driver_does_not_know(layout: Layout, tmp_path: Path) -> None:
    connection = {"kind": "mssql", "host": "127.0.0.1", "port": 1, "database": "x", "user": "u",
                  "password": "secret", "options": {"tds_version": "9.9"}}  # fmt: skip
    assert "unrecognized tds version: 9.9" in refused(sql(config(tmp_path, connection=connection)))


SECRET = "p@:/ %'\\w\"ż"
QUOTED = [
    SECRET, quote(SECRET), quote(SECRET, safe=""), quote_plus(SECRET), repr(SECRET),
    SECRET.encode(), repr(SECRET.encode()),
]  # fmt: skip


class Refusal(Exception):
    """What a driver raises."""


def talkative(said: object) -> types.SimpleNamespace:
    """A driver that quotes the password in whatever it raises."""

    def refuse(*_: Any, **__: Any) -> None:
        raise Refusal(said)

    return types.SimpleNamespace(
        __name__="talkative", connect=refuse, Error=Refusal, MySQLError=Refusal, SSCursor=object,
        _mssql=types.SimpleNamespace(MSSQLException=Refusal),
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_no_driver_tells_the_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    (tmp_path / "shop.db").touch()
    host = None if kind in FILE_KINDS else "h"
    database = str(tmp_path / "shop.db") if host is None else "shop"
    place = Connection(kind=kind, host=host, port=1, database=database, password=SECRET)
    for quoted in QUOTED:
        said = (1, b"no: " + quoted + b" :no") if isinstance(quoted, bytes) else f"no: {quoted} :no"
        driver = talkative(said)
        monkeypatch.setattr(sql_connect.importlib, "import_module", lambda _, d=driver: d)
        session = types.SimpleNamespace(ask=driver.connect)
        for fails in (
            lambda: open_session(place).__enter__(),
            lambda s=session: read_query(s, place, "items", "SELECT 1", tuple, lambda _: None),
        ):
            with pytest.raises(UserError, match=r"no: .*\*\*\*.* :no") as caught:
                fails()
            assert not re.search("p@|p%40", caught.value.message), quoted


def test_a_password_of_two_lines_is_taken_out_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Connection(kind="mysql", host="h", port=1, database="x", password="one\ntwo")
    monkeypatch.setattr(
        sql_connect.importlib, "import_module", lambda _: talkative("no: one\ntwo :no")
    )
    with pytest.raises(UserError, match=r"no: \*\*\* :no"):
        open_session(place).__enter__()


def test_a_long_message_ends_with_a_word() -> None:
    place = Connection(kind="mssql", database="x")
    said = (208, b"Invalid object name 'x'.DB-Lib error message 20018, severity 16:\nGeneral")
    assert sql_connect._cause(place, Refusal(said)) == "Invalid object name 'x'"
    cause = sql_connect._cause(place, Refusal("many words " * 100))
    assert cause.endswith((" many …", " words …"))
    assert len(cause) <= 300


def test_passwords_are_taken_out_of_any_text() -> None:
    place = Connection(kind="mysql", database="d", password="p@:/ %'\\w")
    forms = ["p@:/ %'\\w", "p%40%3A%2F%20%25%27%5Cw", "p%40%3A%2F+%25%27%5Cw", repr("p@:/ %'\\w")]
    for form in forms:
        assert "p@" not in place.scrubbed(f"a {form} b"), form
        assert "%40" not in place.scrubbed(f"a {form} b"), form
    assert "p@" not in repr(place)


def test_values_cannot_end_in_a_connection_string() -> None:
    words = {"password": "a' host='evil\\", "user": None, "port": 5}
    assert conninfo(words) == "password='a\\' host=\\'evil\\\\' port='5'"


def test_the_same_command_replaces_and_another_is_refused(layout: Layout, tmp_path: Path) -> None:
    database(tmp_path / "shop.db", item_rows(), CLASSES)
    adapted(config(tmp_path))
    assert "replaced the earlier dataset" in adapted(config(tmp_path)).output
    other = config(tmp_path, items="SELECT name, class_id FROM items WHERE id < 99")
    assert "made by another command" in refused(sql(other))
    adapted(other, "--force")


def test_texts_that_are_not_utf8(layout: Layout, tmp_path: Path) -> None:
    database(tmp_path / "shop.db", item_rows(), CLASSES)
    with closing(sqlite3.connect(tmp_path / "shop.db")) as connection:
        connection.execute("UPDATE items SET name = CAST(x'ff41' AS TEXT) WHERE id = 5")
        connection.commit()
    adapted(config(tmp_path))
    assert "�A" in {text for text, _ in found(layout)}


def test_duckdb_files(layout: Layout, tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    items = pa.Table.from_pylist(
        [{"id": n, "name": t, "class_id": c} for n, t, c, _ in item_rows()]
    )
    classes = pa.Table.from_pylist([{"id": i, "parent_id": p, "name": n} for i, p, n in CLASSES])
    with duckdb.connect(str(tmp_path / "shop.duck")) as connection:
        connection.register("i", items)
        connection.register("c", classes)
        connection.execute("CREATE TABLE items AS FROM i")
        connection.execute("CREATE TABLE classes AS FROM c")
    place = {"kind": "duckdb", "database": "shop.duck"}
    adapted(config(tmp_path, connection=place, items="SELECT * FROM items ORDER BY id -- all"))
    assert found(layout) == {(f"Item {n}, żółw", PATHS[one]) for n, _, one, _ in item_rows()}
    missing = config(tmp_path, connection=place, items="SELECT name FROM itemz")
    assert "itemz does not exist" in refused(sql(missing, "--force"))
    writing = config(tmp_path, connection=place, items="DELETE FROM items RETURNING *")
    refused(sql(writing, "--force"))
    database(tmp_path / "shop.db", item_rows(), CLASSES)
    other = config(tmp_path, connection=place | {"database": "shop.db"})
    line = refused(sql(other, "--force"))
    assert "cannot be read as a duckdb file" in line
    assert "download" not in line  # no extension is fetched for it


def test_the_environment_is_left_alone(layout: Layout, tmp_path: Path) -> None:
    before = dict(os.environ)
    connection = {"kind": "postgresql", "host": "127.0.0.1", "port": 1, "database": "x",
                  "password": "secret"}  # fmt: skip
    refused(sql(config(tmp_path, connection=connection)))
    assert dict(os.environ) == before


def test_the_example_in_the_docs(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (PROJECT_ROOT / "docs" / "sql.md").read_text(encoding="utf-8")
    block = next(one for one in page.split("```") if "sqlite3 shop.db" in one)
    statements, settings = block.split('"', 2)[1], block.split("'{")[1].split("}' >")[0]
    with closing(sqlite3.connect(tmp_path / "shop.db")) as connection:
        connection.executescript(statements)
    (tmp_path / "adapter_sql.json").write_text(f"{{{settings}}}")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(adapt.main, block.strip().splitlines()[-1].split()[2:])
    assert result.exit_code == 0, result.output
    assert ("cordless drill", ("Tools", "Drills")) in found(layout)


def test_names_are_tidied_folded_and_renamed(layout: Layout, tmp_path: Path) -> None:
    classes: list[Row] = [
        (1, None, "Caf\u200be"), (2, None, "CAFE"), (3, 1, "A &amp; B"), (4, 2, "A & B"),
        (5, 1, "N/A"), (6, 1, "Tee\xad"), (7, 1, "path"),
    ]  # fmt: skip
    counts = [9, 1, 8, 2, 7, 6, 5]
    ids = [number for number, count in enumerate(counts, 1) for _ in range(count)]
    items = [(n, f"Item {n}", number, 0.5) for n, number in enumerate(ids)]
    database(tmp_path / "shop.db", items, classes)
    adapted(config(tmp_path))
    notes = " ".join(report_of(layout)["notes"])
    assert "'CAFE' / 'Cafe'" in notes
    assert "'N/A' (7 rows)" in notes
    assert "'path'" not in notes
    (tmp_path / "r.csv").write_text("old,new\nCafe > Tee,Tea\n", encoding="utf-8")
    adapted(
        config(tmp_path), "--fold", "case,entities", "--missing", "n/a", "--rename",
        str(tmp_path / "r.csv"), "--force",
    )  # fmt: skip
    paths = {path for _, path in rows_of(load_dataset(layout, "shop"))}
    assert paths == {("Cafe",), ("Cafe", "A & B"), ("Cafe", "Tea"), ("Cafe", "path")}
    ragged = report_of(layout)
    assert ragged["rows"]["kept"] == len(items)
    assert ragged["inner_share"] == pytest.approx(17 / 38, abs=1e-6)
