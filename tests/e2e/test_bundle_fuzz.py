"""Nothing that is sent to a service makes it fail, hang or tell of its inside.

On a monitored model behind its real servers, or on the first of KTT_BUNDLES. KTT_FUZZ_EXAMPLES says
how many requests of each kind, and has them chosen anew.
"""

import contextlib
import json
import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from utils.serving.local_server import Server, free_port, served

pytest.importorskip("ktt_bentoml_compat", reason="pip install ./packages/bentoml-py311")
pytestmark = pytest.mark.slow

BENTOML = Path(os.environ.get("KTT_BENTOML") or Path(sys.executable).with_name("bentoml"))
BUNDLE = os.environ.get("KTT_BUNDLES", "").partition(":")[0]
SECONDS = 20
EXAMPLES = int(os.environ.get("KTT_FUZZ_EXAMPLES", "300"))

fuzz = settings(
    max_examples=EXAMPLES,
    derandomize=not os.environ.get("KTT_FUZZ_EXAMPLES"),
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def bundle(request: pytest.FixtureRequest) -> Path:
    if BUNDLE:
        return Path(BUNDLE).resolve()
    return request.getfixturevalue("system_of")["tfidf_hsgd"][0] / "inference"


@pytest.fixture(scope="module", params=["serve-gunicorn", "serve"])
def server(
    bundle: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVIDENTLY_PORT", str(free_port()))  # nobody is there
        with served(bundle, request.param, BENTOML, tmp_path_factory.mktemp("home")) as running:
            yield running


def exchange(server: Server, raw: bytes, patience: float = SECONDS) -> bytes:
    """Send bytes and read until the server closes.

    After so many seconds of `patience` the server is told that no more will come: it may be waiting
    for the rest of a request. Then it has to close.
    """
    with socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS) as connection:
        answer = b""
        try:
            connection.sendall(raw)
            connection.settimeout(patience)
            with contextlib.suppress(TimeoutError):
                while chunk := connection.recv(65_536):
                    answer += chunk
                return answer
            connection.settimeout(SECONDS)
            connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(65_536):
                answer += chunk
        except (ConnectionResetError, BrokenPipeError):
            pass  # refused before all of it was read
    return answer


def check(answer: bytes) -> None:
    assert b"Traceback" not in answer
    assert b'File "' not in answer
    for status in re.findall(rb"^HTTP/1\.\d (\d+)", answer, re.MULTILINE):
        assert int(status) < 500, answer
    head, _, body = answer.partition(b"\r\n\r\n")
    if re.match(rb"HTTP/1\.\d 4", head) and answer.count(b"HTTP/1.") == 1:
        assert re.search(rb"(?i)^content-type: text/plain", head, re.MULTILINE), answer
        assert len(body.splitlines()) <= 1, answer


METHODS = st.sampled_from(
    ["GET", "POST", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW", "get"]
)
ENDPOINTS = st.sampled_from(
    ["/predict", "/classify", "/feedback", "/healthz", "/livez", "/readyz", "/metrics", "/metadata",
     "/docs", "/docs.json", "/", "//predict", "/predict/", "*", "/static_content/main.css",
     "/static_content/../../api_server.py", "http://elsewhere/predict", "/%ff%00", "/predict%20",
     "/\u00e9", "//elsewhere/predict"]
)  # fmt: skip
TARGETS = st.one_of(
    ENDPOINTS,
    st.tuples(ENDPOINTS, st.text(max_size=30)).map("".join),
    st.text(st.characters(codec="utf-8"), max_size=60).map(lambda text: f"/{text}"),
)
VALUES = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        ["application/json", "application/json; charset=utf-16", "text/plain; charset=\"", "gzip",
         "deflate", "br", "zstd", "identity, gzip", "chunked", "gzip, chunked", "100-continue", "0",
         "-1", "99999999999999999999", "5, 5", "true", "close", "keep-alive, Upgrade", "websocket",
         "multipart/form-data; boundary=x", "bytes=0-", "Bearer", "Bearer x", "Basic Og==", "a b",
         "localhost:99999", "[::1", "*", "application/x-www-form-urlencoded"]
    ),
)  # fmt: skip
NAMES = st.one_of(
    st.sampled_from(
        ["Content-Type", "Content-Encoding", "Content-Length", "Transfer-Encoding", "Expect",
         "Host", "Authorization", "Connection", "Upgrade", "Range", "If-None-Match", "Accept",
         "Cookie", "BentoML-Is-Merged-Request", "X-Forwarded-For", "Accept-Encoding", "TE"]
    ),
    st.text(st.characters(codec="ascii"), min_size=1, max_size=20),
)  # fmt: skip
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.one_of(st.sampled_from(["text", "request_id", "path", "data"]), st.text(max_size=5)),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=8,
)
NAME = "0f" * 16
FEEDBACK = st.dictionaries(
    st.sampled_from(["request_id", "path"]),
    st.one_of(JSON, st.just(NAME), st.lists(st.sampled_from(["Home", "Kitchen", "Pans", NAME]))),
)
BODIES = st.one_of(
    st.binary(max_size=200),
    st.one_of(JSON, FEEDBACK, st.lists(FEEDBACK | JSON).map(lambda entries: {"data": entries})).map(
        lambda value: json.dumps(value).encode()
    ),
    st.sampled_from(
        [b"", b'{"text": "a red balance"}', b'{"text": "\\ud800"}', b"[" * 5000, b"\x1f\x8b\x08",
         b'{"request_id": "' + NAME.encode() + b'", "path": ["Home"]}', b"\x80\x04.", b"9" * 6000]
    ),
)  # fmt: skip


