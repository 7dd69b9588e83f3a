"""The page about a training: one self-contained HTML file, drawn from values alone."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.common.files import atomic_path
from utils.common.paths import PROJECT_ROOT
from utils.hierarchy.calibration import BINS, reliability
from utils.hierarchy.dataset import Split
from utils.hierarchy.decode import Predictions
from utils.hierarchy.tree import SEPARATOR, Hierarchy, Ints, label_of
from utils.training.svg import Series, line_chart, reliability_chart

TEMPLATES = PROJECT_ROOT / "templates" / "report"
CLASSES = 10_000  # rows of the class table; beyond, those with the fewest rows are left out
PAGE = 25  # of these, shown at a time
SUBTREES, PAIRS = 12, 8  # confusions shown
WRONG = 30  # texts shown
TEXT = 400  # characters of a text shown

# What could reorder or hide what stands around a text.
_CONTROLS = dict.fromkeys([*range(32), 127, *range(0x202A, 0x202F), *range(0x2066, 0x206A)], " ")

Values = dict[str, Any]

HEADLINE = (
    ("leaf_accuracy", "right class", "of all test texts"),
    ("leaf_macro_f1", "macro-F1", "every class counts the same"),
    ("hierarchical_f1", "hierarchical F1", "being nearly right counts in part"),
    ("level_1_accuracy", "right on level 1", "the top of the tree"),
    ("top_3_accuracy", "in the top 3", "the right path is among three"),
    ("calibration_error", "calibration error", "confidence is off by this much"),
)
CURVES = (
    ("Training loss", ("loss",), False),
    ("Validation: -log P(true path)", ("nll",), False),
    ("Validation: accuracy and F1", ("leaf_accuracy", "leaf_macro_f1", "hierarchical_f1"), True),
)


def write_report(path: Path, facts: Values, predictions: Predictions, split: Split) -> None:
    """Write `report_html` to a file, whole."""
    page = report_html(facts, predictions, split, facts["test"])
    with atomic_path(path) as temporary:
        temporary.write_bytes(page.encode("utf-8", "replace"))


def report_html(
    facts: Values, predictions: Predictions, split: Split, metrics: Mapping[str, float]
) -> str:
    """Draw the page.

    Parameters
    ----------
    facts
        ``model``, ``dataset``, ``checkpoint``, ``temperature``, ``config`` and ``info``, the
        model's own; all may be missing.
    predictions, split
        The answers to the rows of a split with their truth.
    metrics
        What `utils.hierarchy.metrics.evaluate` found for them.

    Returns
    -------
    str
        HTML that needs no other file and no network. Names and texts are escaped.
    """
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup

    rooms = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    rooms.filters |= {"percent": percent, "number": number, "duration": duration}
    style, script = ((TEMPLATES / name).read_text("utf-8") for name in ("report.css", "report.js"))
    values = _tested(predictions, split, metrics) if len(split) else {}
    page: str = rooms.get_template("report.html").render(
        facts=facts,
        info=facts.get("info", {}),
        metrics=metrics,
        tree=predictions.hierarchy,
        headline=[entry for entry in HEADLINE if entry[0] in metrics],
        curves=learning_curves(facts.get("info", {})),
        tested=values,
        style=Markup(style),
        script=Markup(script),
        policy=f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}",
        margin=_margin(metrics),
    )
    return page


def _tested(predictions: Predictions, split: Split, metrics: Mapping[str, float]) -> Values:
    hierarchy = predictions.hierarchy
    labels = all_labels(hierarchy)
    classes = class_rows(predictions, split, labels)
    return {
        "levels": level_rows(hierarchy, split.codes, metrics),
        "classes": classes,
        "page": PAGE,
        "depth": hierarchy.depth,
        "confusions": confusions(predictions, split, labels),
        "reliability": reliability_figure(predictions, split),
        "wrong": wrong_texts(predictions, split, labels),
    }


def percent(share: float | None, digits: int = 1) -> str:
    """A share as per cent; a dash where it is not defined."""
    if share is None or math.isnan(share):
        return "–"
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def number(value: Any) -> str:
    """A number as people write it; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _margin(metrics: Mapping[str, float]) -> float:
    """Half the 95 % interval of the accuracy (Wilson)."""
    share, rows = metrics.get("leaf_accuracy", math.nan), metrics.get("rows", 0.0)
    if not rows:
        return math.nan
    z = 1.96
    return z / (1 + z**2 / rows) * math.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2))


