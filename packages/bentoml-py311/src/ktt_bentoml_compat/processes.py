"""Signals and ends of the two servers of a bundle.

The proxy is the one that is stopped: it answers what is in flight, then ends the API server. That
one heeds SIGQUIT alone, since whoever signals a process group, as a terminal does, or all processes
of a service, as systemd does, would else take it away from the requests in flight. It also ends
when the proxy is gone without a word.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import active_children, parent_process
from multiprocessing.connection import wait
from typing import Any

API_SECONDS = 4
"""For what the API workers have not sent to the monitor yet."""
IGNORED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

stopping = threading.Event()


def ignore(*signals: signal.Signals) -> None:
    """Let these signals do nothing, in this process and in those that it starts."""
    for number in signals:
        signal.signal(number, signal.SIG_IGN)


# -- the API server -------------------------------------------------------------------------


def behind(start: Callable[..., None]) -> Callable[..., None]:
    """Start a server that ends with the process that started it, and before only by SIGQUIT."""

    @functools.wraps(start)
    def started(*args: Any, **options: Any) -> None:
        signal.signal(signal.SIGQUIT, _leave)
        ignore(*IGNORED)
        logging.getLogger("gunicorn.error").addFilter(_names_no_address)
        threading.Thread(target=_end_with_parent, daemon=True).start()
        start(*args, **options)

    return started


def _leave(number: int, frame: Any) -> None:
    raise SystemExit(0)


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """Let SIGQUIT end this process at once, while it loads what it serves.

    An exception would be taken for one of whatever is just imported, and reported as such.
    """
    usual = signal.signal(signal.SIGQUIT, lambda *_: os._exit(0))
    try:
        yield
    finally:
        signal.signal(signal.SIGQUIT, usual)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGQUIT)


def _end_with_server(server: int) -> None:
    """End this worker when the server that started it has ended.

    A worker of gunicorn looks for that only when a request comes, and every half minute.
    """
    with contextlib.suppress(AttributeError, OSError):  # not on this system, or gone already
        wait([os.pidfd_open(server)])
    if hasattr(os, "pidfd_open"):
        os.kill(os.getpid(), signal.SIGQUIT)


def api_server_is_ready(arbiter: Any) -> None:
    """A hook of gunicorn, which has set its own handlers by then."""
    ignore(*IGNORED, signal.SIGTTIN, signal.SIGTTOU)


def _names_no_address(record: logging.LogRecord) -> bool:
    """Nobody is to open the API server's own."""
    return not str(record.msg).startswith("Listening at")


def api_worker_is_ready(worker: Any) -> None:
    """A hook of gunicorn."""
    from bentoml.server import gunicorn_config

    gunicorn_config.post_worker_init(worker)
    ignore(*IGNORED)
    threading.Thread(target=_end_with_server, args=(worker.ppid,), daemon=True).start()


def end_children() -> None:
    """End the servers that this process has started."""
    stopping.set()
    ignore(signal.SIGINT, signal.SIGTERM)
    for child in active_children():
        _send(child.pid, signal.SIGQUIT)
        if not wait([child.sentinel], API_SECONDS + 1):
            _send(child.pid, signal.SIGKILL)


def _send(pid: int | None, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid or os.getpid(), number)


# -- the proxy ------------------------------------------------------------------------------


def proxy_is_ready(arbiter: Any) -> None:
    """A hook of gunicorn: Ctrl+C stops as SIGTERM does, however often it is pressed."""
    signal.signal(signal.SIGINT, lambda *_: arbiter.signal(signal.SIGTERM, None))
    ignore(signal.SIGHUP, signal.SIGUSR2)


def proxy_worker_is_ready(worker: Any) -> None:
    """A hook of gunicorn: aiohttp's worker looks at SIGTERM once a second only.

    The sockets are those of a worker that it may have taken the place of, which has ended.
    """
    from bentoml.server import gunicorn_config

    from ktt_bentoml_compat.drain import let_in

    gunicorn_config.post_worker_init(worker)
    for listening in worker.sockets:
        let_in(listening, nobody=False)
    worker.loop.add_signal_handler(signal.SIGTERM, worker.handle_quit, signal.SIGTERM, None)
