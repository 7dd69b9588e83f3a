"""Names that no file can have are one line, wherever they are given."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import adapt
import evaluate
import export
import predict
import store
import train
from tests.support.tiny import write_tiny_dataset
from utils.common.checkpoints import find_checkpoint
from utils.common.errors import UserError
from utils.common.files import atomic_dir, atomic_path, followed
from utils.common.paths import PROJECT_ROOT, Layout
from utils.neural.encoders import load_encoder

LONG = "x" * 300
CASE = PROJECT_ROOT.parent / "shared" / "cases" / "long_name"
PAIR = ("-m", "tfidf_lsgd", "-d", "tiny")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a trained model, and a table beside it."""
    folder = tmp_path_factory.mktemp("long")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KTT_ROOT", str(folder / "root"))
        write_tiny_dataset(Layout(folder / "root"), "tiny")
        done = CliRunner().invoke(train.main, [*PAIR])
    assert done.exit_code == 0, done.output
    (folder / "t.csv").write_text("text,label\nwash foam,A\npill dose,B\n")
    return folder


@pytest.fixture
def here(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KTT_ROOT", str(trained / "root"))
    monkeypatch.chdir(trained)
    return trained


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (adapt, ["flat", "t.csv", LONG, "-t", "text", "-c", "label"]),
        (adapt, ["flat", f"{LONG}.csv", "made", "-t", "text", "-c", "label"]),
        (adapt, ["flat", "t.csv", "made", "-t", "text", "-c", "label", "--parents", LONG]),
        (adapt, ["demo", LONG]),
        (adapt, ["sql", "made", "--config", f"{LONG}.json"]),
        (adapt, ["sql", LONG]),
        (predict, [*PAIR, f"{LONG}.csv"]),
        (predict, [*PAIR, f"{LONG}/t.csv"]),
        (predict, [*PAIR, "t.csv", "-o", f"{LONG}.csv"]),
        (predict, [*PAIR, "t.csv", "-o", f"{LONG}/t.csv"]),
        (predict, [*PAIR, "t.csv", "-o", "y/" * 3000 + "t.csv"]),
        (predict, [*PAIR[:2], "-d", LONG, "t.csv"]),
        (evaluate, [*PAIR, "-o", f"{LONG}.json"]),
        (evaluate, [*PAIR, "-o", f"{LONG}/o.json"]),
        (evaluate, [*PAIR, "--on", LONG]),
        (train, [*PAIR[:2], "-d", LONG]),
        (train, [*PAIR, "--name", LONG]),
        (train, [*PAIR, "--hyperparameters", f"{LONG}.json"]),
        (train, ["-m", "db_linear", "-d", "tiny", "--encoder", f"/{LONG}"]),
        (export, [*PAIR[:2], "-d", LONG]),
        (store, ["export", "tfidf_lsgd_tiny", LONG]),
        (store, ["export", "tfidf_lsgd_tiny", f"{LONG}/"]),
        (store, ["import", f"{LONG}.kttmodel"]),
        (store, ["list", LONG]),
        (store, ["get", f"tfidf_lsgd_{LONG}"]),
        (store, ["get", f"tfidf_lsgd_tiny:{LONG}"]),
        (store, ["delete", "-y", f"tfidf_lsgd_tiny:{LONG}"]),
        (store, ["alias", "tfidf_lsgd_tiny", LONG]),
        (store, ["label", "tfidf_lsgd_tiny", f"{LONG}=a"]),
        (store, ["label", "tfidf_lsgd_tiny", f"a={LONG}"]),
        (store, ["push", "tfidf_lsgd_tiny", "--remote", LONG]),
    ],
)
def test_a_name_of_300_characters_is_one_line(
    here: Path, command: Any, arguments: list[str]
) -> None:
    result = CliRunner().invoke(command.main, arguments)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in (1, 2)
    if result.exit_code == 1:
        (line,) = [line for line in result.stderr.splitlines() if not line.startswith("Warning")]
        assert line.startswith("Error: ")


def test_a_root_of_300_characters(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KTT_ROOT", f"/{LONG}")
    result = CliRunner().invoke(adapt.main, ["demo", "made"])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[0].startswith("Error: Cannot read")


def test_the_longest_name_that_a_file_can_have(here: Path) -> None:
    name = "y" * 251 + ".csv"
    done = CliRunner().invoke(predict.main, [*PAIR, "t.csv", "-o", name])
    assert done.exit_code == 0, done.output
    assert (here / name).read_text().count("\n") == 3
    shutil.copy("t.csv", name)  # whose answers would have a longer name
    result = CliRunner().invoke(predict.main, [*PAIR, name])
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.splitlines()[-1].startswith("Error: Cannot read")


@pytest.mark.parametrize("opened", [atomic_path, atomic_dir])
def test_what_cannot_be_put_in_its_place_is_said_before_the_work(
    tmp_path: Path, opened: Any
) -> None:
    worked = []
    with pytest.raises(UserError, match="File name too long"), opened(tmp_path / LONG):
        worked.append(1)
    assert not worked
    assert followed(tmp_path / LONG) == tmp_path / LONG
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [f"/{LONG}", "~nobody-of-this-name/encoder"])
def test_an_encoder_folder_that_there_cannot_be(name: str) -> None:
    with pytest.raises(UserError, match="Cannot read"):
        load_encoder(name, pooling="auto", max_len=16)


def test_the_case(here: Path) -> None:
    if not CASE.is_dir():
        pytest.skip("there is no ../shared/cases")
    shutil.copy(CASE / "t.csv", here / "case.csv")
    made = ["flat", "case.csv", LONG, "-t", "text", "-c", "label"]
    for command, arguments in (
        (adapt, made),
        (predict, [*PAIR, f"{LONG}.csv"]),
        (predict, [*PAIR, "case.csv", "-o", f"{LONG}.csv"]),
    ):
        result = CliRunner().invoke(command.main, arguments)
        assert result.exit_code == 1
        assert result.stderr.count("\n") == 1
        assert result.stderr.startswith("Error: ")
    assert find_checkpoint(Layout(), "tfidf_lsgd", "tiny").exists()
