#!/usr/bin/env python
"""How often the monitor cries wolf, and what it notices, on real answers of a trained model.

    python benchmarks/drift.py -m db_bhcn -d data001 --other ../shared/data/trec

The rows of the dataset's validation and test splits are answered once and halved by chance: one
half is the reference, windows are drawn from the other. Traffic that is

- alike: rows of the other half, as they come;
- foreign: a share of the rows are texts of another dataset (`--other`);
- one subtree: only rows that belong under one class of the first level;
- typos: one character in ten of each text lost, doubled, or swapped with the next.

Printed are the share of windows in which each family of signals is beyond its threshold, and after
how many shifted rows the first family is (windows as the service sees them, while they fill up).
The statistics are those of the monitoring service itself.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "templates" / "monitoring")]

FAMILIES = ("features", "length", "predictions", "confidence")
TYPO_SHARE = 0.1
STEP = 25  # rows between two looks, when it is counted how soon a shift is noticed


@dataclass(frozen=True, kw_only=True)
class Watch:
    """A detector and what it is shown."""

    detector: Any
    window: int
    rng: np.random.Generator

    def risen(self, rows: Any) -> dict[str, float]:
        """Largest ratio per family."""
        found = dict.fromkeys(FAMILIES, 0.0)
        for finding in self.detector.compare(rows):
            found[finding.family] = max(found[finding.family], finding.ratio)
        return found

    def draw(self, rows: Any) -> Any:
        """A window of different rows, if there are enough of them."""
        return rows.take(self.rng.choice(len(rows), self.window, replace=len(rows) < self.window))


def observed(classifier: Any, tree: Any, texts: Sequence[str]) -> Any:
    """Answer texts; what the monitor hears of them."""
    from monitor_drift import Rows

    seen = [
        classifier.observe(texts[start : start + 1024])[1] for start in range(0, len(texts), 1024)
    ]
    best = np.concatenate([one.top[:, 0] for one in seen])
    nodes = np.array([tree.by_label[label] for label in classifier.labels])
    return Rows(
        classes=nodes[best],
        features=np.concatenate([one.features for one in seen]).astype(np.float64),
        confidence=np.concatenate([one.confidence for one in seen]).astype(np.float64),
        length=np.concatenate([one.lengths for one in seen]).astype(np.float64),
    )


def with_typos(text: str, rng: np.random.Generator) -> str:
    """One character in ten lost, doubled, or swapped with the next."""
    letters = list(text)
    for place in np.flatnonzero(rng.random(len(letters)) < TYPO_SHARE):
        kind = rng.integers(3)
        if kind == 0:
            letters[place] = ""
        elif kind == 1:
            letters[place] *= 2
        elif place + 1 < len(letters):
            letters[place], letters[place + 1] = letters[place + 1], letters[place]
    return "".join(letters) or text


def mixed(own: Any, other: Any, share: float, count: int, rng: np.random.Generator) -> Any:
    """Rows of which a share are others."""
    from monitor_drift import Rows

    chosen = rng.random(count) < share
    left, right = (rows.take(rng.integers(len(rows), size=count)) for rows in (own, other))

    def either(a: Any, b: Any) -> Any:
        return np.where(chosen.reshape(-1, *[1] * (a.ndim - 1)), b, a)

    return Rows(
        classes=either(left.classes, right.classes),
        features=either(left.features, right.features),
        confidence=either(left.confidence, right.confidence),
        length=either(left.length, right.length),
    )


def joined(first: Any, second: Any) -> Any:
    """Rows after rows."""
    from monitor_drift import Rows

    return Rows(
        **{
            name: np.concatenate([getattr(first, name), getattr(second, name)])
            for name in ("classes", "features", "confidence", "length")
        }
    )


def noticed_after(watch: Watch, usual: Any, shifted: Any) -> int | None:
    """Shifted rows after which a family has risen, in a window that was full of usual ones."""
    before, after = watch.draw(usual), watch.draw(shifted)
    for count in range(STEP, watch.window + 1, STEP):
        rows = joined(before, after.take(slice(0, count)))
        if max(watch.risen(rows.take(slice(len(rows) - watch.window, None))).values()) > 1:
            return count
    return None


Traffic = Callable[[], Any]


def show(watch: Watch, name: str, traffic: Traffic, usual: Any, windows: int) -> None:
    """Print a line: how often what rises in this traffic."""
    found = [watch.risen(watch.draw(traffic())) for _ in range(windows)]
    shares = [np.mean([one[family] > 1 for one in found]) for family in FAMILIES]
    any_family = np.mean([max(one.values()) > 1 for one in found])
    soon = [noticed_after(watch, usual, traffic()) for _ in range(20)]
    seen = sorted(count for count in soon if count is not None)
    middle = str(seen[len(soon) // 2]) if len(seen) > len(soon) // 2 else "–"
    cells = [f"{share:.1%}" for share in (*shares, any_family)]
    print(f"| {name} | {windows} | {' | '.join(cells)} | {middle} |", flush=True)


def kinds(
    classifier: Any, tree: Any, usual: Any, texts: list[str], other: Path | None, watch: Watch
) -> Iterator[tuple[str, Traffic]]:
    """Each kind of traffic with what makes rows of it."""
    rng = watch.rng
    tops = tree.ancestors[usual.classes, 0]
    largest = np.bincount(tops).argmax()
    yield "alike", lambda: usual
    yield f"one subtree ({tree.labels[largest]})", lambda: usual.take(tops == largest)
    wrong = observed(classifier, tree, [with_typos(text, rng) for text in texts])
    yield "typos", lambda: wrong
    if other:
        foreign = observed(classifier, tree, texts_of(other)[: len(texts)])
        for share in (1.0, 0.3, 0.1):
            some = functools.partial(mixed, usual, foreign, share, 4 * watch.window, rng)
            yield f"foreign texts ({other.name}), {share:.0%}", some


def texts_of(folder: Path) -> list[str]:
    """Texts of a set."""
    import pyarrow.parquet as pq

    found = pq.read_table(folder / "data.parquet", columns=["text"])["text"].to_pylist()
    return [text for text in found if text and text.strip()]


def exported(model: str, dataset: str, folder: Path) -> Any:
    """The classifier that a bundle of the trained model would run."""
    from models import model_class
    from utils.common.checkpoints import find_checkpoint
    from utils.common.paths import Layout
    from utils.inference.classifier import Classifier

    found = model_class(model).from_checkpoint(find_checkpoint(Layout(), model, dataset))
    found.export_classifier(folder)
    return Classifier.load(folder)


@click.command()
@click.option("-m", "--model", default="tfidf_hsgd", show_default=True)
@click.option("-d", "--dataset", required=True, help="That it was trained on.")
@click.option("--other", type=click.Path(path_type=Path, exists=True), help="A folder of another.")
@click.option("--window", default=500, show_default=True)
@click.option("--windows", default=200, show_default=True)
@click.option("--rate", default=0.02, show_default=True, help="Of false alarms, per window.")
def main(
    model: str, dataset: str, other: Path | None, window: int, windows: int, rate: float
) -> None:
    """Print a table of traffic and signals."""
    import tempfile

    from monitor_drift import Detector
    from monitor_settings import read_settings
    from monitor_tree import Tree
    from utils.common.paths import Layout
    from utils.hierarchy.dataset import load_dataset

    data = load_dataset(Layout(), dataset)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as temporary:
        classifier = exported(model, dataset, Path(temporary) / "classifier")
        tree = Tree.from_dict(data.hierarchy.to_dict())
        pool = [*data.val.texts, *data.test.texts]
        order = rng.permutation(len(pool))
        held, live = ([pool[i] for i in part] for part in np.array_split(order, 2))
        reference, usual = (observed(classifier, tree, part) for part in (held, live))
        settings = read_settings({"window_size": window, "false_alarm_rate": rate})
        started = time.perf_counter()
        detector = Detector(tree, reference, settings)
        detector.learn()
        print(
            f"\n{model} · {dataset}: reference of {len(reference):,} rows, windows of {window}; "
            f"thresholds learned in {time.perf_counter() - started:.1f} s for "
            f"{len(detector.signals)} signals, {rate:.0%} of false alarms per window\n"
        )
        print(f"| traffic | windows | {' | '.join(FAMILIES)} | any | noticed after rows (median) |")
        print("|---|" + "---|" * (len(FAMILIES) + 3))
        watch = Watch(detector=detector, window=window, rng=rng)
        for name, traffic in kinds(classifier, tree, usual, live, other, watch):
            show(watch, name, traffic, usual, windows)


if __name__ == "__main__":
    main()
