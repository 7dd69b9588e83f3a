"""The monitor behind its HTTP routes: what it takes, keeps, tells and survives."""

from __future__ import annotations

import contextlib
import json
import math
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families

from monitor_app import app_of
from monitor_drift import Rows
from monitor_front import ARRIVED
from monitor_metrics import Metrics
from monitor_reference import load_setup
from monitor_report import Reports, with_line
from monitor_service import Monitor
from monitor_settings import listen_address
from monitor_tree import SetupError, Tree
from monitor_window import NAME, NotKept, span
from tests.support.monitoring import (
    FEATURES,
    Traffic,
    body_of,
    hierarchy,
    scores_of,
    tree,
    write_folder,
)
from utils.common.paths import PROJECT_ROOT
from utils.serving.metrics import ServiceMetrics

SETTINGS = {"window_size": 120, "min_reference_size": 40}
SECRET = "zebrafish"
JSON = "application/json"


@pytest.fixture
def folder(tmp_path: Path, rng: np.random.Generator) -> Path:
    return write_folder(tmp_path / "monitoring", Traffic(tree()).draw(rng, 300), **SETTINGS)


def _monitor(folder: Path, data: str = "data") -> Monitor:
    monitor = Monitor(load_setup(folder), folder / data, {"model": "m", "dataset": "d"})
    monitor.detector.resamples = 200
    return monitor


@pytest.fixture
def monitor(folder: Path) -> Iterator[Monitor]:
    made = _monitor(folder)
    yield made
    made.stop()


@pytest.fixture
def client(monitor: Monitor, folder: Path) -> FlaskClient:
    return app_of(monitor, Reports(folder, folder / "data")).test_client()


def _metrics(client: FlaskClient) -> dict[str, dict[tuple[str, ...], float]]:
    held: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            held.setdefault(sample.name, {})[tuple(sorted(sample.labels.values()))] = sample.value
    return held


def _one(client: FlaskClient, name: str) -> float:
    (value,) = _metrics(client)[name].values()
    return value


# -- metrics --------------------------------------------------------------------------------


def test_every_metric_is_there_before_the_first_row(client: FlaskClient) -> None:
    held = _metrics(client)
    assert set(held["ktt_drift_ratio"].values()) == {0.0}
    signals = set(held["ktt_drift_ratio"])
    expected = {("data_drift", "features", str(i)) for i in range(FEATURES)}
    expected |= {("data_drift", "length", "length")}
    expected |= {("cat_target_drift", "predictions", f"level {i}") for i in (1, 2, 3)}
    expected |= {
        ("cat_target_drift", "confidence", name)
        for name in ("confidence", "stopped_early", "estimated_accuracy")
    }
    assert {tuple(sorted(labels)) for labels in expected} <= signals
    assert {
        ("data_drift", "features"),
        ("data_drift", "length"),
        ("cat_target_drift", "predictions"),
        ("cat_target_drift", "confidence"),
    } == set(held["ktt_drift_detected"])
    assert all(math.isnan(value) for value in held["ktt_performance"].values())
    assert len(held["ktt_performance"]) == 3 + 3 + 3 + 3
    assert held["ktt_feedback_total"] == {("matched",): 0, ("waiting",): 0, ("unknown",): 0}
    for name in ("rows_received", "rows_refused", "calculations", "calculation_failures"):
        assert held[f"ktt_{name}_total"] == {(): 0}
    assert held["ktt_monitor_info"] == {("d", "m"): 1}
    assert held["ktt_reference_rows"] == {(): 300}


def test_metrics_tell_what_the_last_calculation_found(
    client: FlaskClient, monitor: Monitor, rng: np.random.Generator
) -> None:
    rows = Traffic(tree()).draw(rng, 120, noise=2.0)
    assert client.post("/iterate", json=body_of(rows)).json == {"received": 120}
    assert _one(client, "ktt_window_rows") == 0  # nothing is calculated in a request
    monitor.attempt()
    held = _metrics(client)
    assert held["ktt_window_rows"] == {(): 120}
    assert held["ktt_drift_detected"]["data_drift", "features"] == 1
    assert held["ktt_drift_detected"]["data_drift", "length"] == 0
    assert held["ktt_calculations_total"] == {(): 1}
    for labels, ratio in held["ktt_drift_ratio"].items():
        distance, threshold = (held[f"ktt_drift_{k}"][labels] for k in ("distance", "threshold"))
        assert ratio == pytest.approx(distance / threshold)
    shares = held["ktt_prediction_share"]
    tops = tree().ancestors[rows.classes, 0]
    assert shares["T1", "window"] == pytest.approx((tops == 1).mean())
    assert held["ktt_confidence_mean"]["window",] == pytest.approx(rows.confidence.mean())
    assert held["ktt_text_length_mean"]["window",] == pytest.approx(rows.length.mean())
    stopped = tree().inner[rows.classes].mean()
    assert held["ktt_stopped_early_share"]["window",] == pytest.approx(stopped)


