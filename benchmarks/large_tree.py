#!/usr/bin/env python
"""Whether the TF-IDF models stay within bounds on a tree of ten thousand classes.

    python benchmarks/large_tree.py ../shared/data/taxonomies/shopify_en.parquet

Generates 100,000 rows over the classes of a taxonomy (a table with a column `path`), inner classes
included, or without one over a generated tree of the same shape. Each text has some words of its
path, words that occur anywhere, and typos. The real commands adapt them and train each model, one
process each. Exits with 1 if training takes over 10 minutes or 8 GB, or a checkpoint over 500 MB.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil

ROOT = Path(__file__).resolve().parent.parent
MINUTES, GIGABYTES, MEGABYTES = 10, 8, 500
# Classes per level of the Shopify taxonomy, which a generated tree takes over.
SHAPE = (26, 211, 1467, 3724, 3431, 1300, 386, 50)
WORDS, NOISE_WORDS = 6, 20_000


def generated_paths(rng: np.random.Generator) -> list[list[str]]:
    """Paths to all classes of a random tree."""
    vocabulary = np.array([f"word{n}" for n in range(8_000)], dtype=object)
    paths: list[list[str]] = []
    above: list[list[str]] = [[]]
    for size in SHAPE:
        names = vocabulary[rng.integers(len(vocabulary), size=(size, 2))]
        # The number makes siblings differ.
        parents = rng.integers(len(above), size=size)
        above = [
            [*above[parent], f"{first} {second} {number}"]
            for number, (parent, (first, second)) in enumerate(zip(parents, names, strict=True))
        ]
        paths += above
    return paths


def make_texts(paths: list[list[str]], ends: Any, rng: np.random.Generator) -> Any:
    """Return a text for each row: words of its path, the deeper the more often, noise, typos."""
    import pandas as pd

    words = [
        [word for h, name in enumerate(path) for word in name.split() * (1 + h)] for path in paths
    ]
    sizes = np.array([len(found) for found in words])
    starts = np.cumsum(sizes) - sizes
    every = np.array([word for found in words for word in found], dtype=object)
    picks = starts[ends, None] + (rng.random((len(ends), WORDS)) * sizes[ends, None]).astype(int)
    known = pd.Series(every[picks].ravel())
    # A typo: one letter is lost.
    typos = (rng.random(len(known)) < 0.05) & (known.str.len() > 3).to_numpy()
    known[typos] = known[typos].str[:1] + known[typos].str[2:]
    noise = np.array([f"noise{n}" for n in range(NOISE_WORDS)], dtype=object)
    # Frequencies as in language: few words are common, most are rare.
    rare = (NOISE_WORDS ** rng.random((len(ends), 3))).astype(int) - 1
    table = np.concatenate([known.to_numpy().reshape(-1, WORDS), noise[rare]], axis=1)
    return pd.DataFrame(table).agg(" ".join, axis=1)


def write_rows(taxonomy: Path | None, rows: int, target: Path) -> int:
    """Write the table of texts and paths; return how many classes rows end at."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    if taxonomy is None:
        paths = generated_paths(rng)
    else:
        paths = pq.read_table(taxonomy, columns=["path"])["path"].to_pylist()
    # Every class has a row; the others are as unequal as in a shop.
    share = rng.lognormal(sigma=1, size=len(paths))
    more = rng.choice(len(paths), size=max(rows - len(paths), 0), p=share / share.sum())
    ends = rng.permutation(np.concatenate([np.arange(len(paths)), more]))
    classes = pd.Series(paths, dtype=object).to_numpy()[ends]
    texts = make_texts(paths, ends, rng)
    table = pa.table({"text": pa.array(texts), "classes": pa.array(list(classes))})
    pq.write_table(table, target)
    return len(paths)


def measured(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Run a command; return its seconds and peak memory in GB (with its children)."""
    started, peak = time.perf_counter(), 0
    process = psutil.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL)
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.1):
            try:
                family = [process, *process.children(recursive=True)]
                peak = max(peak, sum(one.memory_info().rss for one in family))
            except psutil.Error:  # it has just ended
                continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    done.set()
    watcher.join()
    if code:
        raise click.ClickException(f"{' '.join(command)} ended with {code}")
    return time.perf_counter() - started, peak / 1e9


def outcome(weights: Path) -> tuple[float, str]:
    """Size of a trained model's checkpoint in MB, and its accuracy on the test rows."""
    size = max((path.stat().st_size for path in weights.glob("*.pt")), default=0)
    metrics = [json.loads(path.read_text()) for path in weights.glob("*_metrics.json")]
    return size / 1e6, "".join(f"{one['test']['leaf_accuracy']:.3f}" for one in metrics)


def line(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


@click.command()
@click.argument("taxonomy", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--rows", default=100_000, show_default=True)
@click.option("-m", "--models", default="tfidf_lsgd,tfidf_hsgd", show_default=True)
def main(taxonomy: Path | None, rows: int, models: str) -> None:
    """Adapt and train on rows over all classes of TAXONOMY; print time, memory and size."""
    within = True
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        environment = {**os.environ, "KTT_ROOT": temporary}
        classes = write_rows(taxonomy, rows, folder / "rows.parquet")
        print(f"{rows:,} rows over {classes:,} classes, {os.cpu_count()} processors")
        line("step", "wall time", "peak memory", "checkpoint", "leaf accuracy")
        line(*["---"] * 5)
        steps = {"adapt": ["adapt.py", "flat", str(folder / "rows.parquet"), "large"]}
        steps["adapt"] += ["-t", "text", "-c", "classes", "--keep-duplicates"]
        settings = ["--hyperparameters", str(ROOT / "hyperparameters.json"), "--no-dvc"]
        for model in models.split(","):
            steps[model] = ["train.py", "-m", model, "-d", "large", *settings]
        for name, command in steps.items():
            seconds, memory = measured([sys.executable, *command], environment)
            megabytes, accuracy = outcome(folder / "weights" / name / "large")
            line(name, f"{seconds:.0f} s", f"{memory:.1f} GB", f"{megabytes:.0f} MB", accuracy)
            within &= seconds <= MINUTES * 60 and memory <= GIGABYTES and megabytes <= MEGABYTES
    print(f"within {MINUTES} min, {GIGABYTES} GB, {MEGABYTES} MB: {'yes' if within else 'NO'}")
    sys.exit(0 if within else 1)


if __name__ == "__main__":
    main()
