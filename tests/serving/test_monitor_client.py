"""What reaches the monitor, what is lost when it is away, and that nobody waits for it."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from utils.common.errors import UserError
from utils.inference.classifier import Observed
from utils.serving import monitor_client
from utils.serving.connection import Connection, monitor_address, monitor_token
from utils.serving.monitor_client import Reporter, Settings, rows_body

LABELS = ["A", "A > B", 'C "quoted" 100%', "D > é\\n"]
FAST = Settings(interval=0.05, timeout=60, first_wait=0.05, longest_wait=0.2, batch=50, limit=1000)
ROWS_SENT, ROWS_DROPPED, ROWS_REFUSED = (
    ("rows", outcome) for outcome in ("sent", "dropped", "refused")
)


class Monitor:
    """A small HTTP server that does as told: works, hangs, or answers with a status."""

    def __init__(self, port: int = 0) -> None:
        self.status, self.hangs = 200, threading.Event()
        self.release = threading.Event()
        self.rows: list[list[Any]] = []
        self.feedback: list[dict[str, Any]] = []
        self.sizes: list[int] = []
        self.tokens: set[str | None] = set()
        self.connections = self.requests = self.hanging = 0
        self._open: set[socket.socket] = set()
        monitor = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                monitor.connections += 1
                monitor._open.add(self.request)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                monitor.requests += 1
                monitor.tokens.add(self.headers["Authorization"])
                if monitor.hangs.is_set():
                    monitor.hanging += 1
                    monitor.release.wait(120)
                    monitor.hanging -= 1
                    self.close_connection = True
                    return
                if monitor.status == 200:
                    monitor.take(self.path, json.loads(body))
                self.send_response(monitor.status)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_port = True  # of `kept`

            def handle_error(self, *_: Any) -> None:
                """Clients that have gone are no news."""

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def take(self, path: str, document: dict[str, Any]) -> None:
        if path == "/iterate":
            self.sizes.append(len(document["data"]))
            self.rows += document["data"]
        else:
            self.feedback += document["data"]

    def stop(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()


@contextlib.contextmanager
def kept(port: int) -> Iterator[None]:
    """Let nobody else have a port while no monitor listens on it."""
    with socket.socket() as placeholder:
        placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        placeholder.bind(("127.0.0.1", port))
        yield


@pytest.fixture
def monitor() -> Iterator[Monitor]:
    running = Monitor()
    yield running
    running.stop()


class Tally:
    """A meter that only remembers."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.queued = 0

    def count(self, kind: str, outcome: str, number: int) -> None:
        """Add to a counter."""
        self.counts[kind, outcome] += number

    def waiting(self, number: int) -> None:
        """Set the length of the queue."""
        self.queued = number


Make = Callable[..., tuple[Reporter, Tally]]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Reporter] = []

    def start(port: int, settings: Settings = FAST) -> tuple[Reporter, Tally]:
        tally = Tally()
        made.append(Reporter(("127.0.0.1", port), LABELS, tally, settings))
        return made[-1], tally

    yield start
    for reporter in made:
        reporter.close()


def observed(rows: int, seed: int = 0, features: int = 3) -> Observed:
    rng = np.random.default_rng(seed)
    probs = np.sort(rng.random((rows, 4), dtype=np.float32), axis=1)[:, ::-1]
    return Observed(
        features=rng.normal(size=(rows, features)).astype(np.float32),
        top=rng.permuted(np.tile(np.arange(4, dtype=np.int32), (rows, 1)), axis=1),
        probs=probs,
        lengths=rng.integers(1, 1000, rows).astype(np.int32),
        stopped_early=np.zeros(rows, dtype=bool),
    )


def offer(reporter: Reporter, batches: int, rows: int = 10, first: int = 0) -> None:
    for number in range(batches):
        names = [f"{first + number * rows + place:032x}" for place in range(rows)]
        reporter.offer(observed(rows, seed=number), names)


def until(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.01)


def ids(monitor: Monitor) -> list[int]:
    return [int(row[-1], 16) for row in monitor.rows]


# -- the wire format ----------------------------------------------------------------------


