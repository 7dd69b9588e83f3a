"""Rows of unequal length, one after another in a flat array, and batches of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", bound=np.generic)


class Rows(Protocol):
    """What a text front end makes of texts, for a graph to score."""

    def __len__(self) -> int:
        """Number of rows."""
        ...

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Cells per row; shape (rows,)."""
        ...

    def inputs(self, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Inputs of the graph for some rows, padded to the longest of them."""
        ...


def padded(
    cells: NDArray[Number], starts: NDArray[Any], rows: NDArray[np.int64], fill: float
) -> NDArray[Number]:
    """Put some rows side by side.

    Parameters
    ----------
    cells
        Row after row; shape (cells,).
    starts
        Where each row begins, and the end; shape (rows + 1,).
    rows
        Which ones.
    fill
        What fills short rows up.

    Returns
    -------
    NDArray
        Shape (rows, longest).
    """
    lengths = np.diff(starts)[rows]
    place = np.arange(int(lengths.max(initial=0)))
    there = place < lengths[:, None]
    table = np.full(there.shape, fill, dtype=cells.dtype)
    table[there] = cells[(starts[:-1][rows, None] + place)[there]]
    return table


def batches_of_cells(
    lengths: NDArray[np.int64], cells: int, most: int
) -> Iterator[NDArray[np.int64]]:
    """Rows in batches of similar length, longest first, so that little is padded.

    Parameters
    ----------
    cells
        A batch, padded, has at most so many, or one row.
    most
        Rows in a batch at most.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, min(most, cells // max(int(lengths[order[start]]), 1)))
        yield order[start : start + size]
        start += size
