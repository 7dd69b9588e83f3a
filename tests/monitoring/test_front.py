"""The monitor's HTTP server: quick for everybody, however slow, many or hostile its clients are."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from monitor_front import PIECE, Front, Limits

BRIEF = Limits(idle=0.5, request=0.5, answer=0.5, parting=0.2, body=200_000, chunks=500)
LARGE = b"x" * 20_000_000
SOON = 3.0  # seconds within which others are answered


class Application:
    """What a request looks like to it is kept; ``/slow`` waits until it may go on."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, bytes]] = []
        self.environ: dict[str, Any] = {}
        self.go_on = threading.Event()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
        body = environ["wsgi.input"].read()
        self.environ = environ
        self.seen.append((environ["REQUEST_METHOD"], environ["PATH_INFO"], body))
        if environ["PATH_INFO"] == "/slow":
            self.go_on.wait(10)
        answer = LARGE if environ["PATH_INFO"] == "/large" else b"fine\n"
        start("200 OK", [("Content-Length", str(len(answer))), ("Content-Type", "text/plain")])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [answer]


@dataclass
class Running:
    """A front that serves on a port."""

    application: Application
    front: Front
    port: int = 0

    def connect(self) -> socket.socket:
        client = socket.socket()
        client.settimeout(10)
        client.connect(("127.0.0.1", self.port))
        return client

    def ask(self, path: str = "/healthz", method: str = "GET", body: bytes | None = None) -> int:
        """Status of a request; it must be answered soon."""
        started = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(connection):
            connection.request(method, path, body)
            status = connection.getresponse().status
        assert time.monotonic() - started < SOON
        return status


@contextlib.contextmanager
def running(limits: Limits) -> Iterator[Running]:
    """Serve until the block ends."""
    application = Application()
    made = Running(application, Front(application, limits))
    loop, ready = asyncio.new_event_loop(), threading.Event()
    ended = asyncio.Event()

    async def serve() -> None:
        server = await asyncio.start_server(made.front.serve, "127.0.0.1", 0, limit=PIECE)
        made.port = server.sockets[0].getsockname()[1]
        ready.set()
        await ended.wait()
        server.close()
        await made.front.finish(2)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(5)
    try:
        yield made
    finally:
        application.go_on.set()
        loop.call_soon_threadsafe(ended.set)
        thread.join(10)
        loop.close()


@pytest.fixture
def server() -> Iterator[Running]:
    with running(BRIEF) as made:
        yield made


def everything(client: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := client.recv(65_536):
            found += piece
    return found


UNFINISHED = b"POST /iterate HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{"


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (UNFINISHED, b" "),
        (UNFINISHED, b""),
        (b"POST /iterate HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
        (b"GET /healthz HTTP/1.1\r\n", b"A: b\r\n"),
        (b"GET", b"a"),
    ],
    ids=["body", "silent body", "chunks", "headers", "first line"],
)
def test_a_request_has_a_deadline_however_it_drips(
    first: bytes, then: bytes, server: Running
) -> None:
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(50)]
        for client in clients:
            client.sendall(first)
        for _ in range(3):
            assert server.ask() == 200
            for client in clients:
                client.sendall(then)
            time.sleep(0.1)
        for client in clients:
            client.settimeout(0.01)
        answers: dict[socket.socket, bytes] = {}
        while len(answers) < len(clients) and time.monotonic() - started < 5:
            for client in set(clients) - set(answers):
                with contextlib.suppress(OSError):
                    client.sendall(then)
                with contextlib.suppress(TimeoutError):
                    answers[client] = everything(client)
        assert len(answers) == len(clients)
        # Who goes on sending may lose the answer.
        assert {answer[:12] for answer in answers.values()} - {b""} == {b"HTTP/1.1 408"}
    assert [path for _, path, _ in server.application.seen] == ["/healthz"] * 3


def test_who_says_nothing_is_let_go(server: Running) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(200)]
        assert server.ask() == 200
        assert [client.recv(10) for client in clients] == [b""] * len(clients)


def test_who_reads_slowly_is_let_go(server: Running) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(3)]
        for client in clients:
            client.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(0.2)
        assert server.ask() == 200
        time.sleep(0.6)
        assert all(len(everything(client)) < len(LARGE) for client in clients)


