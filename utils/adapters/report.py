"""What adapting found, as plain values for report.json and for the summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.hierarchy import Hierarchy, Ints

FORMAT = 1
REASONS = {
    "broken_row": "broken",
    "empty_text": "without text",
    "empty_path": "without class",
    "broken_path": "with a gap in the class path",
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
    """Rows that are left out, each for the first reason found."""

    counts: Counter[str]
    keep: NDArray[np.bool_]

    @classmethod
    def none(cls, rows: int, broken: int = 0) -> Drops:
        """All rows are kept but those that could not be read."""
        return cls(counts=Counter(broken_row=broken), keep=np.ones(rows, dtype=bool))

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
        """All rows: those kept, those left out, and those that could not be read."""
        return len(self.keep) + self.counts["broken_row"]

    def explained(self) -> str:
        """The reasons in words, the most frequent first."""
        return ", ".join(f"{n:,} {REASONS[key]}" for key, n in self.counts.most_common() if n)


def build_report(
    *,
    name: str,
    recipe: Mapping[str, Any],
    drops: Drops,
    hierarchy: Hierarchy,
    codes: Ints,
    sides: Mapping[str, int],
    extra: Mapping[str, Any],
    notes: Sequence[str],
) -> dict[str, Any]:
    """Collect report.json.

    Parameters
    ----------
    codes
        Codes of the kept rows; shape (rows, depth).
    sides
        Rows per split.
    """
    dropped = {key: drops.counts[key] for key in REASONS if drops.counts[key]}
    counts = np.bincount(hierarchy.end_classes(codes), minlength=hierarchy.class_count)
    counts = counts[hierarchy.terminal]
    return {
        "format": FORMAT,
        "name": name,
        "recipe": dict(recipe),
        "rows": {"read": drops.read, "kept": len(codes), "dropped": dropped},
        **extra,
        "levels": [_level(hierarchy, codes, level) for level in range(hierarchy.depth)],
        "classes": hierarchy.class_count,
        "terminal_classes": int(hierarchy.terminal.sum()),
        "terminal_inner_classes": int(hierarchy.terminal.sum() - len(hierarchy.leaves)),
        "rows_per_terminal_class": {
            "smallest": int(counts.min()),
            "median": float(np.median(counts)),
            "largest": int(counts.max()),
        },
        "imbalance": round(float(counts.max() / counts.min()), 2),
        "ragged_share": round(float((codes[:, -1] < 0).mean()), 6),
        "splits": dict(sides),
        "notes": [*notes, *_lookalikes(hierarchy)],
    }


def _level(hierarchy: Hierarchy, codes: Ints, level: int) -> dict[str, Any]:
    there = codes[:, level][codes[:, level] >= 0]
    counts = np.bincount(there, minlength=hierarchy.level_sizes[level])
    first = int(hierarchy.level_offsets[level])
    return {
        "classes": hierarchy.level_sizes[level],
        "rows": len(there),
        "smallest": int(counts.min()),
        "median": float(np.median(counts)),
        "largest": int(counts.max()),
        "largest_class": hierarchy.label(first + int(counts.argmax())),
    }


def _lookalikes(hierarchy: Hierarchy) -> list[str]:
    """Siblings whose names differ in case only: probably one class, spelled twice."""
    parents = hierarchy.parents_global.tolist()
    seen: dict[tuple[int, str], int] = {}
    twins = []
    for node, key in enumerate(zip(parents, map(str.casefold, hierarchy.names), strict=True)):
        if seen.setdefault(key, node) != node:
            twins.append(f"{hierarchy.label(seen[key])!r} / {hierarchy.names[node]!r}")
    shown = ", ".join(twins[:3]) + (", …" if len(twins) > 3 else "")
    return [f"{len(twins)} sibling classes differ in case only: {shown}"] if twins else []


def drop_rows(report: Mapping[str, Any]) -> list[tuple[str, int]]:
    """What became of the rows, for a table: read, each reason, kept."""
    rows = report["rows"]
    lines = [("rows read", rows["read"])]
    lines += [(f"– {REASONS[key]}", count) for key, count in rows["dropped"].items()]
    return [*lines, ("rows kept", rows["kept"])]


def level_rows(report: Mapping[str, Any]) -> list[tuple[object, ...]]:
    """One line per level, for a table."""
    return [
        (level, one["classes"], one["rows"], one["smallest"], int(one["median"]), one["largest"],
         one["largest_class"])
        for level, one in enumerate(report["levels"], 1)
    ]  # fmt: skip


def closing_lines(report: Mapping[str, Any]) -> list[str]:
    """What is left to say in words."""
    sizes = ", ".join(f"{side} {count:,}" for side, count in report["splits"].items())
    per = report["rows_per_terminal_class"]
    lines = [
        f"splits: {sizes}",
        f"{report['terminal_classes']:,} terminal classes of {per['smallest']:,} to "
        f"{per['largest']:,} rows (imbalance {report['imbalance']:,.3g} to 1), "
        f"{report['ragged_share']:.1%} of the rows end above the deepest level",
    ]
    shared = report.get("ambiguous_texts", 0)
    if shared:
        lines.append(f"texts under several paths (all their rows are kept): {shared:,}")
    if report.get("control_characters"):
        lines.append(
            f"texts with control characters (now spaces): {report['control_characters']:,}"
        )
    places = report["broken_at"]
    if places:
        more = ", …" if report["rows"]["dropped"]["broken_row"] > len(places) else ""
        lines.append(f"broken rows at {', '.join(places)}{more}")
    return lines + [f"note: {note}" for note in report["notes"]]
