"""What adapting found, as plain values for report.json and for the summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from utils.adapters.drops import REASONS, Drops
from utils.adapters.lookalikes import lookalike_notes
from utils.common.cli import counted
from utils.hierarchy.tree import Hierarchy, Ints

FORMAT = 1


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
    ends = hierarchy.end_classes(codes)
    inner = np.ones(hierarchy.class_count, dtype=bool)
    inner[hierarchy.leaves] = False
    counts = np.bincount(ends, minlength=hierarchy.class_count)
    counts = counts[hierarchy.terminal]
    repeated = {"repeated": drops.repeated} if drops.repeated else {}
    return {
        "format": FORMAT,
        "name": name,
        "recipe": dict(recipe),
        "rows": {"read": drops.read, **repeated, "kept": len(codes), "dropped": dropped},
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
        "inner_share": round(float(inner[ends].mean()), 6),
        "splits": dict(sides),
        "notes": [*notes, *lookalike_notes(hierarchy)],
    }  # fmt: skip


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


def drop_rows(report: Mapping[str, Any]) -> list[tuple[str, int]]:
    """What became of the rows, for a table: read, each reason, kept."""
    rows = report["rows"]
    lines = [("rows read", rows["read"])]
    if "repeated" in rows:
        lines.append(("+ repeated for further paths", rows["repeated"]))
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
        f"{counted(report['terminal_classes'], 'terminal class', 'terminal classes')} of "
        f"{per['smallest']:,} to {counted(per['largest'], 'row')} "
        f"(imbalance {report['imbalance']:,.3g} to 1)",
    ]
    if report["terminal_inner_classes"]:
        lines.append(
            f"rows that end at a class which others go on from: {report['inner_share']:.1%}, at "
            f"{counted(report['terminal_inner_classes'], 'class', 'classes')}"
        )
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
