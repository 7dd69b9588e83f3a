"""Which encoders may be built, and how large: checks before anything is made of a file's values.

A checkpoint or a folder describes its encoder by plain values. Only types of text encoders that
transformers has code for itself are built, from the keys that they know; whatever would make it
look for code or weights elsewhere is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from utils.common.errors import UserError, unknown

TYPES = (
    "albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "ernie",
    "eurobert", "mobilebert", "modernbert", "mpnet", "nomic_bert", "roberta", "xlm-roberta",
)  # fmt: skip
"""Encoders of texts whose code is part of transformers, not of the place they come from."""

IGNORED = (
    "_name_or_path", "name_or_path", "transformers_version", "dtype", "torch_dtype",
    "id2label", "label2id", "architectures",
)  # fmt: skip
"""Keys of a config.json that say nothing about how the encoder is built."""

MOST_LAYERS = 256
MOST_WORDS = 4_000_000
LARGEST = 1_000_000
"""Of any other number: widths, heads, positions, ids."""
SPARE_BYTES = 1 << 26
"""Built besides the weights of a file: masks, positions."""

_CODE = re.compile(
    r"auto_map|code|code_\w+|\w+_code|custom_\w+|_?\w*(attn|experts)_implementation|\w+_config|"
    r"adapter\w*|base_model\w*|\w*kernels?|transformers_weights"
)
_LAYERS = re.compile(r"\w*(layers|groups|group_num)")
_NAME = re.compile(r"[\w.-]{0,64}", re.ASCII)
_ELSEWHERE = re.compile(r"[/\\~]|\w+://|[A-Za-z]:[/\\]|.*\.\.[/\\]", re.DOTALL)


def checked_config(values: Mapping[str, Any], origin: str) -> Any:
    """Build the configuration of an encoder, with keys that its type does not know left out.

    Parameters
    ----------
    values
        Those of a config.json.
    origin
        Where they come from, for the message.

    Raises
    ------
    UserError
        They ask for another type, for code, for files elsewhere, or for an absurd size.
    """
    from transformers import CONFIG_MAPPING

    kind = values.get("model_type")
    if kind not in TYPES:
        raise UserError(f"{origin}: {unknown('model_type', str(kind)[:64], TYPES).message}")
    config_class = CONFIG_MAPPING[kind]
    known = {*config_class().to_dict(), *config_class.attribute_map} - {*IGNORED, "model_type"}
    given = {key: value for key, value in values.items() if key != "model_type"}
    for key, value in given.items():
        if problem := _problem(key, value, key in known):
            raise UserError(
                f"{origin}: {key[:64]!r} {problem}, which is never loaded. Take it out, or take "
                "another encoder."
            )
    return config_class(**{key: value for key, value in given.items() if key in known})


def _problem(key: str, value: Any, known: bool) -> str | None:
    """What is wrong with a value of a configuration, if anything."""
    if _CODE.fullmatch(key) or (isinstance(value, dict) and "model_type" in value):
        return "names code or another model"
    parts = list(_parts(value))
    if any(isinstance(part, str) and _ELSEWHERE.match(part) for part in parts):
        return "names a place elsewhere"
    if not known:
        return None
    if any(isinstance(part, str) and not _NAME.fullmatch(part) for part in parts):
        return "is no plain word"
    most = MOST_LAYERS if _LAYERS.fullmatch(key) else LARGEST
    most = MOST_WORDS if key == "vocab_size" else most
    if any(isinstance(part, int | float) and not abs(part) <= most for part in parts):
        return f"is beyond {most:,}"
    return None


def _parts(value: Any) -> Iterator[Any]:
    """A plain value, or all of those that lists and objects hold."""
    if isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _parts(part)
    else:
        yield value


# -- size -----------------------------------------------------------------------------------


class _Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the memory of tensors that are made from numbers alone, and ends it at a limit.

    What is computed from tensors is no larger than they are.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.left = limit

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = tree_leaves((args, kwargs))
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and not any(isinstance(x, torch.Tensor) for x in given):
            self.left -= made.nbytes
            if self.left < 0:
                raise ValueError("it describes more weights than it holds")
        return made


@contextmanager
def no_larger_than(weights: int) -> Iterator[None]:
    """Refuse to build what needs more memory than the weights that are there to fill it.

    Parameters
    ----------
    weights
        Bytes of the weights.

    Raises
    ------
    ValueError
        It needs more.
    """
    with _Counted(weights + SPARE_BYTES):
        yield
