"""The OpenAPI document of a service."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from utils.serving.feedback import MAX_ENTRIES
from utils.serving.requests import bytes_of

Document = dict[str, Any]

_REFUSALS = {
    400: "No JSON, no object, or not what the request's schema says.",
    401: "The service has a token, and the request does not bring it.",
    405: "Another method than POST.",
    408: "The end of the body did not come within a minute.",
    413: "The text or the body is too large.",
    415: "The body is in another character set, or packed in another way, than is read.",
    429: "More requests wait than can be answered in time.",
}
_ID = {"type": "string", "pattern": "^[0-9a-f]{32}$", "example": "0f" * 16}
_NAMES = {"type": "array", "items": {"type": "string"}, "minItems": 1}
_CONFIDENCE = {"type": "number", "minimum": 0, "maximum": 1}


def document(
    title: str,
    version: str,
    path: Sequence[str],
    characters: int,
    *,
    secured: bool,
    monitored: bool,
) -> Document:
    """Describe a service.

    Parameters
    ----------
    title, version
        Of the service.
    path
        One of its tree, for the examples.
    characters
        That a text may have.
    secured
        Whether it has a token.
    monitored
        Whether anybody collects feedback.
    """
    posts = {
        "/predict": _operation(
            "The names of the path's classes, root first, newline-separated.",
            "Text", "Path as one string", {"type": "string"}, "\n".join(path),
        ),
        "/classify": _operation(
            "The path with its calibrated confidence, level by level, and the best others.",
            "Text", "Answer", _ref("Answer"), _answer(path),
        ),
    }  # fmt: skip
    schemas = _schemas(path, characters)
    if monitored:
        posts["/feedback"] = _feedback()
    else:
        del schemas["Feedback"], schemas["Accepted"]
    found: Document = {
        "openapi": "3.0.3",
        "info": {
            "title": title,
            "version": version,
            "description": "Answers texts with paths of classes. A refusal is one line of text.",
        },
        "paths": posts | _infrastructure(),
        "components": {"schemas": schemas},
    }
    if secured:
        found["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for operation in (path["post"] for path in posts.values()):
        if secured:
            operation["security"] = [{"token": []}]
        else:
            del operation["responses"]["401"]
    return found


def _feedback() -> Document:
    found = _operation(
        "Send the true path of an answered text, or of several: it goes to the monitor.",
        "Feedback", "Accepted", _ref("Accepted"), {"accepted": 1}, status=202,
    )  # fmt: skip
    del found["post"]["responses"]["429"]
    return found


def _ref(name: str) -> Document:
    return {"$ref": f"#/components/schemas/{name}"}


def _line(description: str) -> Document:
    return {"description": description, "content": {"text/plain": {"schema": {"type": "string"}}}}


def _operation(
    summary: str, body: str, title: str, schema: Document, example: Any, status: int = 200
) -> Document:
    answer: Document = {
        "description": title,
        "content": {"application/json": {"schema": schema, "example": example}},
    }
    if status == 200:
        answer["headers"] = {"X-Request-Id": {"schema": _ID, "description": "Names the answer."}}
    responses = {str(status): answer} | {str(k): _line(v) for k, v in _REFUSALS.items()}
    content = {"application/json": {"schema": _ref(body)}}
    return {
        "post": {
            "summary": summary,
            "requestBody": {"required": True, "content": content},
            "responses": responses,
        }
    }


def _infrastructure() -> Document:
    texts = {
        "/healthz": "200 while the service runs.",
        "/livez": "200 while the process runs.",
        "/readyz": "200 while the classifier answers, else 503.",
        "/metrics": "Metrics for Prometheus.",
    }
    found: Document = {
        path: {"get": {"summary": text, "responses": {"200": _line("As it should be.")}}}
        for path, text in texts.items()
    }
    found["/readyz"]["get"]["responses"]["503"] = _line("It does not answer.")
    return found


def _answer(path: Sequence[str]) -> Document:
    return {
        "request_id": _ID["example"],
        "path": list(path),
        "confidence": 0.93,
        "levels": [{"name": name, "confidence": 0.93} for name in path],
        "alternatives": [{"path": list(path), "confidence": 0.93}],
    }


def _schemas(path: Sequence[str], characters: int) -> Document:
    text = {"type": "string", "minLength": 1, "maxLength": characters}
    one = _object(request_id=_ID, path=_NAMES) | {
        "example": {"request_id": _ID["example"], "path": list(path)}
    }
    many = _object(data={"type": "array", "items": one, "minItems": 1, "maxItems": MAX_ENTRIES})
    return {
        "Text": _object(text=text)
        | {
            "example": {"text": "a text to classify"},
            "description": f"In a body of at most {bytes_of(characters)} bytes.",
        },
        "Answer": _object(
            request_id=_ID,
            path=_NAMES,
            confidence=_CONFIDENCE,
            levels={
                "type": "array",
                "items": _object(name={"type": "string"}, confidence=_CONFIDENCE),
            },
            alternatives={"type": "array", "items": _object(path=_NAMES, confidence=_CONFIDENCE)},
        ),
        "Feedback": {"oneOf": [one, many], "example": one["example"]},
        "Accepted": _object(accepted={"type": "integer", "minimum": 1}),
    }


def _object(**properties: Document) -> Document:
    return {"type": "object", "required": list(properties), "properties": properties}
