#!/usr/bin/env python
"""Score a trained model on the rows of a dataset."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from models import MODELS
from utils import cli
from utils.errors import UserError
from utils.paths import Layout, given_path
from utils.predicting import RUNTIMES

if TYPE_CHECKING:
    from utils.data import Dataset, Split
    from utils.decode import Predictions
    from utils.hierarchy import Hierarchy, Ints
    from utils.predicting.pipeline import Source

SPLITS = ("train", "val", "test")


def mapped_codes(codes: Ints, theirs: Hierarchy, ours: Hierarchy, names: tuple[str, str]) -> Ints:
    """Codes of one tree as those of another that has all its classes; classes match by path.

    Parameters
    ----------
    names
        What `theirs` and `ours` belong to, for the error.

    Raises
    ------
    UserError
        A class of `theirs` is missing in `ours`, or an answer may not end where a row does.
    """
    import numpy as np

    places = {ours.path(node): node for node in range(ours.class_count)}
    found = np.array([places.get(theirs.path(n), -1) for n in range(theirs.class_count)])
    if (found < 0).any():
        raise UserError(
            f"Dataset {names[0]!r} has the class {theirs.label(int(found.argmin()))!r}, which the "
            f"tree of {names[1]} has not ({int((found < 0).sum())} such classes in all). Adapt it "
            "with the same classes."
        )
    return ours.path_codes[found[theirs.end_classes(codes)]]


def answered(source: Source, split: Split, progress: Any = None) -> Predictions:
    """Answer a split, counting scores against its truth."""
    from utils.decode import ScoreHistogram, decode, join
    from utils.predicting.pipeline import ahead, window_rows

    truth = source.tree.last_codes(split.codes, source.hierarchy)
    histogram = ScoreHistogram()
    size = window_rows(source.tree.class_count)
    starts = range(0, len(split), size)
    parts = []

    def encoded() -> Iterator[tuple[slice, Any]]:
        for start in starts:
            yield slice(start, start + size), source.encode(split.texts[start : start + size])

    for rows, tokens in ahead(encoded()):
        scores, _ = source.run(tokens)
        parts.append(
            decode(
                scores, source.hierarchy, source.tree, source.temperature, truth[rows], histogram
            )
        )
        if progress:
            progress(min(rows.stop, len(split)), len(split))
    return join(parts)


def split_of(data: Dataset, split: str) -> Split:
    """The rows to score."""
    rows = data.splits()[split]
    if not len(rows):
        raise UserError(f"The {split} split of dataset {data.name!r} has no rows.")
    return rows


def warn_of_other_rows(data: Dataset, dataset: str, trained_on: str) -> None:
    """Say so if a dataset has changed since a model was trained on it."""
    if data.name == dataset and trained_on and data.fingerprint != trained_on:
        cli.note(
            f"Warning: dataset {dataset!r} has other rows than those that the model was trained "
            "with: it may have seen some of these."
        )


def evaluate_pair(
    layout: Layout, model: str, dataset: str, options: dict[str, Any]
) -> tuple[dict[str, float], Path]:
    """Score one pair and write the report.

    Returns
    -------
    metrics, path
        The figures, and the file that they were written to.
    """
    from utils.data import Split, load_dataset
    from utils.files import followed, write_json
    from utils.metrics import evaluate
    from utils.runner import opener

    other, split = options["on"] or dataset, options["split"]
    output = given_path(options["output"]) if options["output"] else None
    data = load_dataset(layout, other)
    rows = split_of(data, split)
    source = opener(layout, model, dataset, options["time"], options["runtime"])()
    names = (other, f"{model} · {dataset}")
    codes = mapped_codes(rows.codes, data.hierarchy, source.hierarchy, names)
    warn_of_other_rows(data, dataset, source.fingerprint)
    cli.say(f"Scoring {len(rows):,} {split} rows of {other} with {source.description}")
    with cli.progress("Scoring") as progress:
        found = answered(source, Split(texts=rows.texts, codes=codes), progress)
    report: dict[str, Any] = {
        "model": model,
        "dataset": dataset,
        "on": other,
        "split": split,
        "checkpoint": source.checkpoint,
        "source": source.description,
        "temperature": source.temperature,
        "metrics": evaluate(found, codes),
    }
    form = f"_{source.form}" if source.form else ""
    name = f"{Path(source.checkpoint).stem}_on_{other}_{split}{form}.json"
    path = output or layout.weight_dir(model, dataset) / name
    write_json(followed(path), report)
    return report["metrics"], path


EPILOG = """Examples:

\b
  python evaluate.py -m db_bhcn -d shop                  the test split again
  python evaluate.py -m db_bhcn -d shop --on shop2026    another dataset
  python evaluate.py --tag db_bhcn_shop:production       a run by its tag
  python evaluate.py -m db_bhcn -d shop --runtime onnx   what was exported
"""


@click.command(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-m", "--model", help=f"Model: {', '.join(MODELS)}.")
@click.option("-d", "--dataset", help="Dataset that it was trained on.")
@cli.tag_option
@click.option("--on", help="Dataset to score it on; its classes are among the model's.")
@click.option(
    "--split", type=click.Choice(SPLITS), default="test", show_default=True, help="Its rows."
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path),
    help="The report.  [default: CHECKPOINT_on_DATASET_SPLIT.json beside the checkpoint]",
)  # fmt: skip
@click.option(
    "--runtime", type=click.Choice(RUNTIMES),
    help="The ONNX export or the checkpoint.  [default: the checkpoint]",
)  # fmt: skip
@click.option("--time", help="Take the run of this time: YYYY-MM-DDTHH:MM:SS.  [default: newest]")
@cli.fetch_option
@click.option("-c", "--cpu", is_flag=True, help="Use the CPU even where there is a GPU.")
@click.option("-v", "--verbose", is_flag=True, help="Log what happens.")
def main(verbose: bool, cpu: bool, **values: Any) -> None:
    """Score a trained model on a dataset: the figures of a test report, for any rows."""
    cli.start_logging(verbose)
    if cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # read when torch is imported: not before here
    values["runtime"] = values["runtime"] or "torch"
    layout, (model, dataset, values["time"]) = cli.opened(values, MODELS)
    metrics, path = evaluate_pair(layout, model, dataset, values)
    rows = [[name.replace("_", " "), value] for name, value in metrics.items() if name != "rows"]
    cli.table(f"{model} · {dataset} on {values['on'] or dataset}", ["figure", "value"], rows)
    cli.say(f"Wrote {path}")


if __name__ == "__main__":
    cli.run(main)
