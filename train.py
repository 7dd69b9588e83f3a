#!/usr/bin/env python
"""Train models on datasets, test them, and keep their checkpoints."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from models import MODELS
from utils.common import cli
from utils.common.errors import UserError
from utils.common.paths import Layout
from utils.neural.distributed import team
from utils.store.tags import parse_labels
from utils.training.run import Options, begin, finish, fit, follow, rehearse, remove_empty_folders

if TYPE_CHECKING:
    from models.model import Model

LONGEST = 1_000_000  # epochs
OVERRIDES = {"encoder": "--encoder", "precision": "--precision", "epochs": "-e"}
SUMMARY = (
    "leaf_accuracy", "leaf_macro_f1", "level_1_accuracy", "hierarchical_f1", "calibration_error",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one pair ended: its test metrics, or the error."""

    model: str
    dataset: str
    metrics: dict[str, float]
    seconds: float
    error: Exception | None = None


def train_all(
    layout: Layout, models: Sequence[str], datasets: Sequence[str], options: Options
) -> list[Outcome]:
    """Train every model on every dataset; a pair that fails does not stop the others."""
    outcomes = []
    for dataset in datasets:
        for model in models:
            started = time.monotonic()
            metrics: dict[str, float] = {}
            error = None
            try:
                metrics = train(layout, model, dataset, options)
            except Exception as problem:
                error = problem
                if team().size > 1:
                    raise  # the processes are no longer at the same place
                if len(models) * len(datasets) > 1:
                    cli.show_error(problem)
            seconds = time.monotonic() - started
            outcomes.append(
                Outcome(model=model, dataset=dataset, metrics=metrics, seconds=seconds, error=error)
            )
    return outcomes


def train(layout: Layout, model_name: str, dataset_name: str, options: Options) -> dict[str, float]:
    """Train one model on one dataset, test its best checkpoint and write what belongs beside it.

    Returns
    -------
    dict
        Test metrics of the best checkpoint (of the model in memory on a dry run).

    Raises
    ------
    UserError
        Unknown names, wrong hyperparameters, nothing to resume, unwritable folders, …
    """
    from models import model_class
    from utils.common import dvc
    from utils.common.config import load_config
    from utils.hierarchy.dataset import load_dataset
    from utils.store import Store

    cls = model_class(model_name)
    settings = options.hyperparameters or layout.hyperparameters
    overrides = {name: getattr(options, name) for name in _own_options(cls)}
    config = load_config(cls.Config, settings, model_name, overrides, MODELS)
    dvc.check(layout.root, options.dvc, layout.weight_dir(model_name, dataset_name))
    Store(layout).check_name(model_name, dataset_name, options.name)
    dataset = load_dataset(layout, dataset_name)
    if options.reference and not len(dataset.test):
        raise UserError(f"-r needs test rows, and dataset {dataset_name!r} has none.")
    cli.text(
        f"{config.display_name or model_name} on {dataset_name}: {len(dataset.train):,} rows to "
        f"train, {len(dataset.val):,} to validate, {len(dataset.test):,} to test, "
        f"{len(dataset.hierarchy.terminals):,} classes to end at"
    )
    for option in _unused(cls, options):
        cli.say(f"{option} has no meaning for {model_name}")
    if options.dry_run:
        return rehearse(cls(dataset.hierarchy, config), dataset, options)
    if not team().leads:
        follow(layout, cls, config, dataset, options)
        return {}
    try:
        with begin(layout, cls, config, dataset, options) as (run, model):
            fit(layout, model, dataset, run, options)
            return finish(layout, model, dataset, run, options)
    except click.ClickException:
        remove_empty_folders(layout.weight_dir(model_name, dataset_name))
        raise


def _own_options(cls: type[Model]) -> list[str]:
    """Options that stand for a hyperparameter, of those that this model has."""
    return [name for name in OVERRIDES if name in {field.name for field in fields(cls.Config)}]


