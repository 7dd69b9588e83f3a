#!/usr/bin/env python
"""Train models on datasets, test them, and keep their checkpoints."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from models import MODELS
from utils import cli
from utils.distributed import team
from utils.errors import UserError
from utils.paths import Layout
from utils.store.tags import parse_labels

if TYPE_CHECKING:
    from models.model import Model
    from utils.checkpoints import Run
    from utils.data import Dataset, Split
    from utils.decode import Predictions
    from utils.store import Entry

DRY_ROWS = 256
LONGEST = 1_000_000  # epochs
OVERRIDES = {"encoder": "--encoder", "precision": "--precision", "epochs": "-e"}
SHOWN = ("loss", "nll", "leaf_accuracy", "leaf_macro_f1", "level_1_accuracy", "hierarchical_f1")
SUMMARY = (
    "leaf_accuracy", "leaf_macro_f1", "level_1_accuracy", "hierarchical_f1", "calibration_error",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says, for every pair alike."""

    epochs: int | None = None
    encoder: str | None = None
    precision: str | None = None
    hyperparameters: Path | None = None
    reference: bool = False
    resume: bool = False
    dry_run: bool = False
    cpu: bool = False
    seed: int = 0
    name: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    dvc: bool | None = None


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
    from utils import dvc
    from utils.config import load_config
    from utils.data import load_dataset
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
        return _rehearse(cls(dataset.hierarchy, config), dataset, options)
    if not team().leads:
        _follow(layout, cls, config, dataset, options)
        return {}
    try:
        with _begin(layout, cls, config, dataset, options) as (run, model):
            _fit(layout, model, dataset, run, options)
            return _finish(layout, model, dataset, run, options)
    except click.ClickException:
        _leave_no_empty_folder(layout.weight_dir(model_name, dataset_name))
        raise


def _own_options(cls: type[Model]) -> list[str]:
    """Options that stand for a hyperparameter, of those that this model has."""
    return [name for name in OVERRIDES if name in {field.name for field in fields(cls.Config)}]


def _unused(cls: type[Model], options: Options) -> list[str]:
    """Options that were given and that this model does not look at."""
    given = [name for name in OVERRIDES if getattr(options, name) is not None]
    return [OVERRIDES[name] for name in given if name not in _own_options(cls)]


@contextmanager
def _begin(
    layout: Layout, cls: type[Model], config: Any, dataset: Dataset, options: Options
) -> Iterator[tuple[Run, Model]]:
    """A new run with a fresh model, or the newest unfinished run with its last checkpoint."""
    from utils.checkpoints import held, new_run

    folder = layout.weight_dir(cls.name, dataset.name)
    _check_writable(folder)
    if options.resume and (old := _begun(layout, cls.name, dataset.name)):
        with held(old):
            if model := _unfinished(old, cls, config, dataset, options):
                cli.say(
                    f"Resuming the run of {old.time} after epoch {model.info['epoch']} of "
                    f"{options.epochs or model.info['epochs']}"
                )
                _tell(cls, old, resumed=True)
                yield old, model
                return
    if options.resume:
        cli.say(f"Nothing to resume in {folder}: starting from the beginning")
    model = cls(dataset.hierarchy, config)
    model.info = _provenance(dataset, options)
    with new_run(layout, cls.name, dataset.name) as run, held(run):
        _tell(cls, run, resumed=False)
        yield run, model


def _tell(cls: type[Model], run: Run, *, resumed: bool) -> None:
    """Tell the other processes, if there are any, how this run begins."""
    if cls.resumable:
        team().told((run.time, resumed))


def _follow(
    layout: Layout, cls: type[Model], config: Any, dataset: Dataset, options: Options
) -> None:
    """Train along with the process that leads; it alone validates, writes and tests.

    Models without epochs are trained by that one alone.
    """
    from utils.checkpoints import Run

    if not cls.resumable:
        return
    time, resumed = team().told(("", False))
    model = cls(dataset.hierarchy, config)
    if resumed:
        run = Run(folder=layout.weight_dir(cls.name, dataset.name), time=time)
        model = cls.from_checkpoint(run.last, resumable=True)
    for _ in model.fit(dataset.train, dataset.val, epochs=options.epochs, seed=options.seed):
        pass


