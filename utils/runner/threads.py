"""The threads that take batches from the queues and give their results to the callers."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from utils.common.errors import UserError
from utils.runner.batches import cut_result, joined_calls, rows_of_result
from utils.runner.calls import Batch, Call, Part, WorkerDied, tell
from utils.runner.dispatch import Dispatcher
from utils.runner.engines import Engine, LocalEngine, ProcessEngine
from utils.runner.methods import about, check_methods, model_of
from utils.runner.requests import Request
from utils.runner.signatures import Signature

if TYPE_CHECKING:
    from utils.inference.pipeline import Source
    from utils.runner.text_model import About

TRIES = 2  # a batch whose worker dies is begun once more
REST = 0.5  # seconds between two tries to start a worker that others can do without


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a runner has done.

    Parameters
    ----------
    calls, rows, batches
        Answered, whether well or with an error.
    largest_batch
        In rows.
    longest_wait
        Seconds that a call waited until its (last) batch began.
    longest_batch
        Seconds that a batch took.
    restarts
        Workers that were started again.
    """

    calls: int = 0
    rows: int = 0
    batches: int = 0
    largest_batch: int = 0
    longest_wait: float = 0.0
    longest_batch: float = 0.0
    restarts: int = 0

    def plus(self, other: Counts) -> Counts:
        """Both together."""
        return Counts(
            calls=self.calls + other.calls,
            rows=self.rows + other.rows,
            batches=self.batches + other.batches,
            largest_batch=max(self.largest_batch, other.largest_batch),
            longest_wait=max(self.longest_wait, other.longest_wait),
            longest_batch=max(self.longest_batch, other.longest_batch),
            restarts=self.restarts + other.restarts,
        )


class Member:
    """A thread that has an engine work on one batch after the other."""

    def __init__(
        self, engine: Engine, dispatcher: Dispatcher, signatures: Mapping[str, Signature]
    ) -> None:
        self.engine = engine
        self.counts = Counts()
        self.batch: Batch | None = None
        self.broken = False
        self.crew: Sequence[Member] = ()
        self._dispatcher = dispatcher
        self._signatures = signatures
        self.thread = threading.Thread(target=self._work, name="runner", daemon=True)

    def _work(self) -> None:
        try:
            while True:
                self._rest()
                batch = self.batch = self._dispatcher.next(self.engine.pulse)
                if batch is None and self._dispatcher.closing:
                    return
                if self._mend(batch) and batch:
                    self._answer(batch)
                self.batch = None
        finally:
            self.engine.close()

    def _rest(self) -> None:
        """Leave the work to others as long as this engine cannot be mended and theirs work."""
        while self.broken and self._others_work() and not self._dispatcher.closing:
            time.sleep(REST)
            self._mend(None)

    def _others_work(self) -> bool:
        return any(not member.broken for member in self.crew if member is not self)

    def _mend(self, batch: Batch | None) -> bool:
        """Have the engine ready; if that fails, see to it that the batch is not lost."""
        try:
            mended = self.engine.revive()
        except Exception as error:
            self.broken = True
            if batch:
                self._pass_on(batch, error, self._others_work())
            return False
        self.broken = False
        self.counts = replace(self.counts, restarts=self.counts.restarts + mended)
        return True

    def _pass_on(self, batch: Batch, error: Exception, others: bool) -> None:
        """Give a batch back that could not be worked on; in the end it fails."""
        batch.tries += isinstance(error, WorkerDied)
        again = others or isinstance(error, WorkerDied)
        if again and batch.tries < TRIES and not self._dispatcher.closing:
            self._dispatcher.again(batch)
        else:
            self._count(batch, time.monotonic(), self._dispatcher.failed(batch, error))

    def _answer(self, batch: Batch) -> None:
        started = time.monotonic()
        try:
            results = self._results(batch)
        except WorkerDied as error:
            self._pass_on(batch, error, others=True)
            self._mend(None)
        except BaseException as error:  # whatever it is, it is its callers'
            self._count(batch, started, self._dispatcher.failed(batch, error))
        else:
            self._dispatcher.learn(batch, time.monotonic() - started)
            self._count(batch, started, self._dispatcher.answered(batch, results))

    def _results(self, batch: Batch) -> list[Any]:
        """What the parts of a batch get."""
        signature, parts = self._signatures[batch.line.method], batch.parts
        arguments = joined_calls([part.arguments for part in parts], signature.input_dim)
        found = self.engine.call(batch.line.method, arguments)
        if not signature.batchable:
            return [found]
        dim = signature.output_dim
        rows = rows_of_result(found, dim)
        if rows != batch.rows:
            raise RuntimeError(f"{batch.line.method} gave {rows} rows for {batch.rows}.")
        if len(parts) == 1:
            return [found]
        results, start = [], 0
        for part in parts:
            results.append(cut_result(found, start, start + part.rows, dim))
            start += part.rows
        return results

    def _count(self, batch: Batch, started: float, calls: Sequence[Call]) -> None:
        """Note what was done, then tell the callers."""
        self.counts = self.counts.plus(
            Counts(
                calls=len(calls),
                rows=batch.rows,
                batches=1,
                largest_batch=batch.rows,
                longest_wait=started - min(part.since for part in batch.parts),
                longest_batch=time.monotonic() - started,
            )
        )
        tell(calls)


