"""A bundle behind its real servers, as a user starts it.

Runs on the toy service; on any others with ``KTT_BUNDLES=build/a_b/inference:build/c_d/inference``,
in the environment of ``KTT_BENTOML`` (the `bentoml` command of one made from the bundle's own
requirements) if that is given.
"""

import gzip
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from utils.export.bundle import write_bundle
from utils.serving.local_server import Server, served

pytest.importorskip("ktt_bentoml_compat", reason="pip install ./packages/bentoml-py311")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BUNDLES = [path for path in os.environ.get("KTT_BUNDLES", "").split(":") if path]
BENTOML = Path(os.environ.get("KTT_BENTOML") or Path(sys.executable).with_name("bentoml"))
LOAD_SECONDS = os.environ.get("KTT_LOAD_SECONDS", "5")
SECRET = "zebrafish"


def toy(folder: Path) -> Path:
    (folder / "classifier").mkdir()
    (folder / "classifier" / "root.txt").write_text("Wurzelgemüse", encoding="utf-8")
    return write_bundle(
        folder / "inference",
        service_file=ROOT / "tests" / "support" / "toy_service.py",
        classifier=folder / "classifier",
    )


@pytest.fixture(scope="module", params=BUNDLES or ["toy"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if BUNDLES:
        return Path(request.param).resolve()
    return toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module", params=["serve-gunicorn", "serve"])
def server(
    bundle: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    with served(bundle, request.param, BENTOML, tmp_path_factory.mktemp("home")) as running:
        yield running


def test_predict_answers_the_path_that_classify_explains(server: Server) -> None:
    text = {"text": f"a red {SECRET} balance"}
    predicted, classified = server.ask("/predict", text), server.ask("/classify", text)
    assert (predicted.status, classified.status) == (200, 200)
    answer = classified.json()
    assert predicted.json().split("\n") == answer["path"]
    assert [level["name"] for level in answer["levels"]] == answer["path"]
    assert answer["alternatives"][0]["path"] == answer["path"]
    assert 0 <= answer["confidence"] <= 1


BODIES = {
    "object": (b"{}", {400}),
    "list": (b"[]", {400}),
    "not JSON": (SECRET.encode(), {400}),
    "nothing": (b"", {400}),
    "null": (b'{"text": null}', {400}),
    "number": (b'{"text": 3}', {400}),
    "list of texts": (b'{"text": ["a"]}', {400}),
    "empty text": (b'{"text": ""}', {400}),
    "white space": (b'{"text": " \\n"}', {400}),
    "lone surrogate": (b'{"text": "\\ud800"}', {400}),
    "not UTF-8": (b'{"text": "\xe9"}', {400}),
    "deep": (b"[" * 200_000, {400}),
    "emoji": ('{"text": "😀"}'.encode(), {200}),
    "zero": (b'{"text": "\\u0000"}', {200}),
    "half a megabyte": (json.dumps({"text": "red wool " * 55_555}).encode(), {200}),
    "10 MB": (json.dumps({"text": "x" * 10_000_000}).encode(), {413}),
    "30 MB": (json.dumps({"text": "x" * 30_000_000}).encode(), {413}),
}


@pytest.mark.parametrize("case", BODIES)
def test_whatever_comes_gets_an_answer_or_a_clear_refusal(server: Server, case: str) -> None:
    body, statuses = BODIES[case]
    reply = server.request("/predict", body, {"Content-Type": "application/json"})
    assert reply.status in statuses
    if reply.status != 200:
        assert 0 < len(reply.text.splitlines()) <= 1


def test_good_requests_are_answered_beside_bad_ones(server: Server) -> None:
    """A burst right after the start: micro-batches are mixed and nothing is known of the speed."""
    bodies = [body for body, _ in BODIES.values() if len(body) < 1_000_000]
    good = json.dumps({"text": "a red balance"}).encode()
    jobs = [good if i % 2 else bodies[i // 2 % len(bodies)] for i in range(96)]
    with ThreadPoolExecutor(32) as pool:
        replies = list(pool.map(lambda body: server.request("/predict", body), jobs))
    assert {reply.status for reply in replies[1::2]} == {200}
    if 'quantization="int8"' not in server.get("/metrics").text:  # whose scales are the batch's
        assert len({reply.body for reply in replies[1::2]}) == 1
    assert {reply.status for reply in replies[::2]} <= {200, 400}


def test_headers_cannot_break_it(server: Server) -> None:
    good = b'{"text": "a red balance"}'
    for headers, status in (
        ({"Content-Type": "application/x-www-form-urlencoded"}, 200),  # what curl -d sends
        ({"Content-Type": "multipart/form-data"}, 200),
        ({"Content-Type": "application/json; charset=klingon"}, 415),
        ({"Content-Type": "application/json; charset=punycode"}, 415),
        ({"Content-Type": 'application/json; charset="Latin-1"'}, 200),
        ({"Content-Encoding": "gzip"}, 400),
        ({"X-Name": b"\xe9"}, 400),
    ):
        assert server.request("/predict", good, headers).status == status, headers
    for body, status in ((gzip.compress(good), 200), (gzip.compress(good)[:-8], 400)):
        assert server.request("/predict", body, {"Content-Encoding": "gzip"}).status == status
    bomb = gzip.compress(b"0" * 100_000_000)
    assert server.request("/predict", bomb, {"Content-Encoding": "gzip"}).status == 413
    assert server.request("/predict", bomb, {"Content-Encoding": "br"}).status == 415


def test_a_pickle_from_outside_is_not_opened(server: Server) -> None:
    """The server behind the proxy trusts this header."""
    mark = server.home / "mark"

    class Evil:
        def __reduce__(self) -> object:
            return (os.mkdir, (str(mark),))

    headers = {"BentoML-Is-Merged-Request": "true"}
    for path in ("/predict", "//predict"):
        assert server.request(path, pickle.dumps(Evil()), headers).status in {400, 404}
    assert not mark.exists()


def test_health_metrics_and_documentation_work(server: Server) -> None:
    for path in ("/healthz", "/metrics", "/metadata", "/docs.json", "/"):
        assert server.get(path).status == 200, path
    feedback = server.ask("/feedback", {"request_id": "1", "text": SECRET})
    assert feedback.status in {400, 404}  # 404 without a monitor


def test_no_text_is_in_any_log(server: Server) -> None:
    server.ask("/predict", {"text": f"a {SECRET}"})
    server.request("/predict", f'{{"text": "{SECRET}'.encode())
    for address in (f"/predict?text={SECRET}", f"/{SECRET}"):
        server.get(address)
    for path in server.home.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path


def test_it_bears_load(bundle: Path, tmp_path: Path) -> None:
    """32 connections; one request in ten deserves a refusal. KTT_LOAD_SECONDS says how long."""
    with served(bundle, "serve-gunicorn", BENTOML, tmp_path) as running:
        url = f"http://127.0.0.1:{running.port}/predict"
        script = str(ROOT / "benchmarks" / "serving_load.py")
        options = ["--connections", "32", "--seconds", LOAD_SECONDS, "--bad-share", "0.1"]
        done = subprocess.run(
            [sys.executable, script, url, *options], capture_output=True, text=True
        )
    assert done.returncode == 0, done.stdout + done.stderr


def _metrics(server: Server) -> dict[str, float]:
    lines = (line.rsplit(" ", 1) for line in server.get("/metrics").text.splitlines())
    return {name: float(value) for name, value in lines if not name.startswith("#")}


def test_metrics_tell_what_clients_saw(server: Server) -> None:
    good, bad = (f'ktt_requests_total{{endpoint="/classify",status="{s}"}}' for s in (200, 400))
    before = _metrics(server)
    for document in ({"text": "a red balance"}, {"text": "b"}, {"text": ""}):
        server.ask("/classify", document)
    after = _metrics(server)
    assert after[good] - before[good] == 2
    assert after[bad] - before[bad] == 1
    seconds = 'ktt_request_seconds_count{endpoint="/classify"}'
    assert after[seconds] - before[seconds] == 3
    assert after["ktt_confidence_count"] - before["ktt_confidence_count"] == 2
    answers = [sum(v for k, v in m.items() if "ktt_answers" in k) for m in (before, after)]
    assert answers[1] - answers[0] == 2


def test_random_addresses_do_not_become_metrics(server: Server) -> None:
    server.get("/warm-up")
    before = set(_metrics(server))
    for number in range(50):
        server.get(f"/{SECRET}/{number}")
        server.request(f"/predict/{number}?{SECRET}", b"{}")
    metrics = _metrics(server)
    assert set(metrics) == before
    assert metrics['ktt_requests_total{endpoint="other",status="404"}'] >= 100


def test_state_is_told(server: Server) -> None:
    for path in ("/healthz", "/livez", "/readyz"):
        assert server.get(path).status == 200, path
        assert server.request(path, b"{}").status == 405, path


def test_a_port_in_use_is_one_line(server: Server, bundle: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [BENTOML, "serve", bundle, "--port", str(server.port)],
        env={**os.environ, "BENTOML_HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    said = f"Error: Port {server.port} is in use. Give another: --port 5050.\n"
    assert (done.stdout, done.stderr) == ("", said)


def test_an_answer_has_an_id(server: Server) -> None:
    reply = server.ask("/classify", {"text": "a red balance"})
    assert len(reply.json()["request_id"]) == 32
    assert reply.headers["X-Request-Id"] == reply.json()["request_id"]
    assert len(server.ask("/predict", {"text": "a"}).headers["X-Request-Id"]) == 32


def test_what_is_not_there_is_refused_with_one_line(server: Server) -> None:
    for path, method, status in (
        ("/nothing", "GET", 404),
        ("//predict", "POST", 404),
        ("/predict", "GET", 405),
        ("/classify", "DELETE", 405),
        ("/predict", f"{SECRET}", 400),  # aiohttp's parser says so
    ):
        reply = server.request(path, b"{}", {"Accept": "text/html"}, method)
        assert reply.status == status, (path, method)
        assert reply.headers["Content-Type"].startswith("text/plain")
        assert len(reply.text.splitlines()) == 1
        assert SECRET not in reply.text


def test_with_a_token_only_state_metrics_and_documentation_are_open(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = "open-sesame"
    monkeypatch.setenv("KTT_API_TOKEN", token)
    body = b'{"text": "a red balance"}'
    with served(bundle, "serve-gunicorn", BENTOML, tmp_path) as running:
        for path in ("/predict", "/classify", "/feedback"):
            refused = running.request(path, body)
            assert refused.status == 401
            assert refused.headers["WWW-Authenticate"] == "Bearer"
            wrong = running.request(path, body, {"Authorization": f"Bearer {token}2"})
            assert wrong.status == 401
            right = running.request(path, body, {"Authorization": f"Bearer {token}"})
            assert right.status in ({400, 404} if path == "/feedback" else {200})
            assert token not in wrong.text + str(wrong.headers)
        for path in ("/healthz", "/livez", "/readyz", "/metrics", "/docs", "/docs.json"):
            assert running.get(path).status == 200, path
        assert token not in running.get("/metrics").text + running.get("/docs.json").text
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or token.encode() not in path.read_bytes(), path


def test_only_the_address_that_a_user_opens_is_shown(server: Server) -> None:
    shown = set(re.findall(r"https?://[^\s:]+:(\d+)", server.log.read_text(encoding="utf-8")))
    assert shown == {str(server.port)}


def processes(server: Server) -> list[psutil.Process]:
    """The main process of a server, and those that it has started."""
    option = ["--port", str(server.port)]
    main = next(one for one in psutil.Process().children() if one.cmdline()[-2:] == option)
    return [main, *main.children(recursive=True)]


def until(condition: Callable[[], object], seconds: float = 120, pause: float = 0.1) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(pause)


def test_a_killed_worker_comes_back_and_a_killed_server_ends_it_all(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KTT_CORES", "3")
    with served(bundle, "serve-gunicorn", BENTOML, tmp_path) as running:
        main = processes(running)[0]
        (behind,) = (process for process in main.children() if process.children())
        # It answers as soon as its first worker does; the others follow.
        until(lambda: len(behind.children()) == 3)
        worker = behind.children()[0].pid
        pattern = f"prometheus_multiproc_dir/{running.port}/gauge_live*_{worker}.db"
        until(lambda: len(list(tmp_path.glob(pattern))) == 2)
        os.kill(worker, signal.SIGKILL)
        until(lambda: not list(tmp_path.glob(pattern)))
        until(lambda: running.get("/readyz").status == 200)
        assert running.ask("/predict", {"text": "a red balance"}).status == 200
        workers = behind.children()
        behind.kill()
        assert main.wait(120) != 0
        assert not psutil.wait_procs(workers, 10)[1]
