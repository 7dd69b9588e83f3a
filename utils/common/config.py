"""Typed configuration: a JSON block becomes a frozen dataclass, all mistakes told at once."""

from __future__ import annotations

import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from utils.common.errors import UserError, unknown
from utils.common.files import is_plain, read_json

LARGEST = 2**31  # what compiled code takes for a whole number


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What every model's configuration has."""

    display_name: str = ""


Config = TypeVar("Config", bound=ModelConfig)


def key(
    default: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: Sequence[Any] | None = None,
    location: bool = False,
    note: str = "",
) -> Any:
    """Declare a hyperparameter with its default, its bounds and a word on its meaning.

    Parameters
    ----------
    default
        Value where the file has none.
    low, high
        Inclusive bounds.
    above
        Exclusive lower bound.
    choices
        All allowed values.
    location
        The value may be a path, of which only the name is ever written down.
    note
        One line for people.
    """
    bounds = {
        "low": low, "high": high, "above": above, "choices": choices, "location": location,
        "note": note,
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=bounds)


def build_config(cls: type[Config], values: Mapping[str, Any], source: str) -> Config:
    """Build a configuration from a JSON object.

    Parameters
    ----------
    cls
        The dataclass.
    values
        Keys and values as read.
    source
        Where they come from, for the message.

    Raises
    ------
    UserError
        Unknown keys, wrong types, values out of bounds: all in one message.
    """
    return cls(**checked_values(cls, values, source))


def checked_values(cls: type, values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Check values for a dataclass whose fields `key` declares; each as its field's type.

    Raises
    ------
    UserError
        As for `build_config`.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{source}: expected an object of hyperparameters, got {values!r}.")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    mistakes = []
    for name, value in values.items():
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            mistakes.append(f"unknown key {name!r}{hint}")
        elif problem := _problem(value, hints[name], fields[name].metadata):
            mistakes.append(f"{name} = {value!r} {problem}")
    if mistakes:
        raise UserError(
            f"{source}: {'; '.join(mistakes)}. Known keys: {', '.join(sorted(fields))}."
        )
    return {name: _converted(value, hints[name]) for name, value in values.items()}


def _alternatives(hint: Any) -> tuple[Any, ...]:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return typing.get_args(hint)
    return (hint,)


def _is(value: Any, hint: Any) -> bool:
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and abs(value) < sys.float_info.max
    if hint is int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and abs(value) < LARGEST
    if typing.get_origin(hint) is tuple:
        wanted = typing.get_args(hint)[0]
        return isinstance(value, list | tuple) and all(_is(item, wanted) for item in value)
    return isinstance(value, hint)


def _type_name(hint: Any) -> str:
    names = {
        float: "a number",
        int: f"a whole number below {LARGEST:,}",
        str: "a string",
        bool: "true or false",
    }
    return names.get(hint, "null" if hint is type(None) else "a list")


def _problem(value: Any, hint: Any, bounds: Mapping[str, Any]) -> str | None:
    kinds = _alternatives(hint)
    if not is_plain(value):
        return "cannot be written again: it has half characters, or is no number"
    if not any(_is(value, kind) for kind in kinds):
        return "is not " + " or ".join(_type_name(kind) for kind in kinds)
    choices = bounds.get("choices")
    if choices is not None and value not in choices:
        return f"is not one of {', '.join(map(str, choices))}"
    if value is None or isinstance(value, str | bool | list | tuple):
        return None
    if bounds.get("low") is not None and value < bounds["low"]:
        return f"is less than {bounds['low']}"
    if bounds.get("above") is not None and value <= bounds["above"]:
        return f"is not more than {bounds['above']}"
    if bounds.get("high") is not None and value > bounds["high"]:
        return f"is more than {bounds['high']}"
    return None


def _converted(value: Any, hint: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, int) and not isinstance(value, bool):
        kinds = _alternatives(hint)
        return float(value) if float in kinds and int not in kinds else value
    return value


def load_config(
    cls: type[Config],
    path: Path,
    model: str,
    overrides: Mapping[str, Any] | None = None,
    models: Collection[str] = (),
) -> Config:
    """Read a model's block of hyperparameters.json; keys in `overrides` win.

    A model without a block has its defaults. Blocks of other names than `models`, where these are
    given, are mistakes.

    Raises
    ------
    UserError
        The file or the block is wrong.
    """
    blocks = read_json(path)
    if not isinstance(blocks, dict):
        raise UserError(f"{path}: expected an object with one block per model.")
    for name in blocks:
        if models and name not in models:
            raise unknown(f"model in {path.name}:", name, models)
    block = blocks.get(model, {})
    if not isinstance(block, dict):
        raise UserError(f"{path}: {model}: expected an object of hyperparameters, got {block!r}.")
    given = {name: value for name, value in (overrides or {}).items() if value is not None}
    return build_config(cls, {**block, **given}, f"{path.name}: {model}")


def config_to_dict(config: ModelConfig) -> dict[str, Any]:
    """Plain values of a configuration, for JSON; of a folder's path only its name."""
    return {
        field.name: _plain(getattr(config, field.name), field.metadata)
        for field in dataclasses.fields(config)
    }


def _plain(value: Any, bounds: Mapping[str, Any]) -> Any:
    if bounds.get("location") and value[:1] in ("/", ".", "~"):
        return Path(value).expanduser().resolve().name
    return list(value) if isinstance(value, tuple) else value
