"""A loaded model that many callers share: `runner.predict.run(texts)`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from typing import Any, Self

from utils.errors import UserError, unknown
from utils.runner.signatures import CALL, Signature

MAX_BATCH_SIZE = 256
MAX_LATENCY_MS = 10.0


class Method:
    """One method of a runner's model."""

    def __init__(self, runner: Runner, name: str) -> None:
        self._runner = runner
        self._name = name

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Call it and wait for the answer."""
        return self._runner._call(self._name, args, kwargs)

    async def async_run(self, *args: Any, **kwargs: Any) -> Any:
        """Call it; awaitable."""
        return await asyncio.to_thread(self.run, *args, **kwargs)


class Runner:
    """A model that many callers share.

    Parameters
    ----------
    name
        What it is called in messages.
    open_source
        Loads the model; picklable if there are workers.
    signatures
        Its methods.
    max_batch_size
        Most rows that the model is given at once.
    max_latency_ms
        Milliseconds that a call may wait for others.
    workers
        Processes that each load the model; 0: this process does.
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
        self._open_source = open_source
        self._limits = (max_batch_size, max_latency_ms, workers)
        self._lock = threading.Lock()
        self._target: Any = None

    def init_local(self) -> Self:
        """Load the model."""
        from utils.predicting.pipeline import Source
        from utils.runner.texts import TextModel

        found = self._open_source()
        self._target = TextModel(found) if isinstance(found, Source) else found
        return self

    def close(self) -> None:
        """Let go of the model."""
        self._target = None

    def __enter__(self) -> Self:
        return self.init_local()

    def __exit__(self, *error: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Method:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in self.signatures:
            raise AttributeError(unknown("method", name, self.signatures).message)
        return Method(self, name)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model itself and wait for the answer."""
        return Method(self, CALL).run(*args, **kwargs)

    async def async_run(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model itself; awaitable."""
        return await Method(self, CALL).async_run(*args, **kwargs)

    def _call(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        from utils.runner.texts import TextModel, checked_texts

        target = self._target
        if target is None:
            raise UserError(f"Runner {self.name!r} has no model yet: call init_local() first.")
        function = target if method == CALL else getattr(target, method)
        if not isinstance(target, TextModel):
            return function(*args, **kwargs)
        (texts,) = args
        with self._lock:
            found = function(checked_texts(texts, method))
        return found[0] if isinstance(texts, str) else found
