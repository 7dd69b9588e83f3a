"""train.py and export.py as a user sees them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

import export
import train
from models import MODELS, model_class
from tests.support.tiny import tiny_rows, write_rows, write_tiny_dataset
from utils.common.paths import PROJECT_ROOT, Layout
from utils.hierarchy.dataset import load_dataset
from utils.hierarchy.metrics import evaluate


def run(command: Any, *arguments: str) -> Result:
    return CliRunner().invoke(command.main, list(arguments))


def refused(result: Result, *parts: str) -> None:
    """The command failed with status 1 and one line that holds all `parts`."""
    assert result.exit_code == 1, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    for part in parts:
        assert part in lines[0], lines[0]


def visible_files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_trains_tests_and_writes_what_belongs_together(layout: Layout, tiny: str) -> None:
    result = run(train, "-m", "tfidf_lsgd", "-d", tiny, "-r", "--seed", "3")
    assert result.exit_code == 0, result.output
    assert "leaf accuracy" in result.output
    folder = layout.weight_dir("tfidf_lsgd", tiny)
    (checkpoint,) = folder.glob("best_*.pt")
    report = json.loads((folder / f"{checkpoint.stem}_metrics.json").read_text())
    model = model_class("tfidf_lsgd").from_checkpoint(checkpoint)
    test = load_dataset(layout, tiny).test
    # the report, the reference set and the exported weights are the same weights
    assert report["test"] == evaluate(model.test(test), test.codes)
    assert report["info"]["seed"] == 3
    assert model.info["dataset"] == tiny
    reference = pq.read_table(folder / f"{checkpoint.stem}_reference.parquet")
    assert reference.equals(model.gen_reference_set(test))
    assert len(visible_files(layout.weights)) == 5  # with the entry and the lock of the store


def test_several_pairs_one_of_which_fails(layout: Layout, tiny: str) -> None:
    result = run(train, "-m", "tfidf_lsgd,tfidf_hsgd", "-d", f"missing,{tiny}")
    assert result.exit_code == 1
    assert "2 of 4 failed: tfidf_lsgd · missing, tfidf_hsgd · missing" in result.stderr
    assert result.stderr.count("Unknown dataset 'missing'") == 2
    for model in ("tfidf_lsgd", "tfidf_hsgd"):
        assert list(layout.weight_dir(model, tiny).glob("best_*.pt"))
        assert f"{model} · {tiny}" in result.output


def test_a_dry_run_writes_nothing(layout: Layout, tiny: str) -> None:
    # trap: the dry run wrote into a folder that it never made
    result = run(train, "-m", "tfidf_hsgd", "-d", tiny, "-n")
    assert result.exit_code == 0, result.output
    assert "nothing was written" in result.output
    assert not layout.weights.exists()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["-m", "db_bhcm", "-d", "tiny"], ["'db_bhcm'", "Did you mean 'db_bhcn'?", *MODELS]),
        (["-m", "tfidf_lsgd", "-d", "tinny"], ["Unknown dataset 'tinny'", "Did you mean 'tiny'?"]),
        (["-m", "tfidf_lsgd", "-d", "../tiny"], ["'../tiny'", "letters"]),
        (["-m", "tfidf_lsgd", "-d", "tiny", "--hyperparameters", "no.json"], ["no.json"]),
    ],
)  # fmt: skip
def test_wrong_names_are_one_line(
    layout: Layout, tiny: str, arguments: list[str], parts: list[str]
) -> None:
    before = visible_files(layout.root)
    refused(run(train, *arguments), *parts)
    assert visible_files(layout.root) == before


def test_an_encoder_out_of_reach_is_one_line_with_three_ways_out(
    layout: Layout, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # read once; unreachable either way
    result = run(train, "-m", "db_bhcn", "-d", tiny, "--encoder", "nobody/no-such-encoder")
    refused(result, "'nobody/no-such-encoder'", "--encoder minilm", "config.json", "HF_HOME")
    refused(run(train, "-m", "db_bhcn", "-d", tiny, "--encoder", "./nowhere"), "./nowhere")
    assert not layout.weights.exists()


def test_all_mistyped_hyperparameters_in_one_line(
    layout: Layout, tiny: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"tfidf_lsgd": {"alpa": 1, "max_iter": "many", "min_df": -1}}')
    result = run(train, "-m", "tfidf_lsgd", "-d", tiny, "--hyperparameters", str(path))
    refused(result, "did you mean 'alpha'", "max_iter = 'many'", "min_df = -1")
    assert not layout.weights.exists()


def test_no_dataset_is_a_usage_error(layout: Layout) -> None:
    assert run(train, "-m", "tfidf_lsgd").exit_code == 2


def test_resuming_models_that_train_in_one_go_starts_again(layout: Layout, tiny: str) -> None:
    for _ in range(2):
        result = run(train, "-m", "tfidf_lsgd", "-d", tiny, "--resume")
        assert result.exit_code == 0, result.output
        assert "Nothing to resume" in result.output


def test_weights_that_cannot_be_written(layout: Layout, tiny: str) -> None:
    layout.weights.write_text("a file in the way")
    refused(run(train, "-m", "tfidf_lsgd", "-d", tiny), "Cannot write", "weights")


def test_exporting_nothing_is_an_error(layout: Layout, tiny: str) -> None:
    # trap: with nothing to export it said "Finished!"
    refused(run(export), "Nothing trained", "train.py")
    refused(run(export, "-m", "tfidf_lsgd", "-d", tiny, "--bento"), "no weights", "train.py")
    refused(run(export, "-m", "tfidf_lsgt"), "Did you mean 'tfidf_lsgd'?")
    assert not layout.build.exists()
    assert not layout.outputs.exists()


def test_a_time_that_no_run_has(layout: Layout, tiny: str) -> None:
    assert run(train, "-m", "tfidf_lsgd", "-d", tiny).exit_code == 0
    result = run(export, "-m", "tfidf_lsgd", "-d", tiny, "--bento", "-t", "1999")
    refused(result, "1999", "Its runs: 20")


def test_a_damaged_checkpoint_is_not_exported(layout: Layout, tiny: str) -> None:
    assert run(train, "-m", "tfidf_lsgd", "-d", tiny).exit_code == 0
    (checkpoint,) = layout.weight_dir("tfidf_lsgd", tiny).glob("best_*.pt")
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    refused(run(export, "-m", "tfidf_lsgd", "-d", tiny, "--bento"), "damaged")
    assert not layout.build.exists()


def test_works_from_any_folder_and_writes_only_below_the_root(tmp_path: Path) -> None:
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "root"
    elsewhere.mkdir()
    write_tiny_dataset(Layout(root), "tiny")
    command = [sys.executable, str(PROJECT_ROOT / "train.py"), "-m", "tfidf_hsgd", "-d", "tiny"]
    environment = os.environ | {"KTT_ROOT": str(root), "HOME": str(elsewhere)}
    done = subprocess.run(
        command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert visible_files(elsewhere) == []
    assert any(name.startswith("weights/tfidf_hsgd/tiny/best_") for name in visible_files(root))
    assert "\x1b" not in done.stdout, "no colours or bars where there is no terminal"
    assert done.stderr == ""


def test_rows_of_a_class_that_train_never_saw_do_not_win(layout: Layout) -> None:
    """A split of the user's own may leave classes out of train: they must not win by default."""
    texts, paths = tiny_rows(140)
    dataset = write_rows(
        layout, "unseen", [*texts, *[f"rare {k}" for k in range(7)]], [*paths, *[("Rare",)] * 7]
    )
    keep = [row for row, text in enumerate(dataset.train.texts) if not text.startswith("rare")]
    train_rows = dataset.train.take(keep)
    for name in ("tfidf_lsgd", "tfidf_hsgd"):
        cls = model_class(name)
        model = cls(dataset.hierarchy, cls.Config())
        list(model.fit(train_rows, dataset.val, epochs=None, seed=0))
        found = model.predict(["", "unknown words only", *dataset.test.texts])
        assert "Rare" not in {model.hierarchy.label(int(node)) for node in found.ends}


