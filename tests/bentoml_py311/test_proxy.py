"""The proxy in front of the API workers: what one client may take from the others."""

import asyncio
import gc
import gzip
import re
import socket
import time
import tracemalloc
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ktt_bentoml_compat", reason="pip install ./packages/bentoml-py311")
pytestmark = pytest.mark.filterwarnings("ignore:.*find_spec:ImportWarning")


def sent(*sizes: int) -> list[Any]:
    return [SimpleNamespace(body=bytes(size)) for size in sizes]


def test_a_batch_is_divided_by_the_size_of_its_bodies() -> None:
    from ktt_bentoml_compat.proxy import PART_BYTES, parts

    small = sent(*[1000] * 64)
    assert list(parts(small)) == [small]
    mixed = sent(10, PART_BYTES, PART_BYTES + 1, 10, PART_BYTES // 2, PART_BYTES // 2, 10)
    divided = list(parts(mixed))
    assert [one for part in divided for one in part] == mixed
    assert [len(part) for part in divided] == [1, 1, 1, 2, 2]
    assert [len(part) for part in parts(sent(0))] == [1]


@pytest.fixture
def reads_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the proxy changes in aiohttp, for one test."""
    from aiohttp import web, web_response
    from ktt_bentoml_compat.proxy import read_plainly

    monkeypatch.setattr(web.RequestHandler, "handle_error", web.RequestHandler.handle_error)
    monkeypatch.setattr(web_response, "SERVER_SOFTWARE", web_response.SERVER_SOFTWARE)
    options: Any = web.RequestHandler.__init__.__kwdefaults__
    monkeypatch.setitem(options, "auto_decompress", True)  # as it was, when the test is over
    read_plainly()


def talk(message: bytes) -> tuple[bytes, list[bytes]]:
    """Send this to a server that answers as the proxy does; its head, the bodies it got."""
    from aiohttp import web
    from ktt_bentoml_compat import proxy

    bodies: list[bytes] = []

    async def handler(request: web.Request) -> web.Response:
        bodies.append(await request.read())
        return web.Response(text="done")

    async def run() -> bytes:
        app = web.Application(middlewares=[web.middleware(proxy.answer)])
        app.router.add_post("/{path:.*}", handler)  # as BentoML's
        runner = web.AppRunner(app, lingering_time=0.1)  # for the rest of a body that was refused
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        reader, writer = await asyncio.open_connection(*runner.addresses[0][:2])
        writer.write(message)
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        writer.close()
        await runner.cleanup()
        return answer

    return asyncio.run(run()), bodies


@pytest.mark.usefixtures("reads_plainly")
def test_a_zipped_body_is_passed_on_as_it_is() -> None:
    """A megabyte of it may be a gigabyte, which all other requests would wait for."""
    body = gzip.compress(b"0" * 1_000_000)
    head = f"POST / HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}"
    answer, bodies = talk(f"{head}\r\n\r\n".encode() + body)
    assert answer.startswith(b"HTTP/1.1 200")
    assert bodies == [body]


@pytest.mark.usefixtures("reads_plainly")
@pytest.mark.parametrize("start", [b"POST / HTTP/1.1", b"GET /nowhere HTTP/1.1", b"no HTTP"])
def test_no_answer_tells_versions(start: bytes) -> None:
    head, _ = talk(start + b"\r\nHost: a\r\n\r\n")
    assert re.findall(rb"(?im)^server: *(.*?)\r$", head) == [b"bentoml"]
    assert not re.search(rb"(?i)aiohttp|python", head)


def bodies_kept(bodies: Any, rounds: int = 5, size: int = 3_000_000) -> tuple[int, list[int]]:
    """Bytes still there after clients broke off in their bodies; statuses of whole ones at once."""
    from aiohttp import web
    from ktt_bentoml_compat import proxy

    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (size + 1)
    gate = asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        await gate.wait()
        return web.Response(text="done")

    @web.middleware
    async def front(request: web.Request, handler: Any) -> web.StreamResponse:
        return await proxy.answer(request, handler, bodies=bodies)

    async def run() -> tuple[int, list[int]]:
        app = web.Application(middlewares=[front], client_max_size=2 * size)
        app.router.add_post("/", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        where = runner.addresses[0][:2]
        gc.disable()  # what only a collection would free is not free in time
        tracemalloc.start()
        try:
            for _ in range(rounds):
                _, writer = await asyncio.open_connection(*where)
                writer.write(head + bytes(size))
                await writer.drain()
                await asyncio.sleep(0.05)
                writer.transport.abort()
            await asyncio.sleep(0.1)
            kept = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
            gc.enable()
        whole = [await asyncio.open_connection(*where) for _ in range(3)]
        for _, writer in whole:
            writer.write(head + bytes(size + 1))
            await asyncio.sleep(0.1)
        gate.set()
        statuses = [await status_of(reader) for reader, _ in whole]
        for _, writer in whole:
            writer.close()
        await runner.cleanup()
        return kept, statuses

    return asyncio.run(run())


def test_bodies_that_break_off_do_not_stay_in_memory() -> None:
    from ktt_bentoml_compat.bodies import Bodies

    kept, statuses = bodies_kept(Bodies())
    assert kept < 3_000_000  # of five times as much
    assert statuses == [200, 200, 200]


def test_large_bodies_have_limited_room_together_and_small_ones_always_have_some() -> None:
    from ktt_bentoml_compat.bodies import Bodies

    assert bodies_kept(Bodies(room=7_000_000), rounds=3)[1] == [200, 200, 503]
    assert bodies_kept(Bodies(room=0), rounds=0, size=5000)[1] == [200, 200, 200]


def test_a_body_that_does_not_end_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from ktt_bentoml_compat import proxy

    monkeypatch.setattr(proxy, "PATIENCE", 0.2)
    answer, bodies = talk(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{")
    assert answer.startswith(b"HTTP/1.1 408")
    assert not bodies


@pytest.mark.usefixtures("reads_plainly")
@pytest.mark.parametrize("path", ["//predict", "///predict", "//predict?a", "/%2fpredict", "//"])
def test_two_slashes_lead_nowhere(path: str) -> None:
    """As released they lead to the API, past the batches and the metrics."""
    head = "POST {} HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{{}}"
    answer, bodies = talk(head.format(path).encode())
    assert answer.startswith(b"HTTP/1.1 404")
    assert not bodies
    answer, bodies = talk(head.format("/predict//").encode())
    assert answer.startswith(b"HTTP/1.1 200")


# -- the end ------------------------------------------------------------------------------

HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n"


async def stopped(clients: Any, slow: float = 0.3) -> tuple[Any, float]:
    """Serve as the proxy does, stop while `clients` ask; what came of it, and seconds it took."""
    from aiohttp import web
    from ktt_bentoml_compat import proxy
    from ktt_bentoml_compat.drain import DRAIN, Drain, DrainingRunner

    async def handler(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(slow)
        return web.Response(text="done")

    app = web.Application()
    app[DRAIN] = drain = Drain()
    app.middlewares.append(proxy._front(proxy.Meter([]), drain))
    app.router.add_post("/", handler)
    runner = DrainingRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port, opened = runner.addresses[0][1], []

    async def connect(taken: socket.socket | None = None) -> Any:
        where: dict[str, Any] = {"sock": taken} if taken else {"host": "127.0.0.1", "port": port}
        opened.append(await asyncio.open_connection(**where))
        return opened[-1]

    loop = asyncio.get_running_loop()
    asking = asyncio.ensure_future(clients(connect, port))
    await asyncio.sleep(0.1)
    start = loop.time()
    await runner.cleanup()
    seconds = loop.time() - start
    result = await asyncio.wait_for(asking, 10)
    for _, writer in opened:
        writer.close()
    return result, seconds


async def status_of(reader: asyncio.StreamReader) -> int:
    line = await asyncio.wait_for(reader.readline(), 10)
    return int(line.split()[1]) if line else 0


def test_what_is_in_flight_is_answered_and_what_comes_later_refused() -> None:
    """The body of the first comes after the proxy has been asked to stop."""

    async def clients(connect: Any, port: int) -> list[int | str]:
        (first, send), (idle, send_later), _ = [await connect() for _ in range(3)]
        send.write(HEAD)
        await asyncio.sleep(0.2)
        send.write(b"{}")
        send_later.write(HEAD + b"{}")
        found: list[int | str] = [await status_of(idle), await status_of(first)]
        try:
            await asyncio.sleep(0.2)
            await connect()
        except ConnectionRefusedError:
            found.append("refused")
        return found

    statuses, seconds = asyncio.run(stopped(clients))
    assert statuses == [503, 200, "refused"]
    assert seconds < 5


def test_connections_that_nobody_has_taken_yet_are_refused_not_reset() -> None:
    async def clients(connect: Any, port: int) -> list[int]:
        await asyncio.sleep(0.09)
        found = []
        for _ in range(20):  # without a pause for the server, which is told to stop meanwhile
            connection = socket.create_connection(("127.0.0.1", port))
            connection.sendall(HEAD + b"{}")
            found.append(connection)
        time.sleep(0.05)
        streams = [await connect(one) for one in found]
        return [await status_of(reader) for reader, _ in streams]

    statuses, seconds = asyncio.run(stopped(clients))
    assert set(statuses) == {503}
    assert seconds < 5


def test_clients_that_end_nothing_do_not_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from ktt_bentoml_compat import drain, proxy

    monkeypatch.setattr(proxy, "RECEIVING", 0.2)
    monkeypatch.setattr(drain, "LAST_REQUESTS", 0.2)
    monkeypatch.setattr(drain, "SENDING", 0.2)

    async def clients(connect: Any, port: int) -> list[int]:
        dripping, silent = [await connect() for _ in range(2)]
        dripping[1].write(HEAD + b"{")
        silent[1].write(HEAD[:20])
        return [await status_of(reader) for reader, _ in (dripping, silent)]

    statuses, seconds = asyncio.run(stopped(clients))
    assert statuses == [408, 0]
    assert seconds < 3


def test_an_answer_that_takes_too_long_is_a_503(monkeypatch: pytest.MonkeyPatch) -> None:
    from ktt_bentoml_compat import proxy

    monkeypatch.setattr(proxy, "ANSWERING", 0.2)

    async def clients(connect: Any, port: int) -> int:
        reader, writer = await connect()
        writer.write(HEAD + b"{}")
        return await status_of(reader)

    status, seconds = asyncio.run(stopped(clients, slow=60))
    assert status == 503
    assert seconds < 3
