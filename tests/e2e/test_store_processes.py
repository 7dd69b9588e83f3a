"""The store with real processes: killed at any moment, and two at once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.stores import FakeModel
from utils.checkpoints import HIDDEN, read_checkpoint
from utils.files import TEMPORARY_PREFIX
from utils.paths import PROJECT_ROOT, Layout
from utils.store import Store

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("KTT_STORE_SECONDS", "5"))
"""How long two processes save and delete: 60 for a soak."""
KILLS = 8  # of each kind
SIZE = 2_000_000  # bytes of a checkpoint: writing one takes long enough to be killed in it

WORKER = """
import random, sys, time
from pathlib import Path
from tests.stores import FakeModel
from utils.errors import UserError
from utils.store import Store

kind, number, seconds, archive, size = sys.argv[1:]
store, rng, end = Store(), random.Random(number), time.monotonic() + float(seconds)
print("ready", flush=True)

def save():
    accuracy = rng.random()
    entry = store.save_model(
        FakeModel(accuracy=accuracy, size=int(size)), labels={"by": number},
        metrics={"leaf_accuracy": accuracy}, custom_objects={"accuracy": accuracy},
    )
    print("saved", entry.tag, accuracy, flush=True)
    return entry

def delete():
    entries = [entry for entry in store.list() if entry.info.labels.get("by") == number]
    if entries:
        gone = store.delete(rng.choice(entries).tag)
        print("deleted", gone.tag, 0, flush=True)

def fetch():
    entry = store.import_model(archive)
    store.delete(entry.tag)

while time.monotonic() < end:
    if kind == "save":
        save()
    elif kind == "import":
        fetch()
    elif kind == "delete":
        save()
        delete()
    else:
        (save if rng.random() < 0.5 else delete)()
"""


def start(
    root: Path, kind: str, number: str, seconds: float, archive: str = "-", size: int = 2_000
) -> subprocess.Popen[str]:
    """A process that works on the store of `root`."""
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, kind, number, str(seconds), archive, str(size)],
        cwd=PROJECT_ROOT, env=os.environ | {"KTT_ROOT": str(root)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def check_whole(store: Store) -> int:
    """Every entry has all its parts, and they belong together; how many there are."""
    entries = store.list()
    for entry in entries:
        assert not entry.info.problem
        _, meta = read_checkpoint(entry.path)
        accuracy = entry.info.validation["leaf_accuracy"]
        assert meta["info"]["val"]["leaf_accuracy"] == accuracy
        assert entry.info.metrics["leaf_accuracy"] == accuracy
        assert entry.custom_objects["accuracy"] == accuracy
    return len(entries)


@pytest.mark.parametrize("kind", ["save", "import", "delete"])
def test_kill_9_leaves_whole_entries(tmp_path: Path, kind: str) -> None:
    away = Store(Layout(tmp_path / "away"))
    fetched = away.save_model(
        FakeModel("other", 0.5, SIZE), metrics={"leaf_accuracy": 0.5},
        custom_objects={"accuracy": 0.5},
    )  # fmt: skip
    archive = away.export_model(fetched.tag, tmp_path)
    store, rng = Store(Layout(tmp_path / "project")), random.Random(kind)
    left = 0
    for _ in range(KILLS):
        worker = start(store.layout.root, kind, "1", 60, archive, SIZE)
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n", worker.communicate()[1]
        time.sleep(rng.uniform(0, 0.15))
        worker.send_signal(signal.SIGKILL)
        worker.communicate()
        check_whole(store)
        left += sum(1 for path in store.layout.weights.rglob(".*") if _leaving(path))
    assert left  # else no kill came in the middle of anything
    for entry in store.list():
        store.delete(entry.tag)
    last = store.save_model(FakeModel(accuracy=0.3), metrics={"leaf_accuracy": 0.3},
                            custom_objects={"accuracy": 0.3})  # fmt: skip
    assert store.import_model(archive).tag == fetched.tag
    assert check_whole(store) == 2
    assert store.get("tfidf_hsgd_fake").tag == last.tag
    assert not list(store.layout.weights.rglob(f"{HIDDEN}*"))


def _leaving(path: Path) -> bool:
    return path.name.startswith((HIDDEN, TEMPORARY_PREFIX))


def test_two_processes_save_and_delete_at_random(tmp_path: Path) -> None:
    store = Store(Layout(tmp_path))
    workers = [start(tmp_path, "both", number, SECONDS) for number in ("1", "2")]
    rounds = 0
    with ThreadPoolExecutor() as pool:  # a pipe that nobody reads would stop them
        said = [pool.submit(worker.communicate) for worker in workers]
        while any(worker.poll() is None for worker in workers):
            check_listed(store)
            rounds += 1
        outputs = [one.result() for one in said]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    lines = [line.split() for out, _ in outputs for line in out.splitlines() if line != "ready"]
    saved = {tag: float(accuracy) for what, tag, accuracy in lines if what == "saved"}
    deleted = {tag for what, tag, _ in lines if what == "deleted"}
    kept = {str(entry.tag): entry.info.metrics["leaf_accuracy"] for entry in store.list()}
    assert kept.keys() == saved.keys() - deleted
    assert all(saved[tag] == accuracy for tag, accuracy in kept.items())
    check_whole(store)
    assert min(len(saved), len(deleted), rounds) > SECONDS
    assert not [path for path in tmp_path.rglob(".*") if _leaving(path)]


def check_listed(store: Store) -> None:
    """What is listed while others work is whole, or gone by the time it is opened."""
    for entry in store.list():
        assert entry.info.metrics["leaf_accuracy"] == entry.info.validation["leaf_accuracy"]
