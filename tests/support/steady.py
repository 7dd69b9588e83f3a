"""Asks a running system at a steady rate in the background, and notes what came of it."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import aiohttp

NO_ANSWER = 0
PATIENCE = 30.0  # seconds for an answer


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is sent, and what kind of request that is."""

    kind: str
    path: str
    body: bytes


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a request; `status` 0: there was no answer.

    Parameters
    ----------
    at
        When it was sent, in seconds of `time.monotonic`.
    seconds
        Until the answer had been read.
    """

    kind: str
    at: float
    seconds: float
    status: int


class Traffic(Protocol):
    """Makes requests. Called from one thread."""

    def draw(self, rng: random.Random) -> Request:
        """The next request."""
        ...

    def answered(self, request: Request, status: int, body: bytes) -> None:
        """Take an answer, for example to give feedback about it later."""
        ...


class Texts:
    """Asks for the class of texts drawn at random."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts

    def draw(self, rng: random.Random) -> Request:
        """The next request."""
        body = json.dumps({"text": rng.choice(self.texts)}).encode()
        return Request(kind="text", path="/predict", body=body)

    def answered(self, request: Request, status: int, body: bytes) -> None:
        """Take no notice."""


class Steady:
    """A steady load: ``with Steady(...) as load: ...; load.since(start)``.

    Each connection sends its requests at even intervals, and at once if it is late.

    Parameters
    ----------
    address
        Such as ``http://127.0.0.1:5000``.
    rate
        Requests per second of all connections together.
    headers
        Of all requests.
    """

    def __init__(
        self,
        address: str,
        traffic: Traffic,
        *,
        rate: float,
        connections: int = 8,
        seed: int = 0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._address, self._traffic = address, traffic
        self._headers = dict(headers or {})
        self._rate, self._connections, self._seed = rate, connections, seed
        self._ended = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self.outcomes: list[Outcome] = []

    def __enter__(self) -> Steady:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join(PATIENCE + 5)

    def between(self, start: float, end: float) -> list[Outcome]:
        """Outcomes of the requests that were sent between two times, as far as they are known."""
        return [outcome for outcome in list(self.outcomes) if start <= outcome.at < end]

    async def _run(self) -> None:
        import aiohttp

        connector = aiohttp.TCPConnector(limit=self._connections)
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, headers=self._headers
        ) as session:
            await asyncio.gather(
                *(self._connection(session, number) for number in range(self._connections))
            )

    async def _connection(self, session: aiohttp.ClientSession, number: int) -> None:
        rng = random.Random(self._seed * 1000 + number)
        interval = self._connections / self._rate
        due = time.monotonic() + interval * number / self._connections
        while not self._ended.is_set():
            await asyncio.sleep(min(max(0.0, due - time.monotonic()), 1.0))
            if time.monotonic() >= due:
                due = max(due + interval, time.monotonic() - interval)
                await self._send(session, self._traffic.draw(rng))

    async def _send(self, session: aiohttp.ClientSession, request: Request) -> None:
        import aiohttp

        start, status, body = time.monotonic(), NO_ANSWER, b""
        try:
            async with session.post(self._address + request.path, data=request.body) as response:
                body = await response.read()
                status = response.status
        except (aiohttp.ClientError, TimeoutError):
            pass
        seconds = time.monotonic() - start
        self.outcomes.append(Outcome(kind=request.kind, at=start, seconds=seconds, status=status))
        self._traffic.answered(request, status, body)


def quantile(outcomes: Sequence[Outcome], share: float) -> float:
    """Seconds within which this share of the requests were answered; NaN without any."""
    seconds = sorted(outcome.seconds for outcome in outcomes)
    return seconds[round(share * (len(seconds) - 1))] if seconds else float("nan")
