"""The HTTP server in front of the application.

Requests are taken whole, and answers given, without a thread: however many clients send or read
slowly, threads only see requests that are complete. Whoever is waited for too long is let go, and
beyond `Limits.connections` or `Limits.held` the client that has been waited for longest makes room.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

import h11
from werkzeug.test import run_wsgi_app

from monitor_log import place_of

PIECE = 16_384  # bytes that are read or written at a time
ARRIVED = "monitor.arrived"
"""Where a request says when it was all there, by `time.monotonic`."""
OWN_FILES = 64  # which are no connections: the window, the log, a report being made

Application = Callable[..., Any]

log = logging.getLogger("monitoring")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a client may take; times in seconds, sizes in bytes.

    Parameters
    ----------
    idle
        Until the first byte of a request.
    request
        From the first byte of a request to its last.
    answer
        For reading an answer.
    body
        Longer ones are cut; the application refuses them.
    chunks
        Parts that a body without a length may come in.
    held
        Bodies and answers of all clients together.
    """

    idle: float = 15
    request: float = 10
    answer: float = 30
    parting: float = 2
    connections: int = 1000
    body: int = 16 * 1024 * 1024
    chunks: int = 1000
    held: int = 64 * 1024 * 1024
    target: int = 2048
    headers: int = 50


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What is sent back."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class Unanswerable(Exception):
    """A request that the application does not see: the status that it gets."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.answer = _line(status)


class Client:
    """A connection, and how many bytes are kept for it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.http = h11.Connection(h11.SERVER, max_incomplete_event_size=PIECE)
        self.held = 0
        self.wants_body = True
        writer.transport.set_write_buffer_limits(high=0)  # to wait until all of it is sent

    async def event(self) -> Any:
        """What comes next in its request."""
        while (event := self.http.next_event()) is h11.NEED_DATA:
            if self.http.they_are_waiting_for_100_continue:
                go_on = h11.InformationalResponse(status_code=100, headers=[])
                self.writer.write(self.http.send(go_on) or b"")
            self.http.receive_data(await self.reader.read(PIECE))
        return event

    async def send(self, *events: h11.Event) -> None:
        """Send all of an answer."""
        out = memoryview(b"".join(self.http.send(event) or b"" for event in events))
        for start in range(0, len(out), PIECE):
            self.writer.write(out[start : start + PIECE])
            await self.writer.drain()


