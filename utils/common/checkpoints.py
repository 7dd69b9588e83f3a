"""Checkpoints: one file each, arrays and JSON, nothing that could execute.

The file is in the safetensors format whatever its ``.pt`` ending: raw arrays, and a header that
holds a JSON document. Reading one can therefore run no code.
"""

from __future__ import annotations

import datetime
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.common import dvc
from utils.common.errors import UserError
from utils.common.files import TEMPORARY_PREFIX, NoLocks, atomic_path, is_device, lock
from utils.common.paths import Layout, is_name

Arrays = dict[str, NDArray[Any]]

FORMAT = "ktt-checkpoint"
VERSION = 1
TRAINING = "training/"
HIDDEN = ".hidden-"
"""Before the time of a run whose files are being put there or removed: it does not exist."""
GONE = ".gone-"
"""Before the time of a run that was removed so soon that the clock has not passed it: no other
run may have that time, or a tag would mean two models."""
BUSY = ".busy-"
"""Before the time of a run that a process trains or removes; it holds a lock on that file."""
_STEM = re.compile(r"(best|last)_(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)", re.ASCII)


def write_checkpoint(path: Path, arrays: Mapping[str, NDArray[Any]], meta: dict[str, Any]) -> None:
    """Write a checkpoint, whole.

    Parameters
    ----------
    arrays
        Weights and other arrays by name.
    meta
        JSON values: model, configuration, hierarchy, …
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    header = {"format": FORMAT, "version": str(VERSION), "meta": json.dumps(meta)}
    solid = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with atomic_path(path) as temporary:
        try:
            save_file(solid, temporary, metadata=header)
        except SafetensorError as error:  # how it reports a full disk
            raise OSError(str(error)) from error


def read_checkpoint(
    path: Path, *, training: bool = False, only_meta: bool = False
) -> tuple[Arrays, dict[str, Any]]:
    """Read a checkpoint's arrays and JSON values.

    Parameters
    ----------
    training
        Whether to read the arrays that only a resumed run needs, named ``training/…``.
    only_meta
        Whether to read no arrays at all.

    Raises
    ------
    UserError
        The file is missing, damaged, or no checkpoint of this toolkit.
    """
    from safetensors import SafetensorError, safe_open

    if is_device(path):
        raise UserError(f"{path} is a device or a pipe, not a file.")
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            version = int(header.get("version", 0))
            meta = json.loads(header["meta"]) if header.get("format") == FORMAT else None
            names = [n for n in file.keys() if training or not n.startswith(TRAINING)]  # noqa: SIM118
            wanted = names if meta and not only_meta else []
            arrays = {name: file.get_tensor(name) for name in wanted}
    except FileNotFoundError as error:
        raise UserError(f"There is no checkpoint {path}.") from error
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged or no KTT checkpoint ({error}). It was not loaded: train again, "
            "or take another checkpoint."
        ) from error
    if not isinstance(meta, dict):
        raise UserError(f"{path} was not written by KTT. It was not loaded: train again.")
    if version > VERSION:
        raise UserError(f"{path} was written by a newer KTT (format {version}).")
    return arrays, meta


def checkpoint_meta(path: Path) -> dict[str, Any]:
    """Only the JSON values of a checkpoint."""
    return read_checkpoint(path, only_meta=True)[1]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run's files: ``best_TIME.pt``, ``last_TIME.pt`` and what stands beside them."""

    folder: Path
    time: str

    @property
    def best(self) -> Path:
        """The checkpoint with the best validation score."""
        return self.folder / f"best_{self.time}.pt"

    @property
    def last(self) -> Path:
        """The checkpoint of the last finished epoch."""
        return self.folder / f"last_{self.time}.pt"

    @property
    def metrics(self) -> Path:
        """Test metrics of the best checkpoint."""
        return self.folder / f"best_{self.time}_metrics.json"

    def reference(self, checkpoint: Path) -> Path:
        """The reference set beside a checkpoint of this run."""
        return self.folder / f"{checkpoint.stem}_reference.parquet"


def runs(layout: Layout, model: str, dataset: str) -> list[Run]:
    """All runs of a (model, dataset) pair, `oldest_first`."""
    folder = layout.weight_dir(model, dataset)
    times = _times(folder)
    # looked at last: a run that was being put there when its files were listed is whole by now
    hidden = {mark.name.removeprefix(HIDDEN) for mark in folder.glob(f"{HIDDEN}*")}
    return [Run(folder=folder, time=time) for time in oldest_first(times - hidden)]


def oldest_first(times: Iterable[str]) -> list[str]:
    """Times of runs in their order.

    One that lies more than a day ahead, as no time zone does, is of a clock that was wrong: were
    it the newest, no later run ever would be. It counts as the oldest.
    """
    soon = (datetime.datetime.now() + datetime.timedelta(days=1)).isoformat()
    return sorted(times, key=lambda time: (time < soon, time))