def _unused(cls: type[Model], options: Options) -> list[str]:
    """Options that were given and that this model does not look at."""
    given = [name for name in OVERRIDES if getattr(options, name) is not None]
    return [OVERRIDES[name] for name in given if name not in _own_options(cls)]


def report(outcomes: Sequence[Outcome], *, tested: bool) -> None:
    """Print the table at the end, of real tests; exit with status 1 if a pair failed."""
    rows = [
        [
            f"{o.model} · {o.dataset}",
            *(o.metrics.get(name, float("nan")) for name in SUMMARY),
            f"{o.seconds:.0f} s",
        ]
        for o in outcomes
        if not o.error
    ]
    if rows and tested:
        cli.table(
            "Test", ["model · dataset", *(name.replace("_", " ") for name in SUMMARY), "time"], rows
        )
    failed = [outcome for outcome in outcomes if outcome.error]
    if len(outcomes) == 1 and outcomes[0].error:
        raise outcomes[0].error
    if failed:
        names = ", ".join(f"{outcome.model} · {outcome.dataset}" for outcome in failed)
        raise UserError(f"{len(failed)} of {len(outcomes)} failed: {names} (see above).")


EPILOG = """Examples:

\b
  python train.py -m tfidf_hsgd -d data001
  python train.py -m db_bhcn --encoder minilm -d data001 -r
  python train.py -m tfidf_lsgd,tfidf_hsgd -d data001,data002
  python train.py -m db_bhcn -d data001 --resume     after a crash or a stop
  accelerate launch train.py -m db_bhcn -d data001   on several GPUs or hosts
"""


@click.command(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-m", "--models", type=cli.NameList(), default=",".join(MODELS), show_default="all",
    help=f"Models to train: {', '.join(MODELS)}.",
)  # fmt: skip
@click.option("-d", "--datasets", type=cli.NameList(), required=True, help="Datasets to train on.")
@click.option(
    "-e", "--epochs", type=click.IntRange(1, LONGEST), help="Epochs instead of the configured."
)
@click.option("--encoder", help="Text encoder: 'minilm', a Hugging Face id or a folder.")
@click.option(
    "--precision", type=click.Choice(["auto", "fp32", "bf16"]), help="Arithmetic of training.",
)  # fmt: skip
@click.option(
    "--hyperparameters",
    type=click.Path(path_type=Path),
    help="A file instead of hyperparameters.json.",
)
@click.option("-r", "--reference", is_flag=True, help="Write the reference set for monitoring.")
@click.option("--resume", is_flag=True, help="Go on with the newest run that was interrupted.")
@click.option(
    "--name", help="A name for the run, for tags: MODEL_DATASET:NAME.  [default: its time]"
)
@click.option(
    "--label", "labels", multiple=True, metavar="KEY=VALUE",
    help="A label to find the run by in store.py list, such as team=nlp; any number of them.",
)  # fmt: skip
@click.option("-n", "--dry-run", is_flag=True, help="Try everything on a few rows, write nothing.")
@click.option("-c", "--cpu", is_flag=True, help="Use the CPU even where there is a GPU.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Random seed."
)
@cli.dvc_option
@click.option("-v", "--verbose", is_flag=True, help="Log what happens.")
def main(models: list[str], datasets: list[str], verbose: bool, **values: Any) -> None:
    """Train models on datasets.

    Each pair is trained, its best checkpoint tested, and the figures written beside it in
    weights/MODEL/DATASET/. A pair that fails does not stop the others.
    """
    cli.start_logging(verbose)
    if not team().leads:
        cli.be_silent()
    for name in models:
        if name not in MODELS:
            from utils.common.errors import unknown

            raise unknown("model", name, MODELS)
    values["labels"] = parse_labels(values["labels"])
    options = Options(**values)
    if options.cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # read when torch is imported: not before here
    report(
        train_all(Layout(fetch=options.dvc is not False), models, datasets, options),
        tested=not options.dry_run,
    )


if __name__ == "__main__":
    cli.run(main)
