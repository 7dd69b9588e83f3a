"""Starts the two servers of a bundle: a proxy in front, API workers behind it.

In place of the functions of `bentoml.server` with the same names.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import logging
import math
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import active_children
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from ktt_bentoml_compat import processes
from ktt_bentoml_compat.cores import THREADS, cores, threads_asked_for

log = logging.getLogger("bentoml.server")
LOOPBACK = "127.0.0.1"
BOOT_ERROR = 3
"""Status at which gunicorn gives up, where it starts a worker of another one again for ever."""
METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
UNUSED = "WEB_CONCURRENCY"
"""What gunicorn would take as its number of workers; if it is no number, its import fails."""


def improve(module: dict[str, Any]) -> None:
    """Replace what `bentoml.server` starts its servers with."""
    for name in ("start_dev_server", "start_prod_server"):
        module[name] = _prepared(module[name], production=name == "start_prod_server")
    module["_start_dev_proxy"] = _watching(_announcing(module["_start_dev_proxy"]))
    module["_start_prod_proxy"] = _watching(_start_prod_proxy)
    module["_start_dev_server"] = processes.behind(_start_dev_server)
    module["_start_prod_server"] = processes.behind(_start_prod_server)


def _prepared(start: Callable[..., None], production: bool) -> Callable[..., None]:
    @functools.wraps(start)
    def prepared(*args: Any, **options: Any) -> None:
        check_port(options.get("port"))
        check_bundle(args[0] if args else options.get("saved_bundle_path", ""))
        check_batches(options)
        os.environ.pop(UNUSED, None)
        prepare_metrics_folder(options.get("port"))
        workers = share_cores(options.get("workers") if production else 1)
        if production:
            options["workers"] = workers
        processes.ignore(signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)  # they would end it
        own = os.getpid()
        gc.freeze()  # a collection writes to all it looks at: servers would no longer share that
        try:
            start(*args, **options)
        finally:
            if os.getpid() == own:  # a worker of the proxy, forked in there, comes here too
                processes.end_children()
                if _ended_early.is_set():
                    raise SystemExit(1)

    return prepared


def check_bundle(path: str) -> None:
    """Stop in one line where there is no bundle in a folder of this machine, or a damaged one."""
    if "://" in path:
        return
    if not Path(path, "bentoml.yml").is_file():
        below = next(iter(sorted(Path(path).glob("*/bentoml.yml"))), None)
        fix = f"Serve the one in it: {below.parent}" if below else "Give the folder that holds one"
        raise SystemExit(f"Error: {path or '.'} holds no bundle: bentoml.yml is missing. {fix}.")
    from bentoml.saved_bundle.loader import load_bento_service_metadata

    try:
        load_bento_service_metadata(path)
    except Exception as error:
        raise SystemExit(
            f"Error: {path}/bentoml.yml is damaged ({type(error).__name__}). Export again."
        ) from None


def check_batches(options: Mapping[str, Any]) -> None:
    """Stop in one line where no request would ever be answered; 0 is the bundle's own."""
    for name in ("mb_max_batch_size", "mb_max_latency"):
        value = options.get(name) or 0
        if value < 0:
            option = "--" + name.replace("_", "-")
            raise SystemExit(f"Error: {option} {value} is less than 0.")


