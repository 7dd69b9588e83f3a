"""What a runner's worker process does: load the model, answer batches until the runner ends."""

from __future__ import annotations

import gc
import os
import signal
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from utils.common.errors import UserError

THREADS = ("KTT_THREADS", "OMP_NUM_THREADS")
"""What ONNX Runtime's sessions, and PyTorch, are told their threads by."""


class WorkerError(RuntimeError):
    """An error of a worker process that cannot be sent as it is."""


def work(
    connection: Connection,
    open_source: Callable[[], Any],
    name: str,
    methods: list[str],
    threads: int,
) -> None:
    """Answer batches until the other end of the connection is closed.

    Sends once what the model is (None if it is no classifier of texts), then for each
    (method, arguments) the result in a tuple; or an exception in the place of either.
    """
    from utils.runner.methods import about

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the runner's business
    for variable in THREADS:
        os.environ.setdefault(variable, str(threads))
    with suppress(EOFError, OSError):  # the runner is gone
        try:
            model = _open(open_source, name, methods)
        except Exception as error:
            connection.send(_sendable(error))
            return
        gc.collect()
        gc.freeze()  # else each full collection looks at all of the model, for tens of milliseconds
        connection.send(about(model))
        while True:
            connection.send_bytes(_answer(model, *connection.recv()))


def _open(open_source: Callable[[], Any], name: str, methods: list[str]) -> Any:
    from utils.runner.methods import check_methods, model_of

    model = model_of(open_source())
    check_methods(model, name, methods)
    return model


def _answer(model: Any, method: str, arguments: Any) -> Any:
    """The message with a result, or with what came instead."""
    from utils.runner.methods import invoke

    try:
        return ForkingPickler.dumps((invoke(model, method, arguments),))
    except Exception as error:
        return ForkingPickler.dumps(_sendable(error))


def _sendable(error: Exception) -> Exception:
    """The error, or one that says the same and can be sent; with its traceback as a note."""
    if not isinstance(error, UserError):
        error.add_note("In a worker process:\n" + "".join(traceback.format_exception(error)))
    try:
        ForkingPickler.loads(ForkingPickler.dumps(error))
    except Exception:  # whatever its author did not think of
        other = WorkerError(f"{type(error).__name__}: {error}")
        other.__notes__ = error.__notes__
        return other
    return error
