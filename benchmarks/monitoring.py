#!/usr/bin/env python
"""How often monitoring raises a false alarm, and what it sees, on generated traffic.

    python benchmarks/monitoring.py --references 20 --windows 100

Texts are drawn from class-dependent words over 240 leaves; features are pooled TF-IDF weights
(mostly zeros) or dense vectors. Every reference is drawn anew, as are all windows. Prints a
Markdown table: share of windows with any alarm, and with one per family.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "templates" / "monitoring"))

from monitor_drift import Detector, Rows  # noqa: E402
from monitor_settings import Settings  # noqa: E402
from monitor_tree import Tree  # noqa: E402

TOPS, KINDS, LEAVES = 8, 6, 5
WORDS, GROUPS, DENSE = 6_000, 64, 24
FAMILIES = ("features", "length", "predictions", "confidence")


def make_tree() -> Tree:
    """Three levels; answers may end at any class of the second."""
    kinds, leaves = TOPS * KINDS, TOPS * KINDS * LEAVES
    names = [f"t{i}" for i in range(TOPS)] + [f"k{i}" for i in range(kinds)]
    return Tree.from_dict(
        {
            "classes": [*names, *(f"l{i}" for i in range(leaves))],
            "level_sizes": [TOPS, kinds, leaves],
            "parent_of": [
                list(range(TOPS)),
                [i // KINDS for i in range(kinds)],
                [i // LEAVES for i in range(leaves)],
            ],
        }
    )


class Traffic:
    """Texts of classes, and a model's answers about them."""

    def __init__(self, seed: int, *, dense: bool) -> None:
        self.rng = np.random.default_rng(seed)
        self.dense = dense
        self.tree = make_tree()
        self.leaves = np.flatnonzero(~self.tree.inner)
        self.shares = self.rng.dirichlet(np.full(len(self.leaves), 0.7))
        zipf = 1 / np.arange(1, WORDS + 1)
        self.common = np.cumsum(zipf / zipf.sum())
        self.own = self.rng.integers(WORDS, size=(len(self.tree.paths), 20))
        self.weights = np.log(1 / (zipf / zipf.sum())) / 60
        self.vectors = self.rng.standard_normal((WORDS, DENSE)) / 3
        self.names = np.arange(WORDS)
        self.telling = 0.35  # share of the words that belong to the text's class

    def draw(
        self, rows: int, rng: np.random.Generator, *, inside: int | None = None, typos: float = 0
    ) -> Rows:
        """Answers; `inside` one subtree only, and `typos`: share of words no longer known."""
        shares = self.shares
        if inside is not None:
            shares = np.where(self.tree.ancestors[self.leaves, 0] == inside, shares, 0)
        true = rng.choice(self.leaves, size=rows, p=shares / shares.sum())
        count = 3 + rng.poisson(rng.gamma(4, 2, rows))
        text = np.repeat(np.arange(rows), count)
        specific = rng.random(len(text)) < self.telling
        ranks = np.searchsorted(self.common, rng.random(len(text)) * self.common[-1])
        words = self.names[ranks]
        words[specific] = self.own[true[text[specific]], rng.integers(20, size=specific.sum())]
        known = rng.random(len(text)) >= typos
        clues = np.bincount(text[specific & known], minlength=rows)
        sure = 1 / (1 + np.exp(0.5 - 0.9 * clues + 0.7 * rng.standard_normal(rows)))
        wrong = rng.random(rows) > sure
        answers = np.where(wrong, rng.choice(self.leaves, rows, p=self.shares), true)
        early = (clues == 0) & (rng.random(rows) < 0.7)
        answers[early] = self.tree.ancestors[answers[early], 1]
        return Rows(
            classes=answers,
            features=self._features(text[known], words[known], rows),
            confidence=sure,
            length=np.bincount(text, weights=3 + words % 7, minlength=rows),
        )

    def _features(self, text: Any, words: Any, rows: int) -> Any:
        if not self.dense:
            groups = text * GROUPS + words % GROUPS
            sums = np.bincount(groups, weights=self.weights[words], minlength=rows * GROUPS)
            found = sums.reshape(rows, GROUPS)
            norms = np.sqrt(np.bincount(text, weights=self.weights[words] ** 2, minlength=rows))
            return found / np.maximum(norms, 1e-9)[:, None]
        sums = np.zeros((rows, DENSE))
        np.add.at(sums, text, self.vectors[words])
        return sums / np.maximum(np.bincount(text, minlength=rows), 1)[:, None]


