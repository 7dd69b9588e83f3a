"""What the proxy in front of the API workers says of each request, and how it passes them on.

In place of methods of bentoml's `MarshalService`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from time import perf_counter
from typing import Any

from aiohttp import ClientError, web, web_response
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, multiprocess
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from yarl import URL

from ktt_bentoml_compat.bodies import Bodies, Body
from ktt_bentoml_compat.drain import ANSWERING, DRAIN, LAST_REQUESTS, RECEIVING, Drain, serve

log = logging.getLogger("bentoml.marshal")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

INFRASTRUCTURE = (
    "/", "/docs", "/docs.json", "/feedback", "/healthz",
    "/livez", "/metadata", "/metrics", "/readyz",
)  # fmt: skip
OTHER = "other"
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
USUAL_STATUSES = (200, 400, 401, 413, 429, 500, 503)
PART_BYTES = 2 * 1024**2
PATIENCE = 60.0
"""Seconds for the body of a request."""
_PASSED_ON = ("Accept", "Authorization", "Content-Encoding", "Content-Type", "User-Agent")
_HOP_BY_HOP = frozenset(
    {"connection", "content-length", "date", "keep-alive", "server", "transfer-encoding"}
)


class Meter:
    """Counts requests as clients see them.

    Endpoints are those of the service and of bentoml, all else is one: the path of a request is
    the client's choice, and each new one would stay in memory for good.

    Parameters
    ----------
    routes
        Of the service's own APIs.
    """

    def __init__(self, routes: list[str]) -> None:
        registry = CollectorRegistry()
        self._apis = frozenset(f"/{route}" for route in routes)
        self._endpoints = self._apis | set(INFRASTRUCTURE)
        self.requests = Counter(
            "ktt_requests", "Requests answered.", ["endpoint", "status"], registry=registry
        )
        self.seconds = Histogram(
            "ktt_request_seconds", "Time from a request to its answer.", ["endpoint"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.batches = Histogram(
            "ktt_batch_size", "Requests answered together.", ["endpoint"],
            buckets=ROWS, registry=registry,
        )  # fmt: skip
        self._start_at_zero()

    def _start_at_zero(self) -> None:
        """A counter that appears with its first event hides that event from rate()."""
        for endpoint in (*self._endpoints, OTHER):
            self.seconds.labels(endpoint)
        for endpoint in self._apis:
            self.batches.labels(endpoint)
            for status in USUAL_STATUSES:
                self.requests.labels(endpoint, status)

    def endpoint(self, path: str) -> str:
        """The label of a path."""
        return path if path in self._endpoints else OTHER

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count one request."""
        endpoint = self.endpoint(path)
        self.requests.labels(endpoint, status).inc()
        self.seconds.labels(endpoint).observe(seconds)


