"""Several processes train one model as one process with larger batches does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.tiny import tiny_rows, write_rows
from tests.support.tiny_encoder import tiny_encoder
from utils.common.checkpoints import read_checkpoint, runs
from utils.common.paths import PROJECT_ROOT, Layout
from utils.serving.local_server import free_port

pytestmark = pytest.mark.slow

# Accelerate's own launcher starts processes on CPUs through MPI alone; for it, as for any launcher
# of torch's, the variables in the environment count.
LAUNCH = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port")


@pytest.fixture
def project(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "project")
    write_rows(layout, "shop", *tiny_rows(201))  # the last batch is a single row
    encoder = tiny_encoder(tmp_path / "encoder")
    settings = json.loads((encoder / "config.json").read_text())
    settings |= {"dropout": 0.0, "attention_dropout": 0.0}  # else each draws its own
    (encoder / "config.json").write_text(json.dumps(settings))
    return layout


def train(layout: Layout, *launcher: str, arguments: tuple[str, ...] = (), **values: Any) -> str:
    settings = {
        "encoder": str(layout.root.parent / "encoder"), "max_len": 16, "epochs": 3,
        "dropout": 0.0, "precision": "fp32", "encoder_lr": 1e-3, "classifier_lr": 1e-3,
    } | values  # fmt: skip
    file = layout.root / "settings.json"
    file.write_text(json.dumps({"db_bhcn": settings, "tfidf_hsgd": {}}))
    launched = [*launcher, str(free_port())] if launcher else []
    command = [sys.executable, *launched, str(PROJECT_ROOT / "train.py"), "-d", "shop"]
    environment = os.environ | {"KTT_ROOT": str(layout.root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--hyperparameters", str(file), *(arguments or ("-m", "db_bhcn"))],
        env=environment, capture_output=True, text=True, timeout=600, check=False,
        cwd=layout.root,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def newest(layout: Layout) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    run = runs(layout, "db_bhcn", "shop")[-1]
    arrays, meta = read_checkpoint(run.last, training=True)
    return arrays, meta["info"], json.loads(run.metrics.read_text())


def assert_alike(left: Any, right: Any) -> None:
    assert left[0].keys() == right[0].keys()
    for name in left[0]:
        np.testing.assert_allclose(left[0][name], right[0][name], atol=2e-4, err_msg=name)
    for metric, value in left[1]["val"].items():
        assert right[1]["val"][metric] == pytest.approx(value, abs=1e-3), metric


def test_two_processes_equal_one_with_twice_the_batch(project: Layout) -> None:
    train(project, train_minibatch_size=16)
    one = newest(project)
    printed = train(project, *LAUNCH, train_minibatch_size=8)
    two = newest(project)
    assert len(runs(project, "db_bhcn", "shop")) == 2  # the other process wrote none
    assert printed.count("Best checkpoint") == 1
    assert_alike(one, two)
    train(project, train_minibatch_size=4, accumulate=4)
    assert_alike(one, newest(project))
    train(project, *LAUNCH, train_minibatch_size=4, accumulate=2)
    assert_alike(one, newest(project))
    train(project, train_minibatch_size=8)
    with pytest.raises(AssertionError):  # the comparison would see a difference
        assert_alike(one, newest(project))


def test_two_processes_resume_what_one_began(project: Layout) -> None:
    train(project, *LAUNCH, train_minibatch_size=8)
    whole = newest(project)
    train(project, *LAUNCH, train_minibatch_size=8, arguments=("-m", "db_bhcn", "-e", "2"))
    run = runs(project, "db_bhcn", "shop")[-1]
    more = ("-m", "db_bhcn,tfidf_hsgd", "-e", "3", "--resume")
    printed = train(project, *LAUNCH, train_minibatch_size=8, arguments=more)
    assert f"Resuming the run of {run.time}" in printed
    found = newest(project)
    assert found[1]["epoch"] == whole[1]["epoch"] == 3
    assert "tfidf_hsgd · shop" in printed
