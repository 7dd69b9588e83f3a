"""What the monitor does with a stored window that is not as it was written."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import sqlite3
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monitor_app import app_of
from monitor_reference import load_setup
from monitor_report import Reports
from monitor_service import Monitor
from monitor_window import NAME, NotKept, Window
from tests.support.monitoring import FEATURES, Traffic, body_of, tree, write_folder

SETTINGS = {"window_size": 120, "min_reference_size": 40}
GOOD = np.ones(FEATURES, np.float32).tobytes()
ROW_DAMAGE: dict[str, tuple[str, Any]] = {
    "features cut": ("features", GOOD[:-1]),
    "features of another width": ("features", GOOD + GOOD),
    "no features": ("features", b""),
    "features of text": ("features", "x" * 4 * FEATURES),
    "features no numbers": ("features", struct.pack(f"{FEATURES}f", *[math.nan] * FEATURES)),
    "a feature infinite": ("features", GOOD[4:] + struct.pack("f", math.inf)),
    "class beyond the tree": ("class", 10_000),
    "class negative": ("class", -1),
    "class of text": ("class", "T0"),
    "class huge": ("class", 2**62),
    "class a fraction": ("class", 0.5),
    "confidence 2": ("confidence", 2.0),
    "confidence huge": ("confidence", 1e308),
    "confidence infinite": ("confidence", math.inf),
    "confidence of text": ("confidence", "high"),
    "confidence of bytes": ("confidence", b"\xff"),
    "length negative": ("length", -1.0),
    "length huge": ("length", 1e308),
    "length of text": ("length", "long"),
    "length not UTF-8": ("length", "CAST(x'ff' AS TEXT)"),
    "time of text": ("came", "now"),
    "time huge": ("came", 1e308),
    "time infinite": ("came", -math.inf),
}
ANSWER_DAMAGE: dict[str, tuple[str, Any]] = {
    "class beyond the tree": ("class", 10_000),
    "true class beyond the tree": ("truth", 10_000),
    "true class of text": ("truth", "T0"),
    "confidence huge": ("confidence", 1e308),
    "scores no JSON": ("scores", "[[0, 0.5"),
    "scores not UTF-8": ("scores", "CAST(x'5bff5d' AS TEXT)"),
    "scores of bytes": ("scores", b"\xff\xfe"),
    "scores an object": ("scores", "{}"),
    "scores no pairs": ("scores", "[1]"),
    "scores beyond the columns": ("scores", "[[10000, 0.5]]"),
    "scores no probability": ("scores", "[[0, 1e308]]"),
    "scores NaN": ("scores", "[[0, NaN]]"),
    "scores deep": ("scores", "[" * 100_000),
}


@pytest.fixture
def folder(tmp_path: Path, rng: np.random.Generator) -> Path:
    return write_folder(tmp_path / "monitoring", Traffic(tree()).draw(rng, 300), **SETTINGS)


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Monitor]:
    monitor = Monitor(load_setup(folder), folder / "data", {"model": "m", "dataset": "d"})
    monitor.detector.resamples = 50
    try:
        yield monitor
    finally:
        monitor.stop()


def filled(folder: Path, rows: int = 100) -> dict[str, Any]:
    """Keep rows, all with a true class; what was posted."""
    body = body_of(Traffic(tree()).draw(np.random.default_rng(1), rows))
    data = [{"request_id": row[-1], "path": row[0].split(" > ")} for row in body["data"]]
    with running(folder) as monitor:
        monitor.iterate(json.dumps(body).encode())
        monitor.feedback(json.dumps({"data": data}).encode())
    return body


def change(folder: Path, table: str, column: str, value: Any, seq: int) -> None:
    """Put a value into a column of a row, or what an expression gives."""
    expression = isinstance(value, str) and value.startswith("CAST(")
    with contextlib.closing(sqlite3.connect(folder / "data" / NAME)) as held:
        command = f"UPDATE {table} SET {column} = {value if expression else '?'} WHERE seq = {seq}"
        assert held.execute(command, () if expression else (value,)).rowcount == 1
        held.commit()


def counted(monitor: Monitor, name: str) -> float:
    (line,) = [x for x in monitor.metrics.page().decode().splitlines() if x.startswith(f"{name} ")]
    return float(line.split()[1])


def test_damaged_rows_are_dropped_and_counted(folder: Path) -> None:
    filled(folder)
    for seq, (column, value) in enumerate(ROW_DAMAGE.values(), 30):
        change(folder, "rows", column, value, seq)
    with running(folder) as monitor:
        found = {list(ROW_DAMAGE)[seq - 30] for seq in monitor.window.kept().damaged}
        assert found == set(ROW_DAMAGE)
        for _ in range(2):
            monitor.attempt()
            assert counted(monitor, "ktt_window_rows") == 100 - len(ROW_DAMAGE)
        assert counted(monitor, "ktt_rows_damaged_total") == len(ROW_DAMAGE)  # once
        assert counted(monitor, "ktt_calculations_total") == 2
        assert counted(monitor, "ktt_calculation_failures_total") == 0
        assert monitor.state.startswith(f"ok: {100 - len(ROW_DAMAGE)} rows from 2")
    with running(folder) as monitor:
        assert monitor.window.kept().damaged == ()  # they are not there any more


def test_damaged_answers_are_dropped_and_counted(folder: Path) -> None:
    filled(folder)
    for seq, (column, value) in enumerate(ANSWER_DAMAGE.values(), 30):
        change(folder, "answers", column, value, seq)
    with running(folder) as monitor:
        found = {list(ANSWER_DAMAGE)[seq - 30] for seq in monitor.window.labelled().damaged}
        assert found == set(ANSWER_DAMAGE)
        monitor.attempt()
        assert counted(monitor, "ktt_window_labelled_rows") == 100 - len(ANSWER_DAMAGE)
        assert counted(monitor, "ktt_rows_damaged_total") == len(ANSWER_DAMAGE)
        assert counted(monitor, "ktt_calculation_failures_total") == 0
        assert not any(math.isnan(value) for value in monitor.metrics.snapshot.performance.values())


def test_what_waited_damaged_is_dropped_when_its_row_has_come(folder: Path) -> None:
    body = body_of(Traffic(tree()).draw(np.random.default_rng(2), 40))
    items = [{"request_id": row[-1], "path": row[0].split(" > ")} for row in body["data"]]
    with running(folder) as monitor:
        monitor.feedback(json.dumps({"data": items}).encode())
    change(folder, "feedback", "truth", "T0", 5)
    with running(folder) as monitor:
        monitor.iterate(json.dumps(body).encode())
        monitor.attempt()
        assert counted(monitor, "ktt_window_labelled_rows") == 39
        assert counted(monitor, "ktt_rows_damaged_total") == 1


def test_rows_without_scores_or_length_are_none_damaged(folder: Path) -> None:
    body = body_of(Traffic(tree()).draw(np.random.default_rng(3), 40))
    names = body["columns"]
    left = [names.index(name) for name in names if name not in ("scores", "length")]
    body = {
        "columns": [names[place] for place in left],
        "data": [[row[place] for place in left] for row in body["data"]],
    }
    items = [{"request_id": row[-1], "path": row[0].split(" > ")} for row in body["data"]]
    with running(folder) as monitor:
        monitor.iterate(json.dumps(body).encode())
        monitor.feedback(json.dumps({"data": items}).encode())
        monitor.attempt()
        assert counted(monitor, "ktt_rows_damaged_total") == 0
        assert counted(monitor, "ktt_window_labelled_rows") == 40


def test_a_window_of_damaged_rows_alone_is_an_empty_one(folder: Path) -> None:
    filled(folder)
    for seq in range(1, 101):
        change(folder, "rows", "features", b"", seq)
    with running(folder) as monitor:
        monitor.attempt()
        assert counted(monitor, "ktt_window_rows") == 0
        assert counted(monitor, "ktt_rows_damaged_total") == 100
        assert "no rows, calculated" in monitor.state


@pytest.mark.parametrize(
    "damage",
    [
        "ALTER TABLE rows DROP COLUMN came",
        "ALTER TABLE answers RENAME COLUMN scores TO marks",
        "DROP TABLE meta; CREATE TABLE meta (name TEXT)",
        "DROP TABLE feedback; CREATE TABLE feedback (id TEXT)",
        "UPDATE answers SET seq = 9223372036854775807 WHERE seq = 50",
        "INSERT INTO rows SELECT seq + 100, class, confidence, length, features, came FROM rows",
        "INSERT INTO feedback VALUES (9223372036854775807, 'x', 1)",
        "PRAGMA writable_schema = ON; "
        "UPDATE sqlite_master SET name = CAST(x'ff' AS TEXT), sql = 'x' WHERE name = 'rows'",
    ],
    ids=[
        "rows", "answers", "meta", "feedback", "last number", "rows without answers",
        "last number of feedback", "not UTF-8",
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_gone_on_with_is_moved_aside(damage: str, folder: Path) -> None:
    filled(folder)
    with contextlib.closing(sqlite3.connect(folder / "data" / NAME)) as held:
        held.executescript(damage)
        held.commit()
    fresh = body_of(
        Traffic(tree()).draw(np.random.default_rng(4), 10), [f"n{i}" for i in range(10)]
    )
    feedback = {"request_id": "early", "path": fresh["data"][0][0].split(" > ")}
    with running(folder) as monitor:
        for body, post in ((fresh, monitor.iterate), (feedback, monitor.feedback)):
            with contextlib.suppress(NotKept):  # the sender sends it again
                post(json.dumps(body).encode())
            post(json.dumps(body).encode())
        monitor.iterate(json.dumps(fresh).encode())
        monitor.attempt()
        assert counted(monitor, "ktt_window_rows") == 10
        assert counted(monitor, "ktt_window_writable") == 1
    assert (folder / "data" / f"{NAME}.damaged").exists()


@pytest.mark.parametrize("with_folder", [False, True])
def test_a_window_that_is_taken_away_is_begun_anew(with_folder: bool, folder: Path) -> None:
    filled(folder)
    fresh = body_of(Traffic(tree()).draw(np.random.default_rng(4), 10), list("abcdefghij"))
    with running(folder) as monitor:
        shutil.rmtree(folder / "data")
        if not with_folder:
            (folder / "data").mkdir()
        monitor.iterate(json.dumps(fresh).encode())
        with running(folder) as another:  # what is there after kill -9
            assert len(another.window.kept().rows) == 10


def test_a_window_that_is_put_back_is_gone_on_with(folder: Path) -> None:
    filled(folder)
    shutil.copytree(folder / "data", folder / "copy")
    fresh = body_of(Traffic(tree()).draw(np.random.default_rng(4), 10), list("abcdefghij"))
    with running(folder) as monitor:
        monitor.iterate(json.dumps(fresh).encode())
        shutil.rmtree(folder / "data")
        shutil.copytree(folder / "copy", folder / "data")
        monitor.attempt()
        assert counted(monitor, "ktt_window_rows") == 100


def test_who_only_looks_at_a_window_leaves_it_as_it_is(folder: Path) -> None:
    filled(folder)
    with running(folder) as monitor:
        columns = monitor.setup.columns
        before = sorted(path.name for path in (folder / "data").iterdir())
        seen = Window(folder / "data", columns, 120).seen()
        assert (len(seen.rows), seen.since, seen.until) == (100, *_times(monitor))
        with pytest.raises(NotKept, match="cannot be read: it was kept for another model"):
            Window(folder / "data", replace(columns, checkpoint="other"), 120).seen()
        assert sorted(path.name for path in (folder / "data").iterdir()) == before
        with pytest.raises(NotKept, match="cannot be read: unable to open"):
            Window(folder / "none", columns, 120).seen()
        assert not (folder / "none").exists()
    (folder / "data" / NAME).write_bytes(b"no database" * 1000)
    with pytest.raises(NotKept, match="cannot be read: file is not a database"):
        Window(folder / "data", columns, 120).seen()
    assert sorted(path.name for path in (folder / "data").iterdir()) == [NAME]


def _times(monitor: Monitor) -> tuple[float, float]:
    kept = monitor.window.kept()
    return kept.since, kept.until


def test_calculations_that_fail_are_no_ok(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(rows: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(Monitor, "alive", True)
    with running(folder) as monitor:
        client = app_of(monitor, Reports(folder, folder)).test_client()
        assert client.get("/healthz").status_code == 200
        with monkeypatch.context() as patch:
            patch.setattr(monitor.detector, "compare", fail)
            monitor.attempt()
        answer = client.get("/healthz")
        assert (answer.status_code, answer.text) == (
            503,
            "The last calculation failed: see the log.\n",
        )
        assert client.get("/livez").status_code == 200
        monitor.attempt()
        assert client.get("/healthz").status_code == 200


def test_feedback_that_is_not_kept_is_not_said_to_wait(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monitor_window.WAITING", 10)
    path = list(tree().paths[20])

    def post(monitor: Monitor, *names: str) -> dict[str, int]:
        items = [{"request_id": name, "path": path} for name in names]
        return monitor.feedback(json.dumps({"data": items}).encode())

    with running(folder) as monitor:
        many = [f"a{number}" for number in range(25)]
        assert post(monitor, *many) == {"matched": 0, "waiting": 10, "dropped": 15}
        assert post(monitor, "b", "c", "b") == {"matched": 0, "waiting": 3}
        with contextlib.closing(sqlite3.connect(folder / "data" / NAME)) as held:
            kept = {name for (name,) in held.execute("SELECT id FROM feedback")}
        assert kept == {*many[17:], "b", "c"}
