"""A loaded model that many callers share: `runner.predict.run(texts)`."""

from __future__ import annotations

import atexit
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

from utils.common.errors import UserError, unknown
from utils.runner.batches import Arguments
from utils.runner.calls import AwaitedCall, Call, RunnerClosed
from utils.runner.dispatch import Dispatcher
from utils.runner.requests import array_request, text_request
from utils.runner.signatures import CALL, Signature
from utils.runner.threads import Counts, Team, start_team

if TYPE_CHECKING:
    from utils.inference.pipeline import Source

_Kind = TypeVar("_Kind", bound=Call)

MAX_BATCH_SIZE = 256
MAX_LATENCY_MS = 10.0
CLOSE_PATIENCE = 10.0  # seconds for what waits to be answered


@dataclass(frozen=True, slots=True)
class Method:
    """One method of a runner's model."""

    runner: Runner
    name: str

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Call it and wait for the answer.

        A text classifier's methods take a text, and give its answer; or several, and give a list
        (of scores: an array).

        Raises
        ------
        TypeError, ValueError
            What was given is no batch.
        RunnerClosed
            The runner was closed before it answered.
        Exception
            What the model raised.
        """
        call = self.runner._offer(self.name, (args, kwargs), Call)
        return call.answer()

    async def async_run(self, *args: Any, **kwargs: Any) -> Any:
        """The same without a thread that waits."""
        call = self.runner._offer(self.name, (args, kwargs), AwaitedCall)
        return await call.awaited()


class Runner:
    """A model that many callers share; what they ask at the same time is answered in batches.

    ``with Runner(…) as runner: runner.predict.run(texts)``, from as many threads and event loops
    as there are. Every name in `signatures` is an attribute with `run` and `async_run`; those of
    the runner itself call the model's ``__call__``.

    Parameters
    ----------
    name
        What it is called in messages.
    open_source
        Loads the model: a `utils.inference.pipeline.Source`, or anything with the methods that
        the signatures name. Picklable if there are workers.
    signatures
        The methods by name.
    max_batch_size
        Rows that the model is given at once, at most. Longer calls are split and put together.
    max_latency_ms
        How long a call may wait for others to be answered with, in milliseconds. It usually
        waits less: see `utils.runner.dispatch`. It does wait for the batches before its own.
    workers
        Processes that each load the model and share the cores; 0: the model is in this process.
    """

    predict: Method
    classify: Method

    def __init__(
        self,
        name: str,
        open_source: Callable[[], Any],
        *,
        signatures: Mapping[str, Signature],
        max_batch_size: int = MAX_BATCH_SIZE,
        max_latency_ms: float = MAX_LATENCY_MS,
        workers: int = 0,
    ) -> None:
        self.name = name
        self.signatures = dict(signatures)
        self.max_batch_size = _whole("max_batch_size", max_batch_size, 1)
        self.workers = _whole("workers", workers, 0)
        if not 0 <= max_latency_ms < math.inf:
            raise UserError(f"max_latency_ms {max_latency_ms!r} is no time: give 0 or more.")
        self.max_latency_ms = max_latency_ms
        self._open_source = open_source
        self._team: Team | None = None
        self._changing = threading.Lock()
        own = {*dir(type(self)), *vars(self)}
        for method in self.signatures:
            if method != CALL and (method in own or not method.isidentifier()):
                raise UserError(f"A signature cannot be called {method!r}: a runner has that.")

    # -- its life -------------------------------------------------------------------------

    def init_local(self) -> Self:
        """Load the model, here or in the workers; more calls do nothing.

        Raises
        ------
        UserError
            It cannot be loaded.
        """
        with self._changing:
            if self._team is None or self._team.is_elsewhere:
                dispatcher = Dispatcher(self.max_batch_size, self.max_latency_ms / 1000)
                self._team = start_team(
                    self.name, self._open_source, self.signatures, self.workers, dispatcher
                )
                atexit.register(self._team.close, 0.0, self._closed())
        return self

    def close(self, patience: float = CLOSE_PATIENCE) -> None:
        """Take no more calls, answer those that wait, end the workers.

        Parameters
        ----------
        patience
            Seconds after which what is not answered fails with `RunnerClosed`.
        """
        with self._changing:
            team, self._team = self._team, None
        if team:
            atexit.unregister(team.close)
            team.close(patience, self._closed())

    def __enter__(self) -> Self:
        return self.init_local()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close(CLOSE_PATIENCE if error is None else 0)

    # -- calls ----------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Method:
        signatures = self.__dict__.get("signatures", {})
        if name not in signatures:
            raise AttributeError(unknown("method", name, signatures).message)
        return Method(self, name)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model itself: of a text classifier, the scores; see `Method.run`."""
        return Method(self, CALL).run(*args, **kwargs)

    async def async_run(self, *args: Any, **kwargs: Any) -> Any:
        """The same without a thread that waits."""
        return await Method(self, CALL).async_run(*args, **kwargs)

    @property
    def counts(self) -> Counts:
        """What it has done since `init_local`."""
        return self._opened().counts()

    @property
    def source(self) -> Source:
        """The classifier, for those who have many texts and make batches themselves.

        With workers it is one without features, whose scores come from them.

        Raises
        ------
        UserError
            The model is none, or has no signature for its scores.
        """
        team = self._opened()
        if team.source:
            return team.source
        if not team.about or CALL not in self.signatures:
            raise UserError(f"Runner {self.name!r} has no text classifier with scores.")
        return team.about.source(self.run)

    def _opened(self) -> Team:
        team = self._team
        if team is None:
            raise RunnerClosed(f"Runner {self.name!r} is not open: call init_local() first.")
        if team.is_elsewhere:
            raise RunnerClosed(
                f"Runner {self.name!r} was opened before this process was forked, and stayed "
                "behind: call init_local() here too."
            )
        return team

    def _offer(self, method: str, arguments: Arguments, kind: type[_Kind]) -> _Kind:
        """Put a call where it is answered from."""
        team = self._opened()
        if method not in self.signatures:
            raise AttributeError(unknown("method", method, self.signatures).message)
        form = text_request if team.about else array_request
        request = form(method, self.signatures[method], arguments, self.max_batch_size)
        call = kind(len(request.pieces), request.join)
        if not team.put(request, call):
            raise self._closed()
        return call

    def _closed(self) -> RunnerClosed:
        return RunnerClosed(f"Runner {self.name!r} was closed.")


def _whole(name: str, value: int, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{name} {value!r} is no whole number from {least}.")
    return value
