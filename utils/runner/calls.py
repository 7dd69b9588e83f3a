"""What waits: the calls of callers, in parts that each fit a batch."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from utils.runner.batches import Arguments


class RunnerClosed(RuntimeError):
    """The runner was closed before it answered."""


class WorkerDied(RuntimeError):
    """A worker process ended while it worked on a batch."""


class Call:
    """One call: a caller that waits in its thread.

    Parameters
    ----------
    parts
        How many results it is put together from.
    join
        Puts them together.
    """

    def __init__(self, parts: int, join: Callable[[Sequence[Any]], Any]) -> None:
        self._results: list[Any] = [None] * parts
        self._missing = parts
        self._join = join
        self._error: BaseException | None = None
        self.over = False
        self._gate = threading.Lock()  # shut until it is over: cheaper than an event
        self._gate.acquire()

    def put(self, place: int, result: Any) -> bool:
        """Take a part's result; True if it was the last one. For one thread at a time."""
        if self.over:
            return False
        self._results[place] = result
        self._missing -= 1
        self.over = not self._missing
        return self.over

    def fail(self, error: BaseException) -> bool:
        """Take an error in place of what is missing; False if nothing was."""
        if self.over:
            return False
        self._error = error
        self.over = True
        return True

    def tell(self) -> None:
        """Let the caller go on."""
        self._gate.release()

    def answer(self) -> Any:
        """Wait until it is over.

        Raises
        ------
        Exception
            What came instead of an answer.
        """
        try:
            self._gate.acquire()
        except BaseException:  # Ctrl-C: nobody waits for it any more
            self.over = True
            raise
        return self._found()

    def _found(self) -> Any:
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # it holds this frame, which holds it
        return self._join(self._results)


class AwaitedCall(Call):
    """A call that a task of an event loop awaits."""

    def __init__(self, parts: int, join: Callable[[Sequence[Any]], Any]) -> None:
        super().__init__(parts, join)
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[None] = self.loop.create_future()

    def tell(self) -> None:
        """Let the task go on; to be called in its loop."""
        if not self.future.done():
            self.future.set_result(None)

    async def awaited(self) -> Any:
        """Wait until it is over; whoever is cancelled leaves the queue."""
        try:
            await self.future
        except asyncio.CancelledError:
            self.over = True
            raise
        return self._found()


@dataclass(slots=True, eq=False)
class Part:
    """As much of a call as one batch answers.

    Parameters
    ----------
    place
        Its number among the parts of its call.
    arguments, rows
        What the method is given.
    since
        When it came, in seconds of `time.monotonic`.
    """

    call: Call
    place: int
    arguments: Arguments
    rows: int
    since: float


@dataclass(frozen=True, slots=True)
class Line:
    """What stands in one queue: calls of a method that can be answered together.

    Parameters
    ----------
    alone
        Whether they are answered one by one all the same.
    """

    method: str
    kind: Hashable = None
    alone: bool = False


@dataclass(slots=True, eq=False)
class Batch:
    """Parts that are answered together.

    Parameters
    ----------
    tries
        How often a worker has died of it, or for it.
    """

    line: Line
    parts: list[Part]
    rows: int
    tries: int = field(default=0)


def tell(calls: Sequence[Call]) -> None:
    """Let callers go on; those of one event loop together."""
    loops: dict[asyncio.AbstractEventLoop, list[AwaitedCall]] = {}
    for call in calls:
        if isinstance(call, AwaitedCall):
            loops.setdefault(call.loop, []).append(call)
        else:
            call.tell()
    for loop, awaited in loops.items():
        with suppress(RuntimeError):  # the loop is closed: nobody waits there
            loop.call_soon_threadsafe(_tell_all, awaited)


def _tell_all(calls: Sequence[AwaitedCall]) -> None:
    for call in calls:
        call.tell()
