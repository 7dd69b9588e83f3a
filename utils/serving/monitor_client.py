"""Sends what monitoring needs to the monitoring service, without a prediction ever waiting for it.

Rows and feedback go into a bounded queue; a thread of each process sends them in batches. While the
service is away they wait, and the oldest are dropped, and counted, when there are too many.
"""

from __future__ import annotations

import atexit
import itertools
import json
import logging
import os
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import orjson

from utils.serving.connection import TOKEN, Connection

if TYPE_CHECKING:
    from utils.hierarchy.decode import Floats
    from utils.inference.classifier import Observed

log = logging.getLogger("bentoml.monitor")  # the servers of a bundle show the loggers of bentoml

ROWS, FEEDBACK = "rows", "feedback"
SENT, DROPPED, REFUSED = "sent", "dropped", "refused"
BODY_VALUES = 1_000_000  # some 11 MB; the monitor takes 16 MiB

PASSING = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}
"""Refusals that say nothing about what was sent: it is sent again."""
_HINTS: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: f" (is {TOKEN} the same here and there?)",
    HTTPStatus.FORBIDDEN: f" (set {TOKEN} here and there)",
}
_PATHS = {ROWS: "/iterate", FEEDBACK: "/feedback"}

Row: TypeAlias = "tuple[Observed, int, str]"
"""Some batch, the place within it, and the request's id."""
Item: TypeAlias = "Row | dict[str, Any]"