def _begun(layout: Layout, model: str, dataset: str) -> Run | None:
    """The newest run that has finished an epoch."""
    from utils import dvc
    from utils.checkpoints import runs

    for run in reversed(runs(layout, model, dataset)):
        dvc.ensure(layout, run.last, run.best, run.metrics)
        if run.last.exists():
            return run
    return None


def _unfinished(
    run: Run, cls: type[Model], config: Any, dataset: Dataset, options: Options
) -> Model | None:
    """The model of a run, if that is this command's and is not complete.

    Raises
    ------
    UserError
        It is complete, or not complete and of another command.
    """
    model = cls.from_checkpoint(run.last, resumable=True)
    total = options.epochs or int(model.info["epochs"])
    complete = run.metrics.exists() and int(model.info["epoch"]) >= total
    difference = _difference(model, config, dataset, options)
    if complete and difference:
        return None
    if complete:
        raise UserError(
            f"The run of {run.time} is complete: see {run.metrics}. Train anew without "
            "--resume, or give it more epochs with -e."
        )
    if difference:
        raise UserError(
            f"The run of {run.time} had {difference}. Restore that to resume, or train anew "
            "without --resume."
        )
    if not run.best.exists():
        raise UserError(
            f"{run.best} is missing beside {run.last.name}. Train anew without --resume."
        )
    if options.epochs:
        model.config = config  # nothing else in it differs
    return model


def _check_writable(folder: Path) -> None:
    """Find out before hours of training that the result cannot be written."""
    from utils.files import atomic_path

    probe = folder / ".tmp-probe"
    with atomic_path(probe) as temporary:
        temporary.write_bytes(b"\0" * 4096)
    probe.unlink(missing_ok=True)


def _leave_no_empty_folder(folder: Path) -> None:
    for empty in (folder, folder.parent, folder.parent.parent):
        try:
            empty.rmdir()
        except OSError:  # not empty, not there, or not ours to remove
            return


def _difference(model: Model, config: Any, dataset: Dataset, options: Options) -> str:
    """What a run was told otherwise than this command, empty if nothing."""
    from utils.config import config_to_dict

    old, new = config_to_dict(model.config), config_to_dict(config)
    new["epochs"] = old.get("epochs")  # a run may go on for longer
    changed = [f"{key} = {old.get(key)}, not {new[key]}" for key in new if old.get(key) != new[key]]
    if changed:
        return f"other hyperparameters ({'; '.join(changed)})"
    if model.info.get("fingerprint") != dataset.fingerprint:
        return f"other rows in dataset {dataset.name!r}"
    if model.info.get("seed") != options.seed:
        return f"--seed {model.info.get('seed')}, not {options.seed}"
    return ""


def _provenance(dataset: Dataset, options: Options) -> dict[str, Any]:
    from utils.store.info import surroundings

    return {
        "dataset": dataset.name,
        "fingerprint": dataset.fingerprint,
        "text_columns": list(dataset.text_columns),
        "rows": {"train": len(dataset.train), "val": len(dataset.val), "test": len(dataset.test)},
        "seed": options.seed,
        "started": datetime.datetime.now().isoformat(timespec="seconds"),
        **surroundings(),
        "epoch": 0,
        "history": [],
    }


def _fit(layout: Layout, model: Model, dataset: Dataset, run: Run, options: Options) -> None:
    from utils.files import link
    from utils.tracking import tracker

    lines = cli.EpochTable()
    history = list(model.info.get("history", []))
    events = layout.tensorboard(model.name, dataset.name, run.time)
    trained = 0
    with cli.progress("Training") as progress, tracker(events, history) as track:
        epochs = model.fit(
            dataset.train, dataset.val, epochs=options.epochs, seed=options.seed, progress=progress
        )
        for epoch in epochs:
            history.append({"epoch": epoch.number, "seconds": epoch.seconds, **epoch.metrics})
            model.info |= {
                "epoch": epoch.number,
                "epochs": epoch.total,
                "val": epoch.metrics,
                "history": list(history),
            }
            # The best one first: a run killed in between repeats the epoch and finds it again.
            if epoch.is_best or not model.resumable:
                model.save(run.best)
            if model.resumable:
                link(run.best, run.last) if epoch.is_best else model.save(run.last)
            track(history[-1])
            figures = {name: epoch.metrics[name] for name in SHOWN if name in epoch.metrics}
            lines.add(epoch.number, epoch.total, epoch.seconds, figures, epoch.is_best)
            trained += 1
    if not trained and run.metrics.exists():
        raise UserError(
            f"The run of {run.time} had ended early, as 'patience' says: nothing was left to "
            "train. Train anew without --resume."
        )


