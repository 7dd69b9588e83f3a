"""Tags and registration in the other commands."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from typing import Any

import pytest
from click.testing import CliRunner, Result

import evaluate
import export
import predict
import store as store_command
import train
from tests.support.tiny import write_tiny_dataset
from utils.common.checkpoints import BUSY, Run, held
from utils.common.errors import UserError
from utils.common.paths import PROJECT_ROOT, Layout
from utils.store import Store


def run(command: Any, *arguments: str) -> Result:
    return CliRunner().invoke(command.main, list(arguments))


def trained(layout: Layout, *arguments: str) -> Result:
    result = run(train, "-m", "tfidf_hsgd", "-d", "tiny", *arguments)
    assert result.exit_code == 0, result.output
    return result


def test_train_registers_what_it_trained(layout: Layout, tiny: str) -> None:
    result = trained(layout, "--name", "first", "--label", "team=nlp", "--label", "stage=dev")
    entry = Store(layout).get("tfidf_hsgd_tiny:first")
    assert f"In the store: {entry.tag} (first)" in result.output
    facts = json.loads(entry.run.metrics.read_text())
    info = entry.info
    assert info.labels == {"team": "nlp", "stage": "dev"}
    assert info.metrics == facts["test"]
    assert info.validation == facts["info"]["val"]
    assert info.hyperparameters == facts["config"]
    assert info.rows == facts["info"]["rows"]
    assert info.fingerprint == facts["info"]["fingerprint"]
    assert info.libraries["numpy"]
    assert info.code["version"]
    assert info.host
    assert info.seconds is not None
    assert info.seconds > 0


def test_a_name_that_is_taken_is_refused_before_training(layout: Layout, tiny: str) -> None:
    trained(layout, "--name", "first")
    for name, part in (("first", "'first' is tfidf_hsgd_tiny:"), ("latest", "means something")):
        result = run(train, "-m", "tfidf_hsgd", "-d", "tiny", "--name", name)
        assert result.exit_code == 1
        assert part in result.stderr
        assert "Best checkpoint" not in result.output
    result = run(train, "-m", "tfidf_hsgd", "-d", "tiny", "--label", "team")
    assert result.exit_code == 1
    assert "key=value" in result.stderr
    assert len(Store(layout).list()) == 1


def test_a_name_that_is_taken_during_the_training_loses_no_run(
    layout: Layout, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(layout, "--name", "first")
    monkeypatch.setattr(Store, "check_name", lambda *_: None)  # as it was when both began
    result = run(train, "-m", "tfidf_hsgd", "-d", "tiny", "--name", "first", "--label", "team=nlp")
    assert result.exit_code == 0, result.output
    assert "Warning: 'first' is tfidf_hsgd_tiny:" in result.stderr
    first, second = Store(layout).list()
    assert (first.info.name, second.info.name) == ("first", None)
    assert second.info.labels == {"team": "nlp"}


TRAINING = """
import time, train

def finish(*_):
    print("trained", flush=True)
    time.sleep(600)

train.finish = finish
train.main(["-m", "tfidf_hsgd", "-d", "tiny"])
"""


def test_a_run_in_training_is_not_deleted(layout: Layout, tiny: str) -> None:
    training = subprocess.Popen(
        [sys.executable, "-c", TRAINING], cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"KTT_ROOT": str(layout.root)},
    )  # fmt: skip
    try:
        assert training.stdout
        assert "trained\n" in training.stdout
        store = Store(layout)
        (entry,) = store.list()
        store.alias(entry.tag, "production")
        result = run(store_command, "delete", str(entry.tag), "-y", "--with-aliases")
        assert result.exit_code == 1
        assert result.stderr.startswith("Error: Another process is at work on the run of")
        assert store.get("tfidf_hsgd_tiny:production").path.exists()
    finally:
        training.kill()  # with no chance to say so
        training.communicate()
    assert run(store_command, "delete", str(entry.tag), "-y", "--with-aliases").exit_code == 0
    assert not store.list()
    assert not list(entry.run.folder.glob(f"{BUSY}*"))


def test_a_run_is_held_once(layout: Layout) -> None:
    one = Run(folder=layout.weight_dir("tfidf_hsgd", "tiny"), time="2026-01-01T00:00:00")
    with held(one):
        with pytest.raises(UserError, match="Another process is at work"), held(one):
            pass
        with held(Run(folder=one.folder, time="2026-01-01T00:00:01")):
            pass
    with held(one):
        pass
    assert not list(one.folder.iterdir())


def test_training_needs_no_locks(
    layout: Layout, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    result = trained(layout, "--name", "first")
    assert "Warning: Cannot lock" in result.stderr
    (entry,) = Store(layout).list()
    assert entry.info.name is None
    assert entry.path.exists()
    assert not list(entry.run.folder.glob(f"{BUSY}*"))


def test_commands_take_a_tag(layout: Layout, tiny: str) -> None:
    trained(layout, "--name", "first")
    write_tiny_dataset(layout, "tiny", rows=70, seed=1)
    trained(layout)
    store = Store(layout)
    first, second = store.list()
    store.alias(first.tag, "production")
    file = layout.root / "rows.csv"
    file.write_text("text\nwash foam hands\n")
    tag = ("--tag", "tfidf_hsgd_tiny:production")
    for command, arguments in ((predict, [str(file)]), (evaluate, []), (export, ["--onnx"])):
        for chosen, entry in ((tag, first), (("--tag", str(second.tag)), second)):
            result = run(command, *chosen, *arguments)
            assert result.exit_code == 0, result.output
            assert f"best_{entry.version}" in result.output + result.stderr


@pytest.mark.parametrize("command", [predict, evaluate, export], ids=lambda one: one.__name__)
def test_a_tag_and_a_pair_is_one_too_many(layout: Layout, tiny: str, command: Any) -> None:
    trained(layout)
    file = ["rows.csv"] if command is predict else []
    time = "-t" if command is export else "--time"
    for more in (["-m", "tfidf_hsgd"], ["-d", "tiny"], [time, "2026"]):
        result = run(command, "--tag", "tfidf_hsgd_tiny", *more, *file)
        assert result.exit_code == 1
        assert "leave out -m, -d and the time" in result.stderr
    result = run(command, "--tag", "tfidf_hsgd_tiny:prod", *file)
    assert result.exit_code == 1
    assert "Unknown version of tfidf_hsgd_tiny 'prod'" in result.stderr
    if command is export:
        result = run(export, "--tag", "tfidf_hsgd_tiny", "--latest")
        assert "leave out --latest" in result.stderr
    else:
        assert run(command, "-m", "tfidf_hsgd", *file).exit_code == 2