def all_labels(hierarchy: Hierarchy) -> list[str]:
    """The label of every class, in order."""
    labels: list[str] = []
    for name, parent in zip(hierarchy.names, hierarchy.parents_global.tolist(), strict=True):
        own = label_of([name]).translate(_CONTROLS)
        labels.append(own if parent < 0 else labels[parent] + SEPARATOR + own)
    return labels


# -- learning -------------------------------------------------------------------------------


def learning_curves(info: Values) -> list[Values]:
    """Charts of what was measured after every epoch; none where there was only one."""
    history = info.get("history", [])
    if len(history) < 2:
        return []
    charts = []
    for title, names, share in CURVES:
        series = [
            Series(
                name=name.replace("_", " "),
                points=[
                    (entry["epoch"], entry[name])
                    for entry in history
                    if math.isfinite(entry.get(name, math.nan))
                ],
            )
            for name in names
            if any(name in entry for entry in history)
        ]
        if series:
            drawn = line_chart(
                series, label=title, x_label="epoch", percent=share, mark=info.get("epoch")
            )
            charts.append({"title": title, "svg": drawn, "names": [line.name for line in series]})
    return charts


# -- levels and classes ---------------------------------------------------------------------


def level_rows(hierarchy: Hierarchy, codes: Ints, metrics: Mapping[str, float]) -> list[Values]:
    """Per level: classes, those with rows, rows, accuracy and macro-F1."""
    rows = []
    for level, size in enumerate(hierarchy.level_sizes):
        found = codes[:, level][codes[:, level] >= 0]
        rows.append(
            {
                "level": level + 1,
                "classes": size,
                "seen": int((np.bincount(found, minlength=size) > 0).sum()),
                "rows": len(found),
                "accuracy": metrics.get(f"level_{level + 1}_accuracy", math.nan),
                "macro_f1": metrics.get(f"level_{level + 1}_macro_f1", math.nan),
            }
        )
    return rows


def class_counts(true: Ints, found: Ints, hierarchy: Hierarchy) -> NDArray[np.int64]:
    """Rows whose path, answered path, and both hold a class; shape (3, classes)."""
    counts = np.zeros((3, hierarchy.class_count), dtype=np.int64)
    for level, size in enumerate(hierarchy.level_sizes):
        here, a, b = hierarchy.level_slice(level), true[:, level], found[:, level]
        for place, picked in enumerate((a[a >= 0], b[b >= 0], a[(a == b) & (a >= 0)])):
            counts[place, here] = np.bincount(picked, minlength=size)
    return counts


def class_rows(predictions: Predictions, split: Split, labels: Sequence[str]) -> Values:
    """The class table: [label, level, rows, answered, right], most rows first."""
    hierarchy = predictions.hierarchy
    counts = class_counts(split.codes, predictions.codes, hierarchy)
    there = np.flatnonzero(counts[0] + counts[1])
    order = there[np.argsort(-counts[0, there], kind="stable")][:CLASSES]
    rows = [
        [labels[node], level, *three]
        for node, level, three in zip(
            order.tolist(),
            (hierarchy.levels[order] + 1).tolist(),
            counts[:, order].T.tolist(),
            strict=True,
        )
    ]
    return {"rows": rows, "left_out": len(there) - len(order), "unseen": len(labels) - len(there)}


# -- mistakes -------------------------------------------------------------------------------


def shared_levels(true: Ints, found: Ints) -> NDArray[np.int64]:
    """How many classes from the root on two paths have in common; shape (rows,)."""
    # a code counts within its level, so where two are equal all above them are
    return ((true == found) & (true >= 0)).sum(axis=1)


def _common(hierarchy: Hierarchy, codes: Ints, shared: NDArray[np.int64]) -> NDArray[np.int64]:
    """The deepest class that paths share; -1 if none."""
    last = np.maximum(shared - 1, 0)
    node = hierarchy.level_offsets[last] + codes[np.arange(len(codes)), last]
    return np.where(shared > 0, node, -1)


