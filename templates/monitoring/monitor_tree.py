"""The class tree as the monitor needs it: labels and ancestors, read from hierarchy.json."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class SetupError(Exception):
    """A mistake in what the monitor was given at its start: one line that names the fix."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def label_of(path: Sequence[str]) -> str:
    r"""Join a path to one unique string, as the model does; a ``>`` in a name becomes ``\>``."""
    return " > ".join(name.replace("\\", "\\\\").replace(">", "\\>") for name in path)


def free_name(name: str, taken: Collection[str]) -> str:
    """A name that no class has: in brackets if need be, as the model's service has it."""
    while name in taken:
        name = f"({name})"
    return name


@dataclass(frozen=True, eq=False, kw_only=True)
class Tree:
    """The classes of all levels, level after level.

    Parameters
    ----------
    paths
        Names from the root to each class.
    ancestors
        Class on each level of each class's path, -1 below it; shape (classes, depth).
    """

    paths: tuple[tuple[str, ...], ...]
    ancestors: Ints

    @classmethod
    def from_dict(cls, values: Any, source: str = "hierarchy.json") -> Tree:
        """Read what a model's hierarchy.json holds.

        Raises
        ------
        SetupError
            It is no hierarchy.
        """
        try:
            names, sizes = list(values["classes"]), [int(size) for size in values["level_sizes"]]
            parents = [[int(code) for code in level] for level in values["parent_of"]]
            right = sum(sizes) == len(names) and [len(level) for level in parents] == sizes
        except (KeyError, TypeError, ValueError) as error:
            raise SetupError(f"{source} is no hierarchy: {error!r} is wrong or missing.") from error
        if not right or not names or not all(isinstance(name, str) for name in names):
            raise SetupError(f"{source} is no hierarchy: its sizes do not fit. Export again.")
        return cls._grown(names, sizes, parents, source)

    @classmethod
    def _grown(
        cls, names: list[str], sizes: list[int], parents: list[list[int]], source: str
    ) -> Tree:
        ancestors = np.full((len(names), len(sizes)), -1, dtype=np.int64)
        paths: list[tuple[str, ...]] = []
        start = above = 0
        for level, size in enumerate(sizes):
            for code in range(size):
                here, parent = start + code, above + parents[level][code]
                if level and not above <= parent < start:
                    raise SetupError(f"{source} is no hierarchy: class {here} has no parent.")
                if level:
                    ancestors[here] = ancestors[parent]
                ancestors[here, level] = here
                paths.append(((*paths[parent],) if level else ()) + (names[here],))
            above, start = start, start + size
        return cls(paths=tuple(paths), ancestors=ancestors)

    @classmethod
    def load(cls, path: Path) -> Tree:
        """Read hierarchy.json."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise SetupError(f"{path} cannot be read ({error}). Export the model again.") from error
        return cls.from_dict(values, str(path))

    @property
    def depth(self) -> int:
        """Number of levels."""
        return int(self.ancestors.shape[1])

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Label of every class: ``A > B > C``."""
        return tuple(label_of(path) for path in self.paths)

    @cached_property
    def by_label(self) -> dict[str, int]:
        """Class of every label."""
        return {label: node for node, label in enumerate(self.labels)}

    @cached_property
    def by_path(self) -> dict[tuple[str, ...], int]:
        """Class of every path."""
        return {path: node for node, path in enumerate(self.paths)}

    @cached_property
    def levels(self) -> Ints:
        """Level of every class."""
        return np.asarray((self.ancestors >= 0).sum(axis=1) - 1, dtype=np.int64)

    @cached_property
    def parents(self) -> Ints:
        """Parent of every class, -1 on the first level."""
        above = self.ancestors[np.arange(len(self.paths)), np.maximum(self.levels - 1, 0)]
        return np.where(self.levels == 0, -1, above)

    @cached_property
    def inner(self) -> Bools:
        """Classes that have children."""
        flags = np.zeros(len(self.paths), dtype=bool)
        flags[self.parents[self.parents >= 0]] = True
        return flags

    @cached_property
    def order(self) -> Ints:
        """Rank of every class when siblings, and cousins, stand together."""
        ranked = np.lexsort(self.ancestors.T[::-1])
        ranks = np.empty(len(ranked), dtype=np.int64)
        ranks[ranked] = np.arange(len(ranked))
        return ranks

    @cached_property
    def tops(self) -> Ints:
        """Classes of the first level."""
        return np.flatnonzero(self.levels == 0)

    def class_of_column(self, column: str) -> int | None:
        """Class that a score column of a reference set stands for."""
        # A column that would be taken for another one has "> " before its label.
        found = self.by_label.get(column)
        return self.by_label.get(column.removeprefix("> ")) if found is None else found
