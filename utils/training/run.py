"""One training run: begin or resume it, train, test and write what is left of it."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.common import cli
from utils.common.errors import UserError
from utils.common.paths import Layout
from utils.neural.distributed import team

if TYPE_CHECKING:
    from utils.common.checkpoints import Run
    from utils.hierarchy.dataset import Dataset, Split
    from utils.hierarchy.decode import Predictions
    from utils.store import Entry
    from utils.training.trainable import Trainable

DRY_ROWS = 256
SHOWN = ("loss", "nll", "leaf_accuracy", "leaf_macro_f1", "level_1_accuracy", "hierarchical_f1")


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


@contextmanager
def begin(
    layout: Layout, cls: type[Trainable], config: Any, dataset: Dataset, options: Options
) -> Iterator[tuple[Run, Trainable]]:
    """A new run with a fresh model, or the newest unfinished run with its last checkpoint."""
    from utils.common.checkpoints import held, new_run

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


def _tell(cls: type[Trainable], run: Run, *, resumed: bool) -> None:
    """Tell the other processes, if there are any, how this run begins."""
    if cls.resumable:
        team().told((run.time, resumed))


def follow(
    layout: Layout, cls: type[Trainable], config: Any, dataset: Dataset, options: Options
) -> None:
    """Train along with the process that leads; it alone validates, writes and tests.

    Models without epochs are trained by that one alone.
    """
    from utils.common.checkpoints import Run

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
    from utils.common import dvc
    from utils.common.checkpoints import runs

    for run in reversed(runs(layout, model, dataset)):
        dvc.ensure(layout, run.last, run.best, run.metrics)
        if run.last.exists():
            return run
    return None


def _unfinished(
    run: Run, cls: type[Trainable], config: Any, dataset: Dataset, options: Options
) -> Trainable | None:
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
    from utils.common.files import atomic_path

    probe = folder / ".tmp-probe"
    with atomic_path(probe) as temporary:
        temporary.write_bytes(b"\0" * 4096)
    probe.unlink(missing_ok=True)


def remove_empty_folders(folder: Path) -> None:
    for empty in (folder, folder.parent, folder.parent.parent):
        try:
            empty.rmdir()
        except OSError:  # not empty, not there, or not ours to remove
            return


def _difference(model: Trainable, config: Any, dataset: Dataset, options: Options) -> str:
    """What a run was told otherwise than this command, empty if nothing."""
    from utils.common.config import config_to_dict

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


def fit(layout: Layout, model: Trainable, dataset: Dataset, run: Run, options: Options) -> None:
    from utils.common.files import link
    from utils.training.tensorboard import tracker

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


def finish(
    layout: Layout, trained: Trainable, dataset: Dataset, run: Run, options: Options
) -> dict[str, float]:
    """Test the best checkpoint and write metrics and reference set of these very weights."""
    from utils.common import dvc
    from utils.common.config import config_to_dict
    from utils.common.files import write_json, write_parquet
    from utils.hierarchy.metrics import evaluate

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
    from utils.common.files import NoLocks
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
    from utils.training.metrics_files import write_figures
    from utils.training.report import write_report

    pair = facts["model"], facts["dataset"]
    try:
        write_figures(layout.metrics(*pair), layout.plots(*pair), facts, predictions, test)
        write_report(layout.report(*pair), facts, predictions, test)
        cli.say(f"Report: {layout.report(*pair)}")
    except UserError as error:
        cli.say(f"No report: {error.message}")


def rehearse(model: Trainable, dataset: Dataset, options: Options) -> dict[str, float]:
    """Train one epoch on a few rows and test on a few, writing nothing."""
    import numpy as np

    from utils.hierarchy.metrics import evaluate

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