class Team:
    """The members that work for one runner.

    Parameters
    ----------
    engines
        One per member, ready.
    about
        What the model is, if it is a classifier of texts.
    source
        That classifier, if it is in this process.
    """

    def __init__(
        self,
        engines: Iterable[Engine],
        signatures: Mapping[str, Signature],
        dispatcher: Dispatcher,
        about: About | None,
        source: Source | None = None,
    ) -> None:
        self.about, self.source = about, source
        self._process = os.getpid()
        self._dispatcher = dispatcher
        self._members = [Member(engine, dispatcher, signatures) for engine in engines]
        for member in self._members:
            member.crew = self._members
            member.thread.start()

    def put(self, request: Request, call: Call) -> bool:
        """Let a call wait for its answer; False if it is too late for that."""
        now = time.monotonic()
        return self._dispatcher.put(
            request.line,
            [
                Part(call, place, arguments, rows, now)
                for place, (arguments, rows) in enumerate(request.pieces)
            ],
        )

    @property
    def is_elsewhere(self) -> bool:
        """Whether this process was forked after it began: its threads are not here."""
        return self._process != os.getpid()

    def counts(self) -> Counts:
        """What all have done."""
        total = Counts()
        for member in self._members:
            total = total.plus(member.counts)
        return total

    def pids(self) -> list[int]:
        """Of the worker processes."""
        found = [getattr(member.engine, "pid", None) for member in self._members]
        return [pid for pid in found if pid is not None]

    def close(self, patience: float, error: BaseException) -> None:
        """Answer what waits; what is not answered in `patience` seconds gets the error."""
        if self.is_elsewhere:
            return
        self._dispatcher.close()
        end = time.monotonic() + patience
        for member in self._members:
            member.thread.join(max(0.0, end - time.monotonic()))
        tell(self._dispatcher.drop(error))
        for member in self._members:
            batch = member.batch
            if batch:
                tell(self._dispatcher.failed(batch, error))
            if member.thread.is_alive():
                member.engine.kill()


def start_team(
    name: str,
    open_source: Callable[[], Any],
    signatures: Mapping[str, Signature],
    workers: int,
    dispatcher: Dispatcher,
) -> Team:
    """Load the model, in this process or in so many workers.

    Raises
    ------
    UserError
        It cannot be loaded.
    """
    if workers:
        engines = start_workers(name, open_source, list(signatures), workers)
        return Team(engines, signatures, dispatcher, engines[0].about)
    model = model_of(open_source())
    check_methods(model, name, list(signatures))
    known = about(model)
    source = model.source if known else None
    return Team([LocalEngine(model)], signatures, dispatcher, known, source)


def start_workers(
    name: str, open_source: Callable[[], Any], methods: list[str], workers: int
) -> list[ProcessEngine]:
    """Start workers that share the cores, all at the same time."""
    from ktt_bentoml_compat.cores import cores

    try:
        threads = max(1, cores() // workers)
    except ValueError as error:  # KTT_CORES is no number
        raise UserError(str(error)) from error
    engines = [ProcessEngine(name, open_source, methods, threads) for _ in range(workers)]
    try:
        for engine in engines:
            engine.start()
        for engine in engines:
            engine.wait()
    except BaseException as error:
        for engine in engines:
            engine.kill()
            engine.close()
        if isinstance(error, WorkerDied):
            raise UserError(str(error)) from None  # it says all that there is to know
        raise
    return engines