def improve(service: type) -> None:
    """Replace what the proxy does to a request before and after it has been answered."""
    members: Any = service
    make, init, batch = members.make_app, members.__init__, members._batch_handler_template

    def __init__(self: Any, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        self.meter = Meter([api.route for api in self.bento_service_metadata_pb.apis])

    def make_app(self: Any) -> web.Application:
        app: web.Application = make(self)
        app[DRAIN] = drain = Drain()
        app.middlewares.append(_front(self.meter, drain))
        return app

    def fork_start_app(self: Any, port: int) -> None:
        asyncio.run(serve(self.make_app(), port))

    async def _batch_handler_template(
        self: Any, requests: Any, api_route: str, max_latency: int
    ) -> Any:
        answers: list[Any] = []
        for part in parts(requests):
            self.meter.batches.labels(f"/{api_route}").observe(len(part))
            answers += await batch(self, part, api_route, max_latency)
        return answers

    members.__init__ = __init__
    members.make_app = make_app
    members.fork_start_app = fork_start_app
    members._batch_handler_template = _batch_handler_template
    members.request_dispatcher = _only_posts_in_batches(members.request_dispatcher)
    members.relay_handler = relay
    read_plainly()


def read_plainly() -> None:
    """Leave bodies packed, tell no versions, and quote nothing of what is no HTTP."""
    connection: Any = web.RequestHandler
    connection.handle_error = _unreadable
    names: Any = web_response
    names.SERVER_SOFTWARE = "bentoml"
    # a megabyte may hold a gigabyte, that all other requests would wait for
    connection.__init__.__kwdefaults__["auto_decompress"] = False


def parts(requests: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Divide a batch so that none has many large bodies.

    A worker that takes longer than its time-out over one batch is killed, and all in it fail.
    """
    start = size = 0
    for place, request in enumerate(requests):
        length = len(request.body or b"")
        if place > start and size + length > PART_BYTES:
            yield requests[start:place]
            start, size = place, 0
        size += length
    yield requests[start:]


def _unreadable(
    self: web.RequestHandler,
    request: web.BaseRequest,
    status: int = 500,
    exc: BaseException | None = None,
    message: str | None = None,
) -> web.StreamResponse:
    """Refuse what is no HTTP. As released the response and the log quote it."""
    if request.writer.output_size > 0:
        raise ConnectionError("A part of the answer has been sent already.")
    response = line(status)
    response.force_close()
    return response


def _front(meter: Meter, drain: Drain) -> Any:
    bodies = Bodies()

    @web.middleware
    async def front(request: web.Request, handler: Handler) -> web.StreamResponse:
        start = perf_counter()
        if drain.begun:
            response: web.StreamResponse = await refuse(request)
        elif request.path == "/metrics" and request.method in {"GET", "HEAD"}:
            response = metrics()
        else:
            response = await answer(request, handler, drain, bodies)
        if drain.begun:
            response.force_close()
        meter.answered(request.path, response.status, perf_counter() - start)
        return response

    return front


def metrics() -> web.Response:
    """All processes' metrics; without the workers' help, which may be busy."""
    registry = CollectorRegistry()
    try:
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        body = generate_latest(registry)
    except (OSError, ValueError):  # the folder has been removed, or is not what it was
        return line(503, "The folder of metrics is missing.")
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})


async def refuse(request: web.Request) -> web.Response:
    """Refuse a request that comes when the proxy stops; its body, unread, would be an error."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(LAST_REQUESTS):
            await request.read()
    return line(503)


_NEVER = Drain()
_NOBODY = Bodies()


async def answer(
    request: web.Request, handler: Handler, drain: Drain = _NEVER, bodies: Bodies = _NOBODY
) -> web.StreamResponse:
    """Answer a request, whatever happens; a refusal is one line of plain text."""
    with bodies.one() as body:
        return await _answer(request, handler, drain, body)


async def _answer(
    request: web.Request, handler: Handler, drain: Drain, body: Body
) -> web.StreamResponse:
    if request.path.startswith("//"):
        # The server behind takes it for the path with one slash, past the batches and metrics.
        return line(404)
    try:
        if not await _received(request, drain, body):
            return line(408)
        async with drain.limit(None, ANSWERING) as limit:
            response = await handler(request)
        if limit.expired():  # which a batch takes for a refusal of its own
            return line(503)
        if isinstance(response, web.HTTPException):
            raise response
    except web.HTTPException as refusal:
        return line(refusal.status, headers=_kept(refusal.headers, {"allow"}))
    except web.RequestPayloadError:
        return line(400, "The body is not encoded as its headers say.")
    except UnicodeError:
        return line(400, "The request's headers are not UTF-8.")
    except TimeoutError:
        return line(503 if drain.begun else 504)
    except ClientError:  # of the server behind
        return line(503)
    except ConnectionError:  # nobody is there to read it, but it is counted
        return line(400)
    except Exception as error:
        where = "".join(traceback.format_tb(error.__traceback__))
        log.error("The proxy failed with %s:\n%s", type(error).__name__, where)
        return line(500)
    if response.status >= 400 and response.content_type == "text/html":
        return line(response.status, headers=_kept(response.headers, {"allow"}))
    return response


async def _received(request: web.Request, drain: Drain, body: Body) -> bool:
    """Wait for the body, which stays in the request; a client that never ends it holds a socket."""
    try:
        async with drain.limit(PATIENCE, RECEIVING):
            await body.read(request)
    except TimeoutError:
        return False
    return True


def line(
    status: int, text: str | None = None, headers: Mapping[str, str] | None = None
) -> web.Response:
    """One line of plain text; by default what the status means."""
    text = text or f"{status} {HTTPStatus(status).phrase}."
    return web.Response(status=status, text=text, headers=headers)


def _kept(headers: Mapping[str, str], names: set[str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() in names}


def _only_posts_in_batches(dispatch: Any) -> Any:
    """As released any method is taken for a POST."""

    async def request_dispatcher(self: Any, request: web.Request) -> web.StreamResponse:
        if request.method == "POST":
            response: web.StreamResponse = await dispatch(self, request)
            return response
        return await relay(self, request)

    return request_dispatcher


async def relay(self: Any, request: web.Request) -> web.StreamResponse:
    """Pass a request on as it is.

    As released this follows redirects, passes on the header that marks a batch of requests, and
    builds an address from the Host header.
    """
    body = await request.read()
    target = request.rel_url.raw_path_qs.removeprefix("/")
    url = URL(f"http://{self.outbound_host}:{self.outbound_port}/{target}", encoded=True)
    headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
    async with self.get_client().request(
        request.method, url, data=body, headers=headers, allow_redirects=False
    ) as response:
        content = await response.read()
    kept = {k: v for k, v in response.headers.items() if k.lower() not in _HOP_BY_HOP}
    return web.Response(status=response.status, body=content, headers=kept)
