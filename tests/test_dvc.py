"""DVC: what is tracked can be fetched back; without a repository nothing happens."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import write_tiny_dataset
from utils import dvc
from utils.data import load_dataset
from utils.errors import UserError
from utils.paths import Layout


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
    with pytest.raises(UserError, match="dvc pull failed") as caught:
        load_dataset(repository, "tiny")
    assert "\n" not in caught.value.message


def test_a_name_is_never_read_as_an_option_or_a_command(repository: Layout) -> None:
    file = repository.root / "--help; touch hacked"
    file.write_text("x")
    dvc.add(repository.root, [file])
    assert (repository.root / "--help; touch hacked.dvc").exists()
    assert not (repository.root / "hacked").exists()
