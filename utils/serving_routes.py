"""What a service answers besides its two APIs: its state, feedback, documentation, refusals."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Collection
from typing import Any

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException

from utils.serving_access import check_token
from utils.serving_feedback import Path, feedback_of
from utils.serving_log import log_failure
from utils.serving_text import Refusal, unpacked

_SCRIPT = "SwaggerUIBundle({url: 'docs.json', dom_id: '#page', validatorUrl: null})"
_DOCS = f"""<!DOCTYPE html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <title>Text classification</title>
  <link rel="stylesheet" href="static_content/swagger-ui.css">
</head>
<body>
  <div id="page"></div>
  <script src="static_content/swagger-ui-bundle.js"></script>
  <script>{_SCRIPT}</script>
</body>
</html>
"""
_SCRIPT_HASH = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
_POLICY = (
    f"default-src 'self'; script-src 'self' 'sha256-{_SCRIPT_HASH}'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"
)


def line(text: str, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """One line of plain text."""
    return Response(f"{text}\n", status, headers, mimetype="text/plain")


def add_refusals(app: Flask) -> None:
    """Refuse with one line of plain text, never with a page or a stack trace."""
    app.url_map.merge_slashes = False
    app.register_error_handler(HTTPException, _refused)
    app.register_error_handler(Exception, _failed)


def _refused(error: HTTPException) -> Response:
    status = error.code or 500
    allow = {name: value for name, value in error.get_headers() if name == "Allow"}
    return line(f"{status} {error.name}.", status, allow)


def _failed(error: Exception) -> Response:
    log_failure("A route", error)
    return line("500 Internal Server Error.", 500)


def add_docs(app: Flask, document: dict[str, Any]) -> None:
    """Put this document, and a page of it without anything foreign, in place of BentoML's."""

    def page() -> Response:
        headers = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}
        return Response(_DOCS, 200, headers, mimetype="text/html")

    app.view_functions["docs"] = lambda: jsonify(document)
    app.view_functions["swagger"] = page
    app.view_functions["index"] = page


def add_state(app: Flask, probe: Callable[[], None]) -> None:
    """Add `/livez`, which answers while the process runs, and `/readyz`.

    Parameters
    ----------
    probe
        Fails while the service cannot answer texts.
    """

    def ready() -> Response:
        try:
            probe()
        except Exception as error:
            return line(f"The classifier does not answer: {type(error).__name__}.", 503)
        return line("ready")

    app.add_url_rule("/livez", "livez", lambda: line("alive"))
    app.add_url_rule("/readyz", "readyz", ready)


def add_feedback(
    app: Flask, paths: Collection[Path], offer: Callable[[str, Path], None] | None
) -> None:
    """Add `POST /feedback`.

    Parameters
    ----------
    paths
        Of the tree's classes.
    offer
        Takes an answer's id and its true path; None where nobody collects them.
    """

    def feedback() -> Response:
        try:
            check_token(request.headers.get("Authorization"))
            encoding = request.headers.get("Content-Encoding", "").strip().lower()
            if offer is None:
                raise Refusal(404, "This service has no monitor, so feedback has no use.")
            entries = feedback_of(unpacked(request.get_data(), encoding), paths)
        except Refusal as refusal:
            return line(str(refusal), refusal.status, refusal.headers)
        for name, path in entries:
            offer(name, path)
        return jsonify({"accepted": len(entries)}), 202  # type: ignore[return-value]

    app.add_url_rule("/feedback", "feedback", feedback, methods=["POST"])
