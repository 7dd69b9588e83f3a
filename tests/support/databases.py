"""Servers for tests and benchmarks, and a catalogue to put into them."""

from __future__ import annotations

import os
import pwd
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from utils.serving.local_server import free_port

PASSWORD = "p@ss:/ %w'\\é"
NODES = 5000
WORDS = (  # noqa: SIM905
    "new classic large small black white red steel cotton wooden set pack pro mini ultra light "
    "heavy duty premium basic travel home office outdoor kids men women vintage modern portable"
).split()
_PATIENCE = 60.0


def ragged_tree(nodes: int = NODES, seed: int = 0) -> list[tuple[int, int | None, str]]:
    """A made-up taxonomy of the shape of Google's: (id, parent, name), up to seven levels."""
    generator = np.random.default_rng(seed)
    tree: list[tuple[int, int | None, str]] = [(n, None, f"Category {n}") for n in range(1, 22)]
    depth = dict.fromkeys(range(1, 22), 1)
    taken: set[tuple[int, str]] = set()
    while len(tree) < nodes:
        parent = int(generator.random() ** 0.7 * len(tree)) + 1
        name = f"Kind {int(generator.integers(900))} & Co."  # the same under many parents
        if depth[parent] < 7 and (parent, name) not in taken:
            taken.add((parent, name))
            depth[len(tree) + 1] = depth[parent] + 1
            tree.append((len(tree) + 1, parent, name))
    return tree


def catalogue(rows: int, seed: int = 0) -> pa.Table:
    """Items (id, name, class_id, price, note) of `ragged_tree`, a few of them dirty."""
    generator = np.random.default_rng(seed)
    weights = generator.pareto(1.2, NODES) + 0.05
    classes = generator.choice(NODES, rows, p=weights / weights.sum()) + 1
    words = np.array(WORDS, dtype=object)
    texts = words[generator.integers(len(words), size=rows)]
    for _ in range(8):
        texts = texts + " " + words[generator.integers(len(words), size=rows)]
    texts = texts + np.array([f" № {n}" for n in generator.integers(10**6, size=rows)], object)
    texts[generator.random(rows) < 0.01] = "  "
    texts[generator.random(rows) < 0.005] = "same text\ntwice"
    texts[generator.random(rows) < 0.002] += "\x07 bell"
    classes[generator.random(rows) < 0.005] = NODES + 7  # no such class
    nothing = generator.random(rows) < 0.005
    return pa.table(
        {
            "id": np.arange(rows),
            "name": pa.array(texts, pa.string()),
            "class_id": pa.array(classes, pa.int64(), mask=nothing),
            "price": generator.random(rows).round(2),
            "note": pa.repeat(pa.scalar("a column that nobody needs"), rows),
        }
    )


def paths_of(tree: Sequence[tuple[int, int | None, str]]) -> dict[int, tuple[str, ...]]:
    """The path of each class, worked out without the toolkit; parents stand before children."""
    paths: dict[int, tuple[str, ...]] = {}
    for one, parent, name in tree:
        paths[one] = (*paths[parent], name) if parent else (name,)
    return paths


def flat_table(items: pa.Table) -> pa.Table:
    """The same rows as ``adapt.py flat`` reads them: name, path."""
    paths = paths_of(ragged_tree())
    lists = [paths.get(one) for one in items["class_id"].to_pylist()]
    return pa.table({"name": items["name"], "path": pa.array(lists, pa.list_(pa.string()))})


def class_table() -> pa.Table:
    """Classes (id, parent_id, name) of `ragged_tree`."""
    columns = zip(*ragged_tree(), strict=True)
    return pa.table(dict(zip(("id", "parent_id", "name"), map(list, columns), strict=True)))


def fill_sqlite(path: Path, items: pa.Table) -> dict[str, Any]:
    """Write a SQLite file; returns its connection for adapter_sql.json."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        for name, table in (("items", items), ("classes", class_table())):
            connection.execute(f"CREATE TABLE {name} ({', '.join(table.column_names)})")
            marks = ", ".join("?" * table.num_columns)
            for batch in table.to_batches(max_chunksize=100_000):
                rows = zip(*(column.to_pylist() for column in batch.columns), strict=True)
                connection.executemany(f"INSERT INTO {name} VALUES ({marks})", rows)
        connection.commit()
    return {"kind": "sqlite", "database": str(path)}


def postgresql_binaries() -> Path | None:
    """Folder of initdb and postgres, the newest version first; None where there is none."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda one: one.parent.name)
    on_path = shutil.which("postgres")
    folders += [Path(on_path).resolve().parent] if on_path else []
    return next((one for one in reversed(folders) if (one / "initdb").exists()), None)