def _finish(
    layout: Layout, trained: Model, dataset: Dataset, run: Run, options: Options
) -> dict[str, float]:
    """Test the best checkpoint and write metrics and reference set of these very weights."""
    from utils import dvc
    from utils.config import config_to_dict
    from utils.files import write_json, write_parquet
    from utils.metrics import evaluate

    model = type(trained).from_checkpoint(run.best)
    with cli.progress("Testing") as progress:
        predictions = model.test(dataset.test, progress)
    metrics = evaluate(predictions, dataset.test.codes)
    config = config_to_dict(trained.config)
    facts = {
        "model": model.name,
        "dataset": dataset.name,
        "checkpoint": run.best.name,
        "test": metrics,
        "temperature": model.calibration.temperature,
        "config": config,
        # of the whole run, beyond the best epoch
        "info": model.info
        | {"history": trained.info.get("history", []), "epochs": config.get("epochs", 1)},
    }
    write_json(run.metrics, facts)
    written = [path for path in (run.best, run.last, run.metrics) if path.exists()]
    if options.reference:
        with cli.progress("Reference set") as progress:
            reference = model.gen_reference_set(dataset.test, progress)
        write_parquet(run.reference(run.best), reference)
        written.append(run.reference(run.best))
    entry = _registered(layout, model.name, dataset.name, run, options)
    dvc.add(layout.root, written, options.dvc)
    cli.say(f"Best checkpoint: {run.best}")
    cli.say(f"In the store: {entry.tag}" + (f" ({entry.info.name})" if entry.info.name else ""))
    _report(layout, facts, predictions, dataset.test)
    return metrics


def _registered(layout: Layout, model: str, dataset: str, run: Run, options: Options) -> Entry:
    """The store's entry; without its name if another run took that during the training."""
    from utils.files import NoLocks
    from utils.store import Store, Tag

    store = Store(layout)
    register = partial(store.register, model, dataset, run.time, labels=options.labels)
    try:
        return register(name=options.name)
    except NoLocks as error:
        cli.note(f"Warning: {error.message} This run has neither name nor labels.")
        return store.get(Tag(model=model, dataset=dataset, version=run.time))
    except UserError as error:
        if options.name is None:
            raise
        entry = register()
        cli.note(f"Warning: {error.message} This run is {entry.tag}, without a name.")
        return entry


def _report(layout: Layout, facts: dict[str, Any], predictions: Predictions, test: Split) -> None:
    """Write the page about a training, and figures for other programs.

    What was trained counts without them too.
    """
    from utils.figures import write_figures
    from utils.report import write_report

    pair = facts["model"], facts["dataset"]
    try:
        write_figures(layout.metrics(*pair), layout.plots(*pair), facts, predictions, test)
        write_report(layout.report(*pair), facts, predictions, test)
        cli.say(f"Report: {layout.report(*pair)}")
    except UserError as error:
        cli.say(f"No report: {error.message}")


def _rehearse(model: Model, dataset: Dataset, options: Options) -> dict[str, float]:
    """Train one epoch on a few rows and test on a few, writing nothing."""
    import numpy as np

    from utils.metrics import evaluate

    few = {
        name: split.take(np.unique(np.linspace(0, max(len(split) - 1, 0), DRY_ROWS).astype(int)))
        if len(split)
        else split
        for name, split in dataset.splits().items()
    }
    for epoch in model.fit(few["train"], few["val"], epochs=1, seed=options.seed):
        model.info["epoch"] = epoch.number
    metrics = evaluate(model.test(few["test"]), few["test"].codes)
    cli.say(f"Dry run on {DRY_ROWS} rows per split: all works, nothing was written")
    return metrics


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
            from utils.errors import unknown

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