def test_a_body_has_the_columns_of_the_wire_format() -> None:
    batch, other = observed(3), observed(2, seed=1)
    rows = [(batch, 1, "b" * 32), (batch, 2, "c" * 32), (other, 0, 'odd"id')]
    body = json.loads(rows_body(rows, [json.dumps(label) for label in LABELS]))
    assert body["columns"] == ["targets", "0", "1", "2", "confidence", "length", "scores", "id"]
    for row, (source, place, name) in zip(body["data"], rows, strict=True):
        best = source.top[place]
        assert row[0] == LABELS[best[0]]
        np.testing.assert_allclose(row[1:4], source.features[place], rtol=1e-5)
        assert row[4] == pytest.approx(float(source.confidence[place]), rel=1e-5)
        assert row[5] == source.lengths[place]
        assert [code for code, _ in row[6]] == best.tolist()
        np.testing.assert_allclose([prob for _, prob in row[6]], source.probs[place], rtol=1e-5)
        assert row[7] == name


def test_features_arrive_as_the_32_bit_floats_that_they_are() -> None:
    batch = observed(1, features=5)
    batch.features[:] = [np.nan, np.inf, -np.inf, 0.123456789, 1e-20]
    data = json.loads(rows_body([(batch, 0, "x")], LABELS and ['"A"'] * 4))["data"][0]
    assert all(isinstance(value, int | float) and np.isfinite(value) for value in data[1:6])
    assert np.float32(data[4]) == batch.features[0, 3]
    assert len(str(data[4])) <= 11


# -- a monitor that works -----------------------------------------------------------------


def test_every_row_arrives_once_and_in_order(monitor: Monitor, make: Make) -> None:
    reporter, tally = make(monitor.port)
    offer(reporter, 42)
    until(lambda: len(monitor.rows) >= 420)
    assert ids(monitor) == list(range(420))
    assert max(monitor.sizes) <= FAST.batch
    until(lambda: tally.queued == 0)
    assert tally.counts == {ROWS_SENT: 420}
    assert monitor.connections == 1  # kept alive


def test_wide_rows_are_sent_in_bodies_that_the_monitor_takes(
    monitor: Monitor, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor_client, "BODY_VALUES", 25)
    reporter, tally = make(monitor.port)
    offer(reporter, 1, rows=3)
    until(lambda: len(monitor.rows) == 3)
    reporter.offer(observed(5, features=10), list("abcde"))
    until(lambda: len(monitor.rows) == 8)
    assert monitor.sizes == [3, 2, 2, 1]
    until(lambda: tally.counts == {ROWS_SENT: 8})


def test_one_row_does_not_wait_for_others(monitor: Monitor, make: Make) -> None:
    reporter, _ = make(monitor.port)
    offer(reporter, 1, rows=1)
    until(lambda: len(monitor.rows) == 1)


def test_a_connection_that_was_closed_meanwhile_costs_no_row(monitor: Monitor, make: Make) -> None:
    reporter, tally = make(monitor.port)
    offer(reporter, 1)
    until(lambda: len(monitor.rows) == 10)
    for connection in monitor._open:
        connection.shutdown(socket.SHUT_RDWR)
    offer(reporter, 1, first=10)
    until(lambda: len(monitor.rows) == 20)
    assert ids(monitor) == list(range(20))
    until(lambda: tally.counts == {ROWS_SENT: 20})
    assert monitor.connections == 2


def test_feedback_follows_its_row(monitor: Monitor, make: Make) -> None:
    reporter, tally = make(monitor.port)
    offer(reporter, 1, rows=1)
    reporter.offer_feedback("0" * 32, ("A", "B"))
    until(lambda: len(monitor.feedback) == 1)
    assert monitor.feedback == [{"request_id": "0" * 32, "path": ["A", "B"]}]
    assert ids(monitor) == [0]
    until(lambda: tally.counts == {ROWS_SENT: 1, ("feedback", "sent"): 1})


# -- a monitor that does not --------------------------------------------------------------


@pytest.mark.parametrize("fault", ["500", "hang", "404 gateway"])
def test_rows_wait_while_it_fails_and_flow_again_by_themselves(
    monitor: Monitor, make: Make, fault: str
) -> None:
    reporter, tally = make(monitor.port, replace(FAST, timeout=1))
    if fault == "hang":
        monitor.hangs.set()
    else:
        monitor.status = 503
    offer(reporter, 20)
    until(lambda: monitor.requests >= 2)
    assert monitor.rows == []
    assert tally.counts == {}
    assert tally.queued == 200
    monitor.hangs.clear()
    monitor.release.set()
    monitor.status = 200
    until(lambda: tally.counts == {ROWS_SENT: 200})
    assert list(dict.fromkeys(ids(monitor))) == list(range(200))
    # of an answer that takes longer than the time-out nothing is known: it is asked for again
    assert fault == "hang" or len(monitor.rows) == 200