@dataclass(frozen=True, kw_only=True)
class PostgreSQL:
    """A running server."""

    port: int
    user: str = "ktt"
    password: str = PASSWORD
    database: str = "postgres"

    def settings(self, **changes: Any) -> dict[str, Any]:
        """Its connection for adapter_sql.json."""
        return {
            "kind": "postgresql", "host": "127.0.0.1", "port": self.port,
            "database": self.database, "user": self.user, "password": self.password,
        } | changes  # fmt: skip

    def connect(self) -> Any:
        """A connection that may write."""
        import adbc_driver_postgresql.dbapi as driver

        from utils.adapters.sql_connect import conninfo

        words = {"host": "127.0.0.1", "port": self.port, "dbname": self.database,
                 "user": self.user, "password": self.password}  # fmt: skip
        return driver.connect(conninfo(words))

    def fill(self, items: pa.Table) -> None:
        """Write both tables."""
        with self.connect() as connection:
            with connection.cursor() as cursor:
                cursor.adbc_ingest("items", items, mode="create")
                cursor.adbc_ingest("classes", class_table(), mode="create")
            connection.commit()

    def execute(self, statement: str, alone: bool = False) -> None:
        """Run a statement and commit, or run it outside any transaction."""
        with self.connect() as connection:
            connection.adbc_connection.set_autocommit(alone)
            with connection.cursor() as cursor:
                cursor.execute(statement)
            if not alone:
                connection.commit()

    def wait_for_query(self, part: str, seconds: float) -> int:
        """Wait until a query with `part` in it has run for so long; the process that runs it."""
        statement = (
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'ktt' AND state = 'active' "
            f"AND position('{part}' IN query) > 0 "
            f"AND clock_timestamp() - query_start > interval '{seconds} s'"
        )
        end = time.monotonic() + _PATIENCE
        with self.connect() as connection:
            connection.adbc_connection.set_autocommit(True)
            with connection.cursor() as cursor:
                while time.monotonic() < end:
                    cursor.execute(statement)
                    if row := cursor.fetchone():
                        return int(row[0])
                    time.sleep(0.1)
        raise TimeoutError(f"no query with {part}")


@contextmanager
def postgresql(binaries: Path) -> Iterator[PostgreSQL]:
    """Start a server of its own, by an unprivileged user if this is root, and stop it again."""
    folder = Path(tempfile.mkdtemp(prefix="ktt-postgresql-"))
    person = _unprivileged()
    try:
        (folder / "password").write_text(PASSWORD, encoding="utf-8")
        if person:
            for path in (folder, folder / "password"):
                os.chown(path, *person.values())
        data = folder / "data"
        subprocess.run(
            [binaries / "initdb", "-D", data, "-U", "ktt", "--pwfile", folder / "password",
             "-A", "scram-sha-256", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"],
            check=True, capture_output=True, cwd=folder, **_as(person),
        )  # fmt: skip
        server = PostgreSQL(port=free_port())
        process = subprocess.Popen(
            [binaries / "postgres", "-D", data, "-F", "-p", str(server.port),
             "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder, **_as(person),
        )  # fmt: skip
        try:
            _wait(server.port, process)
            yield server
        finally:
            process.terminate()
            process.wait(_PATIENCE)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class MariaDB:
    """A running server."""

    port: int

    def settings(self, **changes: Any) -> dict[str, Any]:
        """Its connection for adapter_sql.json."""
        return {
            "kind": "mysql", "host": "127.0.0.1", "port": self.port, "database": "shop",
            "user": "ktt", "password": PASSWORD,
        } | changes  # fmt: skip


@contextmanager
def mariadb(items: pa.Table) -> Iterator[MariaDB]:
    """Start a server with the catalogue, by an unprivileged user if this is root."""
    folder = Path(tempfile.mkdtemp(prefix="ktt-mariadb-"))
    person = _unprivileged()
    data, socket_file, server = folder / "data", folder / "socket", MariaDB(port=free_port())
    try:
        if person:
            os.chown(folder, *person.values())
        subprocess.run(
            ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--skip-test-db",
             "--auth-root-authentication-method=normal"],
            check=True, capture_output=True, cwd=folder, **_as(person),
        )  # fmt: skip
        process = subprocess.Popen(
            [shutil.which("mariadbd") or "mariadbd", "--no-defaults", f"--datadir={data}",
             f"--port={server.port}", "--bind-address=127.0.0.1", f"--socket={socket_file}",
             f"--pid-file={folder / 'pid'}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder, **_as(person),
        )  # fmt: skip
        try:
            _fill_mariadb(socket_file, items, process)
            yield server
        finally:
            process.terminate()
            process.wait(_PATIENCE)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fill_mariadb(socket_file: Path, items: pa.Table, process: subprocess.Popen[bytes]) -> None:
    import pymysql

    end = time.monotonic() + _PATIENCE
    while not socket_file.exists():
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError("MariaDB does not start")
        time.sleep(0.1)
    connection = pymysql.connect(unix_socket=str(socket_file), user="root")
    with closing(connection), connection.cursor() as cursor:
        for statement in (
            "DELETE FROM mysql.global_priv WHERE User = ''", "FLUSH PRIVILEGES",
            "CREATE DATABASE shop CHARACTER SET utf8mb4", "USE shop",
            "CREATE TABLE items (id INT, name TEXT, class_id BIGINT, price DOUBLE, note TEXT)",
            "CREATE TABLE classes (id BIGINT, parent_id BIGINT, name VARCHAR(200))",
        ):  # fmt: skip
            cursor.execute(statement)
        cursor.execute("CREATE USER ktt@localhost IDENTIFIED BY %s", (PASSWORD,))
        cursor.execute("GRANT SELECT, DELETE ON shop.* TO ktt@localhost")
        for name, table in (("items", items), ("classes", class_table())):
            rows = list(zip(*(column.to_pylist() for column in table.columns), strict=True))
            marks = ", ".join(["%s"] * table.num_columns)
            cursor.executemany(f"INSERT INTO {name} VALUES ({marks})", rows)
        connection.commit()


def _unprivileged() -> dict[str, int] | None:
    if os.getuid():
        return None
    names = {one.pw_name: one for one in pwd.getpwall()}
    person = names.get("postgres") or names["nobody"]
    return {"user": person.pw_uid, "group": person.pw_gid}


def _as(person: dict[str, int] | None) -> dict[str, Any]:
    return {**person, "extra_groups": []} if person else {}


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until the server answers a start-up message, not only listens."""
    import adbc_driver_manager

    end = time.monotonic() + _PATIENCE
    while True:
        try:
            PostgreSQL(port=port).connect().close()
            return
        except adbc_driver_manager.Error as error:
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"PostgreSQL does not start: {error}") from error
            time.sleep(0.1)
