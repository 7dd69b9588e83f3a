"""The HTTP side: a Flask application around a monitor."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path

from flask import Flask, Response, request
from prometheus_client import CONTENT_TYPE_LATEST
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from monitor_access import Access, Denied
from monitor_front import ARRIVED
from monitor_log import place_of
from monitor_reference import load_setup
from monitor_report import Reports
from monitor_service import Monitor, labels_of
from monitor_window import NotKept
from monitor_wire import Refused

MAX_BODY = 16 * 1024 * 1024
WAITING_PAGE = (
    "<!doctype html><meta charset=utf-8><meta http-equiv=refresh content=3>"
    "<title>Report</title><p>The report is being made …"
)
# Evidently's pages carry their scripts inside; nothing is fetched and nothing sent.
REPORT_POLICY = "default-src 'unsafe-inline' 'unsafe-eval' data: blob:; sandbox allow-scripts"

OPEN = Access()  # what it is without a token

log = logging.getLogger("monitoring")


def create_app(folder: Path) -> Flask:
    """Start the monitor of a monitoring folder.

    Raises
    ------
    SetupError
        Anything in the folder is wrong.
    """
    # beside the folder, which the next export replaces
    data = Path(os.environ.get("KTT_MONITOR_DATA") or folder.parent / "monitoring-data")
    access = Access.of_environment()
    monitor = Monitor(load_setup(folder), data, labels_of(folder))
    app = app_of(monitor, Reports(folder, data), access)
    monitor.start()
    log.info("The window of %d rows is kept in %s", monitor.settings.window_size, data)
    return app


def app_of(monitor: Monitor, reports: Reports, access: Access = OPEN) -> Flask:
    """The routes; the monitor's thread is not started."""
    app = Flask("monitoring", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    app.extensions["monitor"] = monitor
    _take(app, monitor, access)
    _tell(app, monitor)
    _show(app, reports, access)
    _fail(app, monitor)
    return app


def line(message: str, status: int = 200) -> Response:
    """One line of plain text."""
    return Response(f"{message}\n", status, mimetype="text/plain")


def _body(access: Access) -> bytes:
    access.check_post(request.headers)
    body = request.get_data(cache=False)
    if len(body) >= MAX_BODY:  # one without a length is cut there, and not refused
        raise RequestEntityTooLarge
    return body


def _take(app: Flask, monitor: Monitor, access: Access) -> None:
    @app.post("/iterate")
    def iterate() -> dict[str, int]:
        return {"received": monitor.iterate(_body(access))}

    @app.post("/feedback")
    def feedback() -> dict[str, int]:
        return monitor.feedback(_body(access))


def _tell(app: Flask, monitor: Monitor) -> None:
    @app.get("/metrics")
    def metrics() -> Response:
        page = monitor.metrics.page(request.environ.get(ARRIVED, math.inf))
        return Response(page, content_type=CONTENT_TYPE_LATEST)

    @app.get("/livez")
    def livez() -> Response:
        return line("ok") if monitor.alive else line("The calculation has ended.", 503)

    @app.get("/healthz")
    @app.get("/readyz")
    def ready() -> Response:
        if not monitor.alive:
            return line("The calculation has ended.", 503)
        if not monitor.metrics.writable:
            return line("The window cannot be kept: see the log.", 503)
        if monitor.failing:
            return line("The last calculation failed: see the log.", 503)
        return line(monitor.state)


def _show(app: Flask, reports: Reports, access: Access) -> None:
    @app.get("/report")
    def report() -> Response:
        access.check_host(request.headers)
        page = reports.page()
        if page is None:
            return Response(WAITING_PAGE, 202, {"Retry-After": "3"}, mimetype="text/html")
        return Response(page, headers={"Content-Security-Policy": REPORT_POLICY})


def _fail(app: Flask, monitor: Monitor) -> None:
    @app.errorhandler(Refused)
    def refused(error: Refused) -> Response:
        return line(str(error), 400)

    @app.errorhandler(Denied)
    def denied(error: Denied) -> Response:
        answer = line(str(error), error.status)
        if error.status == 401:
            answer.headers["WWW-Authenticate"] = "Bearer"
        return answer

    @app.errorhandler(NotKept)
    def not_kept(error: NotKept) -> Response:
        answer = line(str(error), 503)
        answer.headers["Retry-After"] = "5"
        return answer

    @app.errorhandler(HTTPException)
    def http(error: HTTPException) -> Response:
        if error.code == 413:
            monitor.metrics.refused.inc()
            return line(f"The body is larger than {MAX_BODY // 1024**2} MiB.", 413)
        return line(error.name + ".", error.code or 500)

    @app.errorhandler(Exception)
    def broken(error: Exception) -> Response:
        # Neither the message nor the trace is shown or logged: they may hold data.
        log.error("A request failed: %s", place_of(error))
        return line("Internal error.", 500)
