"""``adapt.py sql`` against a real PostgreSQL, in processes of its own.

KTT_SQL_ROWS says how many items there are (a million are measured by benchmarks/sql.py).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from adapt import main
from tests.support.databases import (
    PASSWORD,
    PostgreSQL,
    catalogue,
    fill_sqlite,
    flat_table,
    mariadb,
    postgresql,
    postgresql_binaries,
)
from utils.common.paths import PROJECT_ROOT, Layout
from utils.hierarchy.dataset import load_dataset
from utils.serving.local_server import free_port

pytestmark = pytest.mark.slow

ROWS = int(os.environ.get("KTT_SQL_ROWS", "20000"))
ITEMS = "SELECT * FROM items ORDER BY id -- with columns that nobody needs"
CLASSES = "SELECT id, parent_id, name FROM classes;"
FILES = ("train.parquet", "val.parquet", "test.parquet", "hierarchy.json")


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQL]:
    """A PostgreSQL with the catalogue and some tables to stumble over."""
    binaries = postgresql_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    with postgresql(binaries) as running:
        running.fill(catalogue(ROWS))
        running.execute("CREATE TABLE circle (id int, parent_id int)")
        running.execute("INSERT INTO circle VALUES (1, 3), (2, 1), (3, 2), (4, 1)")
        yield running


def adapt(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run adapt.py in a process and a project of its own."""
    return subprocess.run(
        [sys.executable, str(PROJECT_ROOT / "adapt.py"), *arguments],
        env=os.environ | {"KTT_ROOT": str(root)} | environment,
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def adapted(root: Path, *arguments: str) -> str:
    """Run adapt.py, which must go well."""
    done = adapt(root, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def in_process(root: Path, path: str) -> Result:
    """Run ``adapt.py sql`` in this process, which is quicker."""
    return CliRunner(env={"KTT_ROOT": str(root)}).invoke(main, ["sql", "shop", "--config", path])


def config(folder: Path, connection: dict[str, Any], **changes: Any) -> str:
    """Write adapter_sql.json."""
    path = folder / "adapter_sql.json"
    values = {"connection": connection, "items": ITEMS, "classes": CLASSES} | changes
    path.write_text(json.dumps(values), encoding="utf-8")
    return str(path)


def refused(
    server: PostgreSQL, folder: Path, connection: dict[str, Any] | None = None, **changes: Any
) -> str:
    """The one line of a mistake; nothing was written and the password is not in it."""
    path = config(folder, server.settings(**(connection or {})), **changes)
    done = in_process(folder / "root", path)
    assert done.exit_code == 1, done.output
    assert isinstance(done.exception, SystemExit)
    lines = done.output.strip().splitlines()
    assert len(lines) == 1, done.output
    assert PASSWORD not in lines[0]
    assert not Layout(folder / "root").dataset("shop").exists()
    return lines[0]


def test_sql_and_flat_make_the_same_files(server: PostgreSQL, tmp_path: Path) -> None:
    root, items = tmp_path / "root", catalogue(ROWS)
    pq.write_table(flat_table(items), tmp_path / "flat.parquet")
    adapted(root, "flat", str(tmp_path / "flat.parquet"), "flat", "-t", "name", "-c", "path")
    printed = adapted(root, "sql", "pg", "--config", config(tmp_path, server.settings()))
    file = fill_sqlite(tmp_path / "shop.db", items)
    adapted(root, "sql", "lite", "--config", config(tmp_path, file))
    layout = Layout(root)
    for name in ("pg", "lite"):
        for part in FILES:
            theirs = (layout.dataset("flat") / part).read_bytes()
            assert (layout.dataset(name) / part).read_bytes() == theirs, (name, part)
    rows = {
        name: json.loads((layout.dataset(name) / "report.json").read_text())["rows"]
        for name in ("pg", "lite", "flat")
    }
    assert rows["pg"] == rows["lite"]
    assert rows["pg"]["kept"] == rows["flat"]["kept"]
    # flat cannot tell an item without a class from one of a class that is not there
    lost = rows["flat"]["dropped"]["empty_path"]
    assert lost == rows["pg"]["dropped"]["empty_path"] + rows["pg"]["dropped"]["no_parent"]
    assert rows["pg"]["dropped"]["no_parent"] > 0
    for text in (printed, *(path.read_text() for path in root.rglob("*.json"))):
        assert PASSWORD not in text


def test_only_wanted_columns_leave_the_server(server: PostgreSQL, tmp_path: Path) -> None:
    """A column that fails when it is computed is not asked for."""
    items = "SELECT name, class_id, 1 / (id - id) AS broken FROM items ORDER BY id"
    done = in_process(tmp_path, config(tmp_path, server.settings(), items=items))
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("kind", ["text", "varchar(9)", "char(9)", "numeric(9)", "bigint", "real",
                                  "smallint"])  # fmt: skip
def test_ids_of_any_type(server: PostgreSQL, tmp_path: Path, kind: str) -> None:
    items = f"SELECT name, class_id::{kind} FROM items WHERE class_id < 5008 ORDER BY id LIMIT 500"
    path = config(tmp_path, server.settings(), items=items)
    done = in_process(tmp_path, path)
    assert done.exit_code == 0, done.output
    report = json.loads((Layout(tmp_path).dataset("shop") / "report.json").read_text())
    assert report["rows"]["kept"] > 450


def test_uuids(server: PostgreSQL, tmp_path: Path) -> None:
    uuid = "md5({}::text)::uuid"
    path = config(
        tmp_path, server.settings(),
        items=f"SELECT name, {uuid.format('class_id')} AS class_id FROM items LIMIT 500",
        classes=f"SELECT {uuid.format('id')} AS id, {uuid.format('parent_id')} AS parent_id, name"
        " FROM classes",
    )  # fmt: skip
    done = in_process(tmp_path, path)
    assert done.exit_code == 0, done.output
    report = json.loads((Layout(tmp_path).dataset("shop") / "report.json").read_text())
    assert report["rows"]["kept"] > 450


def test_a_database_in_another_encoding(server: PostgreSQL, tmp_path: Path) -> None:
    server.execute("CREATE DATABASE old ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0", True)
    text = "convert_from('\\x53e46765'::bytea, 'LATIN1')"
    path = config(
        tmp_path, server.settings(database="old"),
        items=f"SELECT {text} || n AS name, n % 2 AS class_id FROM generate_series(1, 40) AS n",
        classes=f"SELECT n AS id, NULL AS parent_id, {text} || n AS name"
        " FROM generate_series(0, 1) AS n",
    )  # fmt: skip
    done = in_process(tmp_path, path)
    assert done.exit_code == 0, done.output
    data = load_dataset(Layout(tmp_path), "shop")
    assert data.hierarchy.names == ("Säge0", "Säge1")
    assert "Säge7" in {*data.train.texts, *data.val.texts, *data.test.texts}


def test_columns_of_rarer_types(server: PostgreSQL, tmp_path: Path) -> None:
    server.execute("CREATE TYPE mood AS ENUM ('sad', 'glad')")
    path = config(
        tmp_path, server.settings(), columns={"text": ["a", "b", "c", "d", "e", "f"]},
        items="SELECT ARRAY['x', n::text] AS a, '{\"k\": 1}'::jsonb AS b, n * 1.5 AS c, now() AS d,"
        " 'glad'::mood AS e, n::varchar(4) AS f, (n % 2)::text::char(5) AS class_id"
        " FROM generate_series(1, 40) AS n",
        classes="SELECT n AS id, NULL AS parent_id, 'glad'::mood AS name"
        " FROM generate_series(0, 1) AS n",
    )  # fmt: skip
    done = in_process(tmp_path, path)
    assert done.exit_code == 0, done.output
    data = load_dataset(Layout(tmp_path), "shop")
    assert data.hierarchy.names == ("glad (0)", "glad (1)")
    parts = data.train.texts[0].split("\n")
    number = parts[-1]
    assert parts[:3] == [f"x {number}", '{"k": 1}', str(int(number) * 1.5)]
    assert parts[4] == "glad"


def test_a_server_that_accepts_and_says_nothing(server: PostgreSQL, tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        port = silent.getsockname()[1]
        line = refused(server, tmp_path, {"port": port, "options": {"connect_timeout": 2}})
    assert "timeout expired" in line


def test_the_password_from_the_environment(server: PostgreSQL, tmp_path: Path) -> None:
    settings = server.settings(password_env="SHOP_PASSWORD")
    del settings["password"]
    items = "SELECT name, class_id FROM items ORDER BY id LIMIT 500"
    path = config(tmp_path, settings, items=items)
    done = adapt(tmp_path, "sql", "shop", "--config", path, SHOP_PASSWORD=PASSWORD)
    assert done.returncode == 0, done.stderr
    assert "SHOP_PASSWORD" in adapt(tmp_path, "sql", "other", "--config", path).stderr


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"connection": {"password": "no@:/ %"}}, "refuses the user 'ktt': FATAL: password"),
        ({"connection": {"user": "nobody"}}, "refuses the user 'nobody'"),
        ({"connection": {"database": "nodb"}}, 'database "nodb" does not exist'),
        ({"connection": {"host": "nohost.invalid"}}, "could not translate host name"),
        ({"connection": {"options": {"sslmode": "require"}}}, "does not support SSL"),
        ({"items": "SELECT name, class_id FROM itemz"}, 'items query fails: relation "itemz" does'),
        ({"items": "SELECT nam FROM items"}, 'column "nam" does not exist'),
        ({"items": "SELECT name AS title, class_id FROM items"}, "Unknown column 'name'"),
        ({"classes": "SELECT id FROM classes"}, "Unknown column 'parent_id'"),
        ({"items": "SELEC"}, "syntax error"),
        ({"items": "SELECT 1; DROP TABLE items"}, "multiple commands"),
        ({"items": "DELETE FROM items RETURNING name, class_id"}, "read-only transaction"),
        ({"items": "SELECT name, class_id FROM items WHERE false"}, "gives no rows"),
        ({"items": f"SELECT name, class_id, '{PASSWORD.replace(chr(39), chr(39) * 2)}' FROM x"},
         'relation "x" does not exist'),
        ({"items": "SELECT name, 1 / (id - id) AS class_id FROM items"}, "division by zero"),
        ({"classes": "SELECT id, parent_id FROM circle"}, "circle of 3: '1' → '3' → '2' → '1'"),
        ({"classes": "SELECT id, parent_id, name FROM classes UNION ALL SELECT 30, 1, 'x'"},
         "class '30' two"),
        ({"classes": "SELECT 9999 AS id, NULL AS parent_id"}, "None of the"),
    ],
)  # fmt: skip
def test_one_line_each(
    server: PostgreSQL, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    assert words in refused(server, tmp_path, **changes)


def test_a_user_without_the_right_to_read(server: PostgreSQL, tmp_path: Path) -> None:
    server.execute(f"CREATE ROLE reader LOGIN PASSWORD '{PASSWORD.replace(chr(39), chr(39) * 2)}'")
    line = refused(server, tmp_path, {"user": "reader"})
    assert "permission denied for table classes. The user 'reader' needs the right" in line
    assert "Correct" not in line


def test_a_server_that_does_not_answer(server: PostgreSQL, tmp_path: Path) -> None:
    assert "Connection refused" in refused(server, tmp_path, {"port": free_port()})


def test_a_connection_that_breaks(server: PostgreSQL, tmp_path: Path) -> None:
    """The server ends the connection while rows are read."""

    def end() -> None:
        reader = server.wait_for_query("pg_sleep(0.01)", seconds=1)
        server.execute(f"SELECT pg_terminate_backend({reader})")

    killer = threading.Thread(target=end)
    killer.start()
    try:
        items = "SELECT name, class_id, pg_sleep(0.01) AS s FROM items"
        line = refused(server, tmp_path, items=items, columns={"text": ["name", "s"]})
    finally:
        killer.join()
    assert "items query fails" in line


def test_the_password_from_libpqs_own_variable(server: PostgreSQL, tmp_path: Path) -> None:
    settings = server.settings()
    del settings["password"]
    items = "SELECT name, class_id FROM items ORDER BY id LIMIT 500"
    path = config(tmp_path, settings, items=items)
    done = adapt(tmp_path, "sql", "shop", "--config", path, PGPASSWORD=PASSWORD)
    assert done.returncode == 0, done.stderr
    assert "no password supplied" in in_process(tmp_path, path).output


def test_an_interrupt_ends_it(server: PostgreSQL, tmp_path: Path) -> None:
    """Ctrl-C reaches a query that takes for ever, and nothing is left."""
    items = "SELECT name, class_id FROM items, pg_sleep(600)"
    process = subprocess.Popen(
        [sys.executable, str(PROJECT_ROOT / "adapt.py"), "sql", "shop", "--config",
         config(tmp_path, server.settings(), items=items)],
        env=os.environ | {"KTT_ROOT": str(tmp_path)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    server.wait_for_query("pg_sleep(600)", seconds=0.5)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in printed
    assert not Layout(tmp_path).datasets.exists()


@pytest.mark.skipif(
    not shutil.which("mariadbd"), reason="no MariaDB: apt-get install mariadb-server"
)
def test_mariadb(tmp_path: Path) -> None:
    pytest.importorskip("pymysql")
    items = catalogue(3000)
    pq.write_table(flat_table(items), tmp_path / "flat.parquet")
    adapted(tmp_path, "flat", str(tmp_path / "flat.parquet"), "flat", "-t", "name", "-c", "path")
    with mariadb(items) as server:
        done = in_process(tmp_path, config(tmp_path, server.settings()))
        assert done.exit_code == 0, done.output
        layout = Layout(tmp_path)
        for part in FILES:
            ours, theirs = (layout.dataset(name) / part for name in ("shop", "flat"))
            assert ours.read_bytes() == theirs.read_bytes(), part
        for settings, changes, words in (
            ({"password": "no"}, {}, "refuses the user 'ktt'"),
            ({}, {"items": "SELECT name FROM itemz"}, "itemz' doesn't exist"),
            ({}, {"items": "DELETE FROM items"}, "READ ONLY transaction"),
            ({}, {"items": "SELECT name FROM items WHERE 0"}, "Unknown column 'class_id'"),
        ):
            path = config(tmp_path, server.settings(**settings), **changes)
            line = in_process(tmp_path / "other", path).output
            assert line.startswith("Error: ")
            assert words in line
            assert PASSWORD not in line