def _times(folder: Path) -> set[str]:
    """Times of which there are checkpoints, or pointers of DVC to them."""
    names = {file.name.removesuffix(".dvc") for file in folder.glob("*_*.pt*")}
    matches = (_STEM.fullmatch(name.removesuffix(".pt")) for name in names)
    return {match[2] for match in matches if match and _is_time(match[2])}


def _is_time(text: str) -> bool:
    """Whether there is such a time: day 99 of a month is none."""
    with suppress(ValueError):
        return bool(datetime.datetime.fromisoformat(text))
    return False


@contextmanager
def new_run(layout: Layout, model: str, dataset: str) -> Iterator[Run]:
    """Take a time, now or soon, that no other run of the pair has, also not one beside this."""
    folder = layout.weight_dir(model, dataset)
    taken = _taken(folder)
    moment = _after(taken, datetime.datetime.now().replace(microsecond=0))
    while moment.isoformat() in taken or not _mark(folder, moment.isoformat()):
        moment += datetime.timedelta(seconds=1)
    try:
        yield Run(folder=folder, time=moment.isoformat())
    finally:
        _marked(folder, moment.isoformat()).unlink(missing_ok=True)


def _taken(folder: Path) -> set[str]:
    return _times(folder) | {mark.name.removeprefix(GONE) for mark in folder.glob(f"{GONE}*")}


def _after(taken: set[str], moment: datetime.datetime) -> datetime.datetime:
    """A moment after those that were taken ahead of time, so that the newest run is the last."""
    soon = (moment + datetime.timedelta(hours=1)).isoformat()
    ahead = [time for time in taken if moment.isoformat() <= time < soon]
    second = datetime.timedelta(seconds=1)
    return datetime.datetime.fromisoformat(max(ahead)) + second if ahead else moment


def _marked(folder: Path, time: str) -> Path:
    # of no process: if it stays behind it is swept with other leavings
    return folder / f"{TEMPORARY_PREFIX}0-{time}"


def _mark(folder: Path, time: str) -> bool:
    """Take a time, unless somebody has it or was quicker."""
    mark = _marked(folder, time)
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    if time not in _taken(folder):
        return True
    mark.unlink(missing_ok=True)
    return False


@contextmanager
def held(run: Run) -> Iterator[None]:
    """Keep a run for oneself, to train or to remove it; the kernel ends that with the process.

    Where the file system knows no locks, the run is not kept: the store removes nothing there.

    Raises
    ------
    UserError
        Another process has it.
    """
    path = run.folder / f"{BUSY}{run.time}"
    busy = (
        f"Another process is at work on the run of {run.time} in {run.folder}: wait until it has "
        "finished, or end it."
    )
    with ExitStack() as stack:
        with suppress(NoLocks):
            # the one that had it may have removed the file meanwhile: then for the new one
            while not _is_at(path, stack.enter_context(lock(path, busy)).fileno()):
                stack.close()
        stack.callback(path.unlink, missing_ok=True)
        yield


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is the one that its path leads to."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def find_checkpoint(
    layout: Layout, model: str, dataset: str, kind: str = "best", time: str | None = None
) -> Path:
    """The newest checkpoint of a pair, or the one of a given time.

    Parameters
    ----------
    kind
        ``"best"``, ``"last"`` or ``"any"``.
    time
        ``YYYY-MM-DDTHH:MM:SS`` or its beginning; None for the newest.

    Raises
    ------
    UserError
        There is none.
    """
    known = runs(layout, model, dataset)
    if not known:
        raise UserError(
            f"There are no weights of {model} for {dataset!r} in "
            f"{layout.weight_dir(model, dataset)}. Train them: "
            f"python train.py -m {model} -d {dataset}"
        )
    for run in reversed(known):
        if time is None or run.time.startswith(time):
            for path in (
                [run.best, run.last] if kind == "any" else [run.folder / f"{kind}_{run.time}.pt"]
            ):
                if not path.exists():
                    dvc.ensure(layout, path, run.metrics)
                if path.exists():
                    return path
    times = ", ".join(run.time for run in known)
    raise UserError(
        f"{model} has no {kind!r} checkpoint for {dataset!r}"
        + (f" of {time}" if time else "")
        + f". Its runs: {times}."
    )


def trained_pairs(layout: Layout) -> list[tuple[str, str]]:
    """All (model, dataset) pairs that have a checkpoint; not folders that no pair can have."""
    folders = {path.parent for path in layout.weights.glob("*/*/*_*.pt*")}
    pairs = sorted((folder.parent.name, folder.name) for folder in folders)
    return [pair for pair in pairs if all(map(is_name, pair)) and runs(layout, *pair)]
