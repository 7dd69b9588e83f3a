"""The class tree: classes keyed by path, in flat arrays.

A class is named by its whole path, so ``Health > Equate`` and ``Beauty > Equate`` are two
classes. Two index spaces never mix: a *code* counts within a level, a *class* counts over the
whole tree, level after level. Nothing here is quadratic in classes.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.common.errors import UserError
from utils.common.files import read_json, write_json
from utils.hierarchy.values import mistake_in

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

FORMAT = 1
SEPARATOR = " > "
MOST_LEVELS = 64


def label_of(path: Sequence[str]) -> str:
    r"""Join a path to one unique string; a ``>`` inside a name becomes ``\>``."""
    return SEPARATOR.join(name.replace("\\", "\\\\").replace(">", "\\>") for name in path)


@dataclass(frozen=True, eq=False, kw_only=True)
class Hierarchy:
    """An immutable tree of classes (strictly: one tree per class of the first level).

    Parameters
    ----------
    names
        Bare names, level after level; shape (classes,).
    level_sizes
        Number of classes per level.
    parents
        Code of the parent within the level above; on the first level the class's own code.
        Shape (classes,).
    terminal
        True where a row may end: every leaf, and inner classes at which rows end. Shape
        (classes,).
    origin
        For a tree made by `full_depth`: the class of the ragged tree that each class stands for
        (a termination pseudo-class stands for the class it terminates). Shape (classes,);
        elsewhere the identity.
    """

    names: tuple[str, ...]
    level_sizes: tuple[int, ...]
    parents: Ints
    terminal: Bools
    origin: Ints

    # -- construction ---------------------------------------------------------------------

    @classmethod
    def from_parents(
        cls,
        names: Sequence[Sequence[str]],
        parents: Sequence[Sequence[int] | Ints],
        terminal: Sequence[int] | Ints = (),
    ) -> Hierarchy:
        """Build from names and local parents, one sequence per level.

        Parameters
        ----------
        names, parents
            Per level, one entry per class. The first level's parents are not read.
        terminal
            Classes (global indices) at which rows end besides the leaves.
        """
        sizes = tuple(len(level) for level in names)
        if not sizes or 0 in sizes:
            raise UserError("A hierarchy needs at least one class on every level.")
        if len(sizes) > MOST_LEVELS:
            raise UserError(f"A hierarchy has at most {MOST_LEVELS} levels, not {len(sizes)}.")
        local = [np.arange(sizes[0], dtype=np.int32)]
        for level in range(1, len(sizes)):
            above = np.asarray(parents[level], dtype=np.int32)
            if len(above) != sizes[level] or above.min() < 0 or above.max() >= sizes[level - 1]:
                raise UserError(f"Level {level} of the hierarchy names parents that do not exist.")
            local.append(above)
        count = sum(sizes)
        flags = np.zeros(count, dtype=bool)
        flags[np.asarray(terminal, dtype=np.int64)] = True
        bare = cls(
            names=tuple(name for level in names for name in level),
            level_sizes=sizes,
            parents=np.concatenate(local),
            terminal=flags,
            origin=np.arange(count, dtype=np.int32),
        )
        flags[bare.leaves] = True
        return bare

    @classmethod
    def from_paths(cls, columns: Sequence[Any]) -> tuple[Hierarchy, Ints]:
        """Discover the tree from labelled rows.

        Parameters
        ----------
        columns
            One sequence of names per level (lists or Arrow arrays of equal length), null where
            the row has ended above that level.

        Returns
        -------
        hierarchy
            Within a level, classes are sorted by (parent, name).
        codes
            Shape (rows, depth); -1 beyond the row's end.

        Raises
        ------
        ValueError
            A row has a name below a null, or no name at all.
        """
        rows = len(columns[0])
        codes = np.full((rows, len(columns)), -1, dtype=np.int32)
        names: list[list[str]] = []
        parents: list[Ints] = []
        above = np.zeros(rows, dtype=np.int64)
        for level, column in enumerate(columns):
            words, ranks = _ranked(column)
            there = ranks >= 0
            if not there.any():
                codes = codes[:, :level]
                break
            if (there & (above < 0)).any() or (level == 0 and not there.all()):
                raise ValueError(f"A row has a gap in its path above level {level}.")
            keys, found = np.unique(above[there] * len(words) + ranks[there], return_inverse=True)
            codes[there, level] = found
            names.append([words[rank] for rank in keys % len(words)])
            parents.append((keys // len(words)).astype(np.int32))
            above = codes[:, level].astype(np.int64)
        plain = cls.from_parents(names, parents)
        terminal = plain.terminal.copy()
        terminal[plain.end_classes(codes)] = True
        return plain._with_terminal(terminal), codes

    def _with_terminal(self, terminal: Bools) -> Hierarchy:
        return Hierarchy(
            names=self.names,
            level_sizes=self.level_sizes,
            parents=self.parents,
            terminal=terminal,
            origin=self.origin,
        )

    # -- shape ----------------------------------------------------------------------------

    @property
    def depth(self) -> int:
        """Number of levels."""
        return len(self.level_sizes)

    @property
    def class_count(self) -> int:
        """Number of classes over all levels."""
        return len(self.names)

    @cached_property
    def level_offsets(self) -> NDArray[np.int64]:
        """First class of each level, then the number of classes; shape (depth + 1,)."""
        return np.concatenate([[0], np.cumsum(self.level_sizes)]).astype(np.int64)

    @cached_property
    def levels(self) -> Ints:
        """Level of every class; shape (classes,)."""
        return np.repeat(np.arange(self.depth, dtype=np.int32), self.level_sizes)

    def level_slice(self, level: int) -> slice:
        """Where the classes of a level stand among all classes."""
        return slice(int(self.level_offsets[level]), int(self.level_offsets[level + 1]))

    @cached_property
    def parents_global(self) -> Ints:
        """Parent of every class as a global index, -1 on the first level; shape (classes,)."""
        above = self.level_offsets[np.maximum(self.levels - 1, 0)]
        return np.where(self.levels == 0, -1, self.parents + above).astype(np.int32)

    @cached_property
    def family_order(self) -> Ints:
        """Classes sorted by parent, so that siblings stand together; shape (classes,)."""
        return np.argsort(self.parents_global, kind="stable").astype(np.int32)

    @cached_property
    def family_starts(self) -> NDArray[np.int64]:
        """Where each family begins in `family_order`; shape (families,)."""
        ordered = self.parents_global[self.family_order]
        return np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])

    @cached_property
    def _child_range(self) -> NDArray[np.int64]:
        """Per class, where its children begin in `family_order`; shape (classes + 1,)."""
        ordered = self.parents_global[self.family_order]
        return np.searchsorted(ordered, np.arange(self.class_count + 1))

    @cached_property
    def child_counts(self) -> NDArray[np.int64]:
        """Number of children of every class; shape (classes,)."""
        return np.diff(self._child_range)

    @cached_property
    def leaves(self) -> Ints:
        """Classes without children, in order."""
        inner = np.zeros(self.class_count, dtype=bool)
        inner[self.parents_global[self.levels > 0]] = True
        return np.flatnonzero(~inner).astype(np.int32)

    @cached_property
    def terminals(self) -> Ints:
        """Classes at which a row may end, in order."""
        return np.flatnonzero(self.terminal).astype(np.int32)

    def children(self, node: int) -> Ints:
        """Children of a class."""
        start, end = self._child_range[node : node + 2]
        return self.family_order[start:end]

    def ancestors(self, node: int) -> Ints:
        """Ancestors of a class, root first, the class itself last."""
        chain = [node]
        while (above := int(self.parents_global[chain[-1]])) >= 0:
            chain.append(above)
        return np.array(chain[::-1], dtype=np.int32)

    @cached_property
    def path_codes(self) -> Ints:
        """Codes from root to each class, -1 below it; shape (classes, depth)."""
        codes = np.full((self.class_count, self.depth), -1, dtype=np.int32)
        for level in range(self.depth):
            here = self.level_slice(level)
            if level:
                codes[here] = codes[self.parents_global[here]]
            codes[here, level] = np.arange(self.level_sizes[level])
        return codes

    def path(self, node: int) -> tuple[str, ...]:
        """Names from the root to a class."""
        return tuple(self.names[ancestor] for ancestor in self.ancestors(node))

    def label(self, node: int) -> str:
        """The path of a class as one unique string, ``A > B > C``."""
        return label_of(self.path(node))

    # -- rows -----------------------------------------------------------------------------

    def end_classes(self, codes: Ints) -> Ints:
        """Class at which each row ends.

        Parameters
        ----------
        codes
            Shape (rows, depth or fewer), -1 beyond a row's end.

        Returns
        -------
        Ints
            Shape (rows,).
        """
        last = (codes >= 0).sum(axis=1) - 1
        return (self.level_offsets[last] + codes[np.arange(len(codes)), last]).astype(np.int32)

    def check_codes(self, codes: Ints) -> int | None:
        """Find the first row whose codes are no path of this tree, None if all are."""
        beyond = (codes >= np.array(self.level_sizes)).any(axis=1)
        wrong: Bools = np.asarray((codes < 0).all(axis=1) | beyond, dtype=bool)
        ends = np.where(wrong, 0, self.end_classes(np.where(wrong[:, None], 0, codes)))
        wrong |= (self.path_codes[ends] != codes).any(axis=1) | ~self.terminal[ends]
        return int(wrong.argmax()) if wrong.any() else None

    # -- ragged depth ---------------------------------------------------------------------

    def full_depth(self) -> Hierarchy:
        """The tree that heads see: every path reaches the last level.

        Below each class at which a row may end, above the last level, stands a chain of
        termination pseudo-classes, one per level. They come after the real classes of a level,
        so real codes keep their numbers. The class they stand for is `origin`.
        """
        names: list[list[str]] = []
        parents: list[Ints] = []
        origins: list[Ints] = []
        for level, size in enumerate(self.level_sizes):
            here = self.level_slice(level)
            above, kept = np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int32)
            if level:
                carried = np.arange(self.level_sizes[level - 1], len(origins[-1]), dtype=np.int32)
                ending = np.flatnonzero(self.terminal[self.level_slice(level - 1)])
                above = np.concatenate([carried, ending.astype(np.int32)])
                kept = origins[-1][above]
            names.append([*self.names[here], *[""] * len(above)])
            parents.append(np.concatenate([self.parents[here], above]))
            origins.append(np.concatenate([np.arange(here.start, here.start + size), kept]))
        tree = Hierarchy.from_parents(names, parents)
        return Hierarchy(
            names=tree.names,
            level_sizes=tree.level_sizes,
            parents=tree.parents,
            terminal=tree.terminal,
            origin=np.concatenate(origins).astype(np.int32),
        )

    @cached_property
    def pseudo(self) -> Bools:
        """True for termination pseudo-classes; shape (classes,)."""
        inner = np.asarray(self.levels > 0)
        repeated = self.origin[inner] == self.origin[self.parents_global[inner]]
        flags = np.zeros(self.class_count, dtype=bool)
        # A chain's first link shares its origin with the class it terminates, the next ones
        # with the link above.
        flags[inner] = repeated
        return flags

    @cached_property
    def ending(self) -> Ints:
        """For each last-level class of a full-depth tree, the ragged tree's class it stands for."""
        return self.origin[self.level_slice(self.depth - 1)]

    def extend_codes(self, codes: Ints, ragged: Hierarchy) -> Ints:
        """Codes of rows in this full-depth tree.

        Parameters
        ----------
        codes
            Codes in `ragged`, -1 beyond a row's end; shape (rows, depth).
        ragged
            The tree that `full_depth` was called on.

        Returns
        -------
        Ints
            The same with pseudo-class codes in place of -1; shape (rows, depth).
        """
        return self.path_codes[self.level_slice(self.depth - 1)][self.last_codes(codes, ragged)]

    def last_codes(self, codes: Ints, ragged: Hierarchy) -> Ints:
        """Last-level code of rows in this full-depth tree; shape (rows,)."""
        last_of = np.full(ragged.class_count, -1, dtype=np.int32)
        last_of[self.ending] = np.arange(len(self.ending), dtype=np.int32)
        found = last_of[ragged.end_classes(codes)]
        if (found < 0).any():
            node = int(ragged.end_classes(codes)[found.argmin()])
            raise UserError(f"A row ends at {ragged.label(node)!r}, where no answer may end.")
        return found

    # -- files ----------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain values for hierarchy.json."""
        inner_ends = np.setdiff1d(self.terminals, self.leaves)
        return {
            "format": FORMAT,
            "classes": list(self.names),
            "level_sizes": list(self.level_sizes),
            "level_offsets": self.level_offsets.tolist(),
            "parent_of": [self.parents[self.level_slice(h)].tolist() for h in range(self.depth)],
            "terminal_inner": inner_ends.tolist(),
        }

    @classmethod
    def from_dict(cls, values: Any, source: str = "hierarchy.json") -> Hierarchy:
        """Read what `to_dict` gives, or upstream's file (its dense matrices are not read).

        Raises
        ------
        UserError
            The values are no hierarchy.
        """
        try:
            sizes, names = values["level_sizes"], values["classes"]
            parents, ends = values["parent_of"], values.get("terminal_inner", [])
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{source} is no hierarchy: {error!r} is wrong or missing.") from error
        if problem := mistake_in(sizes, names, parents, ends):
            raise UserError(f"{source} is no hierarchy: {problem}.")
        bounds = [0, *itertools.accumulate(sizes)]
        split = [names[a:b] for a, b in itertools.pairwise(bounds)]
        try:
            found = cls.from_parents(split, parents, ends)
        except (UserError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{source} is no hierarchy: {str(error).rstrip('.')}.") from error
        siblings = Counter(zip(found.parents_global.tolist(), found.names, strict=True))
        if twice := next((name for (_, name), times in siblings.items() if times > 1), None):
            raise UserError(
                f"{source} is no hierarchy: two classes {twice!r} stand under one parent."
            )
        return found

    def save(self, path: Path) -> None:
        """Write hierarchy.json."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: Path) -> Hierarchy:
        """Read hierarchy.json."""
        return cls.from_dict(read_json(path), source=str(path))


def _ranked(column: Any) -> tuple[list[str], NDArray[np.int64]]:
    """Distinct names in order, and each row's rank among them (-1 for null)."""
    import pyarrow as pa  # the services that read a tree do not have it
    import pyarrow.compute as pc

    array = (
        column if isinstance(column, pa.Array | pa.ChunkedArray) else pa.array(column, pa.string())
    )
    encoded = pc.dictionary_encode(array)
    encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    words = encoded.dictionary.to_pylist()
    order = np.array(sorted(range(len(words)), key=words.__getitem__), dtype=np.int64)
    rank = np.full(len(words) + 1, -1, dtype=np.int64)
    rank[order] = np.arange(len(words))
    places = pc.fill_null(encoded.indices, len(words)).to_numpy(zero_copy_only=False)
    return [words[place] for place in order], rank[places]
