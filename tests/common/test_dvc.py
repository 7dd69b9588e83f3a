"""DVC: what is tracked can be fetched back; without a repository nothing happens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import evaluate
import export
import predict
import train
from tests.support.tiny import write_tiny_dataset
from utils.common import dvc
from utils.common.errors import UserError
from utils.common.paths import Layout
from utils.hierarchy.dataset import load_dataset
from utils.store import Store

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

    run_it = subprocess.run

    def started(argv: list[str], **values: Any) -> Any:
        assert "dvc" not in argv
        return run_it(argv, **values)

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
    assert seen == ["pull"]
    assert all(file.exists() for file in files)


def test_what_is_in_the_cache_needs_no_remote(repository: Layout) -> None:
    write_tiny_dataset(repository, "tiny")
    file = repository.dataset("tiny") / "val.parquet"
    dvc.add(repository.root, [file])
    file.unlink()
    settings = "['remote \"gone\"']\n    url = /gone\n[core]\n    remote = gone\n"
    (repository.root / ".dvc" / "config.local").write_text(settings)
    dvc.ensure(repository, file)
    assert file.exists()


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


def test_a_model_that_is_not_fetched_is_not_answered_with(
    repository: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = repository.weight_dir(MODEL, "tiny") / "best_2026-01-01T00:00:00.pt.dvc"
    path.parent.mkdir(parents=True)
    path.write_text("a pointer")
    rows = repository.root / "rows.csv"
    rows.write_text("text\nwash foam hands\n")
    write_tiny_dataset(repository, "tiny")
    forbid(monkeypatch)
    for command, arguments in ((predict, [rows]), (evaluate, [])):
        result = run(command, "-m", MODEL, "-d", "tiny", *arguments, "--no-dvc")
        refused(result, "best_2026-01-01T00:00:00.pt is missing", "--no-dvc")


def test_the_store_exports_what_dvc_has_yet_to_fetch(repository: Layout, tmp_path: Path) -> None:
    write_tiny_dataset(repository, "tiny")
    ran(train, "-m", MODEL, "-d", "tiny", "-r", "--dvc")
    store = Store(repository)
    (entry,) = store.list()
    whole = Path(store.export_model(entry.tag, tmp_path / "whole.kttmodel")).read_bytes()
    info = entry.run.folder / f"entry_{entry.version}.json"
    for file in (info, entry.run.best, entry.run.metrics, entry.run.reference(entry.run.best)):
        file.unlink()
    assert "not here" in store.get(entry.tag).info.problem
    again = Path(store.export_model(entry.tag, tmp_path / "again.kttmodel")).read_bytes()
    assert again == whole


def test_a_damaged_pointer_is_one_line(repository: Layout) -> None:
    write_tiny_dataset(repository, "tiny")
    file = repository.dataset("tiny") / "val.parquet"
    file.unlink()
    file.with_name("val.parquet.dvc").write_text("garbage")
    refused(run(train, "-m", MODEL, "-d", "tiny"), "val.parquet is missing, and DVC cannot fetch")


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
    (root / ".dvc" / "config.local").write_bytes(b"\xff\xfe")  # DVC says what is wrong with it
    assert not dvc.is_used(root)
    (root / ".dvc" / "config.local").unlink()
    file = repository.dataset("a") / "train.parquet.dvc"
    file.parent.mkdir(parents=True)
    file.touch()
    assert dvc.is_used(root)


class Busy:
    """A DVC whose repository another one holds for some time."""

    def __init__(self, times: int) -> None:
        self.times, self.calls = times, 0

    def __call__(self, argv: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.calls += 1
        if self.calls > self.times:
            return subprocess.CompletedProcess(argv, 0, "", "")
        return subprocess.CompletedProcess(argv, 255, "", "ERROR: Unable to acquire lock. Most …")


def test_a_command_waits_for_another(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (layout.root / ".dvc").mkdir(parents=True)
    busy = Busy(times=3)
    monkeypatch.setattr(subprocess, "run", busy)
    monkeypatch.setattr(dvc, "PAUSE", 0.0)
    dvc.add(layout.root, [layout.root / "file"])
    assert busy.calls == 4
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        f"waiting for another DVC command in {layout.root}"
    ]


def test_a_command_waits_for_another_only_so_long(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    (layout.root / ".dvc").mkdir(parents=True)
    monkeypatch.setattr(subprocess, "run", Busy(times=1000))
    monkeypatch.setattr(dvc, "PAUSE", 0.01)
    monkeypatch.setattr(dvc, "PATIENCE", 0.05)
    with pytest.raises(UserError, match="another DVC command has been at work"):
        dvc.add(layout.root, [layout.root / "file"])


def test_modules_in_the_root_are_never_run(repository: Layout) -> None:
    write_tiny_dataset(repository, "tiny")
    for name in ("json", "utils", "dvc"):
        (repository.root / f"{name}.py").write_text("raise SystemExit('run')")
    dvc.add(repository.root, [repository.dataset("tiny") / "train.parquet"])
    assert (repository.dataset("tiny") / "train.parquet.dvc").exists()
