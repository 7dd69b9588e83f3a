"""Decides which calls are answered together, and when.

A batch of n rows takes about a + b·n seconds. While the model is busy, calls queue up and make the
next batch by themselves. When it is idle, waiting for one more call delays the n rows that are
there, and saves the a seconds that the late-comer would cost as a batch of its own; so it pays as
long as n times the wait is less than a, and if calls come that quickly at all. No idle model is
kept waiting longer than the latency limit, so a call waits for that and one batch at most, as long
as all that waits fits a batch. A lone caller, whose next call comes after the answer to the last,
never waits.

This is the rule of BentoML's CorkDispatcher (0.13, `bentoml/marshal/dispatcher.py`), which learns
a and b as it goes, with the wait bounded by what it saves in place of the average wait before.
Clipper (Crankshaw et al., NSDI 2017, section 4.3) holds the linear model to be a good one and
searches for the largest batch within a latency objective by additive increase, multiplicative
decrease; here that size is given, and the wait adapts.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Sequence

from utils.runner.calls import Batch, Call, Line, Part

MEMORY = 0.95  # weight of the past, batch by batch
GAP_MEMORY = 0.9  # the same, call by call
SHORTEST = 1e-6  # seconds
SPREAD = 0.25  # variance of batch sizes below which a and b cannot be told apart


class Costs:
    """Seconds per batch as a line over its rows, by least squares with fading memory."""

    def __init__(self) -> None:
        self._weight = self._rows = self._seconds = self._squares = self._products = 0.0

    def add(self, rows: int, seconds: float) -> None:
        """Learn from a batch."""
        self._weight = self._weight * MEMORY + 1
        self._rows = self._rows * MEMORY + rows
        self._seconds = self._seconds * MEMORY + seconds
        self._squares = self._squares * MEMORY + rows * rows
        self._products = self._products * MEMORY + rows * seconds

    @property
    def fixed(self) -> float:
        """Seconds that a batch takes whatever its size; 0 as long as nothing is known."""
        if not self._weight:
            return 0.0
        rows, seconds = self._rows / self._weight, self._seconds / self._weight
        variance = self._squares / self._weight - rows * rows
        if variance < SPREAD:
            return seconds / (1 + rows)  # as if a and b were equal
        slope = (self._products / self._weight - rows * seconds) / variance
        return min(max(seconds - max(slope, 0.0) * rows, 0.0), seconds)


class Gaps:
    """Seconds from one call to the next: a fading geometric mean.

    Callers that wait for their answers come back in bursts, batch after batch: what counts is the
    gap inside a burst, not the one between two.
    """

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._log = math.log(longest)
        self.last = -longest

    def add(self, now: float) -> None:
        """A call came."""
        gap = min(max(now - self.last, SHORTEST), self._longest)
        self._log += (1 - GAP_MEMORY) * (math.log(gap) - self._log)
        self.last = now

    @property
    def mean(self) -> float:
        """Seconds to be expected until the next call."""
        return math.exp(self._log)


class Queue:
    """Parts that can be answered together, in the order of their arrival.

    Attributes
    ----------
    seen
        When somebody first could have worked on them; None as long as all are busy.
    """

    def __init__(self, line: Line) -> None:
        self.line = line
        self.parts: deque[Part] = deque()
        self.rows = 0
        self.seen: float | None = None

    def put(self, part: Part) -> None:
        """Stand in line."""
        self.parts.append(part)
        self.rows += part.rows

    def take(self, limit: int) -> Batch:
        """The first parts, as many as fit; those that nobody waits for any more are left out."""
        batch, self.seen = Batch(self.line, [], 0), None
        while self.parts:
            part = self.parts[0]
            full = batch.parts and (self.line.alone or batch.rows + part.rows > limit)
            if full and not part.call.over:
                break
            self.parts.popleft()
            self.rows -= part.rows
            if not part.call.over:
                batch.parts.append(part)
                batch.rows += part.rows
        return batch


class Dispatcher:
    """Where calls wait; whoever can work on a batch asks it for the next one.

    Parameters
    ----------
    max_batch_size
        Rows of a batch at most.
    max_latency
        Seconds that a call may wait for others.
    """

    def __init__(self, max_batch_size: int, max_latency: float) -> None:
        self._size, self._latency = max_batch_size, max_latency
        self._changed = threading.Condition(threading.Lock())
        self._queues: dict[Line, Queue] = {}
        self._again: deque[Batch] = deque()
        self._costs: dict[str, Costs] = {}
        self._gaps = Gaps(max(max_latency, SHORTEST))
        self._idle = 0
        self._awaited: Queue | None = None  # for which somebody watches the clock
        self.closing = False

    def put(self, line: Line, parts: Sequence[Part]) -> bool:
        """Let a call wait; False if it is too late for that."""
        with self._changed:
            if self.closing:
                return False
            queue = self._queues.get(line)
            if queue is None:
                queue = self._queues[line] = Queue(line)
            self._gaps.add(parts[0].since)
            for part in parts:
                queue.put(part)
            watched = self._awaited is queue and queue.rows < self._size
            if self._idle and not watched:
                self._changed.notify()
            return True

    def next(self, patience: float | None = None) -> Batch | None:
        """Wait for a batch; None after `patience` seconds without one, or at the end."""
        with self._changed:
            while True:
                batch, wait = self._found(time.monotonic())
                if batch:
                    self._awaited = None
                    if self._queues and self._idle:
                        self._changed.notify()  # somebody else sees to the others
                    return batch
                if self.closing:
                    return None
                if not self._wait(patience if wait is None else wait) and wait is None:
                    return None

    def _wait(self, seconds: float | None) -> bool:
        self._idle += 1
        try:
            return self._changed.wait(seconds)
        finally:
            self._idle -= 1
            self._awaited = None

    def _found(self, now: float) -> tuple[Batch | None, float | None]:
        """A batch that shall begin now, or how long to wait for one; None: until a call comes."""
        if self._again:
            return self._again.popleft(), None
        soonest: float | None = None
        for queue in sorted(self._queues.values(), key=lambda queue: queue.parts[0].since):
            wait = self._worth_waiting(queue, now)
            if wait <= 0:
                if batch := self._taken(queue):
                    return batch, None
            elif soonest is None or wait < soonest:
                soonest, self._awaited = wait, queue
        return None, soonest

    def _worth_waiting(self, queue: Queue, now: float) -> float:
        """Seconds that it pays to let a queue wait for others."""
        if queue.line.alone or self.closing or queue.rows >= self._size:
            return 0.0
        costs = self._costs.get(queue.line.method)
        saved = costs.fixed / max(queue.rows, 1) if costs else 0.0
        if self._gaps.mean >= saved:
            return 0.0
        if queue.seen is None:
            queue.seen = now
        return min(max(self._gaps.last, queue.seen) + saved, queue.seen + self._latency) - now

    def _taken(self, queue: Queue) -> Batch | None:
        batch = queue.take(self._size)
        if not queue.parts:
            del self._queues[queue.line]
        return batch if batch.parts else None

    # -- of a batch that was taken --------------------------------------------------------

    def learn(self, batch: Batch, seconds: float) -> None:
        """A batch took so long."""
        with self._changed:
            self._costs.setdefault(batch.line.method, Costs()).add(batch.rows, seconds)

    def again(self, batch: Batch) -> None:
        """Let another one work on a batch, before anything else."""
        with self._changed:
            self._again.append(batch)
            self._changed.notify()

    def answered(self, batch: Batch, results: Sequence[object]) -> list[Call]:
        """Give the parts of a batch their results; the calls that are over now."""
        with self._changed:
            pairs = zip(batch.parts, results, strict=True)
            return [part.call for part, result in pairs if part.call.put(part.place, result)]

    def failed(self, batch: Batch, error: BaseException) -> list[Call]:
        """Give the calls of a batch an error; those that had none yet."""
        with self._changed:
            return [part.call for part in batch.parts if part.call.fail(error)]

    # -- the end --------------------------------------------------------------------------

    def close(self) -> None:
        """Take no more calls; what waits can still be taken."""
        with self._changed:
            self.closing = True
            self._changed.notify_all()

    def drop(self, error: BaseException) -> list[Call]:
        """Fail all that waits; returns those calls."""
        with self._changed:
            parts = [part for queue in self._queues.values() for part in queue.parts]
            parts += [part for batch in self._again for part in batch.parts]
            self._queues.clear()
            self._again.clear()
            return [part.call for part in parts if part.call.fail(error)]