def test_who_is_waited_for_longest_makes_room() -> None:
    with running(Limits(connections=20)) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(30)]
        for client in clients:
            with contextlib.suppress(OSError):
                client.sendall(UNFINISHED)
        assert server.ask() == 200
        assert everything(clients[0]) == b""
        clients[-1].settimeout(0.2)
        with pytest.raises(TimeoutError):
            clients[-1].recv(1)
        clients[-1].sendall(b" " * 999)
        assert clients[-1].recv(100).startswith(b"HTTP/1.1 200")


def test_bodies_of_all_clients_together_are_bounded() -> None:
    head = b"POST /iterate HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"
    with running(Limits(held=350_000)) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(6)]
        for client in clients:
            client.sendall(head + b" " * 90_000)
            time.sleep(0.05)
        assert everything(clients[0]) == b""
        assert server.ask("/iterate", "POST", b" " * 50_000) == 200
        clients[-1].sendall(b" " * 10_000)
        assert clients[-1].recv(100).startswith(b"HTTP/1.1 200")
        assert server.front._held <= 350_000


def test_posts_that_take_long_delay_nobody_else(server: Running) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(40)]
        for client in clients:
            client.sendall(b"POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
        assert [server.ask("/metrics") for _ in range(3)] == [200] * 3
        time.sleep(1)  # a deadline is for the client, not for the answer
        server.application.go_on.set()
        assert all(client.recv(15) == b"HTTP/1.1 200 OK" for client in clients)


def test_requests_are_what_was_sent(server: Running) -> None:
    with server.connect() as client:  # several on one connection, and one in chunks
        client.sendall(
            b"POST /a%20b?c=d HTTP/1.1\r\nHost: h:1\r\nX-One: 1\r\nX-One: 2\r\nX_One: 3\r\n"
            b"Content-Type: text/x\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        )
        assert client.recv(1000).endswith(b"fine\n")
        found = server.application.environ
        client.sendall(b"HEAD /x HTTP/1.1\r\nHost: a\r\n\r\nGET /y HTTP/1.1\r\nHost: a\r\n\r\n")
        client.sendall(b"GET /z HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert everything(client).count(b"HTTP/1.1 200 OK") == 3
    assert [(method, path) for method, path, _ in server.application.seen] == [
        ("POST", "/a b"), ("HEAD", "/x"), ("GET", "/y"), ("GET", "/z"),
    ]  # fmt: skip
    assert server.application.seen[0][2] == b"abcde"
    assert (found["QUERY_STRING"], found["HTTP_HOST"]) == ("c=d", "h:1")
    assert (found["HTTP_X_ONE"], found["CONTENT_TYPE"]) == ("1,2", "text/x")
    assert found["CONTENT_LENGTH"] == "5"
    assert "HTTP_TRANSFER_ENCODING" not in found


def test_a_client_may_wait_to_be_told_to_go_on(server: Running) -> None:
    with server.connect() as client:
        client.sendall(
            b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
        )
        assert client.recv(100).startswith(b"HTTP/1.1 100")
        client.sendall(b"ab")
        assert client.recv(100).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 60 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 40_000 + b"\r\n\r\n", 431),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nab", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
            + b"1\r\na\r\n" * 600,
            400,
        ),
    ],
    ids=[
        "TLS", "no host", "two hosts", "long line", "many headers", "long header",
        "negative length", "two lengths", "chunks", "coding", "many chunks",
    ],
)  # fmt: skip
def test_what_is_no_http_is_refused_in_one_line(raw: bytes, status: int, server: Running) -> None:
    with server.connect() as client:
        with contextlib.suppress(OSError):
            client.sendall(raw)
        head, _, body = everything(client).partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"connection: close" in head.lower()
    assert len(body.splitlines()) == 1
    assert b"<" not in body
    assert server.application.seen == []
    assert server.ask() == 200


def test_a_refusal_without_a_body_is_an_answer_too(server: Running) -> None:
    with server.connect() as client:
        client.sendall(b"HEAD /" + b"a" * 3000 + b" HTTP/1.1\r\nHost: a\r\n\r\n")
        head, _, body = everything(client).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 414 ")
    assert body == b""


def test_a_body_that_is_too_long_is_the_applications_to_refuse(server: Running) -> None:
    with server.connect() as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
        with contextlib.suppress(OSError):
            client.sendall(b" " * 1_000_000)
        assert b"connection: close" in everything(client).lower()
    assert server.application.environ["CONTENT_LENGTH"] == "1000000"
    assert len(server.application.seen[0][2]) < 300_000