def confusions(predictions: Predictions, split: Split, labels: Sequence[str]) -> Values:
    """The most frequent pairs of true and answered class, by the class under which they part."""
    hierarchy = predictions.hierarchy
    true, found = hierarchy.end_classes(split.codes), predictions.ends
    wrong = np.flatnonzero(true != found)
    keys = true[wrong].astype(np.int64) * hierarchy.class_count + found[wrong]
    pairs, counts = np.unique(keys, return_counts=True)
    left, right = np.divmod(pairs, hierarchy.class_count)
    codes = hierarchy.path_codes
    above = _common(hierarchy, codes[left], shared_levels(codes[left], codes[right]))
    totals = np.bincount(above + 1, weights=counts, minlength=hierarchy.class_count + 1)
    sizes = np.bincount(true, minlength=hierarchy.class_count)
    order = np.argsort(-counts, kind="stable")
    groups = []
    for group in np.argsort(-totals, kind="stable")[:SUBTREES].tolist():
        picked = order[above[order] == group - 1]
        if not len(picked):
            break
        shown = [
            {
                "true": _below(labels, int(left[pair]), group - 1),
                "found": _below(labels, int(right[pair]), group - 1),
                "count": int(counts[pair]),
                "of": int(sizes[left[pair]]),
            }
            for pair in picked[:PAIRS].tolist()
        ]
        groups.append(
            {
                "label": labels[group - 1] if group else "",
                "errors": int(totals[group]),
                "pairs": shown,
                "more": len(picked) - len(shown),
            }
        )
    return {
        "groups": groups,
        "more": int((totals > 0).sum()) - len(groups),
        "errors": len(wrong),
        "parting": _parting(split.codes[wrong], predictions.codes[wrong]),
    }


def _below(labels: Sequence[str], node: int, above: int) -> str:
    """A class's path from below one of its ancestors on; empty if it is that one itself."""
    return labels[node] if above < 0 else labels[node][len(labels[above]) + len(SEPARATOR) :]


def _parting(true: Ints, found: Ints) -> list[Values]:
    """Of wrong rows, how many part from the truth on each level."""
    rows = np.bincount(shared_levels(true, found), minlength=true.shape[1] + 1)
    return [
        {"level": level + 1, "rows": count} for level, count in enumerate(rows.tolist()) if count
    ]


def wrong_texts(predictions: Predictions, split: Split, labels: Sequence[str]) -> list[Values]:
    """The wrong answers that were given with most confidence."""
    hierarchy, confidence = predictions.hierarchy, predictions.confidence
    true, found = hierarchy.end_classes(split.codes), predictions.ends
    wrong = np.flatnonzero(true != found)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")[:WRONG]]
    last = predictions.tree.last_codes(split.codes[worst], hierarchy)
    shared = shared_levels(split.codes[worst], predictions.codes[worst])
    above = _common(hierarchy, split.codes[worst], shared)
    ranked = predictions.top[worst] == last[:, None]
    ranks = np.where(ranked.any(axis=1), ranked.argmax(axis=1), -1)
    truth = predictions.top_probs[worst, ranks]
    return [
        {
            "text": cut(split.texts[row]),
            "above": labels[above[place]] if above[place] >= 0 else "",
            "true": _below(labels, int(true[row]), int(above[place])),
            "found": _below(labels, int(found[row]), int(above[place])),
            "confidence": float(confidence[row]),
            "rank": int(ranks[place]) + 1,  # 0 beyond the most probable paths
            "true_confidence": float(truth[place]),
        }
        for place, row in enumerate(worst.tolist())
    ]


def cut(text: str) -> str:
    """A text in one line without control characters, of a length that can be read."""
    head = " ".join(text[: 4 * TEXT].translate(_CONTROLS).split())
    return head if len(head) <= TEXT and len(text) <= 4 * TEXT else head[:TEXT].rstrip() + " …"


# -- confidence -----------------------------------------------------------------------------


def reliability_figure(predictions: Predictions, split: Split) -> Values:
    """Accuracy over confidence after and before calibration, drawn and in numbers."""
    last = predictions.tree.last_codes(split.codes, predictions.hierarchy)
    sides = {
        "calibrated": (predictions.confidence, predictions.top[:, 0] == last),
        "before": (predictions.raw_confidence, predictions.raw_best == last),
    }
    lines, tables = [], []
    for name, (confidence, correct) in sides.items():
        rows, hits, sure = reliability(confidence, correct)
        kept = np.flatnonzero(rows)
        bins = [
            {
                "low": place / BINS,
                "high": (place + 1) / BINS,
                "rows": int(rows[place]),
                "confidence": float(sure[place] / rows[place]),
                "accuracy": float(hits[place] / rows[place]),
            }
            for place in kept.tolist()
        ]
        notes = [
            f"{name}: {percent(b['confidence'])} sure, {percent(b['accuracy'])} right, "
            f"{b['rows']:,} rows"
            for b in bins
        ]
        points = [(b["confidence"], b["accuracy"]) for b in bins]
        weights = [math.sqrt(b["rows"] / rows.max()) for b in bins]
        lines.append(Series(name=name, points=points, notes=notes, weights=weights))
        tables.append({"name": name, "bins": bins, "counts": rows.tolist()})
    svg = reliability_chart(lines, [table["counts"] for table in tables])
    return {"svg": svg, "names": list(sides), "tables": tables}