def test_who_asks_at_once_gets_one_page_of_metrics(
    client: FlaskClient, monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = 0
    real = Metrics.collect

    def collect(metrics: Metrics) -> Iterator[Any]:
        nonlocal made
        made += 1
        return real(metrics)

    monkeypatch.setattr(Metrics, "collect", collect)
    arrived = {ARRIVED: time.monotonic()}
    pages = {client.get("/metrics", environ_overrides=arrived).text for _ in range(50)}
    assert (made, len(pages)) == (1, 1)
    monitor.metrics.received.inc(7)
    assert _one(client, "ktt_rows_received_total") == 7
    later = {ARRIVED: time.monotonic()}
    assert "ktt_rows_received_total 7.0" in client.get("/metrics", environ_overrides=later).text
    assert made == 3


def test_it_says_which_rows_its_figures_are_about_and_how_old_they_are(
    client: FlaskClient, monitor: Monitor, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Monitor, "alive", True)
    for first, came in ((0, 1_790_000_000.0), (50, 1_789_999_990.0)):  # the clock is set back
        clock = SimpleNamespace(time=lambda now=came: now)
        monkeypatch.setattr("monitor_window.time", clock)
        ids = [f"{first + row:032x}" for row in range(50)]
        client.post("/iterate", json=body_of(Traffic(tree()).draw(rng, 50), ids))
    clock = SimpleNamespace(time=lambda: 1_790_000_600.0, monotonic=time.monotonic)
    monkeypatch.setattr("monitor_service.time", clock)
    monitor.attempt()
    assert client.get("/healthz").text == (
        "ok: 100 rows from 2026-09-21 14:13:10 UTC to 2026-09-21 14:13:20 UTC, "
        "calculated 2026-09-21 14:23:20 UTC\n"
    )
    assert _one(client, "ktt_window_oldest_row_timestamp_seconds") == 1_789_999_990
    assert _one(client, "ktt_window_newest_row_timestamp_seconds") == 1_790_000_000
    assert _one(client, "ktt_last_calculation_timestamp_seconds") == 1_790_000_600
    assert _one(client, "ktt_calculation_period_seconds") == 60
    started = psutil.Process().create_time()
    assert _one(client, "process_start_time_seconds") == pytest.approx(started, abs=5)


def test_reports_say_what_they_are_about() -> None:
    about = span(1500, 0, 3600)
    assert about == "1,500 rows from 1970-01-01 00:00:00 UTC to 1970-01-01 01:00:00 UTC"
    page = with_line("<html><head></head><body>\n<div></div></body></html>", f"{about} & <b>")
    assert page.startswith("<html><head></head><body><p ")
    assert f">{about} &amp; &lt;b&gt;</p>\n<div></div></body></html>" in page


def test_a_report_is_made_once_and_again_after_two_minutes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = 0

    def make(reports: Reports, out: Path) -> bytes:
        nonlocal made
        made += 1
        return f"number {made}".encode()

    def shown() -> bytes:
        while (page := reports.page()) is None:
            time.sleep(0.01)
        return page

    monkeypatch.setattr(Reports, "_made", make)
    reports = Reports(folder, folder / "data")
    assert reports.page() is None
    assert [shown() for _ in range(3)] == [b"number 1"] * 3
    reports._made_at -= 121
    assert reports.page() is None
    assert shown() == b"number 2"


def _shown(reports: Reports) -> str:
    deadline = time.monotonic() + 60
    while (page := reports.page()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return page.decode()


def test_a_report_that_cannot_be_made_says_why(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    why = "The window cannot be read: unable to open database file"
    page = _shown(Reports(folder, folder / "<none>"))
    assert page == f"<!doctype html><meta charset=utf-8><p>The report failed: {why}."
    assert f"The report failed: {why}\n" in caplog.text
    (folder / "evidently.yaml").write_text("service: <b>\n")
    page = _shown(Reports(folder, folder / "data"))
    assert "The report failed: evidently.yaml needs a section &#x27;service:&#x27;" in page
    monkeypatch.setattr("tempfile.tempdir", str(folder / "none"))
    page = _shown(Reports(folder, folder / "data"))
    assert re.search(r"The report failed: FileNotFoundError at tempfile.py:\d+\.$", page)
    assert not (folder / "<none>").exists()


def test_a_calculation_that_fails_is_counted_and_the_next_one_works(
    client: FlaskClient,
    monitor: Monitor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail() -> None:
        raise RuntimeError(SECRET)

    with monkeypatch.context() as patch:
        patch.setattr(monitor.detector, "learn", fail)
        monitor.attempt()
    assert _one(client, "ktt_calculation_failures_total") == 1
    assert "RuntimeError at test_service.py" in caplog.text
    assert SECRET not in caplog.text
    monitor.attempt()
    assert _one(client, "ktt_calculations_total") == 1


def test_the_thread_calculates_at_once_and_ends_when_told(
    client: FlaskClient, monitor: Monitor
) -> None:
    assert client.get("/livez").status_code == client.get("/healthz").status_code == 503
    monitor.start()
    for path in ("/livez", "/healthz", "/readyz"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert answer.text.startswith("ok")
    for _ in range(600):
        if monitor.metrics.snapshot.number:
            break
        monitor._stop.wait(0.1)
    assert monitor.metrics.snapshot.number == 1
    monitor.stop()
    assert not monitor.alive
    assert "no rows, calculated 2" in monitor.state


def test_class_names_of_any_kind_are_labels(tmp_path: Path, rng: np.random.Generator) -> None:
    from monitor_metrics import text, top_shares

    names = [f'a"\\\n{index:03}' for index in range(60)]
    flat = Tree.from_dict({"classes": names, "level_sizes": [60], "parent_of": [list(range(60))]})
    rows = Traffic(tree()).draw(rng, 100)
    rows = Rows(
        classes=np.arange(100) % 60,
        features=rows.features,
        confidence=rows.confidence,
        length=rows.length,
    )
    shares = top_shares(rows, flat)
    assert len(shares) == 51
    assert shares["other"] == pytest.approx(0.1)
    assert sum(shares.values()) == pytest.approx(1)
    assert text("\ud800") == "?"


@pytest.mark.parametrize("named", [("other",), ("other", "(other)"), ("class 00",)])
def test_a_class_called_other_is_told_from_the_others(
    named: tuple[str, ...], rng: np.random.Generator
) -> None:
    from monitor_metrics import top_shares

    names = [*named, *(f"class {index:02}x" for index in range(60 - len(named)))]
    sorted_names = sorted(names)
    flat = Tree.from_dict({"classes": names, "level_sizes": [60], "parent_of": [list(range(60))]})
    rows = Traffic(tree()).draw(rng, 120)
    rows = Rows(
        classes=np.arange(120) % 60,
        features=rows.features,
        confidence=rows.confidence,
        length=rows.length,
    )
    shares = top_shares(rows, flat)
    (others,) = set(shares) - set(names)
    assert shares[others] == pytest.approx(10 / 60)
    assert all(shares[name] == pytest.approx(1 / 60) for name in sorted_names[:50])
    # the service gives them the same name
    metrics = ServiceMetrics(names, {"model": "m"})
    assert metrics.registry.get_sample_value("ktt_answers_total", {"top": others}) == 0


def test_classes_of_any_name_stand_apart_in_the_report(rng: np.random.Generator) -> None:
    from monitor_report import frame, frequent_classes

    tops = ["(others)", "(ends above)", *(f"class {index:02}" for index in range(40))]
    below = ["(ends above)", "(others)"]
    classes = Tree.from_dict(
        {
            "classes": [*tops, *below],
            "level_sizes": [len(tops), len(below)],
            "parent_of": [list(range(len(tops))), [2, 2]],
        }
    )
    nodes = np.repeat(np.arange(len(tops) + len(below)), np.r_[9, 9, [1] * 38, 3, 3, 5, 5])
    drawn = Traffic(tree()).draw(rng, len(nodes))
    rows = Rows(
        classes=nodes,
        features=drawn.features,
        confidence=drawn.confidence,
        length=drawn.length,
    )
    shown = frame(rows, classes, frequent_classes(rows, classes))
    first, second = shown["level 1"].value_counts(), shown["level 2"].value_counts()
    assert first["(others)"] == first["(ends above)"] == 9
    assert first.sum() == len(nodes)
    assert len(first) == 31  # thirty by name, and the others
    assert second["class 00 > (others)"] == second["class 00 > (ends above)"] == 5
    assert second.sum() == len(nodes)
    assert len(second) == 3


# -- rows -----------------------------------------------------------------------------------


def test_the_window_keeps_the_newest_rows_over_a_restart(
    client: FlaskClient, monitor: Monitor, folder: Path, rng: np.random.Generator
) -> None:
    rows = Traffic(tree()).draw(rng, 300)
    for start in range(0, 300, 60):
        ids = [f"{start + row:032x}" for row in range(60)]
        client.post("/iterate", json=body_of(rows.take(slice(start, start + 60)), ids))
    monitor.stop()
    again = _monitor(folder)
    kept = again.window.kept().rows
    again.stop()
    assert len(kept) == 120
    assert (kept.classes == rows.classes[180:]).all()
    assert kept.features == pytest.approx(rows.features[180:], rel=1e-5)
    assert kept.confidence == pytest.approx(rows.confidence[180:])
    assert (kept.length == rows.length[180:]).all()


def test_the_file_holds_no_more_than_it_should(
    client: FlaskClient, folder: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monitor_window.HISTORY", 200)
    rows = Traffic(tree()).draw(rng, 100)
    for batch in range(5):
        client.post("/iterate", json=body_of(rows, [f"{batch}-{row}" for row in range(100)]))
    with contextlib.closing(sqlite3.connect(folder / "data" / NAME)) as held:
        assert held.execute("SELECT count(*) FROM rows").fetchone() == (120,)
        assert held.execute("SELECT count(*), min(id) FROM answers").fetchone() == (200, "3-0")


def test_rows_that_come_twice_are_kept_once(
    client: FlaskClient, monitor: Monitor, rng: np.random.Generator
) -> None:
    body = body_of(Traffic(tree()).draw(rng, 10))
    assert client.post("/iterate", json=body).json == {"received": 10}
    assert client.post("/iterate", json=body).json == {"received": 10}
    assert len(monitor.window.kept().rows) == 10
    assert _one(client, "ktt_rows_received_total") == 10
    assert _one(client, "ktt_rows_repeated_total") == 10


def test_rows_without_names_have_the_reference_sets_columns(
    client: FlaskClient, monitor: Monitor, rng: np.random.Generator
) -> None:
    rows = Traffic(tree()).draw(rng, 5)
    ends = hierarchy().terminals.tolist()
    scores = scores_of(rows, ends)
    labels: list[Any] = [tree().labels[node] for node in rows.classes]
    labels[0], labels[1] = 0, None  # the scores say what was answered
    data = [
        [label, *features, *own]
        for label, features, own in zip(
            labels, rows.features.tolist(), scores.tolist(), strict=True
        )
    ]
    assert client.post("/iterate", json={"data": data}).json == {"received": 5}
    kept = monitor.window.kept().rows
    best = scores.argmax(axis=1)
    assert kept.classes[:2].tolist() == [ends[best[0]], ends[best[1]]]
    assert (kept.classes[2:] == rows.classes[2:]).all()
    assert kept.confidence == pytest.approx(scores.max(axis=1))
    assert np.isnan(kept.length).all()


def _broken() -> dict[str, Any]:
    rows = Traffic(tree()).draw(np.random.default_rng(1), 3)

    def changed(place: int, value: Any) -> bytes:
        body = body_of(rows)
        body["data"][1][place] = value
        return json.dumps(body).encode()

    def named(names: Any) -> bytes:
        return json.dumps({**body_of(rows), "columns": names}).encode()

    names = body_of(rows)["columns"]
    return {
        "no JSON": SECRET.encode(),
        "empty": b"",
        "a list": b"[]",
        "deep": b'{"data":' + b"[" * 100_000,
        "a huge number": b'{"data":' + b"1" * 100_000 + b"}",
        "not UTF-8": b'{"data": "\xff"}',
        "no data": b"{}",
        "data no list": b'{"data": {}}',
        "rows no lists": b'{"data": [1]}',
        "short rows": b'{"data": [[1, 2]]}',
        "unknown class": changed(0, SECRET),
        "class by number": changed(0, 5),
        "feature text": changed(1, SECRET),
        "feature null": changed(1, None),
        "feature true": changed(1, True),
        "feature NaN": changed(1, math.nan),
        "feature infinite": changed(1, math.inf),
        "feature beyond floats": changed(1, 10**400),
        "feature list": changed(1, []),
        "confidence 2": changed(FEATURES + 1, 2),
        "confidence NaN": changed(FEATURES + 1, math.nan),
        "confidence null": changed(FEATURES + 1, None),
        "length negative": changed(FEATURES + 2, -5),
        "length text": changed(FEATURES + 2, SECRET),
        "length beyond floats": changed(FEATURES + 2, 10**400),
        "scores number": changed(FEATURES + 3, 3),
        "scores empty": changed(FEATURES + 3, []),
        "scores many": changed(FEATURES + 3, [[0, 0.1]] * 40),
        "scores no pairs": changed(FEATURES + 3, [[1]]),
        "scores out of range": changed(FEATURES + 3, [[10_000, 0.1]]),
        "scores negative column": changed(FEATURES + 3, [[-1, 0.1]]),
        "scores float column": changed(FEATURES + 3, [[0.0, 0.1]]),
        "scores twice": changed(FEATURES + 3, [[0, 0.1], [0, 0.1]]),
        "scores probability": changed(FEATURES + 3, [[0, SECRET]]),
        "id number": changed(FEATURES + 4, 7),
        "id empty": changed(FEATURES + 4, ""),
        "id long": changed(FEATURES + 4, "a" * 65),
        "id surrogate": changed(FEATURES + 4, "\ud800"),
        "names no list": named(7),
        "names of lists": named([[]] * len(names)),
        "a name twice": named([*names[:-1], names[0]]),
        "an unknown name": named([*names[:-1], SECRET]),
        "a name too many": named([*names, "more"]),
        "a feature missing": named([name for name in names if name != "0"]),
    }


@pytest.mark.parametrize("name", _broken())
def test_a_malformed_body_is_refused_whole_in_one_line(
    name: str, client: FlaskClient, monitor: Monitor
) -> None:
    answer = client.post("/iterate", data=_broken()[name], content_type=JSON)
    assert answer.status_code == 400
    assert answer.mimetype == "text/plain"
    assert len(answer.text.splitlines()) == 1
    assert SECRET not in answer.text
    assert len(monitor.window.kept().rows) == 0
    assert _one(client, "ktt_rows_refused_total") >= 1


def test_other_requests_are_refused_in_one_line(client: FlaskClient) -> None:
    large = client.post("/iterate", data=b" " * (16 * 1024 * 1024 + 1), content_type=JSON)
    assert (large.status_code, large.text) == (413, "The body is larger than 16 MiB.\n")
    assert (client.get("/iterate").status_code, client.get("/").status_code) == (405, 404)
    assert client.get(f"/{SECRET}").text == "Not Found.\n"


# -- feedback -------------------------------------------------------------------------------


def test_feedback_switches_the_performance_monitors_on(
    client: FlaskClient, monitor: Monitor, rng: np.random.Generator
) -> None:
    rows = Traffic(tree()).draw(rng, 40)
    body = body_of(rows)
    client.post("/iterate", json=body)
    truth = rows.classes.copy()
    truth[:10] = np.roll(truth, 1)[:10]
    data = [
        {"request_id": row[-1], "path": list(tree().paths[node])}
        for row, node in zip(body["data"], truth, strict=True)
    ]
    assert client.post("/feedback", json={"data": data[:29]}).json == {"matched": 29, "waiting": 0}
    monitor.attempt()
    held = _metrics(client)
    assert held["ktt_window_labelled_rows"] == {(): 29}
    assert all(math.isnan(value) for value in held["ktt_performance"].values())
    for item in data[29:]:
        assert client.post("/feedback", json=item).json == {"matched": 1, "waiting": 0}
    monitor.attempt()
    figures = dict(_metrics(client)["ktt_performance"].items())
    right = truth == rows.classes
    assert figures["accuracy", "classification_performance"] == pytest.approx(right.mean())
    error = rows.confidence - right
    assert figures["mean_error", "regression_performance"] == pytest.approx(error.mean())
    assert not any(math.isnan(value) for value in figures.values())


def test_feedback_may_come_before_its_row_and_is_bounded(
    client: FlaskClient, monitor: Monitor, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monitor_window.WAITING", 5)
    body = body_of(Traffic(tree()).draw(rng, 10))
    path = list(tree().paths[20])
    items = [{"request_id": row[-1], "path": path} for row in body["data"]]
    answer = client.post("/feedback", json={"data": items}).json
    assert answer == {"matched": 0, "waiting": 5, "dropped": 5}
    again = client.post("/feedback", json=items[5]).json  # as new as the others from now on
    assert again == {"matched": 0, "waiting": 1}
    client.post("/iterate", json=body)
    labelled = monitor.window.labelled()
    assert labelled.true.tolist() == [20] * 5  # the five newest had waited
    assert _metrics(client)["ktt_feedback_total"] == {
        ("matched",): 5,
        ("waiting",): 6,
        ("unknown",): 5,
    }


def test_later_feedback_corrects_earlier(
    client: FlaskClient, monitor: Monitor, rng: np.random.Generator
) -> None:
    body = body_of(Traffic(tree()).draw(rng, 1))
    client.post("/iterate", json=body)
    for node in (20, 21):
        item = {"request_id": body["data"][0][-1], "path": list(tree().paths[node])}
        client.post("/feedback", json=item)
    assert monitor.window.labelled().true.tolist() == [21]


def test_true_labels_still_find_rows_that_have_left_the_window(
    client: FlaskClient, monitor: Monitor, rng: np.random.Generator
) -> None:
    rows = Traffic(tree()).draw(rng, 200)
    first = body_of(rows)
    client.post("/iterate", json=first)
    item = {"request_id": first["data"][0][-1], "path": list(tree().paths[20])}
    assert client.post("/feedback", json=item).json == {"matched": 1, "waiting": 0}


@pytest.mark.parametrize(
    "body",
    [
        SECRET,
        "[]",
        "{}",
        '{"data": 3}',
        '{"data": [3]}',
        '{"request_id": 3, "path": ["T0"]}',
        '{"request_id": "a"}',
        '{"request_id": "a", "path": "T0"}',
        '{"request_id": "a", "path": []}',
        '{"request_id": "a", "path": [3]}',
        '{"request_id": "", "path": ["T0"]}',
    ],
)
def test_malformed_feedback_is_refused(body: str, client: FlaskClient) -> None:
    answer = client.post("/feedback", data=body, content_type=JSON)
    assert (answer.status_code, answer.mimetype) == (400, "text/plain")
    assert SECRET not in answer.text


def test_feedback_for_an_unknown_path_is_counted_and_the_rest_kept(client: FlaskClient) -> None:
    known = {"request_id": "a", "path": list(tree().paths[20])}
    answer = client.post("/feedback", json={"data": [known, {**known, "path": [SECRET]}]})
    assert answer.json == {"matched": 0, "waiting": 1, "unknown": 1}
    assert _metrics(client)["ktt_feedback_total"]["unknown",] == 1


# -- the file -------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["noise", "cut", "empty", "not a window"])
def test_a_damaged_window_is_moved_aside(
    damage: str, folder: Path, rng: np.random.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    first = _monitor(folder)
    first.iterate(json.dumps(body_of(Traffic(tree()).draw(rng, 100))).encode())
    first.stop()
    path = folder / "data" / NAME
    held = path.read_bytes()
    if damage == "not a window":
        path.write_bytes(SECRET.encode() * 1000)
    else:
        path.write_bytes(
            {"noise": held[:4096] + b"x" * (len(held) - 4096), "cut": held[:9000], "empty": b""}[
                damage
            ]
        )
    again = _monitor(folder)
    rows = Traffic(tree()).draw(rng, 10)
    assert again.iterate(json.dumps(body_of(rows)).encode()) == 10
    assert len(again.window.kept().rows) == 10
    again.stop()
    if damage != "empty":
        assert path.with_name(f"{NAME}.damaged").exists()
        assert "a new window begun" in caplog.text


def test_another_models_window_is_moved_aside(
    folder: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    first = _monitor(folder)
    first.iterate(json.dumps(body_of(Traffic(tree()).draw(rng, 100))).encode())
    first.stop()
    values = json.loads((folder / "evidently.yaml").read_text())
    values["prediction"] = values["prediction"][::-1]  # columns in another order
    (folder / "evidently.yaml").write_text(json.dumps(values))
    again = _monitor(folder)
    assert len(again.window.kept().rows) == 0
    again.stop()
    assert (folder / "data" / f"{NAME}.other-model").exists()


def test_a_window_of_other_weights_is_moved_aside(
    folder: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    kept = []
    for checkpoint in ("best_1.pt", "best_1.pt", "best_2.pt"):
        named = {"model": "m", "dataset": "d", "checkpoint": checkpoint}
        (folder / "service.json").write_text(json.dumps(named))
        monitor = _monitor(folder)
        kept.append(len(monitor.window.kept().rows))
        monitor.iterate(json.dumps(body_of(Traffic(tree()).draw(rng, 10))).encode())
        monitor.stop()
    assert kept == [0, 10, 0]
    assert (folder / "data" / f"{NAME}.other-model").exists()


def test_a_window_of_another_format_is_moved_aside_and_called_that(
    folder: Path, rng: np.random.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder / "data" / NAME
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as old:  # its tables have other columns
        old.execute("CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
        old.execute("CREATE TABLE answers (seq INTEGER PRIMARY KEY, class INTEGER)")
        old.execute("INSERT INTO meta VALUES ('format', '1')")
        old.commit()
    monitor = _monitor(folder)
    body = json.dumps(body_of(Traffic(tree()).draw(rng, 10))).encode()
    assert monitor.iterate(body) == len(monitor.window.kept().rows) == 10
    monitor.stop()
    assert path.with_name(f"{NAME}.other-format").exists()
    assert "it is in format 1, not" in caplog.text
    assert "model" not in caplog.text


def test_a_full_disk_is_told_and_ends_by_itself(
    client: FlaskClient, monitor: Monitor, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = body_of(Traffic(tree()).draw(rng, 50))
    client.post("/iterate", json=body)
    monitor.attempt()

    def full(*_: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(monitor.window, "_trim", full)
        answer = client.post("/iterate", json=body)
        assert (answer.status_code, answer.mimetype) == (503, "text/plain")
        assert "disk is full" in answer.text
        monitor.attempt()  # what is there can still be read
        assert client.get("/metrics").status_code == 200
        assert _one(client, "ktt_window_rows") == 50
        assert _one(client, "ktt_window_writable") == 0
    more = body_of(Traffic(tree()).draw(rng, 5), [f"x{row}" for row in range(5)])
    assert client.post("/iterate", json=more).json == {"received": 5}
    assert _one(client, "ktt_window_writable") == 1
    assert len(monitor.window.kept().rows) == 55


def test_a_folder_that_cannot_be_written_stops_no_metrics(
    folder: Path, rng: np.random.Generator
) -> None:
    (folder / "file").write_text("")
    monitor = _monitor(folder, "file/data")
    with pytest.raises(NotKept):
        monitor.iterate(json.dumps(body_of(Traffic(tree()).draw(rng, 5))).encode())
    assert b"ktt_window_writable 0.0" in monitor.metrics.page()


# -- setting up -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "port", "listens"),
    [
        ("", "", "127.0.0.1:5001"),
        ("0.0.0.0", "80", "0.0.0.0:80"),
        ("::1", " 5077\n", "[::1]:5077"),
        ("[::]", "65535", "[::]:65535"),
        ("localhost", "05001", "localhost:05001"),
    ],
)
def test_where_it_listens(address: str, port: str, listens: str) -> None:
    environ = {"KTT_MONITOR_ADDRESS": address, "KTT_MONITOR_PORT": port}
    assert listen_address(environ) == listens


@pytest.mark.parametrize("port", ["0", "-1", "65536", "70000", "abc", "5001.0", "٥٠٠١", "9" * 5000])
def test_a_port_that_is_none_is_one_line(port: str) -> None:
    with pytest.raises(SetupError, match="KTT_MONITOR_PORT=.* is no port") as caught:
        listen_address({"KTT_MONITOR_PORT": port})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window_size": 50, "min_reference_size": 100}, "Raise window_size"),
        ({"moving_reference": True}, "moving_reference must be false"),
        ({"use_reference": False}, "use_reference must be true"),
        ({"monitors": ["data_drift", "datadrift"]}, "unknown monitor 'datadrift'. Known: data_"),
        ({"monitors": "data_drift"}, "'monitors' is a list"),
        ({"windowsize": 50}, "unknown key 'windowsize'. Known: calculation_"),
        ({"window_size": "many"}, "window_size is 'many'; it must be a whole number"),
        ({"window_size": True}, "window_size is True"),
        ({"calculation_period_sec": 0}, "calculation_period_sec is 0"),
        ({"false_alarm_rate": 2}, "false_alarm_rate is 2"),
        ({"reference_path": "absent.parquet"}, "train.py -r"),
        ({"reference_path": 3}, "reference_path must be"),
    ],
)
def test_wrong_settings_are_one_line_that_names_the_fix(
    settings: dict[str, Any], message: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    folder = write_folder(tmp_path, Traffic(tree()).draw(rng, 30), **settings)
    with pytest.raises(SetupError) as caught:
        load_setup(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "service:", "a: [", "!!python/object:os.system x"])
def test_settings_that_are_no_settings(text: str, folder: Path) -> None:
    (folder / "evidently.yaml").write_text(text)
    with pytest.raises(SetupError, match=r"evidently\.yaml"):
        load_setup(folder)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"classes": ["a"], "level_sizes": [2]}'])
def test_a_tree_that_is_none(text: str, folder: Path) -> None:
    (folder / "hierarchy.json").write_text(text)
    with pytest.raises(SetupError, match=r"hierarchy\.json"):
        load_setup(folder)


def test_a_tree_of_another_model_is_told(folder: Path) -> None:
    known = json.loads((folder / "hierarchy.json").read_text())
    known["classes"][-1] = "another"
    (folder / "hierarchy.json").write_text(json.dumps(known))
    with pytest.raises(SetupError, match="belong together"):
        load_setup(folder)


def test_old_reference_sets_say_by_their_scores_what_was_answered(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    rows = Traffic(tree()).draw(rng, 600)
    rows = Rows(
        classes=rows.classes,
        features=rows.features,
        confidence=np.maximum(rows.confidence, 0.2),
        length=rows.length,
    )
    setup = load_setup(write_folder(tmp_path, rows, new=False))
    assert (setup.reference.classes == rows.classes).all()
    assert setup.reference.confidence == pytest.approx(rows.confidence)
    assert np.isnan(setup.reference.length).all()


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("0", [None] + [1.0] * 59, "no finite number"),
        ("0", ["1"] * 60, "does not hold numbers"),
        ("confidence", [2.0] * 60, "no probability"),
        ("predicted", ["another"] * 60, "no class of"),
        ("targets", [3] * 60, "no class of"),
        ("more", [0.5] * 60, "belong together"),
    ],
)
def test_a_wrong_reference_set_is_one_line_that_names_the_fix(
    column: str, values: list[Any], message: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    folder = write_folder(tmp_path, Traffic(tree()).draw(rng, 60))
    table = pq.read_table(folder / "references.parquet")
    if column in table.column_names:
        table = table.set_column(table.column_names.index(column), column, pa.array(values))
    else:
        table = table.append_column(column, pa.array(values))
        settings = json.loads((folder / "evidently.yaml").read_text())
        del settings["prediction"]
        (folder / "evidently.yaml").write_text(json.dumps(settings))
    pq.write_table(table, folder / "references.parquet")
    with pytest.raises(SetupError, match=message):
        load_setup(folder)


def test_lengths_may_be_missing(tmp_path: Path, rng: np.random.Generator) -> None:
    folder = write_folder(tmp_path, Traffic(tree()).draw(rng, 60))
    table = pq.read_table(folder / "references.parquet")
    place = table.column_names.index("length")
    lengths = pa.array([None, *range(59)], pa.int32())
    pq.write_table(table.set_column(place, "length", lengths), folder / "references.parquet")
    found = load_setup(folder).reference.length
    assert np.isnan(found[0])
    assert found[1:].tolist() == list(range(59))


def test_the_service_does_without_pandas_and_evidently(folder: Path) -> None:
    """They are large, and slow to import: only the report's own process has them."""
    code = (
        "import sys, pathlib; from monitor_app import create_app; import monitor_service;"
        "app = create_app(pathlib.Path(sys.argv[1])); m = app.extensions['monitor']; m.calculate();"
        "m.stop(); print(sorted({'pandas', 'evidently', 'scipy', 'sklearn'} & set(sys.modules)))"
    )
    source = PROJECT_ROOT / "templates" / "monitoring"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=source,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
    # not in the folder itself, which the next export replaces
    assert (folder.parent / "monitoring-data" / NAME).exists()
    assert not (folder / "data").exists()


def test_the_trees_of_model_and_monitor_are_the_same() -> None:
    known, ours = hierarchy(), tree()
    assert list(ours.labels) == [known.label(node) for node in range(known.class_count)]
    assert (ours.parents == known.parents_global).all()
    assert (ours.levels == known.levels).all()
    assert (np.flatnonzero(~ours.inner) == known.leaves).all()
    odd = Tree.from_dict(
        {
            "classes": ["a > b", "7", "c\\", "7"],
            "level_sizes": [2, 2],
            "parent_of": [[0, 1], [0, 0]],
        }
    )
    assert odd.labels == ("a \\> b", "7", "a \\> b > c\\\\", "a \\> b > 7")
    assert odd.class_of_column("> 7") == 1
    assert odd.class_of_column("a \\> b > 7") == 3
