"""How runs come and go: at once, whatever happens meanwhile.

A run is several files, and no file system moves several at once. So a mark that `checkpoints.runs`
knows hides the run while its files come or go. All of it happens under one lock, which the kernel
takes from a process that dies: a mark that somebody finds under the lock was left by a dead one,
and what it hides is removed.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.common.checkpoints import GONE, HIDDEN, Run
from utils.common.errors import UserError
from utils.common.files import TEMPORARY_PREFIX, explained, lock, move_in, remove_all
from utils.common.paths import Layout

LOCK = ".store.lock"


@contextmanager
def locked(layout: Layout) -> Iterator[None]:
    """Keep other processes from changing the store meanwhile.

    Raises
    ------
    UserError
        The store cannot be written.
    """
    with lock(layout.weights / LOCK):
        yield


def run_files(run: Run) -> list[Path]:
    """All that belongs to a run, checkpoints first."""
    own = re.compile(rf"(best|last|entry|objects)_{re.escape(run.time)}([._].*)?")
    found = [path for path in run.folder.glob("*_*") if own.fullmatch(path.name)]
    return sorted(found, key=lambda path: (".pt" not in path.suffixes, path.name))


def publish(run: Run, staged: Path) -> None:
    """Move the files of a new run to their place; only under the lock.

    Raises
    ------
    UserError
        There is such a run already.
    """
    recover(run.folder)
    if run_files(run):
        raise UserError(f"There is a run of {run.time} in {run.folder} already.")
    with _hidden(run):
        for path in sorted(staged.iterdir(), key=lambda path: path.suffix == ".pt"):
            move_in(path, run.folder / path.name)


def remove(run: Run) -> None:
    """Remove a run with all that belongs to it; only under the lock, and while it is `held`."""
    recover(run.folder)
    with _hidden(run):
        _clear(run)


def _clear(run: Run) -> None:
    """Remove a run's files; its time stays taken until the clock has passed it."""
    now = datetime.datetime.now().isoformat()
    if run.time >= now[: len(run.time)]:
        (run.folder / f"{GONE}{run.time}").touch()
    passed = [mark for mark in run.folder.glob(f"{GONE}*") if mark.name < GONE + now]
    remove_all([*run_files(run), *passed])


@contextmanager
def _hidden(run: Run) -> Iterator[None]:
    """Hide a run until all is done; for good if it fails, until `recover` sweeps it away."""
    mark = run.folder / f"{HIDDEN}{run.time}"
    staged = run.folder / f"{TEMPORARY_PREFIX}0-hide-{run.time}"
    with explained(mark):
        staged.touch()
        move_in(staged, mark)  # on the disk before anything else is
        yield
        mark.unlink()


def recover(folder: Path) -> None:
    """Finish what a process that died was about; only under the lock."""
    for mark in folder.glob(f"{HIDDEN}*"):
        with explained(mark):
            _clear(Run(folder=folder, time=mark.name.removeprefix(HIDDEN)))
            remove_all([mark])