def test_a_monitor_that_starts_later_and_one_that_restarts(monitor: Monitor, make: Make) -> None:
    with kept(monitor.port):
        monitor.stop()
        reporter, tally = make(monitor.port)
        offer(reporter, 3)
        time.sleep(0.3)
        assert tally.queued == 30
        for turn in (1, 2):
            again = Monitor(monitor.port)
            until(lambda: len(again.rows) == 30)  # noqa: B023
            until(lambda: tally.counts == {ROWS_SENT: 30 * turn})  # noqa: B023
            again.stop()
            offer(reporter, 3)


def test_a_full_queue_drops_the_oldest_and_counts_them(monitor: Monitor, make: Make) -> None:
    reporter, tally = make(monitor.port)
    monitor.status = 500
    offer(reporter, 150)
    until(lambda: monitor.requests >= 2)  # some were in flight, and have come back
    offer(reporter, 1, first=1500)
    until(lambda: tally.counts == {ROWS_DROPPED: 510})
    assert tally.queued <= FAST.limit
    monitor.status = 200
    until(lambda: len(monitor.rows) >= 1000)
    found = ids(monitor)
    assert found == sorted(set(found))
    # a batch that was being sent when there were too many is kept
    assert found[FAST.batch :] == list(range(510 + FAST.batch, 1510))
    until(lambda: tally.counts == {ROWS_DROPPED: 510, ROWS_SENT: 1000})


def test_refused_rows_are_counted_and_not_sent_again(monitor: Monitor, make: Make) -> None:
    reporter, tally = make(monitor.port)
    monitor.status = 400
    offer(reporter, 3)
    until(lambda: tally.counts == {ROWS_REFUSED: 30})
    monitor.status = 200
    offer(reporter, 1, first=30)
    until(lambda: len(monitor.rows) == 10)
    assert ids(monitor) == list(range(30, 40))


@pytest.mark.parametrize("status", [408, 429, 503])
def test_rows_that_cannot_be_taken_now_are_sent_again(
    monitor: Monitor, make: Make, status: int
) -> None:
    reporter, tally = make(monitor.port)
    monitor.status = status
    offer(reporter, 3)
    until(lambda: monitor.requests > 2)
    assert not tally.counts
    monitor.status = 200
    until(lambda: tally.counts == {ROWS_SENT: 30})