def check_port(port: int | None) -> None:
    """Stop in one line where the proxy could not listen, before anything is loaded or emptied."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do
            probe.bind(("0.0.0.0", port or 0))
    except OverflowError:
        raise SystemExit(f"Error: {port} is no port. Give one from 1 to 65535: --port.") from None
    except OSError as error:
        why = {errno.EADDRINUSE: "is in use", errno.EACCES: "needs the rights of root"}
        said = why.get(error.errno or 0, f"cannot be used ({error.strerror})")
        raise SystemExit(f"Error: Port {port} {said}. Give another: --port 5050.") from None


def prepare_metrics_folder(port: int | None = None) -> None:
    """Empty the folder that all processes of this port count in, before there are any.

    As released both servers empty it while they start, each perhaps after the other has counted,
    and so does whoever else serves from the same home folder.
    """
    from bentoml.configuration.containers import BentoMLContainer

    folder = Path(BentoMLContainer.prometheus_multiproc_dir.get(), str(port or ""))
    os.environ[METRICS_FOLDER] = str(folder)
    from ktt_bentoml_compat import counts  # whose import reads that variable

    counts.guard()
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        counts.report_loss(error)


def keep_metrics_folder(lock: Any = None) -> None:
    """What each server does about that folder when it starts: nothing, if it is ready."""
    if METRICS_FOLDER not in os.environ:
        prepare_metrics_folder()


def share_cores(workers: int | None) -> int:
    """Settle the number of API workers, and tell them how many threads each may use.

    Parameters
    ----------
    workers
        As asked for; the default of the command line is not.

    Returns
    -------
    int
        One worker per core, or per `KTT_THREADS` cores.
    """
    try:
        available, threads = cores(), threads_asked_for()
    except ValueError as error:
        raise SystemExit(f"Error: {error}") from None
    if not workers or _is_default("workers"):
        workers = max(1, available // (threads or 1))
    each = str(threads or max(1, available // workers))
    for name in (THREADS, "RAYON_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ[name] = os.environ.get(name) or each
    log.info("API workers: %d, threads of each: %s", workers, each)
    return workers


def _is_default(option: str) -> bool:
    import click
    from click.core import ParameterSource

    context = click.get_current_context(silent=True)
    return context is not None and context.get_parameter_source(option) is ParameterSource.DEFAULT


# -- the end of one is the end of both ------------------------------------------------------

_ended_early = threading.Event()


def _watching(start_proxy: Callable[..., None]) -> Callable[..., None]:
    """Stop the proxy when the server behind it is gone: alone it could only ever answer 503.

    Whatever runs the bundle then starts it again.
    """

    @functools.wraps(start_proxy)
    def watching(*args: Any, **options: Any) -> None:
        for server in active_children():
            threading.Thread(target=_stop_after, args=(_end_of(server),), daemon=True).start()
        start_proxy(*args, **options)

    return watching


def _end_of(server: BaseProcess) -> int:
    """Descriptor that is readable once a process has ended, whatever has become of its children."""
    try:
        return os.pidfd_open(server.pid or 0)
    except (AttributeError, OSError):  # not on this system: the end of the last child, then
        return server.sentinel


def _stop_after(end: int) -> None:
    wait([end])
    time.sleep(1)  # whoever stops both at once has no need of the rest
    if not processes.stopping.is_set():
        _ended_early.set()
        log.error("The API server has ended, so the proxy ends too.")
        os.kill(os.getpid(), signal.SIGTERM)


# -- the servers ----------------------------------------------------------------------------


def _announce(port: int) -> None:
    log.info("The service is at http://%s:%d (stop it with Ctrl+C).", LOOPBACK, port)


def _announcing(start_proxy: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(start_proxy)
    def announcing(*args: Any, **options: Any) -> None:
        _announce(options["port"])
        start_proxy(*args, **options)

    return announcing


@contextlib.contextmanager
def _loading() -> Iterator[None]:
    """Load a bundle; one that is damaged ends this process with a line, as often as it is tried."""
    try:
        with processes.leaving_at_once():
            yield
    except Exception as error:
        log.debug("Where the bundle cannot be loaded:", exc_info=True)
        reason = " ".join(str(error).split())
        log.error("The bundle cannot be loaded (%s): %s", type(error).__name__, reason)
        raise SystemExit(BOOT_ERROR) from None


def _start_dev_server(saved_bundle_path: str, api_server_port: int, enable_swagger: bool) -> None:
    """Start an API server that answers one request after the other.

    As released it shows its address, which is for the proxy alone, and logs each request's.
    """
    from bentoml.saved_bundle import load_from_dir
    from bentoml.server.api_server import BentoAPIServer
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Unlogged(WSGIRequestHandler):
        """Logs no request: a text may be in its address."""

        def log(self, type: str, message: str, *args: Any) -> None:
            pass

    log.info("Starting BentoML API server in development mode..")
    with _loading():
        service = load_from_dir(saved_bundle_path)
        app = BentoAPIServer(service, enable_swagger=enable_swagger).app
    make_server(
        LOOPBACK, api_server_port, app, threaded=False, request_handler=Unlogged
    ).serve_forever()


def _start_prod_proxy(
    saved_bundle_path: str, api_server_port: int, workers: int | None, **options: Any
) -> None:
    """Start the proxy, which ends when all that it is asked has been answered."""
    from bentoml.server.marshal_server import gunicorn_marshal_server

    from ktt_bentoml_compat.drain import LONGEST, DrainingRunner

    log.info("Starting BentoML proxy in production mode..")
    server: Any = gunicorn_marshal_server()

    class Proxy(server):
        def load(self) -> Any:
            app = super().load()

            async def runner() -> DrainingRunner:
                return DrainingRunner(app, keepalive_timeout=self.cfg.keepalive)

            return runner

    proxy = Proxy(
        bundle_path=saved_bundle_path, outbound_host=LOOPBACK, outbound_port=api_server_port,
        workers=workers, **options,
    )  # fmt: skip
    proxy.cfg.set("graceful_timeout", math.ceil(LONGEST + 1))
    proxy.cfg.set("when_ready", processes.proxy_is_ready)
    proxy.cfg.set("post_worker_init", processes.proxy_worker_is_ready)
    _announce(options["port"])
    proxy.run()


def _start_prod_server(
    saved_bundle_path: str,
    port: int,
    timeout: int,
    workers: int,
    enable_swagger: bool,
    prometheus_lock: Any = None,
) -> None:
    """Start the API workers, on this machine's own address: only the proxy is to ask them."""
    from bentoml.server.gunicorn_server import gunicorn_bento_server
    from gunicorn.errors import HaltServer

    log.info("Starting BentoML API server in production mode..")
    released: Any = gunicorn_bento_server()

    class ApiServer(released):
        def load(self) -> Any:
            with _loading():
                return super().load()

    server = ApiServer(
        saved_bundle_path,
        bind=f"{LOOPBACK}:{port}",
        timeout=timeout,
        workers=workers,
        prometheus_lock=prometheus_lock,
        enable_swagger=enable_swagger,
    )
    server.cfg.set("graceful_timeout", processes.API_SECONDS)
    server.cfg.set("when_ready", processes.api_server_is_ready)
    server.cfg.set("post_worker_init", processes.api_worker_is_ready)
    try:
        server.run()
    except HaltServer as halt:  # of the second worker that could not start; each said why
        raise SystemExit(halt.exit_status) from None
