"""How the proxy stops: what is in flight is answered, what comes later is refused at once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

log = logging.getLogger("bentoml.marshal")
ANSWERING = 10.0
"""Seconds that requests in flight are given when the proxy is asked to stop."""
RECEIVING = 3.0
"""Seconds for the rest of a body whose beginning has come by then."""
LAST_REQUESTS = 1.0
"""Seconds for a request that comes later, of which nothing is wanted but its end."""
SENDING = 1.0
"""Seconds for the end of an answer that its client is slow to read."""
SILENCE = 60.0
"""Seconds in which the same failure is logged once."""
LONGEST = ANSWERING + LAST_REQUESTS + SENDING


class Drain:
    """Knows the requests in flight, and shortens their time when the proxy stops."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._limits: dict[asyncio.Timeout, float] = {}
        self._empty = asyncio.Event()

    @property
    def begun(self) -> bool:
        """Whether the proxy stops."""
        return self._began is not None

    @asynccontextmanager
    async def limit(self, usual: float | None, stopping: float) -> AsyncIterator[asyncio.Timeout]:
        """Limit how long a request in flight may take for something.

        Parameters
        ----------
        usual
            Seconds until a `TimeoutError`; None: as long as it takes.
        stopping
            Seconds from when the proxy begins to stop.
        """
        async with asyncio.timeout(usual) as limit:
            self._limits[limit] = stopping
            self._shorten(limit, stopping)
            try:
                yield limit
            finally:
                del self._limits[limit]
                if not self._limits:
                    self._empty.set()

    def begin(self) -> None:
        """Let what is in flight end soon."""
        self._began = asyncio.get_running_loop().time()
        for limit, seconds in self._limits.items():
            self._shorten(limit, seconds)

    def _shorten(self, limit: asyncio.Timeout, seconds: float) -> None:
        if self._began is not None:
            end = self._began + seconds
            limit.reschedule(min(end, limit.when() or end))

    async def wait(self) -> None:
        """Wait until nothing is in flight; the limits say how long that is at most."""
        while self._limits:
            self._empty.clear()
            await self._empty.wait()


DRAIN = web.AppKey("drain", Drain)


class DrainingRunner(web.AppRunner):
    """Runs the proxy, which goes on listening until what is in flight has been answered.

    A socket that is closed earlier resets the connections that wait in it.
    """

    __slots__ = ()

    def __init__(self, app: web.Application, **options: Any) -> None:
        super().__init__(app, access_log=None, shutdown_timeout=SENDING, **options)

    async def setup(self) -> None:
        """Prepare, so that a loop that fails logs a line now and then, not tracebacks all along."""
        asyncio.get_running_loop().set_exception_handler(_Failures())
        await super().setup()

    async def cleanup(self) -> None:
        """Stop."""
        drain = self.app[DRAIN]
        drain.begin()
        await drain.wait()
        await self._stop_listening()
        loop = asyncio.get_running_loop()
        end = loop.time() + LAST_REQUESTS
        while self.server and self.server.connections and loop.time() < end:
            await asyncio.sleep(0.02)
        await super().cleanup()

    async def _stop_listening(self) -> None:
        """Close the sockets, and take the connections that waited in them."""
        loop = asyncio.get_running_loop()
        for site in self.sites:
            listening = site._server.sockets if isinstance(site._server, asyncio.Server) else ()
            copies = [one.dup() for one in listening]
            for one in listening:
                loop.remove_reader(one.fileno())
                let_in(one, nobody=True)
            await asyncio.sleep(HANDSHAKE)
            await site.stop()
            for connection in [one for copy in copies for one in _waiting(copy)]:
                assert self.server
                await loop.connect_accepted_socket(self.server, connection)


HANDSHAKE = 0.02
"""Seconds for connections that are being made; and asyncio takes those that it has found by then,
which it would lose if the site stopped."""
_LEAST_HOPS = {socket.AF_INET: (socket.IPPROTO_IP, 21), socket.AF_INET6: (socket.IPPROTO_IPV6, 73)}
"""Linux's options IP_MINTTL and IPV6_MINHOPCOUNT, which Python has no names for."""


def let_in(open_socket: Any, nobody: bool) -> None:
    """Let a socket hear nobody, or everybody again.

    A connection that is made while a listening socket is closed would be reset. One that is not
    heard tries again, and finds it closed.
    """
    with contextlib.suppress(OSError, KeyError):  # of another system
        open_socket.setsockopt(*_LEAST_HOPS[open_socket.family], 255 if nobody else 0)


def _waiting(listening: socket.socket) -> list[socket.socket]:
    """Take the connections that wait in a socket, and close it."""
    found: list[socket.socket] = []
    listening.setblocking(False)
    with listening, contextlib.suppress(OSError):
        while True:  # until there are no more
            found.append(listening.accept()[0])
            let_in(found[-1], nobody=False)  # of the last it has what the other was given
    return found


class _Failures:
    """Logs what an event loop cannot do, for example accept one more connection."""

    def __init__(self) -> None:
        self._silent_until: dict[str, float] = {}

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        message, error = str(context.get("message")), context.get("exception")
        if loop.time() >= self._silent_until.get(message, 0.0):
            self._silent_until[message] = loop.time() + SILENCE
            log.error("The proxy: %s (%s).", message, type(error).__name__)


async def serve(app: web.Application, port: int) -> None:
    """Serve until a signal says that it is enough."""
    enough = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
        asyncio.get_running_loop().add_signal_handler(number, enough.set)
    runner = DrainingRunner(app)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    await enough.wait()
    await runner.cleanup()
