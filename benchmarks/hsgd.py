#!/usr/bin/env python
"""How fast Tfidf_HSGD is beside HiClass's LocalClassifierPerParentNode, in the same run.

    pip install hiclass==5.0.8
    python benchmarks/hsgd.py ../shared/data/clinc150

SET holds data.parquet (text, classes) and split.parquet (split). Both sides get the same TF-IDF
matrix and the same base classifier (scikit-learn's SGDClassifier with the default settings of the
model, seed 0), fit on the train rows and predict the test rows. Vectorising, which both share, is
not timed, nor is compiling, which happens once per machine and is printed by itself. HiClass runs
with one job and with as many as there are processors, by joblib. The ratio is against the faster.

Path accuracy is of our answers, which weigh whole paths, and of our classifiers asked like
HiClass's: from the top down, the best child each time. What is left between the latter two is the
order of rows: in HiClass each class of a node shuffles by a seed of its own drawn from the seed
0, here all by the seed 0.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import click
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
Run = tuple[float, ...]
sys.path.insert(0, str(ROOT))


def read(folder: Path) -> tuple[Any, Any, Any, list[str], list[str]]:
    """Return tree, train codes, test codes, train texts, test texts."""
    import pyarrow.parquet as pq

    from utils.hierarchy.tree import Hierarchy

    table = pq.read_table(folder / "data.parquet", columns=["text", "classes"])
    part = np.array(pq.read_table(folder / "split.parquet")["split"].to_pylist())
    paths, texts = table["classes"].to_pylist(), table["text"].to_pylist()
    depth = max(map(len, paths))
    columns = [[p[h] if h < len(p) else None for p in paths] for h in range(depth)]
    tree, codes = Hierarchy.from_paths(columns)
    train, test = np.flatnonzero(part == "train"), np.flatnonzero(part == "test")
    return tree, codes[train], codes[test], [texts[i] for i in train], [texts[i] for i in test]


def labels(tree: Any, codes: Any) -> Any:
    """Unique class labels per level for HiClass, empty beyond a row's end."""
    names = np.array([*map(str, range(tree.class_count)), ""], dtype=object)
    classes = np.where(codes >= 0, codes + tree.level_offsets[:-1], -1)
    return names[classes]


def medians_of(sides: dict[str, Callable[[], Run]], rounds: int) -> dict[str, Run]:
    """Run all sides in turn, so that a noisy moment meets all; medians of what they return."""
    found: dict[str, list[Run]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            found[name].append(side())
    return {
        name: tuple(statistics.median(values) for values in zip(*runs, strict=True))
        for name, runs in found.items()
    }


def top_down(tree: Any, decisions: Any) -> Any:
    """Last-level classes of a full-depth tree that HiClass's way of asking leads to."""
    from models.tfidf_hsgd.tfidf_hsgd import classifier_columns

    columns = classifier_columns(tree)
    # An only child has no classifier, and needs none.
    scores = np.where(columns >= 0, decisions[:, columns], 0)
    at = np.full(len(scores), -1)
    for level in range(tree.depth):
        here = tree.level_slice(level)
        below = tree.parents_global[here] == at[:, None]
        at = here.start + np.where(below, scores[:, here], -np.inf).argmax(axis=1)
    return at - tree.level_offsets[-2]


def ours(tree: Any, config: Any, data: tuple[Any, ...], features: Any) -> Any:
    """Return a run of Tfidf_HSGD: (fit s, predict s, path accuracy, the same from the top down)."""
    from models.tfidf_hsgd.tfidf_hsgd import Tfidf_HSGD
    from utils.hierarchy.decode import decode
    from utils.linear.scorer import TfidfScorer

    train, test, train_codes, test_codes = data

    def run() -> Run:
        model = Tfidf_HSGD(tree, config)
        start = time.perf_counter()
        codes = model.tree.extend_codes(train_codes, tree)
        weights, intercepts = model.fit_weights(train, codes, seed=0, progress=None)
        scorer = TfidfScorer(features, weights, intercepts, model.paths())
        fitted = time.perf_counter()
        answers = decode(scorer.scores(test), tree, model.tree)
        done = time.perf_counter()
        right = float((answers.codes == test_codes).all(axis=1).mean())
        ends = model.tree.ending[top_down(model.tree, scorer.decide(test))]
        greedy = float((tree.path_codes[ends] == test_codes).all(axis=1).mean())
        return fitted - start, done - fitted, right, greedy

    return run


def hiclass(config: Any, data: tuple[Any, ...], tree: Any, jobs: int) -> Any:
    """Return the same run of HiClass."""
    from hiclass import LocalClassifierPerParentNode
    from sklearn.linear_model import SGDClassifier

    train, test, train_codes, test_codes = data
    wanted, truth = labels(tree, train_codes), labels(tree, test_codes)

    def run() -> Run:
        base = SGDClassifier(
            loss=config.loss,
            alpha=config.alpha,
            max_iter=config.max_iter,
            tol=config.tol,
            average=config.average,
            random_state=0,
        )
        model = LocalClassifierPerParentNode(base, n_jobs=jobs, replace_classifiers=False)
        start = time.perf_counter()
        model.fit(train, wanted)
        fitted = time.perf_counter()
        answers = model.predict(test)
        done = time.perf_counter()
        right = float((answers == truth).all(axis=1).mean())
        return fitted - start, done - fitted, right, right

    return run


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--rounds", default=5, show_default=True, help="Runs of each side; medians count.")
def main(folder: Path, rounds: int) -> None:
    """Print times, accuracies and the ratio for one SET."""
    from models.tfidf_hsgd.tfidf_hsgd import HSGDConfig
    from utils.linear.tfidf import TfidfFeatures

    warnings.filterwarnings("ignore")
    tree, train_codes, test_codes, train_texts, test_texts = read(folder)
    config = HSGDConfig()
    features, train = TfidfFeatures.learn(train_texts, config.tfidf())
    data = (train, features.transform(test_texts), train_codes, test_codes)
    jobs = len(os.sched_getaffinity(0))
    sides = {"tfidf_hsgd": ours(tree, config, data, features)}
    for n in sorted({1, jobs}):
        sides[f"hiclass, {n} job{'s' * (n > 1)}"] = hiclass(config, data, tree, n)
    start = time.perf_counter()
    from utils.linear import sgd_kernel  # noqa: F401

    print(
        f"compiling, or reading what is compiled: {time.perf_counter() - start:.1f} s (not counted)"
    )
    medians = medians_of(sides, rounds)
    print(f"{folder.name}: {train.shape[0]:,} x {train.shape[1]:,}, medians of {rounds} runs")
    for name, (fit, predict, right, greedy) in medians.items():
        print(
            f"{name:16s} fit {fit:7.3f} s  predict {predict:7.3f} s  path accuracy {right:.4f}, "
            f"top down {greedy:.4f}"
        )
    own = sum(medians.pop("tfidf_hsgd")[:2])
    name, fastest = min(
        ((name, fit + predict) for name, (fit, predict, *_) in medians.items()),
        key=lambda side: side[1],
    )
    print(f"{fastest / own:.1f} x as fast as {name}, the faster")


if __name__ == "__main__":
    main()
