"""How the probabilities of a path become confidences: numpy only, the same wherever it answers.

One temperature over all classes is ruled by the hardest rows: on trees of hundreds of classes it
leaves upper levels far too unsure. So each level has a map of its own from the probability of the
class that was answered there to the share of such answers that are right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.hierarchy.tree import Floats, Hierarchy, Ints

TEMPERATURES = (1e-4, 1e4)  # calibration looks from 1e-3 to 1e3
LARGEST = 1e3
LEAST_DOUBT = 0.01
"""Part of a model's own doubt between siblings that stays where their level seems surer than the
one above, so that the answer's siblings are possible, and ranked."""
SMALLEST = 1e-7  # probabilities nearer to 0 or 1 are as good as these: of 32-bit numbers, none are


@dataclass(frozen=True, kw_only=True)
class LevelMap:
    """From a probability p to a confidence, by beta calibration.

    The logarithm of the odds is ``a log p - c log(1 - p) + b``; a = c = 1 and b = 0 change nothing
    (Kull, Silva Filho and Flach, Beta calibration, AISTATS 2017).

    Parameters
    ----------
    a, c
        Not negative, so that more probable answers are never less sure.
    """

    a: float = 1.0
    c: float = 1.0
    b: float = 0.0

    def __call__(self, probs: NDArray[np.floating]) -> NDArray[np.float64]:
        """Confidences of probabilities of any shape."""
        yes, no = log_odds_parts(probs)
        odds = self.a * yes - self.c * no + self.b
        return np.asarray(1 / (1 + np.exp(-np.clip(odds, -50, 50))))


def log_odds_parts(
    probs: NDArray[np.floating],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """log p and log(1 - p), both finite."""
    inside = np.clip(np.asarray(probs, dtype=np.float64), SMALLEST, 1 - SMALLEST)
    return np.log(inside), np.log1p(-inside)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How scores become confidences.

    Parameters
    ----------
    temperature
        Scores are divided by it before they become probabilities.
    levels
        A map per level of the full-depth tree; none: probabilities are the confidences, as in
        checkpoints from before there were any.
    """

    temperature: float = 1.0
    levels: tuple[LevelMap, ...] = ()

    @classmethod
    def from_values(cls, temperature: Any, levels: Any, depth: int) -> Calibration:
        """Read what `Calibration.level_values` wrote.

        Parameters
        ----------
        depth
            Levels of the tree.

        Raises
        ------
        TypeError, ValueError
            It is something else, or out of range.
        """
        found = cls(
            temperature=float(temperature),
            levels=tuple(LevelMap(a=float(a), c=float(c), b=float(b)) for a, c, b in levels or ()),
        )
        found.check(depth)
        return found

    def level_values(self) -> list[list[float]]:
        """The maps of the levels as plain values: a, c and b of each."""
        return [[level.a, level.c, level.b] for level in self.levels]

    def check(self, depth: int) -> None:
        """Refuse what no calibration gives, and 32 bits cannot divide by.

        Raises
        ------
        ValueError
            A number is out of range, or none, or there are not as many maps as levels.
        """
        if not TEMPERATURES[0] <= self.temperature <= TEMPERATURES[1]:
            raise ValueError(f"its temperature is {self.temperature}")
        if len(self.levels) not in (0, depth):
            raise ValueError(f"it calibrates {len(self.levels)} levels of {depth}")
        for level in self.levels:
            slopes = all(0 <= number <= LARGEST for number in (level.a, level.c))
            if not (slopes and abs(level.b) <= LARGEST):
                raise ValueError(f"a level is calibrated by {level.a}, {level.c}, {level.b}")

    def level_confidences(self, probs: Floats) -> Floats:
        """Confidence in the answer's class on each level.

        Parameters
        ----------
        probs
            Probability of the answer's class on each level; shape (rows, depth).

        Returns
        -------
        Floats
            Same shape; never more than on the level above.
        """
        found = np.minimum(probs, 1.0)
        above: Floats = np.ones(len(probs), dtype=np.float32)
        sure: NDArray[np.float64] = np.ones(len(probs))
        for h, level in enumerate(self.levels):
            here = np.clip(probs[:, h] / np.maximum(above, SMALLEST), 0, 1)
            sure = np.minimum(level(probs[:, h]), sure * (1 - LEAST_DOUBT * (1 - here)))
            found[:, h], above = sure, probs[:, h]
        return found


NOTHING_FITTED = Calibration()


def other_paths(
    probs: Floats, level_probs: Floats, confidences: Floats, depths: Ints | Sequence[int]
) -> Floats:
    """Confidence in paths that leave the answer's path on a level.

    What a map takes from the answer on a level, or gives to it, it gives to the paths that leave
    the answer there, or takes from them, each in proportion: together they have the difference
    between the confidences of that level and the one above.

    Parameters
    ----------
    probs
        Probabilities of the other paths; shape (rows, paths).
    level_probs, confidences
        Of the answer's path, per level, before and after calibration; shape (rows, depth).
    depths
        Level on which each path leaves the answer's; shape (rows, paths).

    Returns
    -------
    Floats
        Shape (rows, paths), none above the answer's own confidence.
    """
    rows = np.arange(len(probs))[:, None]
    above = np.pad(level_probs, ((0, 0), (1, 0)), constant_values=1.0)
    sure = np.pad(confidences, ((0, 0), (1, 0)), constant_values=1.0)
    left = (above[:, :-1] - level_probs)[rows, depths]
    share = np.divide(probs, left, out=np.zeros_like(probs), where=left > math.ulp(1.0))
    found = np.clip(share, 0.0, 1.0) * (sure[:, :-1] - confidences)[rows, depths]
    return np.minimum(found, confidences[:, -1:]).astype(np.float32)


def leaving_levels(codes: Ints, answer: Ints, tree: Hierarchy) -> Ints:
    """First level on which last-level codes have other ancestors than the answer.

    Parameters
    ----------
    codes
        Shape (rows, paths).
    answer
        Shape (rows,).

    Returns
    -------
    Ints
        Shape (rows, paths); the last level for the answer itself.
    """
    paths = tree.path_codes[tree.level_slice(tree.depth - 1)]
    same = paths[codes] == paths[answer][:, None, :]
    return np.minimum(same.cumprod(axis=2).sum(axis=2), tree.depth - 1).astype(np.int32)
