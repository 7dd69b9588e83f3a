#!/usr/bin/env python
"""How good the models are, on real sets, beside a linear SVM trained in the same run.

    python benchmarks/accuracy.py ../shared/data -m tfidf_lsgd,tfidf_hsgd -s clinc150,trec

Each folder of DATA holds data.parquet (text, classes) and split.parquet (split). Models train with
the defaults of hyperparameters.json (and, where they take one, --encoder). Prints a Markdown table.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SETS = ("clinc150", "trec", "womens_clothing", "ecoicop_pl", "newsgroups20")
FIGURES = {
    "leaf": "leaf_accuracy",
    "macro-F1": "leaf_macro_f1",
    "level 1": "level_1_accuracy",
    "hF1": "hierarchical_f1",
    "top 3": "top_3_accuracy",
    "coherent": "coherence",
    "ECE": "calibration_error",
    "ECE raw": "calibration_error_raw",
}


def with_split(folder: Path, target: Path) -> Path:
    """Write a set's rows with their split as one table."""
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "data.parquet", columns=["text", "classes"])
    split = pq.read_table(folder / "split.parquet")["split"]
    path = target / f"{folder.name}.parquet"
    pq.write_table(table.append_column("split", split), path)
    return path


def reference(dataset: Any) -> tuple[float, float, float]:
    """Leaf and level-1 accuracy of a linear SVM over full paths, and its seconds."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.svm import LinearSVC

    started = time.perf_counter()
    tree = dataset.hierarchy
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=400_000)
    model = LinearSVC()
    model.fit(vectors.fit_transform(dataset.train.texts), tree.end_classes(dataset.train.codes))
    found = model.predict(vectors.transform(dataset.test.texts))
    leaf = (found == tree.end_classes(dataset.test.codes)).mean()
    first = (tree.path_codes[found][:, 0] == dataset.test.codes[:, 0]).mean()
    return float(leaf), float(first), time.perf_counter() - started


def line(*cells: object) -> None:
    print(
        "| " + " | ".join(f"{c:.3f}" if isinstance(c, float) else str(c) for c in cells) + " |",
        flush=True,
    )


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option("-m", "--models", default="tfidf_lsgd,tfidf_hsgd")
@click.option("-s", "--sets", default=",".join(SETS), show_default=True)
@click.option("--encoder", default="minilm", show_default=True)
@click.option("-e", "--epochs", type=int, help="Epochs instead of the configured.")
def main(data: Path, models: str, sets: str, encoder: str, epochs: int | None) -> None:
    """Train MODELS on the sets below DATA and print their figures."""
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["KTT_ROOT"] = temporary
        from adapt import main as adapt
        from train import train_all
        from utils.common.paths import Layout
        from utils.hierarchy.dataset import load_dataset
        from utils.training.run import Options

        layout = Layout()
        rows: list[tuple[object, ...]] = []
        for name in sets.split(","):
            path = with_split(data / name, Path(temporary))
            adapt(
                ["flat", str(path), name, "-t", "text", "-c", "classes",
                 "--split-column", "split", "--keep-duplicates"],
                standalone_mode=False,
            )  # fmt: skip
            leaf, first, seconds = reference(load_dataset(layout, name))
            blank = [""] * (len(FIGURES) - 3)
            rows.append((name, "linear SVM", leaf, "", first, *blank, f"{seconds:.0f} s"))
            options = Options(encoder=encoder, epochs=epochs)
            for outcome in train_all(layout, models.split(","), [name], options):
                if outcome.error:
                    raise outcome.error
                figures = [outcome.metrics[key] for key in FIGURES.values()]
                rows.append((name, outcome.model, *figures, f"{outcome.seconds:.0f} s"))
        line("set", "model", *FIGURES, "time")
        line(*["---"] * (len(FIGURES) + 3))
        for row in rows:
            line(*row)


if __name__ == "__main__":
    main()
