"""What a user says about a model that is saved, checked before anything is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from utils.common.errors import UserError, unknown
from utils.store.info import Info
from utils.store.tags import checked_label, checked_version


def said(
    name: str | None,
    labels: Mapping[str, str] | None,
    metadata: Mapping[str, Any] | None,
    signatures: Mapping[str, Any] | None,
) -> Info:
    """What a user says about a run.

    Raises
    ------
    UserError
        It cannot be kept.
    """
    from utils.runner import Signature

    check_mappings(labels=labels, metadata=metadata, signatures=signatures)
    methods = {
        key: one if isinstance(one, Signature) else Signature.from_dict(one)
        for key, one in (signatures or {}).items()
    }
    values = {
        "name": None if name is None else checked_version("Run", name),
        "labels": dict(checked_label(*one) for one in (labels or {}).items()),
        "metadata": dict(metadata or {}),
        "signatures": {key: one.to_dict() for key, one in methods.items()},
    }
    return Info.from_dict(values, "What is said about the model")


def check_model(model: Any) -> None:
    if not (isinstance(getattr(model, "info", None), dict) and isinstance(model.name, str)):
        raise UserError(f"Give save_model a trained model, not a {type(model).__name__}.")


def check_mappings(**given: Any) -> None:
    """Refuse what is no mapping from names, where one belongs."""
    for name, value in given.items():
        if value is not None and not (
            isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
        ):
            raise UserError(f"{name} {value!r} cannot be used: give {{NAME: VALUE, …}}.")


def check_methods(names: Iterable[str]) -> None:
    """Refuse signatures of methods that no runner of a trained model has."""
    from utils.runner import DEFAULT_SIGNATURES

    for name in names:
        if name not in DEFAULT_SIGNATURES:
            raise unknown("method", name, DEFAULT_SIGNATURES)


def merged(known: Info, told: Info) -> Info:
    """What a training left, with what the user says about it."""
    return replace(
        known, name=told.name, labels=told.labels, metadata=told.metadata,
        signatures=told.signatures,
    )  # fmt: skip