@pytest.mark.parametrize("drop", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_an_answer_that_comes_in_drops_has_an_end(drop: bytes) -> None:
    """Each drop comes in time, and there is always another."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            client, _ = server.accept()
            with client, contextlib.suppress(OSError):
                for _ in range(500):
                    client.sendall(drop)
                    time.sleep(0.02)

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        connection = Connection(("127.0.0.1", server.getsockname()[1]), timeout=0.2, token="")
        started = time.monotonic()
        with pytest.raises((OSError, http.client.HTTPException)):
            connection.post("/iterate", b"{}")
        assert time.monotonic() - started < 5  # of the 10 s that it drips
        thread.join()


def test_offering_takes_no_time_while_it_hangs(monitor: Monitor, make: Make) -> None:
    reporter, _ = make(monitor.port, replace(FAST, flush=0.1))
    monitor.hangs.set()
    batch, names = observed(64), ["0" * 32] * 64
    reporter.offer(batch, names)
    until(lambda: monitor.hanging == 1)
    taken = []
    for _ in range(300):
        start = time.perf_counter()
        reporter.offer(batch, names)
        taken.append(time.perf_counter() - start)
        time.sleep(0.001)
    assert monitor.hanging == monitor.requests == 1  # still: nobody has waited for it
    assert np.median(taken) < 0.01


def test_a_name_that_resolves_slowly_or_not_at_all_costs_rows_and_no_time(
    monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve, found, offered = socket.getaddrinfo, threading.Event(), threading.Event()
    asked: list[str] = []

    def slow(host: str, *rest: Any, **more: Any) -> Any:
        asked.append(host)
        offered.wait(120)
        if not found.is_set():
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return resolve("127.0.0.1", *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    tally = Tally()
    reporter = Reporter(("monitor.example", monitor.port), LABELS, tally, FAST)
    offer(reporter, 1)
    until(lambda: bool(asked))
    for first in range(10, 3010, 30):
        offer(reporter, 1, 30, first)
    assert asked == ["monitor.example"]  # which is still looked for: nobody has waited
    offered.set()
    until(lambda: len(asked) > 2)
    until(lambda: tally.counts == {ROWS_DROPPED: 3010 - FAST.limit})
    found.set()
    until(lambda: len(monitor.rows) == FAST.limit)
    reporter.close()


def test_attempts_become_rarer(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[float] = []
    pauses: list[float] = []

    class Closed(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            pauses.append(timeout or 0)
            return super().wait(timeout)

    def refuse(*_: Any, **__: Any) -> None:
        attempts.append(time.monotonic())
        raise ConnectionRefusedError

    monkeypatch.setattr(http.client.HTTPConnection, "connect", refuse)
    reporter, _ = make(1, Settings(interval=0.01, first_wait=0.05, longest_wait=0.4))
    reporter._closed = Closed()
    offer(reporter, 1)
    until(lambda: len(attempts) >= 7)
    assert all(gap > 0.9 * pause for gap, pause in zip(np.diff(attempts), pauses, strict=False))
    for pause, longest in zip(pauses, (0.05, 0.1, 0.2, 0.4, 0.4, 0.4), strict=False):
        assert longest / 2 <= pause <= longest


def test_what_goes_wrong_while_offering_is_not_the_callers(
    monitor: Monitor, make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    reporter, _ = make(monitor.port)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        offer(reporter, 1)
    assert "RuntimeError" in caplog.text
    offer(reporter, 1, first=10)
    until(lambda: ids(monitor) == list(range(20)))


def test_a_row_that_cannot_be_written_does_not_stop_the_others(
    monitor: Monitor, make: Make
) -> None:
    reporter, tally = make(monitor.port)
    bad = observed(1)
    bad.top[:] = 99
    reporter.offer(bad, ["0" * 32])
    until(lambda: tally.counts == {ROWS_DROPPED: 1})
    offer(reporter, 1)
    until(lambda: ids(monitor) == list(range(10)))


def test_its_states_are_logged_once_each(
    monitor: Monitor, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    reporter, _ = make(monitor.port)
    monitor.status = 500
    offer(reporter, 1)
    until(lambda: monitor.requests >= 3)
    monitor.status = 200
    until(lambda: len(monitor.rows) == 10)
    until(lambda: len(caplog.messages) == 2)
    assert "does not answer (status 500)" in caplog.messages[0]
    assert caplog.messages[1].endswith(f"127.0.0.1:{monitor.port} answers")


# -- processes ----------------------------------------------------------------------------


def test_what_waits_is_sent_when_the_process_ends(monitor: Monitor, make: Make) -> None:
    reporter, tally = make(monitor.port, Settings(interval=600, batch=50, timeout=60, flush=60))
    offer(reporter, 4)
    reporter.close()
    assert ids(monitor) == list(range(40))
    assert tally.counts == {ROWS_SENT: 40}
    offer(reporter, 1)
    assert tally.counts == {ROWS_SENT: 40, ROWS_DROPPED: 10}


def test_the_end_does_not_wait_for_a_monitor_that_hangs(monitor: Monitor, make: Make) -> None:
    reporter, tally = make(monitor.port, Settings(interval=0.01, timeout=60, flush=0.5))
    monitor.hangs.set()
    offer(reporter, 4)
    until(lambda: monitor.hanging == 1)
    reporter.close()
    assert monitor.hanging == 1  # and was not waited for
    assert tally.counts == {ROWS_DROPPED: 40}
    assert tally.queued == 0


def test_each_forked_process_sends_its_own(monitor: Monitor, make: Make, tmp_path: Path) -> None:
    """As a server does that loads its application before it forks."""
    code = (
        "import os, sys\n"
        "from tests.serving.test_monitor_client import FAST, LABELS, Tally, offer\n"
        "from utils.serving.monitor_client import Reporter, Settings\n"
        f"r = Reporter(('127.0.0.1', {monitor.port}), LABELS, Tally(),\n"
        "             Settings(interval=600, timeout=60, flush=60))\n"
        "offer(r, 1)\n"
        "children = []\n"
        "for n in (1, 2):\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        offer(r, 1, first=100 * n)\n"
        "        sys.exit(0)\n"
        "    children.append(child)\n"
        "print([os.waitpid(child, 0)[1] for child in children])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert done.stderr == ""
    assert done.stdout.strip() == "[0, 0]"
    assert sorted(ids(monitor)) == [*range(10), *range(100, 110), *range(200, 210)]


FROZEN = """
import sys
sys.path.insert(0, {root!r})
from tests.serving.test_monitor_client import Monitor
monitor = Monitor()
print(monitor.port, flush=True)
for line in sys.stdin:
    print(len(monitor.rows), flush=True)
monitor.stop()
"""


def test_a_frozen_monitor_goes_on_where_it_stood(make: Make) -> None:
    code = FROZEN.format(root=str(Path(__file__).parents[2]))
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        reporter, tally = make(int(process.stdout.readline()), replace(FAST, timeout=0.3))
        offer(reporter, 1)
        until(lambda: tally.counts == {ROWS_SENT: 10})
        os.kill(process.pid, signal.SIGSTOP)
        offer(reporter, 5)
        until(lambda: tally.queued == 50)
        os.kill(process.pid, signal.SIGCONT)
        until(lambda: tally.counts == {ROWS_SENT: 60})
        process.stdin.write("rows\n")
        process.stdin.flush()
        # a request that it had read before the time-out, and again later, may arrive twice
        assert int(process.stdout.readline()) >= 60
    finally:
        os.kill(process.pid, signal.SIGCONT)
        process.communicate(timeout=60)


def test_what_no_one_foresaw_does_not_end_the_thread() -> None:
    """Here the name of a host that cannot be looked up, which is no OSError."""
    settings = Settings(interval=0.01, first_wait=0.01, longest_wait=0.01, flush=0.1)
    reporter = Reporter(("a..b", 9), ["A"], Tally(), settings)
    reporter.offer_feedback("0f" * 16, ["A"])
    time.sleep(0.2)
    assert reporter._thread is not None
    assert reporter._thread.is_alive()
    reporter.close()


# -- where it is --------------------------------------------------------------------------


def test_address() -> None:
    assert monitor_address({}) == ("localhost", 5001)
    assert monitor_address({"EVIDENTLY_HOST": "", "EVIDENTLY_PORT": ""}) == ("localhost", 5001)
    given = {"EVIDENTLY_HOST": "monitoring", "EVIDENTLY_PORT": "80"}
    assert monitor_address(given) == ("monitoring", 80)
    assert monitor_address({"EVIDENTLY_HOST": "::1"})[0] == "::1"


@pytest.mark.parametrize("port", ["0", "65536", "-1", "x", "5001.0", "5" * 5000, "٣", " 80"])
def test_a_wrong_port_is_one_line(port: str) -> None:
    with pytest.raises(UserError, match="EVIDENTLY_PORT=.*from 1 to 65535"):
        monitor_address({"EVIDENTLY_PORT": port})


@pytest.mark.parametrize(
    "host", ["http://a", "a:5001", "a b", "a/b", "-a", "a\n", "ä", "a..b", "a" * 64]
)
def test_a_wrong_host_is_one_line(host: str) -> None:
    with pytest.raises(UserError, match="EVIDENTLY_HOST=.*Give its name"):
        monitor_address({"EVIDENTLY_HOST": host})


@pytest.mark.parametrize("token", [" ", "\t\n", "a b", "a\nb", "ü", "\udcff", "a\x00b"])
def test_a_token_that_cannot_be_one_is_an_error(token: str) -> None:
    with pytest.raises(UserError, match="KTT_MONITOR_TOKEN is blank, or") as caught:
        monitor_token({"KTT_MONITOR_TOKEN": token})
    assert "\n" not in caught.value.message
    assert monitor_token({}) == monitor_token({"KTT_MONITOR_TOKEN": ""}) == ""
    assert monitor_token({"KTT_MONITOR_TOKEN": "right\r\n"}) == "right"
