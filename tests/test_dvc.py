"""DVC: what is tracked can be fetched back; without a repository nothing happens."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import adapt
import evaluate
import export
import predict
import train
from tests.tiny import write_tiny_dataset
from utils import dvc
from utils.data import load_dataset
from utils.errors import UserError
from utils.paths import Layout

MODEL = "tfidf_lsgd"
SPLITS = ("train", "val", "test")


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC writes nothing outside the test's folder and looks for no one's settings."""
    for name in ("SITE_CACHE", "GLOBAL_CONFIG", "SYSTEM_CONFIG"):
        monkeypatch.setenv(f"DVC_{name}_DIR", str(tmp_path / "dvc" / name))
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")


@pytest.fixture
def repository(layout: Layout) -> Layout:
    layout.root.mkdir(parents=True)
    subprocess.run(
        [sys.executable, "-m", "dvc", "init", "--quiet", "--no-scm"],
        cwd=layout.root, check=True, capture_output=True,
    )  # fmt: skip
    return layout


def test_a_missing_file_with_a_pointer_is_fetched(repository: Layout) -> None:
    # traps: `.dvc` appended twice, so nothing was ever fetched; --no-dvc honoured for one of two
    dataset = write_tiny_dataset(repository, "tiny")
    folder = repository.dataset("tiny")
    files = [folder / f"{split}.parquet" for split in ("train", "val", "test")]
    dvc.add(repository.root, [*files, folder / "hierarchy.json"])
    assert sorted(path.name for path in folder.glob("*.dvc")) == [
        "hierarchy.json.dvc", "test.parquet.dvc", "train.parquet.dvc", "val.parquet.dvc",
    ]  # fmt: skip
    for file in files:
        file.unlink()
    assert load_dataset(repository, "tiny").fingerprint == dataset.fingerprint


def test_tracking_is_off_without_a_repository_and_an_error_if_asked_for(layout: Layout) -> None:
    write_tiny_dataset(layout, "tiny")
    file = layout.dataset("tiny") / "train.parquet"
    dvc.add(layout.root, [file])
    dvc.add(layout.root, [file], wanted=False)
    assert not list(layout.root.rglob("*.dvc"))
    with pytest.raises(UserError, match="no DVC repository: run 'dvc init'"):
        dvc.add(layout.root, [file], wanted=True)


def test_no_dvc_tracks_nothing(repository: Layout) -> None:
    write_tiny_dataset(repository, "tiny")
    dvc.add(repository.root, list(repository.dataset("tiny").iterdir()), wanted=False)
    assert not list(repository.datasets.rglob("*.dvc"))


def test_a_pointer_to_nothing_is_one_line(repository: Layout, tmp_path: Path) -> None:
    write_tiny_dataset(repository, "tiny")
    file = repository.dataset("tiny") / "val.parquet"
    dvc.add(repository.root, [file])
    file.unlink()
    for cached in (repository.root / ".dvc" / "cache").rglob("*"):
        if cached.is_file():
            cached.chmod(0o644)
            cached.unlink()
    with pytest.raises(UserError, match="not in DVC's cache, and no remote") as caught:
        load_dataset(repository, "tiny")
    assert "\n" not in caught.value.message


def test_a_name_is_never_read_as_an_option_or_a_command(repository: Layout) -> None:
    file = repository.root / "--help; touch hacked"
    file.write_text("x")
    dvc.add(repository.root, [file])
    assert (repository.root / "--help; touch hacked.dvc").exists()
    assert not (repository.root / "hacked").exists()


def run(command: Any, *arguments: object) -> Result:
    return CliRunner().invoke(command.main, list(map(str, arguments)))


def ran(command: Any, *arguments: object) -> Result:
    result = run(command, *arguments)
    assert result.exit_code == 0, result.output
    return result


def refused(result: Result, *parts: str) -> None:
    assert result.exit_code == 1, result.output
    (line,) = [line for line in result.stderr.splitlines() if line]
    assert line.startswith("Error: ")
    assert all(part in line for part in parts), line


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on DVC must not be started."""

    def started(*arguments: Any, **_: Any) -> Any:
        raise AssertionError(f"DVC was started: {arguments}")

    monkeypatch.setattr(subprocess, "run", started)


def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The subcommands of DVC that are run from here on."""
    seen: list[str] = []
    run_it = subprocess.run

    def counted(argv: list[str], **values: Any) -> Any:
        seen.append(argv[argv.index("dvc") + 1])
        return run_it(argv, **values)

    monkeypatch.setattr(subprocess, "run", counted)
    return seen


