"""The gates of an export: does what was written answer as the model does?"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.common.errors import UserError
from utils.hierarchy.confidence import Calibration
from utils.hierarchy.dataset import Split
from utils.hierarchy.decode import Floats, Predictions, Scorer, decode, leaf_log_probs
from utils.hierarchy.metrics import evaluate
from utils.hierarchy.tree import Hierarchy

log = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Greatest difference of a value, relative to the largest of its row if that is above 1."""
TIE = 1e-3
"""Paths whose log-probabilities are this close may change places."""
TEXTS = 300
BATCHES = (1, 7)
SINGLES = 40
EQUAL_DECISIONS = 0.99
ACCURACY_LOSS = 0.005
FEWEST = round(1 / (1 - EQUAL_DECISIONS))
"""Rows below which a single other decision is too many."""
INT8_TEXTS = 2000
INT8_SINGLES = 300
ODD_TEXTS = ("", " ", "żółć 猫 🙂 qzxv", "\x00", "a" * 3000)

Scores = Callable[[Sequence[str]], tuple[Floats, Floats]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """Texts that a gate looks at.

    Parameters
    ----------
    rows
        Validation rows; None where there are none of the data that the model was trained on.
    origin
        What they are, for the manifest, or why there are none.
    """

    rows: Split | None
    origin: str

    def texts(self, words: Sequence[str]) -> list[str]:
        """Texts for a comparison of values: real ones where there are any, and odd ones."""
        if self.rows is None:
            return [*generated_texts(words), *ODD_TEXTS]
        return [*spread(self.rows, TEXTS).texts, *ODD_TEXTS]


NOTHING = Evidence(rows=None, origin="no validation rows were given")


def spread(rows: Split, most: int) -> Split:
    """At most so many rows from all over a split, the longest text among them."""
    if len(rows) <= most:
        return rows
    picked = np.linspace(0, len(rows) - 1, most - 1).astype(int)
    longest = max(range(len(rows)), key=lambda row: len(rows.texts[row]))
    return rows.take(np.unique([*picked, longest]))


def generated_texts(words: Sequence[str], count: int = TEXTS) -> list[str]:
    """Texts of zero to two hundred words, the same in every run."""
    rng = np.random.default_rng(0)
    lengths = np.geomspace(1, 201, count).astype(int) - 1
    return [" ".join(words[k] for k in rng.integers(0, len(words), n)) for n in lengths]


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """Scores and what they are decoded to."""

    scores: Floats
    features: Floats
    found: Predictions


class Judge:
    """Compares scorers with the model that they were written from.

    Parameters
    ----------
    score
        The model: texts to scores and features.
    """

    def __init__(
        self, score: Scores, hierarchy: Hierarchy, tree: Hierarchy, calibration: Calibration
    ) -> None:
        self._score = score
        self._hierarchy, self._tree, self._calibration = hierarchy, tree, calibration

    def answers(self, score: Scores, texts: Sequence[str], batch: int | None = None) -> Answers:
        """Answers of a scorer that is given so many texts at a time (None: all)."""
        parts = [score(part) for part in _chunks(texts, batch or max(len(texts), 1))]
        scores, features = (np.concatenate(part) for part in zip(*parts, strict=True))
        found = decode(scores, self._hierarchy, self._tree, self._calibration)
        return Answers(scores=scores, features=features, found=found)

    def equal(self, name: str, scorer: Scorer, texts: Sequence[str]) -> dict[str, Any]:
        """Make sure that values and decisions are the model's, in batches of several sizes.

        Returns
        -------
        dict
            Figures for the manifest.

        Raises
        ------
        UserError
            They are not.
        """
        want = self.answers(self._score, texts)
        gap, ties = 0.0, 0
        for batch in (*BATCHES, None):
            rows = _some(len(texts), len(texts) if batch is None else SINGLES * batch)
            have = self.answers(scorer.score, [texts[row] for row in rows], batch)
            for value, source in ((have.scores, want.scores), (have.features, want.features)):
                gap = max(gap, _gap(name, value, source[rows]))
            ties = max(ties, self._ties(name, have, want, rows))
        log.info("%s agrees with the model on %d texts to %.1e", name, len(texts), gap)
        return {
            "texts": len(texts),
            "batch_sizes": [*BATCHES, len(texts)],
            "tolerance": TOLERANCE,
            "largest_gap": gap,
            "equal_decisions": 1 - ties / len(texts),
            "ties": ties,
        }

    def _ties(self, name: str, have: Answers, want: Answers, rows: Any) -> int:
        """Number of other decisions, all between paths that are equally probable.

        Raises
        ------
        UserError
            One is not.
        """
        ours, theirs = have.found.top[:, 0], want.found.top[rows, 0]
        other = np.flatnonzero(ours != theirs)
        if not len(other):
            return 0
        probs = leaf_log_probs(want.scores[rows[other]], self._tree, self._calibration.temperature)
        places = np.arange(len(other))
        margin = probs[places, theirs[other]] - probs[places, ours[other]]
        if (wrong := int((margin > TIE).sum())) > 0:
            raise UserError(
                f"{name} decides otherwise than the model on {wrong} of {len(rows)} texts. "
                "Nothing was written."
            )
        return len(other)

    def close(self, name: str, scorer: Scorer, rows: Split) -> dict[str, Any]:
        """Make sure that quantisation costs next to nothing.

        Returns
        -------
        dict
            Figures for the manifest.

        Raises
        ------
        UserError
            It costs more.
        """
        rows = spread(rows, INT8_TEXTS)
        want = self.answers(self._score, rows.texts).found
        have = self.answers(scorer.score, rows.texts).found
        few = _some(len(rows), INT8_SINGLES)
        # What the others in a batch are changes how its values are rounded.
        alone = self.answers(scorer.score, [rows.texts[row] for row in few], 1).found
        before, after = (evaluate(f, rows.codes)["leaf_accuracy"] for f in (want, have))
        together = float((have.ends == want.ends).mean())
        apart = float((alone.ends == want.ends[few]).mean())
        same = min(together, apart)
        figures = {
            "texts": len(rows),
            "equal_decisions": together,
            "equal_decisions_one_by_one": apart,
            "leaf_accuracy": after,
            "leaf_accuracy_of_the_model": before,
            "asked": {"equal_decisions": EQUAL_DECISIONS, "accuracy_loss": ACCURACY_LOSS},
        }
        text = (
            f"{same:.2%} of {len(rows)} validation decisions are the model's ({EQUAL_DECISIONS:.0%}"
            f" asked), leaf accuracy {before:.4f} → {after:.4f} (loss of {ACCURACY_LOSS} allowed)"
        )
        if same < EQUAL_DECISIONS or before - after > ACCURACY_LOSS:
            few_rows = f" With {len(rows)} rows none may differ." if len(rows) < FEWEST else ""
            raise UserError(
                f"{name} is not good enough: {text}.{few_rows} Nothing was written; export "
                "without --quantize."
            )
        log.info("%s: %s", name, text)
        return figures


def _chunks(texts: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, max(len(texts), 1), size):
        yield texts[start : start + size]


def _some(count: int, most: int) -> Any:
    """Row numbers from all over, and the last ones, where odd texts stand."""
    last = range(max(count - len(ODD_TEXTS), 0), count)
    return np.unique([*np.linspace(0, count - 1, min(count, most)).astype(int), *last])


def _gap(name: str, have: Floats, want: Floats) -> float:
    """Greatest difference relative to what is allowed for its row.

    Raises
    ------
    UserError
        It is above the tolerance.
    """
    if have.shape != want.shape:
        raise UserError(f"{name} gives {have.shape}, the model {want.shape}. Nothing was written.")
    scale = np.maximum(1, np.abs(want).max(axis=1, initial=0))
    gap = float((np.abs(have - want).max(axis=1, initial=0) / scale).max(initial=0))
    if not gap <= TOLERANCE:  # also where it is no number
        raise UserError(
            f"{name} differs from the model by {gap:.2g} ({TOLERANCE:g} allowed). "
            "Nothing was written."
        )
    return gap