@given(
    method=METHODS,
    target=TARGETS,
    headers=st.lists(st.tuples(NAMES, VALUES), max_size=5),
    body=BODIES,
    length=st.sampled_from(["right", "right", "right", "none", "short", "long"]),
)
@fuzz
def test_any_request_gets_an_answer_or_a_refusal(
    server: Server,
    method: str,
    target: str,
    headers: list[tuple[str, str]],
    body: bytes,
    length: str,
) -> None:
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers]
    if length != "none":
        size = {"right": len(body), "short": len(body) // 2, "long": len(body) + 9}[length]
        lines.append(f"Content-Length: {size}")
    raw = "\r\n".join(lines).encode("utf-8", "surrogatepass") + b"\r\n\r\n" + body
    check(exchange(server, raw, patience=0.3))


@given(
    path=st.sampled_from(["/predict", "/classify", "/feedback"]),
    body=BODIES,
    kind=VALUES.filter(lambda value: not re.search(r"[\r\n\0]", value)),
)
@fuzz
def test_any_body_gets_an_answer_or_a_refusal(
    server: Server, path: str, body: bytes, kind: str
) -> None:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Connection: close"]
    lines += [f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    raw = "\r\n".join(lines).encode("utf-8", "surrogatepass") + b"\r\n\r\n" + body
    answer = exchange(server, raw)
    check(answer)
    assert answer.startswith(b"HTTP/1.")


@given(raw=st.binary(max_size=300))
@fuzz
def test_what_is_no_http_is_refused_or_dropped(server: Server, raw: bytes) -> None:
    check(exchange(server, raw, patience=0.3))


def test_it_still_answers_and_has_logged_nothing_bad(server: Server) -> None:
    assert server.get("/readyz").status == 200
    assert server.ask("/predict", {"text": "a red balance"}).status == 200
    answer = server.ask("/classify", {"text": "a red balance"}).json()
    feedback = {name: answer[name] for name in ("request_id", "path")}
    assert server.ask("/feedback", feedback).status == 202  # there is a monitor: 404 without
    log = server.log.read_text(encoding="utf-8", errors="replace")
    assert "Traceback" not in log
    assert "WORKER TIMEOUT" not in log
    assert "failed with" not in log
