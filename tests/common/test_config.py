"""Typed configuration."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from utils.common.config import ModelConfig, build_config, config_to_dict, key, load_config
from utils.common.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Example(ModelConfig):
    rate: float = key(0.5, above=0, high=1)
    size: int = key(3, low=1)
    kind: str = key("relu", choices=("relu", "tanh"))
    language: str | None = key(None)
    grams: tuple[int, ...] = key((1, 2))
    frozen: bool = key(False)


def test_values_are_converted_and_frozen() -> None:
    config = build_config(Example, {"rate": 1, "grams": [1, 3], "language": "polish"}, "x")
    assert config == Example(rate=1.0, grams=(1, 3), language="polish")
    assert isinstance(config.rate, float)
    with pytest.raises(AttributeError):
        config.rate = 2  # type: ignore[misc]
    assert build_config(Example, json.loads(json.dumps(config_to_dict(config))), "x") == config


def test_all_mistakes_are_told_at_once() -> None:
    wrong = {
        "rat": 1, "rate": 2.0, "size": 1.5, "kind": "relo", "language": 3, "grams": ["a"],
        "frozen": 1,
    }  # fmt: skip
    with pytest.raises(UserError) as caught:
        build_config(Example, wrong, "hyperparameters.json: example")
    message = caught.value.message
    assert "\n" not in message
    for part in (
        "hyperparameters.json: example", "unknown key 'rat' (did you mean 'rate'?)",
        "rate = 2.0 is more than 1", "size = 1.5 is not a whole number",
        "kind = 'relo' is not one of relu, tanh", "language = 3 is not a string or null",
        "grams = ['a'] is not a list", "frozen = 1 is not true or false",
    ):  # fmt: skip
        assert part in message, part


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), True, "0.5", None, [0.5]])
def test_a_rate_must_be_a_positive_number(value: object) -> None:
    with pytest.raises(UserError, match="rate"):
        build_config(Example, {"rate": value}, "x")


def test_overrides_win_and_none_is_no_override(tmp_path) -> None:
    path = tmp_path / "hyperparameters.json"
    path.write_text('{"example": {"size": 7, "rate": 0.1}}')
    config = load_config(Example, path, "example", {"size": 9, "rate": None})
    assert (config.size, config.rate) == (9, 0.1)
    assert load_config(Example, path, "other") == Example()


@pytest.mark.parametrize("text", ["", "[]", '{"example": 3}', '{"example": [1]}', "{", "\x00"])
def test_a_broken_file_is_one_line(tmp_path, text: str) -> None:
    path = tmp_path / "hyperparameters.json"
    path.write_text(text)
    with pytest.raises(UserError, match="hyperparameters.json"):
        load_config(Example, path, "example")
    with pytest.raises(UserError, match="Cannot read"):
        load_config(Example, tmp_path / "nothing.json", "example")


def test_a_whole_number_fits_into_32_bits() -> None:
    with pytest.raises(UserError, match="whole number below 2,147,483,648"):
        build_config(Example, {"size": 10**30}, "example")
