"""Training that is killed, and disks that refuse: real processes, real mounts."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from models import MODELS
from tests.support.tiny import tiny_rows, write_rows
from tests.support.tiny_encoder import tiny_encoder
from utils.common.checkpoints import BUSY, read_checkpoint
from utils.common.files import TEMPORARY_PREFIX
from utils.common.paths import PROJECT_ROOT, Layout
from utils.store.changes import LOCK
from utils.training.tensorboard import read_events

pytestmark = pytest.mark.slow

RESUMABLE = [name for name in sorted(MODELS) if name.startswith("db_")]


def command(root: Path, *arguments: str) -> tuple[list[str], dict[str, str]]:
    argv = [sys.executable, str(PROJECT_ROOT / "train.py"), "-d", "tiny", "--no-dvc", *arguments]
    return argv, os.environ | {"KTT_ROOT": str(root)}


def run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv, environment = command(root, *arguments)
    return subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)


def project(root: Path, model: str = "db_bhcn") -> Layout:
    layout = Layout(root)
    write_rows(layout, "tiny", *tiny_rows(1400))
    settings = {"encoder": str(tiny_encoder(root)), "max_len": 16, "epochs": 6}
    if model == "db_ahmcnf":  # its epochs, without the encoder, would be over before the kill
        settings["train_minibatch_size"] = 2
    (root / "hyperparameters.json").write_text(json.dumps({model: settings}))
    return layout


def check_visible(layout: Layout) -> None:
    for path in layout.weights.rglob("[!.]*.pt"):
        read_checkpoint(path, training=True)
    for path in layout.weights.rglob("[!.]*.json"):
        json.loads(path.read_text())


def killed_at(root: Path, model: str, line: str, delay: float) -> bool:
    """Resume, and kill -9 `delay` seconds after a line with `line` was printed; whether it was."""
    argv, environment = command(root, "-m", model, "--resume")
    environment |= {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for printed in process.stdout:
            if line in printed:
                break
        time.sleep(delay)
        alive = process.poll() is None
        process.kill()
    return alive


def kill_in_time(root: Path, model: str, line: str, delay: float) -> None:
    """Kill before it is complete: where that is too late, the same again, and sooner."""
    before = root.with_name("before")
    shutil.copytree(root, before)
    while not killed_at(root, model, line, delay):
        assert delay > 1e-4
        delay /= 4
        shutil.rmtree(root)
        shutil.copytree(before, root)
    shutil.rmtree(before)


@pytest.mark.parametrize("model", RESUMABLE)
def test_resumed_after_kills_equals_never_killed(tmp_path: Path, model: str) -> None:
    whole = project(tmp_path / "whole", model)
    done = run(whole.root, "-m", model)
    assert done.returncode == 0, done.stderr
    (metrics,) = whole.weights.rglob("*_metrics.json")

    killed = project(tmp_path / "killed", model)
    moments = random.Random(0)
    # before the first epoch has ended, soon after that, and at the end of the last but one
    for line, longest in (("rows to train", 2.0), ("1/6", 0.6), ("5/6", 0.1)):
        kill_in_time(killed.root, model, line, moments.uniform(0, longest))
        check_visible(killed)
    done = run(killed.root, "-m", model, "--resume")
    assert done.returncode == 0, done.stderr
    assert "Resuming the run of" in done.stdout
    (resumed,) = killed.weights.rglob("*_metrics.json")
    found, wanted = (json.loads(path.read_text()) for path in (resumed, metrics))
    assert found["test"] == wanted["test"]
    histories = [
        [{**epoch, "seconds": 0} for epoch in report["info"]["history"]]
        for report in (found, wanted)
    ]
    assert histories[0] == histories[1]
    folder = killed.tensorboard(model, "tiny", resumed.name[len("best_") :][:19])
    steps = [step for step, tag, _ in read_events(folder) if tag == "train/loss"]
    assert sorted(steps) == list(range(1, len(histories[0]) + 1))
    again = run(killed.root, "-m", model, "--resume")
    assert again.returncode == 1
    assert "is complete" in again.stderr


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        pytest.skip("needs the right to mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("model", ["tfidf_lsgd", "db_bhcn"])
@pytest.mark.parametrize(
    ("options", "reason"),
    [("size=16k", "No space left on device"), ("ro", "Read-only file system")],
)
def test_disks_that_refuse(tmp_path: Path, model: str, options: str, reason: str) -> None:
    layout = project(tmp_path / "root")
    with mounted(layout.weights, options):
        done = run(layout.root, "-m", model)
        left = [path for path in layout.weights.rglob("*") if path.is_file()]
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: Cannot write")
    assert reason in line
    assert left == []


def test_a_killed_runs_leavings_are_hidden(tmp_path: Path) -> None:
    layout = project(tmp_path / "root")
    argv, environment = command(layout.root, "-m", "tfidf_lsgd")
    for delay in (0.8, 1.2, 1.6, 2.0):
        with subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL) as process:
            time.sleep(delay)
            process.kill()
        check_visible(layout)
        for path in layout.weights.rglob("*"):
            assert (
                path.is_dir()
                or path.suffix in (".pt", ".json")
                or path.name.startswith((BUSY, TEMPORARY_PREFIX, LOCK))
            )
