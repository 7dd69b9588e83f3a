"""From what a caller gives to what stands in a queue, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from utils.runner.batches import (
    Arguments,
    cut_call,
    joined_results,
    kind_of_call,
    rows_of,
)
from utils.runner.calls import Line
from utils.runner.signatures import Signature

Pieces = list[tuple[Arguments, int]]
"""Arguments with their rows."""


@dataclass(frozen=True, slots=True)
class Request:
    """A call as the queues take it.

    Parameters
    ----------
    line
        Where it stands.
    pieces
        What it was split into so that each fits a batch; usually one.
    join
        From the results of the pieces to what the caller gets.
    """

    line: Line
    pieces: Pieces
    join: Callable[[Sequence[Any]], Any]


def text_request(method: str, signature: Signature, arguments: Arguments, limit: int) -> Request:
    """A call of a text classifier: a text or several.

    Raises
    ------
    TypeError
        It is none.
    """
    given = _only_argument(method, arguments)
    texts = checked_texts(given, method)
    if not signature.batchable or len(texts) <= limit:
        pieces: Pieces = [(((texts,), {}), len(texts))]
    else:
        starts = range(0, len(texts), limit)
        parts = [texts[start : start + limit] for start in starts]
        pieces = [(((part,), {}), len(part)) for part in parts]
    join = _first_row if isinstance(given, str) else partial(joined_results, dim=0)
    return Request(Line(method, alone=not signature.batchable), pieces, join)


def _first_row(results: Sequence[Any]) -> Any:
    return results[0][0]


def _only_argument(method: str, arguments: Arguments) -> Any:
    args, kwargs = arguments
    if len(args) == 1 and not kwargs:
        return args[0]
    if not args and list(kwargs) == ["texts"]:
        return kwargs["texts"]
    raise TypeError(f"{method} takes one argument: a text or a sequence of texts.")


def checked_texts(texts: Any, method: str) -> list[str]:
    """What a caller gave, as a list of texts.

    Raises
    ------
    TypeError
        It is none.
    """
    if isinstance(texts, str):
        return [texts]
    wanted = f"{method} takes a text or a sequence of texts"
    if isinstance(texts, (bytes, bytearray, Mapping)) or not isinstance(texts, Iterable):
        raise TypeError(f"{wanted}, not {type(texts).__name__}.")
    found = list(texts)
    for place, text in enumerate(found):
        if not isinstance(text, str):
            raise TypeError(f"{wanted}; item {place} is {type(text).__name__}.")
    return found


def array_request(method: str, signature: Signature, arguments: Arguments, limit: int) -> Request:
    """A call of any other model: arrays or lists with rows along the signature's dimension.

    Raises
    ------
    TypeError, ValueError
        They cannot be batched.
    """
    if not signature.batchable:
        return Request(Line(method, alone=True), [(arguments, 1)], _only_result)
    dim = signature.input_dim
    rows = rows_of(arguments, dim)
    line = Line(method, kind_of_call(arguments, dim))
    if rows <= limit:
        return Request(line, [(arguments, rows)], _only_result)
    pieces = [
        (cut_call(arguments, start, start + limit, dim), min(limit, rows - start))
        for start in range(0, rows, limit)
    ]
    return Request(line, pieces, partial(joined_results, dim=signature.output_dim))


def _only_result(results: Sequence[Any]) -> Any:
    return results[0]
