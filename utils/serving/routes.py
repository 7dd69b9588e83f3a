"""What a service answers besides its two APIs: its state, feedback, documentation, refusals."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Callable, Collection
from typing import Any

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException

from utils.serving.access import check_token
from utils.serving.feedback import MAX_BYTES, KnownPaths, Path, feedback_of
from utils.serving.log import log_failure
from utils.serving.requests import Refusal, decode_body

_SCRIPT = "SwaggerUIBundle({url: 'docs.json', dom_id: '#page', validatorUrl: null})"
_STYLE = """
  .swagger-ui .opblock-summary-path { flex: none; max-width: 100%; word-break: normal; }
  @media (max-width: 640px) {
    .swagger-ui .opblock .opblock-summary { flex-wrap: wrap; }
    .swagger-ui .opblock .opblock-summary-description { flex-basis: 100%; padding: 0.5em 0; }
  }"""
_DOCS = """<!DOCTYPE html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <title>{title}</title>
  <link rel="icon" href="data:,">
  <link rel="stylesheet" href="static_content/swagger-ui.css">
  <style>{style}</style>
</head>
<body>
  <div id="page"></div>
  <script src="static_content/swagger-ui-bundle.js"></script>
  <script>{script}</script>
</body>
</html>
"""


def _hash_of(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


# Swagger UI tries out how the browser parses HTML, with an image that has this handler.
_TRIAL = '1//"'
_POLICY = (
    f"default-src 'self'; script-src 'self' {_hash_of(_SCRIPT)} 'unsafe-hashes' "
    f"{_hash_of(_TRIAL)}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "frame-ancestors 'none'"
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

    title = html.escape(document["info"]["title"])
    text = _DOCS.format(title=title, style=_STYLE, script=_SCRIPT)

    def page() -> Response:
        headers = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}
        return Response(text, 200, headers, mimetype="text/html")

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


def _as_sent(header: str) -> str:
    """A header whose bytes are UTF-8: WSGI gives each byte as a character."""
    return header.encode("latin-1", "replace").decode("utf-8", "replace")


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

    known = KnownPaths(paths)

    def feedback() -> Response:
        try:
            check_token(_as_sent(request.headers.get("Authorization", "")))
            if offer is None:
                raise Refusal(404, "This service has no monitor, so feedback has no use.")
            headers = (request.headers.get("Content-Type"), request.headers.get("Content-Encoding"))
            document = decode_body(request.get_data(), *headers, limit=MAX_BYTES)
            entries = feedback_of(document, known)
        except Refusal as refusal:
            return line(str(refusal), refusal.status, refusal.headers)
        for name, path in entries:
            offer(name, path)
        return jsonify({"accepted": len(entries)}), 202  # type: ignore[return-value]

    app.add_url_rule("/feedback", "feedback", feedback, methods=["POST"])
