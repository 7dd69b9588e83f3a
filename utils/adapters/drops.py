"""Which rows are left out, and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from utils.adapters.labels import BROKEN, EMPTY, ORPHAN, SEVERAL, Labels
from utils.adapters.several import whole
from utils.adapters.splitting import leaks, sample, unseen

if TYPE_CHECKING:
    import pyarrow as pa

_SHOWN = 5
REASONS = {
    "broken_row": "broken",
    "empty_text": "without text",
    "empty_path": "without class",
    "broken_path": "with a gap in the class path",
    "several_paths": "with several class paths",
    "no_parent": "with a class that has no place in the tree",
    "no_split": "without train, val or test in the split column",
    "leaked": "with a text of an earlier split",
    "duplicate": "repeating a text and its path",
    "small_class": "of too small a class",
    "not_sampled": "left out by --proportion",
    "unseen_class": "with a class that train lacks",
}


@dataclass(kw_only=True)
class Drops:
    """Rows that are left out, each for the first reason found.

    Parameters
    ----------
    repeated
        How many rows were added, as others have several paths.
    """

    counts: Counter[str]
    keep: NDArray[np.bool_]
    repeated: int = 0

    @classmethod
    def none(cls, rows: int, broken: int = 0, repeated: int = 0) -> Drops:
        """All rows are kept but those that could not be read."""
        keep = np.ones(rows, dtype=bool)
        return cls(counts=Counter(broken_row=broken), keep=keep, repeated=repeated)

    def drop(self, reason: str, rows: NDArray[np.bool_]) -> None:
        """Leave out rows; a mask over all rows, of which those still kept are counted."""
        hit = self.keep & rows
        self.counts[reason] += int(hit.sum())
        self.keep &= ~rows

    def drop_kept(self, reason: str, rows: NDArray[np.bool_]) -> None:
        """Leave out rows; a mask over the rows that are still kept."""
        self.counts[reason] += int(rows.sum())
        self.keep[np.flatnonzero(self.keep)[rows]] = False

    @property
    def read(self) -> int:
        """All rows of the input: those kept, those left out, those that could not be read."""
        return len(self.keep) + self.counts["broken_row"] - self.repeated

    def explained(self) -> str:
        """The reasons in words, the most frequent first."""
        return ", ".join(f"{n:,} {REASONS[key]}" for key, n in self.counts.most_common() if n)


def drop_unusable(
    drops: Drops, texts: pa.Array, labels: Labels, sides: NDArray[np.int64] | None
) -> None:
    import pyarrow.compute as pc

    drops.drop("empty_text", pc.equal(texts, "").to_numpy(zero_copy_only=False))
    reasons = {
        "empty_path": EMPTY, "broken_path": BROKEN, "several_paths": SEVERAL, "no_parent": ORPHAN,
    }  # fmt: skip
    for reason, code in reasons.items():
        drops.drop(reason, labels.path_of_row == code)
    if sides is not None:
        drops.drop("no_split", sides < 0)


def drop_rest(
    drops: Drops,
    text_codes: NDArray[np.int64],
    labels: Labels,
    given: NDArray[np.int64] | None,
    *,
    keep_duplicates: bool,
    min_class_size: int,
    proportion: float,
    seed: int,
) -> None:
    """Leave out repeated rows, small classes, and what `proportion` does not want.

    A given split may cost rows: texts stay on their first side, and val and test keep no class
    that train does not have.
    """
    if given is not None:
        drops.drop_kept("leaked", leaks(given[drops.keep], text_codes[drops.keep]))
    if not keep_duplicates:
        rows = np.flatnonzero(drops.keep)
        drops.drop_kept("duplicate", repeated_rows(text_codes[rows], labels.path_of_row[rows]))
    if min_class_size > 1:
        paths = labels.path_of_row[drops.keep]
        drops.drop_kept("small_class", np.bincount(paths)[paths] < min_class_size)
    if proportion < 1:
        kept = drops.keep
        wanted = sample(labels.path_of_row[kept], text_codes[kept], proportion, seed)
        drops.drop_kept("not_sampled", ~wanted)
    if given is not None:
        drops.drop_kept("unseen_class", unseen(given[drops.keep], labels.path_of_row[drops.keep]))


def repeated_rows(texts: NDArray[np.int64], paths: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Rows whose text and path both stand in an earlier row."""
    suspects = np.flatnonzero(np.bincount(texts, minlength=1)[texts] > 1)
    keys = texts[suspects] * (int(paths.max(initial=0)) + 1) + paths[suspects]
    repeated = np.zeros(len(texts), dtype=bool)
    repeated[suspects] = True
    repeated[suspects[np.unique(keys, return_index=True)[1]]] = False
    return repeated


def vanished_note(labels: Labels, keep: NDArray[np.bool_], min_class_size: int) -> list[str]:
    """Name the classes that no row is left of, but for those below `min_class_size`.

    Parameters
    ----------
    keep
        The rows that are kept; shape (rows,).
    """
    count = len(labels.paths)
    found = labels.path_of_row[labels.path_of_row >= 0]
    there = np.bincount(found, minlength=count) >= min_class_size
    kept = np.bincount(labels.path_of_row[keep], minlength=count) > 0
    names = np.array([*labels.names, ""], dtype=object)  # -1 is the empty one
    kept_paths = [whole(tuple(path)) for path in names[labels.paths[kept]].tolist()]
    lost = [whole(tuple(path)) for path in names[labels.paths[there & ~kept]].tolist()]
    left = {path[:end] for path in kept_paths for end in range(1, len(path) + 1)}
    shown = [" > ".join(path) for path in lost if path not in left]
    shown += sorted(labels.cut_off - {name for path in left for name in path})
    if not shown:
        return []
    examples = ", ".join(map(repr, shown[:_SHOWN])) + (", …" if len(shown) > _SHOWN else "")
    return [f"classes of which no row is left ({len(shown):,}): {examples}"]
