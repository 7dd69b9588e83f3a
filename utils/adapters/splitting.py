"""Which row goes where: stratified, equal texts together, every class in train."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from utils.common.errors import UserError

Ints = NDArray[np.int64]
TRAIN, VAL, TEST = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class Ratios:
    """Shares of train and val; test gets the rest."""

    train: float = 0.8
    val: float = 0.1

    @property
    def test(self) -> float:
        """Share of test."""
        return max(round(1 - self.train - self.val, 12), 0.0)

    @classmethod
    def checked(cls, train: float | None, val: float | None) -> Ratios:
        """Fill in what was not given: 8:1:1; val and test are equal if just one ratio is given.

        Raises
        ------
        UserError
            A ratio is out of range, or both together exceed 1.
        """
        for name, value in (("--train-ratio", train), ("--val-ratio", val)):
            if value is not None and not 0 < value < 1:
                raise UserError(f"{name} is {value:g}: it must lie between 0 and 1.")
        if train is None and val is not None and val >= 0.5:
            raise UserError(
                f"--val-ratio {val:g} leaves nothing to train, as test gets as much: add "
                "--train-ratio."
            )
        alone = 0.8 if val is None else round(1 - 2 * val, 12)
        first = alone if train is None else train
        second = (1 - first) / 2 if val is None else val
        if first + second > 1 + 1e-9:
            raise UserError(
                f"--train-ratio {first:g} and --val-ratio {second:g} sum to {first + second:g}: "
                "at most 1 is possible, test gets the rest."
            )
        return cls(train=first, val=second)


def random_split(paths: Ints, texts: Ints, ratios: Ratios, seed: int) -> Ints:
    """Split rows at random, stratified by path.

    Equal texts come to the same side. Each path gives val and test their shares up to rounding;
    remainders pass on from path to path, so that the whole is as asked. Every path has a row in
    train; a path with one text is in train only.

    Parameters
    ----------
    paths, texts
        Number of each row's path, and of its text; shape (rows,).

    Returns
    -------
    Ints
        0 train, 1 val, 2 test; shape (rows,).
    """
    generator = np.random.default_rng(seed)
    first = first_rows(texts)
    stratum = paths[first]
    order = _shuffled_by(stratum, generator)
    alone = np.bincount(stratum)[stratum[order]] == 1
    shared = order[~alone]
    side = np.full(len(first), TRAIN, dtype=np.int64)
    side[shared] = _spread(len(shared), ratios, generator.random())
    side_of_text = np.full(int(texts.max(initial=0)) + 1, TRAIN, dtype=np.int64)
    side_of_text[texts[first]] = side
    side_of_text[texts[_lacking(paths, side_of_text[texts], generator)]] = TRAIN
    return side_of_text[texts]


def first_rows(codes: Ints) -> Ints:
    """Row at which each code in use stands first, in the order of the codes."""
    first = np.full(int(codes.max(initial=0)) + 1, -1, dtype=np.int64)
    first[codes[::-1]] = np.arange(len(codes))[::-1]  # of equal places the last write stays
    return first[first >= 0]


def _shuffled_by(stratum: Ints, generator: np.random.Generator) -> Ints:
    """Order in which strata follow each other at random, and so do the members of each."""
    place = generator.permutation(int(stratum.max(initial=0)) + 1)
    if len(place) < 1 << 16:
        place = place.astype(np.uint16)  # short enough for a radix sort
    order = generator.permutation(len(stratum))
    return order[np.argsort(place[stratum[order]], kind="stable")]


def _spread(count: int, ratios: Ratios, start: float) -> Ints:
    """Deal val and test evenly along a line of `count` places, beginning at a random phase."""
    places = np.arange(count + 1)
    aside = ratios.val + ratios.test
    evaluated = np.diff(np.floor(places * aside + start + 1e-9)).astype(np.int64)
    ordinal = np.cumsum(evaluated)
    share = ratios.test / aside if aside else 0.0
    tests = np.diff(np.floor(np.arange(len(places) + 1) * share + 0.5 + 1e-9)).astype(np.int64)
    return evaluated * (VAL + tests[np.maximum(ordinal - 1, 0)])


def _lacking(paths: Ints, sides: Ints, generator: np.random.Generator) -> Ints:
    """One row, at random, of each path that has none in train."""
    there = np.zeros(int(paths.max(initial=0)) + 1, dtype=bool)
    there[paths[sides == TRAIN]] = True
    missing = generator.permutation(np.flatnonzero(~there[paths]))
    return missing[first_rows(paths[missing])] if len(missing) else missing


def sample(paths: Ints, texts: Ints, proportion: float, seed: int) -> NDArray[np.bool_]:
    """Keep a share of the rows, stratified by path; at least one row of each path.

    Returns
    -------
    NDArray[np.bool_]
        True for the rows to keep; shape (rows,). Equal texts stay or go together.
    """
    if proportion >= 1:
        return np.ones(len(paths), dtype=bool)
    generator = np.random.default_rng([seed, 1])
    first = first_rows(texts)
    order = _shuffled_by(paths[first], generator)
    places = np.arange(len(first) + 1)
    kept = np.zeros(int(texts.max(initial=0)) + 1, dtype=bool)
    kept[texts[first[order]]] = (
        np.diff(np.floor(places * proportion + generator.random() + 1e-9)) > 0
    )
    kept[texts[_lacking(paths, np.where(kept[texts], TRAIN, TEST), generator)]] = True
    return kept[texts]


def leaks(sides: Ints, texts: Ints) -> NDArray[np.bool_]:
    """Rows of a given split whose text stands on an earlier side too (train, val, test)."""
    best = np.full(int(texts.max(initial=0)) + 1, TEST, dtype=np.int64)
    np.minimum.at(best, texts, sides)
    return sides > best[texts]


def unseen(sides: Ints, paths: Ints) -> NDArray[np.bool_]:
    """Rows of val and test whose path train does not have."""
    there = np.zeros(int(paths.max(initial=0)) + 1, dtype=bool)
    there[paths[sides == TRAIN]] = True
    return ~there[paths]