class Front:
    """Serves a WSGI application to clients that may be slow, or mean no good.

    Parameters
    ----------
    application
        Called in a thread, with a request whose body is all there.
    """

    def __init__(self, application: Application, limits: Limits = Limits()) -> None:
        self._application, self._limits = application, limits
        self._most = min(limits.connections, max(1, _files() - OWN_FILES))
        # Posts are taken one after the other anyway; nothing else waits for them.
        self._posts, self._others = ThreadPoolExecutor(2), ThreadPoolExecutor(4)
        self._open: set[Client] = set()
        self._waited_for: dict[Client, None] = {}  # the longest first
        self._held = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of a connection, one after the other."""
        client = Client(reader, writer)
        self._open.add(client)
        self._waited_for[client] = None
        if len(self._open) > self._most:
            self._make_room()
        try:
            while await self._exchange(client):
                client.http.start_next_cycle()
        except (OSError, TimeoutError, h11.ProtocolError):  # it has gone, or is let go
            pass
        except Exception as error:
            log.error("A connection failed: %s", place_of(error))
        finally:
            self._open.discard(client)
            self._release(client)
            writer.transport.abort()

    async def finish(self, seconds: float) -> None:
        """Give the answers that are being made, and let everybody else go."""
        for client in list(self._waited_for):
            client.writer.transport.abort()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._open:
                    await asyncio.sleep(0.05)

    # -- one request ------------------------------------------------------------------------

    async def _exchange(self, client: Client) -> bool:
        """Take a request and answer it; whether another may follow."""
        self._wait_for(client)
        if not client.http.trailing_data[0]:
            async with asyncio.timeout(self._limits.idle):
                client.http.receive_data(await client.reader.read(PIECE))
        try:
            async with asyncio.timeout(self._limits.request):
                environ = await self._environ(client)
        except TimeoutError:
            answer = _line(HTTPStatus.REQUEST_TIMEOUT)
        except Unanswerable as refusal:
            answer = refusal.answer
        except h11.RemoteProtocolError as error:
            answer = _line(error.error_status_hint)
        else:
            if environ is None:
                return False
            self._waited_for.pop(client, None)
            answer = await self._answer(environ)
        return await self._give(client, answer)

    async def _environ(self, client: Client) -> dict[str, Any] | None:
        """A whole request as the application reads it; None if the client says no more."""
        client.wants_body = True
        request = await client.event()
        if not isinstance(request, h11.Request):
            return None
        client.wants_body = request.method != b"HEAD"
        if len(request.target) > self._limits.target:
            raise Unanswerable(HTTPStatus.REQUEST_URI_TOO_LONG)
        if len(request.headers) > self._limits.headers:
            raise Unanswerable(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        return environ_of(request, await self._body(client))

    async def _body(self, client: Client) -> bytearray:
        body, chunks = bytearray(), 0
        while isinstance(event := await client.event(), h11.Data):
            body += event.data
            chunks += event.chunk_start
            if len(body) >= self._limits.body:
                break
            if chunks > self._limits.chunks:
                raise Unanswerable(HTTPStatus.BAD_REQUEST)
            self._hold(client, len(event.data))
        return body

    async def _answer(self, environ: dict[str, Any]) -> Answer:
        pool = self._posts if environ["REQUEST_METHOD"] == "POST" else self._others
        call = asyncio.get_running_loop().run_in_executor
        return await call(pool, _called, self._application, environ)

    async def _give(self, client: Client, answer: Answer) -> bool:
        """Send an answer; whether the connection can be used again."""
        whole = client.http.their_state is h11.DONE
        headers = [("Date", formatdate(usegmt=True)), *answer.headers]
        if not whole:
            headers.append(("Connection", "close"))
        status = HTTPStatus(answer.status)
        head = h11.Response(status_code=status, reason=status.phrase.encode(), headers=headers)
        data = [h11.Data(data=answer.body)] if answer.body and client.wants_body else []
        self._wait_for(client)
        self._hold(client, len(answer.body))
        async with asyncio.timeout(self._limits.answer):
            await client.send(head, *data, h11.EndOfMessage())
        if not whole:
            await self._part(client)
        return bool(client.http.our_state is client.http.their_state is h11.DONE)

    async def _part(self, client: Client) -> None:
        """Let the rest of a request come, so that its sender reads the answer."""
        client.writer.write_eof()
        async with asyncio.timeout(self._limits.parting):
            while await client.reader.read(PIECE):
                pass

    # -- who makes room ---------------------------------------------------------------------

    def _wait_for(self, client: Client) -> None:
        """From here on it depends on the client when things go on."""
        self._release(client)
        self._waited_for[client] = None

    def _hold(self, client: Client, size: int) -> None:
        client.held += size
        self._held += size
        while self._held > self._limits.held and self._waited_for:
            self._make_room()

    def _make_room(self) -> None:
        longest = next(iter(self._waited_for), None)
        if longest is not None:
            longest.writer.transport.abort()
            self._release(longest)

    def _release(self, client: Client) -> None:
        self._waited_for.pop(client, None)
        self._held -= client.held
        client.held = 0


def environ_of(request: h11.Request, body: bytearray) -> dict[str, Any]:
    """A request as WSGI has it."""
    path, _, query = request.target.decode("latin-1").partition("?")
    fields: dict[str, list[str]] = {}
    for name, value in request.headers:
        if b"_" not in name:  # else it could be taken for another field
            fields.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
    given = {name: ",".join(values) for name, values in fields.items()}
    kind, declared = given.pop("content-type", ""), given.pop("content-length", "0")
    given.pop("transfer-encoding", None)
    return {
        **{f"HTTP_{name.upper().replace('-', '_')}": value for name, value in given.items()},
        "CONTENT_TYPE": kind,
        "CONTENT_LENGTH": str(max(int(declared), len(body))),
        "REQUEST_METHOD": request.method.decode("latin-1"),
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote(path, "latin-1"),
        "QUERY_STRING": query,
        "SERVER_NAME": "monitor",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": f"HTTP/{request.http_version.decode('latin-1')}",
        ARRIVED: time.monotonic(),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }


def _files() -> int:
    """How many files this process may have open."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if files == resource.RLIM_INFINITY else files


def _called(application: Application, environ: dict[str, Any]) -> Answer:
    parts, status, headers = run_wsgi_app(application, environ, buffered=True)
    return Answer(status=int(status[:3]), headers=tuple(headers), body=b"".join(parts))


def _line(status: int) -> Answer:
    """One line of plain text, which never repeats what was sent."""
    body = f"{HTTPStatus(status).phrase}.\n".encode()
    headers = (("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body))))
    return Answer(status=status, headers=headers, body=body)