def joined(left: Rows, right: Rows) -> Rows:
    """Rows of both, mixed by nothing: order has no meaning within a window."""
    return Rows(
        classes=np.r_[left.classes, right.classes],
        features=np.r_[left.features, right.features],
        confidence=np.r_[left.confidence, right.confidence],
        length=np.r_[left.length, right.length],
    )


def other(like: Traffic, seed: int) -> Traffic:
    """Texts of another kind for the same model: other words are frequent, few tell a class."""
    made = Traffic(seed, dense=like.dense)
    made.weights, made.vectors, made.own = like.weights, like.vectors, like.own
    made.names = made.rng.permutation(WORDS)
    made.telling = 0.15
    return made


def cases(traffic: Traffic, strange: Traffic, size: int) -> dict[str, Any]:
    """What is drawn, by name."""

    def mixed(rng: np.random.Generator) -> Rows:
        few = round(0.3 * size)
        return joined(traffic.draw(size - few, rng), strange.draw(few, rng))

    return {
        "like the reference": lambda rng: traffic.draw(size, rng),
        "one subtree only": lambda rng: traffic.draw(size, rng, inside=0),
        "30 % other texts": mixed,
        "typos in 20 % of words": lambda rng: traffic.draw(size, rng, typos=0.2),
    }


def measure(
    dense: bool, reference: int, size: int, references: int, windows: int
) -> Iterator[tuple[str, int, Counter[str], list[int]]]:
    """Per case: windows, alarms by family, and alarms per reference."""
    traffic = Traffic(1, dense=dense)
    strange = other(traffic, 2)
    seen: dict[str, Counter[str]] = {}
    each: dict[str, list[int]] = {}
    counts: Counter[str] = Counter()
    for number in range(references):
        rng = np.random.default_rng([number, reference, size])
        detector = Detector(traffic.tree, traffic.draw(reference, rng), Settings())
        detector.sizes = [size]
        detector.learn()
        for name, draw in cases(traffic, strange, size).items():
            alike = name == "like the reference"
            any_alarm = 0
            for _ in range(windows if alike else max(1, windows // 10)):
                drifted = {f.family for f in detector.compare(draw(rng)) if f.ratio > 1}
                seen.setdefault(name, Counter()).update([*drifted, *(["any"] * bool(drifted))])
                any_alarm += bool(drifted)
                counts[name] += 1
            each.setdefault(name, []).append(any_alarm)
    for name, found in seen.items():
        yield name, counts[name], found, each[name]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--references", default=20, show_default=True)
@click.option("--windows", default=100, show_default=True, help="Per reference.")
@click.option("--sizes", default="100,500", show_default=True, help="Rows of a window.")
@click.option("--rows", default="500,5000", show_default=True, help="Rows of a reference.")
def main(references: int, windows: int, sizes: str, rows: str) -> None:
    """Measure false alarms and power."""
    print("| features | reference | window | traffic | windows | any alarm |", end="")
    print(" | ".join(f" {name}" for name in FAMILIES), "| worst reference |")
    print("|---" * (7 + len(FAMILIES)) + "|")
    started = time.monotonic()
    for dense in (False, True):
        for reference in map(int, rows.split(",")):
            for size in map(int, sizes.split(",")):
                for name, count, seen, each in measure(dense, reference, size, references, windows):
                    shares = [f"{seen[key] / count:.3f}" for key in ("any", *FAMILIES)]
                    worst = max(each) / (count / references)
                    kind = "dense" if dense else "TF-IDF"
                    cells = [kind, reference, size, name, count, *shares, f"{worst:.2f}"]
                    print("|", " | ".join(map(str, cells)), "|", flush=True)
    print(f"\n{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
