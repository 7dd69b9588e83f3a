"""The store with real processes: killed at any moment, and two at once."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.stores import FakeModel
from utils.common.checkpoints import HIDDEN, read_checkpoint
from utils.common.files import TEMPORARY_PREFIX
from utils.common.paths import PROJECT_ROOT, Layout
from utils.store import Store

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("KTT_STORE_SECONDS", "5"))
"""How long two processes save and delete: 60 for a soak."""
KILLS = 6  # of each kind
LEAST_STEPS, MOST_STEPS = 6, 20  # of a change: what it moves and removes
SIZE = 2_000_000  # bytes of a checkpoint: writing one takes long enough to be killed in it
PATIENCE = 120.0

WORKER = """
import random, sys, time
from pathlib import Path
from tests.support.stores import FakeModel
from utils.common.errors import UserError
from utils.store import Store

kind, number, seconds, given, size, least = sys.argv[1:]
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
    entry = store.import_model(given, skip_existing=True)  # of a process that did not delete it
    store.delete(entry.tag)

done = 0
while time.monotonic() < end or done < int(least):
    done += 1
    if kind == "save":
        save()
    elif kind == "import":
        fetch()
    elif kind == "alias":
        store.alias(given, f"{number}.{done}")
    else:
        (save if rng.random() < 0.5 else delete)()
"""


STEPS = """
import os, signal, sys
from pathlib import Path
from tests.support.stores import FakeModel
from utils.common.paths import Layout
from utils.store import Store

kind, tag, archive, *roots = sys.argv[1:]

def die_before(step):
    def count(event, arguments):
        nonlocal step
        if event in ("os.remove", "os.rename", "os.rmdir"):
            step -= 1
            if not step:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)

def work(store):
    if kind == "save":
        store.save_model(FakeModel(accuracy=0.7), metrics={"leaf_accuracy": 0.7},
                         custom_objects={"accuracy": 0.7, "more": 1})
    elif kind == "import":
        store.import_model(archive)
    else:
        store.delete(tag)

for step, root in enumerate(roots, 1):
    if os.fork() == 0:
        die_before(step)
        work(Store(Layout(Path(root))))
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.wait()[1])
    print(status, flush=True)
    if not status:
        break
"""
"""Does the same in one store after the other, killed before its first change, its second, …"""


def start(
    root: Path, kind: str, number: str, seconds: float, given: str = "-", size: int = 2_000
) -> subprocess.Popen[str]:
    """A process that works on the store of `root`."""
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, kind, number, str(seconds), given, str(size), "40"],
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


def numbered(accuracy: float) -> dict[str, Any]:
    """What `check_whole` compares, for `Store.save_model`."""
    return {
        "metrics": {"leaf_accuracy": accuracy},
        "custom_objects": {"accuracy": accuracy, "more": 1, "most": 2},
    }


@pytest.mark.parametrize("kind", ["save", "import", "delete"])
def test_kill_9_before_every_single_step(tmp_path: Path, kind: str) -> None:
    base, away, *stores = (Store(Layout(tmp_path / str(number))) for number in range(MOST_STEPS))
    one, two = (base.save_model(FakeModel(accuracy=of), **numbered(of)) for of in (0.1, 0.2))
    for store in (away, *stores):
        shutil.copytree(base.layout.root, store.layout.root)
    third = away.save_model(FakeModel(accuracy=0.3), **numbered(0.3))
    archive = away.export_model(third.tag, tmp_path)
    command = [sys.executable, "-c", STEPS, kind, str(one.tag), archive]
    done = subprocess.run(
        [*command, *(str(store.layout.root) for store in stores)],
        cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=PATIENCE,
    )  # fmt: skip
    statuses = [int(line) for line in done.stdout.split()]
    assert statuses == [-signal.SIGKILL] * (len(statuses) - 1) + [0]
    assert LEAST_STEPS < len(statuses) < len(stores)
    for store in stores[: len(statuses)]:
        check_whole(store)
        store.delete(two.tag)  # it is there always; and whoever comes next sweeps up
        files = store.layout.weight_dir(two.model, two.dataset).glob("[!.]*_*")
        times = {path.name.partition("_")[2][: len(two.version)] for path in files}
        assert times == {entry.version for entry in store.list()}
        assert not list(store.layout.weights.rglob(f"{HIDDEN}*"))


@pytest.mark.parametrize("kind", ["save", "import"])
def test_kill_9_leaves_whole_entries(tmp_path: Path, kind: str) -> None:
    away = Store(Layout(tmp_path / "away"))
    fetched = away.save_model(
        FakeModel("other", 0.5, SIZE), metrics={"leaf_accuracy": 0.5},
        custom_objects={"accuracy": 0.5},
    )  # fmt: skip
    archive = away.export_model(fetched.tag, tmp_path)
    store, rng = Store(Layout(tmp_path / "project")), random.Random(kind)
    left = 0
    for turn in range(KILLS):
        worker = start(store.layout.root, kind, "1", 600, archive, SIZE)
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n", worker.communicate()[1]
        before = leavings(store)
        time.sleep(rng.uniform(0, 0.15))
        if turn % 2:
            stop_in_the_middle(worker, lambda: leavings(store) - before)  # noqa: B023
        worker.send_signal(signal.SIGKILL)
        _, errors = worker.communicate()
        assert worker.returncode == -signal.SIGKILL, errors  # it was at work until then
        check_whole(store)
        left += len(leavings(store) - before)
    assert left >= KILLS // 2
    for entry in store.list():
        store.delete(entry.tag)
    last = store.save_model(FakeModel(accuracy=0.3), metrics={"leaf_accuracy": 0.3},
                            custom_objects={"accuracy": 0.3})  # fmt: skip
    assert store.import_model(archive).tag == fetched.tag
    assert check_whole(store) == 2
    assert store.get("tfidf_hsgd_fake").tag == last.tag
    assert not list(store.layout.weights.rglob(f"{HIDDEN}*"))


def leavings(store: Store) -> set[Path]:
    """What is half made, or half gone."""
    found = store.layout.weights.rglob(".*")
    return {path for path in found if path.name.startswith((HIDDEN, TEMPORARY_PREFIX))}


def stop_in_the_middle(worker: subprocess.Popen[str], at_work: Callable[[], object]) -> None:
    """Stop a process at a moment at which something is half done."""
    end = time.monotonic() + PATIENCE
    while True:
        worker.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, worker.pid, os.WSTOPPED)
        if at_work():
            return
        assert time.monotonic() < end
        worker.send_signal(signal.SIGCONT)
        time.sleep(0.002)


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
    assert min(len(saved), len(deleted), rounds) > 5
    assert not leavings(store)


def test_two_processes_set_aliases_at_once(tmp_path: Path) -> None:
    tag = str(Store(Layout(tmp_path)).save_model(FakeModel()).tag)
    workers = [start(tmp_path, "alias", number, 0, tag) for number in ("1", "2")]
    outputs = [worker.communicate() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    wanted = {f"{number}.{done}" for number in (1, 2) for done in range(1, 41)}
    assert set(Store(Layout(tmp_path)).get(tag).aliases) == wanted


def check_listed(store: Store) -> None:
    """What is listed while others work is whole, or gone by the time it is opened."""
    for entry in store.list():
        assert entry.info.metrics["leaf_accuracy"] == entry.info.validation["leaf_accuracy"]
