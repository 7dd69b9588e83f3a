"""The bodies of requests that the proxy has in memory: together they are limited."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

ROOM = 256 * 1024**2
SMALL = 64 * 1024
"""Bytes of a body that there is room for in any case."""


class Bodies:
    """Knows how many bytes the bodies of all requests have that are not answered yet.

    Each may have some megabytes, and whoever sends them need not even have the token.
    """

    def __init__(self, room: int = ROOM) -> None:
        self._free = room

    @contextmanager
    def one(self) -> Iterator[Body]:
        """Reads the body of one request, and frees its room when that has been answered."""
        body = Body(self)
        try:
            yield body
        finally:
            self._free += body.size

    def take(self, count: int) -> bool:
        """Take so many bytes; False if there are not as many."""
        self._free -= count
        return self._free >= 0


class Body:
    """That of one request."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self.size = 0

    async def read(self, request: web.Request) -> None:
        """Read it, as `request.read` does; there it is found from then on.

        As released what has come of a body that never ends stays in memory: the error that tells
        of it holds it.

        Raises
        ------
        aiohttp.web.HTTPException
            It is too large, or there is no room for it.
        """
        found = bytearray()
        try:
            while piece := await request.content.readany():
                self._check(len(piece), request.client_max_size)
                found += piece
            request._read_bytes = bytes(found)
        finally:
            found.clear()

    def _check(self, more: int, most: int) -> None:
        self.size += more
        room = self._bodies.take(more)
        if 0 < most < self.size:
            raise web.HTTPRequestEntityTooLarge(most, self.size)
        if not room and self.size > SMALL:
            raise web.HTTPServiceUnavailable