class Meter(Protocol):
    """Where a reporter counts. Called from several threads."""

    def count(self, kind: str, outcome: str, number: int) -> None:
        """Add to a counter.

        Parameters
        ----------
        kind
            ``"rows"`` or ``"feedback"``.
        outcome
            ``"sent"``, ``"dropped"`` or ``"refused"``.
        """
        ...

    def waiting(self, number: int) -> None:
        """Set the number of rows and feedback in the queue of this process."""
        ...


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a reporter behaves; times in seconds.

    Parameters
    ----------
    limit
        Rows and feedback that wait at most.
    batch
        Of them in a request at most.
    interval
        How long a row waits for others.
    timeout
        For connecting, and for each answer.
    first_wait, longest_wait
        After the first failure, and after many.
    flush
        What is sent until then when the process ends is sent.
    """

    limit: int = 10_000
    batch: int = 500
    interval: float = 1.0
    timeout: float = 2.0
    first_wait: float = 0.5
    longest_wait: float = 30.0
    flush: float = 2.0


# -- bodies ---------------------------------------------------------------------------------


def rows_body(rows: Sequence[Row], labels: Sequence[str]) -> bytes:
    """The body of ``POST /iterate``; features with the digits that tell 32-bit floats apart.

    Parameters
    ----------
    labels
        Of the terminal classes, in JSON.
    """
    width = rows[0][0].features.shape[1]
    columns = ["targets", *map(str, range(width)), "confidence", "length", "scores", "id"]
    head = b'{"columns":' + orjson.dumps(columns) + b',"data":['
    return head + b",".join(_cells(rows, labels)) + b"]}"


def _cells(rows: Iterable[Row], labels: Sequence[str]) -> Iterator[bytes]:
    for _, group in itertools.groupby(rows, key=lambda row: id(row[0])):
        together = list(group)  # consecutive rows of one batch
        observed, first, _ = together[0]
        part = slice(first, first + len(together))
        features = _lists(observed.features[part])
        top, probs = observed.top[part].tolist(), observed.probs[part].tolist()
        form = _row_form(observed.top.shape[1])
        for place, length in enumerate(observed.lengths[part].tolist()):
            scores = itertools.chain.from_iterable(zip(top[place], probs[place], strict=True))
            rest = form % (probs[place][0], length, *scores, json.dumps(together[place][2]))
            yield b"[%b,%b%b" % (labels[top[place][0]].encode(), features[place], rest.encode())
        time.sleep(0)  # a prediction that waits for the interpreter may have it now


@cache
def _row_form(best: int) -> str:
    """What follows the features of a row, in JSON."""
    scores = ",".join(["[%d,%.6g]"] * best)
    return f"%.6g,%d,[{scores}],%s]"


def _lists(values: Floats) -> list[bytes]:
    """Each row of numbers in JSON: without brackets, with a comma at the end if it has any."""
    if not values.size:
        return [b""] * len(values)
    finite = np.nan_to_num(values.astype(np.float32))
    held = orjson.dumps(finite, option=orjson.OPT_SERIALIZE_NUMPY)
    return [row + b"," for row in held[2:-2].split(b"],[")]


# -- the reporter ---------------------------------------------------------------------------


class Reporter:
    """Offers rows and feedback to the monitoring service.

    Its thread starts with the first offer, also in a process that was forked since. Offering never
    waits and never raises.

    Parameters
    ----------
    address
        Host and port of the monitoring service.
    labels
        Of the terminal classes, in the order of the score columns.
    meter
        Where it counts.
    token
        What the monitoring service wants to be sent.
    """

    def __init__(
        self,
        address: tuple[str, int],
        labels: Sequence[str],
        meter: Meter,
        settings: Settings = Settings(),
        token: str = "",
    ) -> None:
        self._address, self._meter, self._settings = address, meter, settings
        self._token = token
        self._labels = [json.dumps(label) for label in labels]
        self._state = ""
        self._begin()
        _ALL.add(self)

    def _begin(self) -> None:
        """Start with nothing: also what a forked process does, whose parent sends what it has."""
        self._lock = threading.Lock()
        self._queue: deque[Item] = deque()
        self._flying: list[Item] = []
        self._full, self._closed = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    # -- what the service calls -----------------------------------------------------------

    def offer(self, observed: Observed, ids: Sequence[str]) -> None:
        """Take the rows of a batch; `ids` are those of its requests."""
        self._put([(observed, place, name) for place, name in enumerate(ids)])

    def offer_feedback(self, request_id: str, path: Sequence[str]) -> None:
        """Take the true path of an earlier request."""
        self._put([{"request_id": request_id, "path": list(path)}])

    def close(self) -> None:
        """Send what waits for as long as `Settings.flush`, then drop it."""
        atexit.unregister(self.close)
        self._closed.set()
        self._full.set()
        if self._thread is not None:
            self._thread.join(self._settings.flush)
        with self._lock:
            lost = [*self._flying, *self._queue]
            self._queue.clear()
            self._flying = []
        self._count(DROPPED, lost)

    def _put(self, items: Sequence[Item]) -> None:
        try:
            if self._closed.is_set():
                return self._count(DROPPED, items)
            with self._lock:
                self._queue.extend(items)
                lost = self._overflow()
                full = len(self._queue) >= self._settings.batch
                if self._thread is None:
                    self._start()
            if full:
                self._full.set()
            self._count(DROPPED, lost)
        except Exception as error:  # a prediction must not fail for it
            log.error("Rows for the monitor are lost: %s", type(error).__name__)

    def _overflow(self) -> list[Item]:
        over = len(self._queue) + len(self._flying) - self._settings.limit
        return [self._queue.popleft() for _ in range(min(over, len(self._queue)))]

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="monitor", daemon=True)
        thread.start()
        self._thread = thread
        atexit.register(self.close)

    def _count(self, outcome: str, items: Sequence[Item]) -> None:
        rows = sum(isinstance(item, tuple) for item in items)
        for kind, number in ((ROWS, rows), (FEEDBACK, len(items) - rows)):
            if number:
                self._meter.count(kind, outcome, number)
        self._meter.waiting(len(self._queue) + len(self._flying))

    # -- what its thread does -------------------------------------------------------------

    def _run(self) -> None:
        settings, failures = self._settings, 0
        connection = Connection(self._address, settings.timeout, self._token)
        while not self._closed.is_set():
            if failures:
                wait = min(settings.longest_wait, settings.first_wait * 2 ** min(failures - 1, 30))
                self._closed.wait(wait * random.uniform(0.5, 1))
            elif len(self._queue) < settings.batch:
                self._full.wait(settings.interval)
                self._full.clear()
            if not self._closed.is_set():
                failures = 0 if self._send(connection) else failures + 1
        end = time.monotonic() + settings.flush
        while self._queue and (left := end - time.monotonic()) > 0:
            connection.set_timeout(min(settings.timeout, left))
            if not self._send(connection):
                break
        connection.close()

    def _send(self, connection: Connection) -> bool:
        """Try to send a batch; what could not be delivered goes back to where it was."""
        with self._lock:
            count = min(len(self._queue), self._settings.batch, self._fitting())
            self._flying = [self._queue.popleft() for _ in range(count)]
            rows = [item for item in self._flying if isinstance(item, tuple)]
            feedback = [item for item in self._flying if isinstance(item, dict)]
        # rows first: feedback may be about one of them
        return all(
            self._deliver(connection, kind, items)
            for kind, items in ((ROWS, rows), (FEEDBACK, feedback))
            if items
        )

    def _fitting(self) -> int:
        """How many rows like the oldest one have no more than `BODY_VALUES` features."""
        oldest = self._queue[0] if self._queue else None
        width = oldest[0].features.shape[1] if isinstance(oldest, tuple) else 1
        return max(1, BODY_VALUES // max(width, 1))

    def _deliver(self, connection: Connection, kind: str, items: Sequence[Any]) -> bool:
        try:
            body = self._body(kind, items)
        except Exception as error:
            log.error("Rows for the monitor cannot be written: %s", type(error).__name__)
            return self._landed(DROPPED, items)
        try:
            status = connection.post(_PATHS[kind], body)
        except Exception as error:  # whatever it is: without its thread nothing is ever sent again
            return self._failed(type(error).__name__)
        if 200 <= status < 300:
            self._tell("")
            return self._landed(SENT, items)
        if 400 <= status < 500 and status not in PASSING:
            hint = _HINTS.get(status, "")
            self._tell(f"refuses {kind} with status {status}{hint}: they are not sent again")
            return self._landed(REFUSED, items)
        return self._failed(f"status {status}")

    def _body(self, kind: str, items: Sequence[Any]) -> bytes:
        if kind == ROWS:
            return rows_body(items, self._labels)
        return json.dumps({"data": items}).encode()

    def _landed(self, outcome: str, items: Sequence[Item]) -> bool:
        """Forget what has been dealt with, unless `close` has counted it already."""
        with self._lock:
            done = set(map(id, items))
            still_here = bool(self._flying)
            self._flying = [item for item in self._flying if id(item) not in done]
        if still_here:
            self._count(outcome, items)
        return True

    def _failed(self, reason: str) -> bool:
        self._tell(f"does not answer ({reason}): rows wait, the oldest are dropped if need be")
        with self._lock:
            self._queue.extendleft(reversed(self._flying))
            self._flying = []
            lost = self._overflow()
        self._count(DROPPED, lost)
        return False

    def _tell(self, state: str) -> None:
        """Log a state when it begins, not again with each batch."""
        if state != self._state:
            host, port = self._address
            log.warning("The monitor at %s:%d %s", host, port, state or "answers")
        self._state = state


_ALL: weakref.WeakSet[Reporter] = weakref.WeakSet()


def _after_fork() -> None:
    """A forked process has none of its parent's threads, and locks as they were then."""
    for reporter in _ALL:
        reporter._begin()


os.register_at_fork(after_in_child=_after_fork)