def test_a_level_that_no_test_row_reaches_is_no_obstacle(layout: Layout) -> None:
    texts, paths = tiny_rows(140)
    write_rows(layout, "deep", [*texts, "one deep row"], [*paths, ("Toys", "Cars", "Red", "Small")])
    result = run(train, "-m", "tfidf_lsgd,tfidf_hsgd", "-d", "deep", "-r")
    assert result.exit_code == 0, result.output
    (report,) = layout.weight_dir("tfidf_lsgd", "deep").glob("*_metrics.json")
    assert "level_4_accuracy" not in json.loads(report.read_text())["test"]
    assert run(export, "--bento").exit_code == 0


def test_a_bug_in_one_pair_does_not_lose_the_others(
    layout: Layout, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(model_class("tfidf_lsgd"), "fit", broken)
    result = run(train, "-m", "tfidf_lsgd,tfidf_hsgd", "-d", tiny)
    assert result.exit_code == 1
    assert "ZeroDivisionError" in result.stderr
    assert "1 of 2 failed: tfidf_lsgd" in result.stderr
    assert list(layout.weight_dir("tfidf_hsgd", tiny).glob("best_*.pt"))
    with pytest.raises(ZeroDivisionError):
        CliRunner().invoke(train.main, ["-m", "tfidf_lsgd", "-d", tiny], catch_exceptions=False)


def test_two_trainings_at_once_are_two_runs(layout: Layout, tiny: str) -> None:
    command = [sys.executable, str(PROJECT_ROOT / "train.py"), "-m", "tfidf_lsgd", "-d", tiny]
    running = [
        subprocess.Popen([*command, "--seed", str(seed)], stdout=subprocess.DEVNULL)
        for seed in (1, 2)
    ]
    assert [process.wait() for process in running] == [0, 0]
    reports = list(layout.weights.rglob("*_metrics.json"))
    assert {json.loads(path.read_text())["info"]["seed"] for path in reports} == {1, 2}


def test_another_datasets_checkpoint_is_not_exported(layout: Layout, tiny: str) -> None:
    assert run(train, "-m", "tfidf_lsgd", "-d", tiny).exit_code == 0
    write_tiny_dataset(layout, "other", seed=1)
    shutil.copytree(layout.weight_dir("tfidf_lsgd", tiny), layout.weight_dir("tfidf_lsgd", "other"))
    result = run(export, "-m", "tfidf_lsgd", "-d", "other", "--bento")
    refused(result, "was trained on dataset 'tiny', not on 'other'")
    refused(run(export, "-d", "nobodys", "--bento"), "Unknown trained dataset 'nobodys'")


def test_blocks_of_unknown_models_are_mistakes(layout: Layout, tiny: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"tfidf_lgsd": {"min_df": 3}}')
    result = run(train, "-m", "tfidf_lsgd", "-d", tiny, "--hyperparameters", str(path))
    refused(result, "mine.json: 'tfidf_lgsd'", "Did you mean 'tfidf_lsgd'?")


def test_a_reference_set_without_test_rows_is_refused_before_training(layout: Layout) -> None:
    write_rows(layout, "few", ["a b", "c d", "e f"], [("A",), ("B",), ("C",)])
    refused(run(train, "-m", "tfidf_lsgd", "-d", "few", "-r"), "test rows", "'few'")
    assert not layout.weights.exists()


def test_options_without_a_meaning_are_told(layout: Layout, tiny: str) -> None:
    result = run(train, "-m", "tfidf_lsgd", "-d", tiny, "-e", "3", "--encoder", "minilm")
    assert result.exit_code == 0
    assert "--encoder has no meaning for tfidf_lsgd" in result.output
    assert "-e has no meaning for tfidf_lsgd" in result.output
