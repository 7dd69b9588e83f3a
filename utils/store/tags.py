"""Tags: ``<model>_<dataset>:<version>``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from utils.common.checkpoints import runs
from utils.common.errors import UserError
from utils.common.paths import Layout, checked_name
from utils.common.registry import model_names

LATEST, BEST = "latest", "best"
_TIME = re.compile(r"\d{4}-\d\d-\d\d(T.*)?")


@dataclass(frozen=True, kw_only=True)
class Tag:
    """A pair, and which of its runs: a time, a name or an alias."""

    model: str
    dataset: str
    version: str = LATEST

    def __str__(self) -> str:
        return f"{self.model}_{self.dataset}:{self.version}"


def parse_tag(text: str, layout: Layout) -> Tag:
    """Read a tag; without a version it means the latest.

    Both halves of ``<model>_<dataset>`` may have a ``_`` of their own. Of all ways to read it, one
    that has been trained is preferred, and then the longest model. ``<model>/<dataset>`` leaves no
    choice.

    Raises
    ------
    UserError
        It is none, or of a model that nobody knows.
    """
    pair, _, version = text.partition(":")
    version = version or LATEST
    if "/" in pair:
        model, _, dataset = pair.partition("/")
        return Tag(model=_known(text, model, layout), dataset=_dataset(dataset), version=version)
    ways = [
        Tag(model=model, dataset=pair[len(model) + 1 :], version=version)
        for model in sorted(_models(layout), key=len, reverse=True)
        if pair.startswith(f"{model}_") and len(pair) > len(model) + 1
    ]
    if not ways:
        raise UserError(
            f"{text!r} is no tag: write MODEL_DATASET:VERSION, such as {_example(layout)}. "
            f"Models: {', '.join(_models(layout))}."
        )
    for way in ways:
        _dataset(way.dataset)
    trained = (way for way in ways if runs(layout, way.model, way.dataset))
    return next(trained, ways[0])


def _models(layout: Layout) -> list[str]:
    """All registered models, and others that something in weights/ is of."""
    folders = {path.name for path in layout.weights.glob("[!.]*") if path.is_dir()}
    return sorted({*model_names(), *folders})


def _known(text: str, model: str, layout: Layout) -> str:
    if model not in _models(layout):
        raise UserError(f"{text!r} is of no known model. Models: {', '.join(_models(layout))}.")
    return model


def _dataset(name: str) -> str:
    return checked_name("Dataset", name)


def _example(layout: Layout) -> str:
    return f"{_models(layout)[0]}_data001:{LATEST}"


def is_time(version: str) -> bool:
    """Whether a version is a run's time, or the beginning of one, and nothing else."""
    return bool(_TIME.fullmatch(version))


def checked_version(kind: str, name: str) -> str:
    """Return `name` if a run or an alias can be called so.

    Raises
    ------
    UserError
        It cannot, or would be taken for something else.
    """
    if name in (LATEST, BEST) or is_time(name):
        raise UserError(f"{kind} name {name!r} means something already: choose another.")
    return checked_name(kind, name)


def checked_label(key: str, value: str) -> tuple[str, str]:
    """Return a label if it can be stored and asked for: ``team=nlp``.

    Raises
    ------
    UserError
        It cannot.
    """
    checked_name("Label", key)
    if not isinstance(value, str) or len(value) > 256 or not value.isprintable() or "," in value:
        raise UserError(
            f"Label {key}={value!r} cannot be stored: take up to 256 printable characters and no "
            "comma."
        )
    return key, value


def parse_labels(given: tuple[str, ...] | list[str]) -> dict[str, str]:
    """Read labels as they are typed: ``key=value``.

    Raises
    ------
    UserError
        One is not of this form.
    """
    found: dict[str, str] = {}
    for text in given:
        key, sign, value = text.partition("=")
        if not sign:
            raise UserError(f"{text!r} is no label: write key=value, such as team=nlp.")
        if found.get(key, value) != value:
            raise UserError(f"Label {key!r} is {found[key]!r} and {value!r}: give it once.")
        name, content = checked_label(key, value)
        found[name] = content
    return found