def test_all_that_is_missing_is_fetched_at_once(
    repository: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_dataset(repository, "tiny")
    files = sorted(repository.dataset("tiny").iterdir())
    dvc.add(repository.root, files)
    for file in files:
        file.unlink()
    seen = calls(monkeypatch)
    assert repository.dataset_names() == ["tiny"]
    load_dataset(repository, "tiny")
    assert seen == ["checkout"]
    assert all(file.exists() for file in files)


def test_nothing_missing_starts_nothing(
    repository: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_dataset(repository, "tiny")
    file = repository.dataset("tiny") / "train.parquet"
    file.with_name("train.parquet.dvc").write_text("a pointer")
    forbid(monkeypatch)
    load_dataset(repository, "tiny")
    dvc.add(repository.root, [file], wanted=False)
    dvc.add(repository.root, [])


def test_no_dvc_fetches_nothing_either(repository: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_dataset(repository, "tiny")
    file = repository.dataset("tiny") / "val.parquet"
    file.rename(file.with_name("val.parquet.dvc"))
    forbid(monkeypatch)
    refused(run(train, "-m", MODEL, "-d", "tiny", "--no-dvc"), "val.parquet is missing", "--no-dvc")


def test_a_damaged_pointer_is_one_line(repository: Layout) -> None:
    write_tiny_dataset(repository, "tiny")
    file = repository.dataset("tiny") / "val.parquet"
    file.unlink()
    file.with_name("val.parquet.dvc").write_text("garbage")
    refused(run(train, "-m", MODEL, "-d", "tiny"), "val.parquet is missing, and DVC cannot fetch")


def test_commands_track_and_fetch_what_they_write_and_read(repository: Layout) -> None:
    # a remote that is a folder: push, lose everything, train and export again
    root, remote = repository.root, repository.root.parent / "remote"
    command = [sys.executable, "-P", "-m", "dvc"]
    for arguments in (["remote", "add", "-d", "there", str(remote)],):
        subprocess.run([*command, *arguments], cwd=root, check=True, capture_output=True)
    ran(adapt, "demo", "shop", "--rows", "150")
    ran(train, "-m", MODEL, "-d", "shop", "-r")
    ran(export, "-m", MODEL, "-d", "shop", "--onnx", "--bento")
    folder, onnx = repository.weight_dir(MODEL, "shop"), repository.output(MODEL, "shop")
    bundle = repository.bundle(MODEL, "shop") / "inference"
    tracked = [path.with_name(path.name[:-4]) for path in root.rglob("*.dvc") if path.is_file()]
    for path in [*repository.dataset("shop").iterdir(), *folder.iterdir(), bundle]:
        assert path in tracked or path.name.endswith((".dvc", ".gitignore")), path
    assert {onnx / "manifest.json", onnx / "hierarchy.json"} <= set(tracked)
    assert onnx / "metrics.json" not in tracked
    before = (onnx / "manifest.json").read_bytes()

    subprocess.run([*command, "push", "-q"], cwd=root, check=True, capture_output=True)
    for path in tracked:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(root / ".dvc" / "cache")
    table = root / "rows.csv"
    table.write_text("text\nblue cotton shirt\n")
    ran(predict, "-m", MODEL, "-d", "shop", table, "--runtime", "onnx")
    assert (onnx / "manifest.json").read_bytes() == before
    ran(evaluate, "-m", MODEL, "-d", "shop", "--dvc")
    ran(export, "-m", MODEL, "-d", "shop", "--monitoring")
    (metrics,) = folder.glob("*_metrics.json.dvc")
    assert metrics.exists()
    ran(train, "-m", MODEL, "-d", "shop")
    secrets = list(root.rglob(".env.dvc"))
    assert (repository.bundle(MODEL, "shop") / ".env").exists()
    assert secrets == []  # of Grafana's password; it stays here


def test_readers_say_that_there_is_no_repository(layout: Layout) -> None:
    write_tiny_dataset(layout, "tiny")
    for command in (evaluate, export, train):
        refused(run(command, "-m", MODEL, "-d", "tiny", "--dvc"), "no DVC repository")
    refused(run(predict, "-m", MODEL, "-d", "tiny", "x.csv", "--dvc"), "no DVC repository")
    assert not layout.weights.exists()  # before anything was trained


PIPELINE = """
vars:
  - name: tiny
  - values.json:other
stages:
  make:
    cmd: make
    outs:
      - weights/tfidf_lsgd/${name}: {persist: true}
      - outputs/tfidf_lsgd_tiny/plots
    metrics:
      - outputs/x/metrics.json: {cache: false}
  odd: 7
"""


def test_what_the_pipeline_tracks_is_found(layout: Layout) -> None:
    root = layout.root
    root.mkdir()
    assert dvc.pipeline_stage(root, root / "weights") is None
    (root / "dvc.yaml").write_text(PIPELINE)
    for path in ("weights/tfidf_lsgd/tiny", "weights/tfidf_lsgd/tiny/best.pt", "weights",
                 "outputs/x/metrics.json", "outputs/tfidf_lsgd_tiny"):  # fmt: skip
        assert dvc.pipeline_stage(root, root / path) == "make", path
    for path in ("weights/tfidf_lsgd/tiny2", "weights/tfidf_hsgd/tiny", "outputs/x/other"):
        assert dvc.pipeline_stage(root, root / path) is None, path
    (root / "dvc.yaml").write_text("stages: [")
    assert dvc.pipeline_stage(root, root / "weights") is None
    (root / "dvc.lock").write_text(
        json.dumps({"stages": {"make@a": {"outs": [{"path": "weights/a/b", "md5": "0"}]}}})
    )
    assert dvc.pipeline_stage(root, root / "weights/a/b") == "make"


def test_the_pipelines_pair_is_refused_or_left_to_it(
    repository: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_dataset(repository, "tiny")
    (repository.root / "dvc.yaml").write_text(PIPELINE)
    forbid(monkeypatch)
    command = (train, "-m", MODEL, "-d", "tiny")
    refused(run(*command, "--dvc"), "stage 'make' of dvc.yaml", "dvc repro", "--no-dvc")
    assert not repository.weights.exists()
    ran(*command)
    assert not list(repository.weights.rglob("*.dvc"))


def test_the_toolkits_own_folder_tracks_nothing_until_dvc_is_used_there(
    repository: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = repository.root
    assert dvc.is_used(root)
    monkeypatch.setattr(dvc, "PROJECT_ROOT", root)
    config = root / ".dvc" / "config"
    assert not dvc.is_used(root)
    config.write_text("[core]\n    analytics = false\n")
    assert not dvc.is_used(root)
    (root / ".dvc" / "config.local").write_text("['remote \"there\"']\n    url = /there\n")
    assert dvc.is_used(root)
    (root / ".dvc" / "config.local").unlink()
    file = repository.dataset("a") / "train.parquet.dvc"
    file.parent.mkdir(parents=True)
    file.touch()
    assert dvc.is_used(root)


def test_a_command_waits_for_another(
    repository: Layout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_tiny_dataset(repository, "tiny")
    file = repository.dataset("tiny") / "train.parquet"
    holder = (
        "import sys, time, zc.lockfile; lock = zc.lockfile.LockFile(sys.argv[1]);"
        "open(sys.argv[2], 'w').close(); time.sleep(60)"
    )
    lock, sign = repository.root / ".dvc" / "tmp" / "lock", tmp_path / "held"
    with subprocess.Popen([sys.executable, "-c", holder, str(lock), str(sign)]) as other:
        while not sign.exists():
            time.sleep(0.01)
        monkeypatch.setattr(dvc, "PATIENCE", 0.0)
        with pytest.raises(UserError, match="another DVC command has been at work"):
            dvc.add(repository.root, [file])
        monkeypatch.setattr(dvc, "PATIENCE", 60.0)
        monkeypatch.setattr(dvc, "log", Ending(other))
        dvc.add(repository.root, [file])
    assert file.with_name("train.parquet.dvc").exists()


class Ending:
    """A log that ends the other process when it is told of waiting."""

    def __init__(self, other: subprocess.Popen[bytes]) -> None:
        self.other = other

    def warning(self, message: str, *_: object) -> None:
        assert "waiting" in message
        self.other.kill()

    def info(self, *_: object) -> None:
        pass


def test_modules_in_the_root_are_never_run(repository: Layout) -> None:
    write_tiny_dataset(repository, "tiny")
    for name in ("json", "utils", "dvc"):
        (repository.root / f"{name}.py").write_text("raise SystemExit('run')")
    dvc.add(repository.root, [repository.dataset("tiny") / "train.parquet"])
    assert (repository.dataset("tiny") / "train.parquet.dvc").exists()
