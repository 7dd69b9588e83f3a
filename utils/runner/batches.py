"""Putting the arguments of several calls together along a dimension, and taking results apart.

Arguments are numpy arrays or lists, nested where the dimension is not the first one. Results are
the same, or tuples and dictionaries of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, TypeAlias

Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional ones, and those given by name."""


def is_array(value: Any) -> bool:
    """Whether it is a numpy array; asking does not import numpy."""
    return hasattr(value, "__array_interface__") and hasattr(value, "ndim")


def size_of(value: Any, dim: int) -> int:
    """Rows of an array or a list along a dimension.

    Raises
    ------
    TypeError, ValueError
        It has no such dimension.
    """
    if is_array(value):
        if value.ndim <= dim:
            raise ValueError(f"an array of shape {value.shape} has no dimension {dim}.")
        return int(value.shape[dim])
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{type(value).__name__} cannot be batched: give an array or a list.")
    if dim == 0:
        return len(value)
    sizes = {size_of(part, dim - 1) for part in value}
    if len(sizes) != 1:
        raise ValueError(f"a nested list has no even dimension {dim}.")
    return sizes.pop()


def kind_of(value: Any, dim: int) -> Hashable:
    """What must be equal for two values to be joined: all but the rows along a dimension."""
    if is_array(value):
        return (value.dtype, value.shape[:dim], value.shape[dim + 1 :])
    return "list" if dim == 0 else tuple(kind_of(part, dim - 1) for part in value)


def joined(values: Sequence[Any], dim: int) -> Any:
    """Values of one kind as one value."""
    if len(values) == 1:
        return values[0]
    if is_array(values[0]):
        import numpy as np

        return np.concatenate(values, axis=dim)
    if dim == 0:
        return [row for value in values for row in value]
    return [joined(parts, dim - 1) for parts in zip(*values, strict=True)]


def cut(value: Any, start: int, end: int, dim: int) -> Any:
    """Rows `start` to `end` along a dimension."""
    if is_array(value):
        return value[(slice(None),) * dim + (slice(start, end),)]
    if dim == 0:
        return value[start:end]
    return [cut(part, start, end, dim - 1) for part in value]


# -- of whole calls -----------------------------------------------------------------------


def rows_of(arguments: Arguments, dim: int) -> int:
    """Rows of a call.

    Raises
    ------
    TypeError, ValueError
        Its arguments cannot be batched, or differ in length.
    """
    values = [*arguments[0], *arguments[1].values()]
    sizes = {size_of(value, dim) for value in values}
    if len(sizes) != 1:
        found = f"of {' and '.join(map(str, sorted(sizes)))} rows" if sizes else "not there"
        raise ValueError(f"the arguments of a call must have equally many rows; they are {found}.")
    return sizes.pop()


def kind_of_call(arguments: Arguments, dim: int) -> Hashable:
    """What must be equal for two calls to be answered together."""
    args, kwargs = arguments
    names = sorted(kwargs)
    return (
        tuple(kind_of(value, dim) for value in args),
        tuple((name, kind_of(kwargs[name], dim)) for name in names),
    )


def joined_calls(calls: Sequence[Arguments], dim: int) -> Arguments:
    """Arguments of calls of one kind as those of one call."""
    if len(calls) == 1:
        return calls[0]
    args = tuple(joined(values, dim) for values in zip(*(args for args, _ in calls), strict=True))
    kwargs = {name: joined([k[name] for _, k in calls], dim) for name in calls[0][1]}
    return args, kwargs


def cut_call(arguments: Arguments, start: int, end: int, dim: int) -> Arguments:
    """Rows `start` to `end` of a call."""
    args, kwargs = arguments
    return (
        tuple(cut(value, start, end, dim) for value in args),
        {name: cut(value, start, end, dim) for name, value in kwargs.items()},
    )


# -- of results ---------------------------------------------------------------------------


def rows_of_result(result: Any, dim: int) -> int:
    """Rows of what a method gave.

    Raises
    ------
    TypeError, ValueError
        It cannot be taken apart.
    """
    if isinstance(result, dict):
        return rows_of(((), result), dim)
    return rows_of((result, {}), dim) if isinstance(result, tuple) else size_of(result, dim)


def cut_result(result: Any, start: int, end: int, dim: int) -> Any:
    """Rows `start` to `end` of what a method gave."""
    if isinstance(result, dict):
        return {name: cut(value, start, end, dim) for name, value in result.items()}
    if isinstance(result, tuple):
        return tuple(cut(value, start, end, dim) for value in result)
    return cut(result, start, end, dim)


def joined_results(results: Sequence[Any], dim: int) -> Any:
    """The results of a call that was answered in parts."""
    first = results[0]
    if isinstance(first, dict):
        return {name: joined([result[name] for result in results], dim) for name in first}
    if isinstance(first, tuple):
        return tuple(joined(values, dim) for values in zip(*results, strict=True))
    return joined(results, dim)
