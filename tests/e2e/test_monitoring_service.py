"""The monitoring service as it is left running: gunicorn, kill -9, hostile and slow clients.

Runs in the environment of the tests, whose packages suffice for the service; what needs Evidently
(the report) runs in one made from templates/monitoring/requirements.txt, or in that of
``KTT_MONITOR_PYTHON``.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitor_performance import classification, forecast, probabilities
from monitor_window import Labelled
from monitor_wire import Columns
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
from utils.serving.local_server import Reply, Server, free_port

pytestmark = pytest.mark.slow

SOURCE = PROJECT_ROOT / "templates" / "monitoring"
SECRET = "zebrafish"
HEALTHY_WITHIN = 180.0


class Service:
    """The service in a process group of its own."""

    def __init__(self, folder: Path, python: str = sys.executable) -> None:
        self.folder, self.python = folder, python
        self.server = Server(port=free_port(), log=folder / "console.log", home=folder)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it is healthy."""
        env = {**os.environ, "KTT_MONITOR_PORT": str(self.server.port)}
        env.pop("PYTHONPATH", None)
        argv = [self.python, "-m", "gunicorn", "-c", "gunicorn.conf.py", "monitoring:app"]
        with self.server.log.open("ab") as log:
            self.process = subprocess.Popen(
                argv, cwd=self.folder, env=env, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + HEALTHY_WITHIN
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.server.get("/healthz").status == 200:
                    return
            time.sleep(0.1)
        raise RuntimeError(f"The service did not come up:\n{self.log[-4000:]}")

    def end(self, sign: int) -> int:
        """End it by a signal to all its processes; its exit status."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, sign)
        return self.process.wait(120)

    @property
    def log(self) -> str:
        """What it has written."""
        return self.server.log.read_text(errors="replace")

    def metric(self, name: str) -> float:
        """A metric without labels."""
        (line,) = [x for x in self.server.get("/metrics").text.splitlines() if x.startswith(name)]
        return float(line.split()[-1])

    def wait_for(self, name: str, value: float) -> None:
        """Wait until a metric has at least a value."""
        deadline = time.monotonic() + 180
        while self.metric(name) < value:
            assert time.monotonic() < deadline, f"{name} never reached {value}"
            time.sleep(0.2)


def _folder(path: Path, **changes: Any) -> Path:
    shutil.copytree(SOURCE, path, ignore=shutil.ignore_patterns("__pycache__"))
    values = {"window_size": 200, "min_reference_size": 50, "calculation_period_sec": 1, **changes}
    return write_folder(path, Traffic(tree()).draw(np.random.default_rng(0), 400), **values)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    made = Service(_folder(tmp_path_factory.mktemp("service") / "monitoring"))
    made.start()
    yield made
    made.end(signal.SIGKILL)


def _ids(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def test_the_window_outlives_kill_9(tmp_path: Path, rng: np.random.Generator) -> None:
    made = Service(_folder(tmp_path / "monitoring"))
    made.start()
    rows = Traffic(tree()).draw(rng, 300)
    for start in range(0, 300, 50):
        body = body_of(rows.take(slice(start, start + 50)), _ids(f"{start}-", 50))
        assert made.server.ask("/iterate", body).status == 200
    # Killed while rows are being taken: what was answered with 200 is kept.
    more = Traffic(tree()).draw(rng, 20)
    with ThreadPoolExecutor(2) as pool:
        sent = [
            pool.submit(_kept, made.server, body_of(more, _ids(f"last{k}-", 20))) for k in range(40)
        ]
        assert sent[0].result()
        made.end(signal.SIGKILL)
    made.start()
    made.wait_for("ktt_calculations_total", 1)
    made.wait_for("ktt_window_rows", 200)
    again = made.server.ask("/iterate", body_of(more, _ids("last0-", 20)))
    assert again.status == 200
    assert made.metric("ktt_rows_received_total") == 0
    assert made.end(signal.SIGTERM) == 0
    assert "Traceback" not in made.log


def _kept(server: Server, body: dict[str, Any]) -> bool:
    try:
        return server.ask("/iterate", body).status == 200
    except (OSError, http.client.HTTPException):  # none, or cut off by the kill
        return False


def test_answers_stay_quick_while_it_calculates(service: Service, rng: np.random.Generator) -> None:
    body = body_of(Traffic(tree()).draw(rng, 64))

    def ask(number: int) -> float:
        for row in body["data"]:
            row[-1] = f"{number}-{row[-1][:20]}"
        started = time.monotonic()
        assert service.server.ask("/iterate", body).status == 200
        assert service.server.get("/metrics").status == 200
        return time.monotonic() - started

    with ThreadPoolExecutor(4) as pool:
        times = sorted(pool.map(ask, range(100)))
    assert times[95] < 20


# -- hostile clients ------------------------------------------------------------------------

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=True)
    | st.sampled_from([0, 1, 0.5, "T0", "T0 > K00 > L000", "0", "targets", SECRET])
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=20,
)
keys = st.sampled_from(["data", "columns", "request_id", "path", "more"])


@st.composite
def changed_bodies(draw: st.DrawFn) -> bytes:
    """A right body with a few values replaced."""
    body = body_of(Traffic(tree()).draw(np.random.default_rng(draw(st.integers(0, 99))), 3))
    for _ in range(draw(st.integers(1, 3))):
        row = body["data"][draw(st.integers(0, 2))]
        row[draw(st.integers(0, len(row) - 1))] = draw(json_values)
    return json.dumps(body).encode("utf-8", "surrogatepass")


bodies = (
    changed_bodies()
    | st.dictionaries(keys, json_values).map(lambda v: json.dumps(v).encode())
    | json_values.map(lambda v: json.dumps(v).encode())
    | st.binary(max_size=200)
    | st.integers(1, 60_000).map(lambda deep: b'{"data":' + b"[" * deep)
)
FUZZ = settings(
    max_examples=400,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def _no_failure(answer: Reply) -> None:
    assert answer.status < 500, answer.text
    if answer.status >= 400:
        assert "<" not in answer.text
        assert len(answer.text.splitlines()) <= 1  # none after HEAD
        assert "Traceback" not in answer.text
        assert SECRET not in answer.text


@FUZZ
@given(body=bodies, path=st.sampled_from(["/iterate", "/feedback"]))
def test_no_body_breaks_it(service: Service, body: bytes, path: str) -> None:
    answer = service.server.request(path, body, {"Content-Type": "application/json"})
    assert answer.status in (200, 400)
    _no_failure(answer)


@settings(FUZZ, max_examples=150)
@given(
    path=st.sampled_from(["iterate", "feedback", "metrics", "healthz", "livez", "readyz", "", "x"])
    | st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30),
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "FOO"]),
    body=st.none() | st.binary(max_size=50),
    headers=st.dictionaries(
        st.sampled_from(["Content-Type", "Accept", "X-Y", "Content-Encoding", "Cookie", "Expect"]),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20),
        max_size=3,
    ),
)
def test_no_request_breaks_it(
    service: Service, path: str, method: str, body: bytes | None, headers: dict[str, str]
) -> None:
    answer = service.server.request(f"/{path}", body, headers, method)
    _no_failure(answer)


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET " + b"a" * 9000 + b" HTTP/1.1\r\n\r\n",
        b"POST /iterate HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"POST /iterate HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    ],
    ids=["version", "TLS", "long line", "negative length", "chunks", "many headers"],
)
def test_what_is_no_http_is_refused(service: Service, raw: bytes) -> None:
    with socket.create_connection(("127.0.0.1", service.server.port), 30) as client:
        client.sendall(raw)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := client.recv(65536):
            answer += piece
    assert b"html" not in answer
    assert b"Traceback" not in answer
    assert not answer or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4"))
    assert service.server.get("/healthz").status == 200


def test_bodies_in_chunks_are_limited_too(service: Service) -> None:
    head = b"POST /iterate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    head += b"Transfer-Encoding: chunked\r\n\r\n"
    piece = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    with socket.create_connection(("127.0.0.1", service.server.port), 60) as client:
        with contextlib.suppress(OSError):  # it need not read to the end
            client.sendall(head + piece * 17 + b"0\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 413")


def test_slow_clients_hold_up_nobody(service: Service) -> None:
    head = b"POST /iterate HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{"
    with contextlib.ExitStack() as stack:
        address = ("127.0.0.1", service.server.port)
        clients = [stack.enter_context(socket.create_connection(address, 60)) for _ in range(150)]
        for number, client in enumerate(clients):
            client.sendall([head, head[:30]][number % 2])
        for _ in range(4):
            started = time.monotonic()
            assert service.server.get("/healthz").status == 200
            assert service.server.get("/metrics").status == 200
            assert time.monotonic() - started < 2
            assert not select.select(clients, [], [], 0)[0]  # it has given up none of them yet
            for client in clients:
                client.sendall(b" ")
            time.sleep(1)
        for client in clients:
            assert client.recv(1000).startswith(b"HTTP/1.1 408")


def test_it_went_on_all_the_time(service: Service) -> None:
    assert service.metric("ktt_calculation_failures_total") == 0
    assert "A request failed" not in service.log
    assert SECRET not in service.log
    before = service.metric("ktt_calculations_total")
    service.wait_for("ktt_calculations_total", before + 2)


# -- setting up -----------------------------------------------------------------------------


def test_wrong_settings_end_it_with_one_line(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "monitoring", window_size=30)
    made = Service(folder)
    with pytest.raises(RuntimeError, match="did not come up"):
        made.start()
    lines = [line for line in made.log.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1
    assert "Raise window_size" in lines[0]
    assert "Traceback" not in made.log


# -- Evidently ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Python of an environment made from the service's own requirements."""
    if given_python := os.environ.get("KTT_MONITOR_PYTHON"):
        return given_python
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    requirements = str(SOURCE / "requirements.txt")
    subprocess.run([python, "-m", "pip", "install", "-q", "-r", requirements], check=True)
    subprocess.run([python, "-m", "pip", "check"], check=True)
    return python


@pytest.mark.timeout(900)
def test_evidentlys_report_is_shown(python: str, tmp_path: Path, rng: np.random.Generator) -> None:
    made = Service(_folder(tmp_path / "monitoring"), python)
    made.start()
    try:
        made.server.ask("/iterate", body_of(Traffic(tree()).draw(rng, 120, noise=1.0)))
        made.wait_for("ktt_window_rows", 120)
        assert made.server.get("/report").status == 202
        deadline = time.monotonic() + 600
        while (answer := made.server.get("/report")).status == 202:
            assert time.monotonic() < deadline
            assert made.server.get("/metrics").status == 200
            time.sleep(1)
        assert answer.status == 200
        page = answer.text
        assert all(name in page for name in ("level 1", "confidence", "length", "feature 0"))
        assert re.search(r"<p [^>]*>120 rows from 2.* UTC to 2.* UTC, compared with 400 of", page)
        assert re.search(r"Calculated 2.* UTC\.</p>", page)
        assert "sandbox" in answer.headers["Content-Security-Policy"]
    finally:
        made.end(signal.SIGKILL)


EVIDENTLY = """
import json, sys
import pandas as pd
from evidently import DataDefinition, Dataset, MulticlassClassification, Regression, Report
from evidently.metrics import MAE, RMSE, Accuracy, F1Score, LogLoss, MeanError, RocAuc
given = json.load(sys.stdin)
frame = pd.DataFrame(given["scores"], columns=given["labels"])
frame["true"], frame["found"] = given["true"], given["found"]
definition = DataDefinition(classification=[MulticlassClassification(
    target="true", prediction_labels="found", prediction_probas=given["labels"])])
report = Report([Accuracy(), F1Score(), LogLoss(), RocAuc()])
first = report.run(Dataset.from_pandas(frame, data_definition=definition), None).dict()
numbers = pd.DataFrame({"right": given["right"], "sure": given["sure"]})
definition = DataDefinition(
    numerical_columns=["right", "sure"], regression=[Regression(target="right", prediction="sure")])
report = Report([MeanError(), MAE(), RMSE()])
second = report.run(Dataset.from_pandas(numbers, data_definition=definition), None).dict()
values = [metric["value"] for metric in first["metrics"] + second["metrics"]]
print(json.dumps([value["mean"] if isinstance(value, dict) else value for value in values]))
"""


@pytest.mark.timeout(900)
def test_our_figures_are_evidentlys(python: str, rng: np.random.Generator) -> None:
    classes = tree()
    ends = hierarchy().terminals[:5].tolist()
    columns = Columns(tree=classes, features=FEATURES, classes=tuple(ends))
    predicted, true = (rng.choice(ends, 200) for _ in range(2))
    true = np.where(rng.random(200) < 0.6, predicted, true)
    rows = Traffic(classes).draw(rng, 200)
    sure = np.maximum(rows.confidence, 0.3)
    full = scores_of(
        type(rows)(classes=predicted, features=rows.features, confidence=sure, length=rows.length),
        ends,
    )
    full += rng.random(full.shape) * 0.02
    full /= full.sum(axis=1, keepdims=True)
    labelled = Labelled(
        predicted=predicted,
        true=true,
        confidence=sure,
        scores=tuple(tuple(enumerate(row)) for row in full.tolist()),
    )
    given_values = {
        "labels": [classes.labels[node] for node in ends],
        "scores": full.tolist(),
        "true": [classes.labels[node] for node in true],
        "found": [classes.labels[node] for node in predicted],
        "right": (true == predicted).astype(float).tolist(),
        "sure": sure.tolist(),
    }
    done = subprocess.run(
        [python, "-W", "ignore", "-c", EVIDENTLY],
        input=json.dumps(given_values),
        capture_output=True,
        text=True,
        env={**os.environ, "DO_NOT_TRACK": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = json.loads(done.stdout.splitlines()[-1])
    first, second, third = (
        classification(labelled, classes),
        probabilities(labelled, columns),
        forecast(labelled),
    )
    ours = [
        first["accuracy"],
        first["macro_f1"],
        second["log_loss"],
        second["roc_auc"],
        third["mean_error"],
        third["mean_absolute_error"],
        third["root_mean_squared_error"],
    ]
    assert theirs == pytest.approx(ours, abs=1e-6)
