#!/usr/bin/env python
"""Score a trained model on the rows of a dataset."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from models import MODELS
from utils.common import cli
from utils.common.errors import UserError
from utils.common.paths import Layout, given_path
from utils.inference.manifest import RUNTIMES

if TYPE_CHECKING:
    from utils.hierarchy.dataset import Dataset, Split
    from utils.hierarchy.decode import Predictions
    from utils.hierarchy.tree import Hierarchy, Ints
    from utils.inference.pipeline import Source

SPLITS = ("train", "val", "test")
SHOWN = 3  # classes named in a line


def mapped_ends(theirs: Hierarchy, ours: Hierarchy, tree: Hierarchy) -> tuple[Ints, Ints]:
    """Find the classes of one tree in another; classes match by path.

    Parameters
    ----------
    tree
        The full-depth tree of `ours`.

    Returns
    -------
    there, ends
        For each class of `theirs` the class of `ours`, and the same where answers may end at it;
        -1 for none.
    """
    import numpy as np

    places = {ours.path(node): node for node in range(ours.class_count)}
    there = np.array([places.get(theirs.path(n), -1) for n in range(theirs.class_count)])
    return there, np.where(np.isin(there, tree.ending), there, -1)


def mapped(
    rows: Split, data: Dataset, source: Source, owner: str, *, skip: bool
) -> tuple[Split, dict[str, int]]:
    """Rows with the codes of a model's tree.

    Parameters
    ----------
    owner
        Whose tree it is, for the error.
    skip
        Whether to leave out rows that no answer can be right for.

    Returns
    -------
    rows, skipped
        The rows that are left, and how many of each class were left out.

    Raises
    ------
    UserError
        There are such rows, and `skip` is not set; or no row is left.
    """
    import numpy as np

    theirs, ours = data.hierarchy, source.hierarchy
    there, possible = mapped_ends(theirs, ours, source.tree)
    ends = theirs.end_classes(rows.codes)
    kept = np.flatnonzero(possible[ends] >= 0)
    if not skip and (there < 0).any():
        raise UserError(
            f"Dataset {data.name!r} has the class {theirs.label(int(there.argmin()))!r}, which the "
            f"tree of {owner} lacks ({int((there < 0).sum())} such classes in all). Adapt it "
            "with the same classes, or leave their rows out with --skip-unknown."
        )
    if not skip and len(kept) < len(rows):
        label = theirs.label(int(ends[possible[ends].argmin()]))
        raise UserError(
            f"A row of dataset {data.name!r} ends at {label!r}, where no answer may end. Leave "
            "such rows out with --skip-unknown."
        )
    if not len(kept):
        raise UserError(
            f"The tree of {owner} has the class of none of the {len(rows):,} rows of dataset "
            f"{data.name!r}: there is nothing to score."
        )
    classes, counts = np.unique(ends[possible[ends] < 0], return_counts=True)
    labels = map(theirs.label, classes.tolist())
    codes = ours.path_codes[possible[ends[kept]]]
    skipped = dict(zip(labels, counts.tolist(), strict=True))
    return replace(rows.take(kept), codes=codes), skipped


def answered(source: Source, split: Split, progress: Any = None) -> Predictions:
    """Answer a split, counting scores against its truth."""
    from utils.hierarchy.decode import ScoreHistogram, decode, join
    from utils.inference.pipeline import ahead, window_rows

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
                scores, source.hierarchy, source.tree, source.calibration, truth[rows], histogram
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
    from utils.common.files import followed, write_json
    from utils.hierarchy.dataset import load_dataset
    from utils.hierarchy.metrics import evaluate
    from utils.runner import opener

    other, split = options["on"] or dataset, options["split"]
    output = given_path(options["output"]) if options["output"] else None
    if output and output.is_dir():
        raise UserError(f"-o {output} is a folder: name a file in it.")
    data = load_dataset(layout, other)
    rows = split_of(data, split)
    source = opener(layout, model, dataset, options["time"], options["runtime"])()
    owner, total = f"{model} · {dataset}", len(rows)
    rows, skipped = mapped(rows, data, source, owner, skip=options["skip_unknown"])
    warn_of_other_rows(data, dataset, source.fingerprint)
    if skipped:
        cli.text(
            f"Skipped {total - len(rows):,} of {total:,} rows, whose classes are unknown to "
            f"{owner}: {_few(skipped)}"
        )
    cli.text(f"Scoring {len(rows):,} {split} rows of {other} with {source.description}")
    with cli.progress("Scoring") as progress:
        found = answered(source, rows, progress)
    report: dict[str, Any] = {
        "model": model,
        "dataset": dataset,
        "on": other,
        "split": split,
        "checkpoint": source.checkpoint,
        "source": source.description,
        "temperature": source.calibration.temperature,
        "skipped": {"rows": sum(skipped.values()), "classes": skipped},
        "metrics": evaluate(found, rows.codes),
    }
    form = f"_{source.form}" if source.form else ""
    name = f"{Path(source.checkpoint).stem}_on_{other}_{split}{form}.json"
    # a link counts where a person names it, not where it came with the weights
    path = followed(output) if output else layout.weight_dir(model, dataset) / name
    write_json(path, report)
    return report["metrics"], path


def _few(skipped: dict[str, int]) -> str:
    """The classes with most rows."""
    most = sorted(skipped.items(), key=lambda item: -item[1])
    more = f" and {len(most) - SHOWN:,} more" if len(most) > SHOWN else ""
    return ", ".join(f"{label!r} ({count:,})" for label, count in most[:SHOWN]) + more


EPILOG = """Examples:

\b
  python evaluate.py -m db_bhcn -d shop                  the test split again
  python evaluate.py -m db_bhcn -d shop --on shop2026    another dataset
  python evaluate.py -m db_bhcn -d shop --on shop2026 --skip-unknown
  python evaluate.py --tag db_bhcn_shop:production       a run by its tag
  python evaluate.py -m db_bhcn -d shop --runtime onnx   what was exported
"""


@click.command(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-m", "--model", help=f"Model: {', '.join(MODELS)}.")
@click.option("-d", "--dataset", help="Dataset that it was trained on.")
@cli.tag_option
@click.option("--on", help="Dataset to score it on; its classes are among the model's.")
@click.option(
    "--skip-unknown", is_flag=True, help="Leave out, and count, rows of classes unknown to it."
)
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
    from utils.store import run_options

    cli.start_logging(verbose)
    if cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # read when torch is imported: not before here
    values["runtime"] = values["runtime"] or "torch"
    layout, (model, dataset, values["time"]) = run_options.opened(values, MODELS)
    metrics, path = evaluate_pair(layout, model, dataset, values)
    rows = [[name.replace("_", " "), value] for name, value in metrics.items() if name != "rows"]
    cli.table(f"{model} · {dataset} on {values['on'] or dataset}", ["figure", "value"], rows)
    cli.say(f"Wrote {path}")


if __name__ == "__main__":
    cli.run(main)
