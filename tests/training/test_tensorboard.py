"""TensorBoard event files: every epoch once, whatever happened in between."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import train
from tests.support.tiny_encoder import tiny_encoder
from utils.common.files import atomic_dir
from utils.common.paths import PROJECT_ROOT, Layout
from utils.store import Store
from utils.training import tensorboard

HISTORY = [
    {"epoch": k, "seconds": 2.0, "loss": 1.0 / k, "leaf_accuracy": k / 10} for k in range(1, 5)
]


def write(folder: Path, before: int, after: int) -> None:
    """Track the epochs from `before` to `after`, as a process that was resumed does."""
    with tensorboard.tracker(folder, HISTORY[:before]) as track:
        for entry in HISTORY[before:after]:
            track(entry)


def steps(folder: Path, tag: str = "val/leaf_accuracy") -> list[int]:
    return sorted(step for step, name, _ in tensorboard.read_events(folder) if name == tag)


def test_figures_are_read_back_as_tensorboard_reads_them(tmp_path: Path) -> None:
    write(tmp_path, 0, 3)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(tmp_path))
    reader.Reload()
    assert set(reader.Tags()["scalars"]) == {"train/seconds", "train/loss", "val/leaf_accuracy"}
    found = [(event.step, event.value) for event in reader.Scalars("train/loss")]
    assert found == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]


def test_a_resumed_run_appends_and_repeats_nothing(tmp_path: Path) -> None:
    write(tmp_path, 0, 2)
    write(tmp_path, 1, 4)  # the checkpoint was older than the events
    assert steps(tmp_path) == [1, 2, 3, 4]
    write(tmp_path, 4, 4)
    assert steps(tmp_path) == [1, 2, 3, 4]


def test_what_a_crash_left_out_or_cut_off_is_written_on_resuming(tmp_path: Path) -> None:
    write(tmp_path, 0, 2)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-7])
    assert steps(tmp_path) == [1]
    write(tmp_path, 3, 4)
    assert steps(tmp_path) == [1, 2, 3, 4]


def test_nothing_to_track_writes_nothing(tmp_path: Path) -> None:
    write(tmp_path / "run", 0, 0)
    assert not (tmp_path / "run").exists()


def test_without_the_package_there_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing", None)
    tensorboard._available.cache_clear()
    with caplog.at_level(logging.WARNING):
        write(tmp_path / "a", 0, 3)
        write(tmp_path / "b", 0, 3)
    tensorboard._available.cache_clear()
    assert len(caplog.records) == 1
    assert "pip install tensorboard" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    write(tmp_path / "file" / "run", 0, 3)
    assert len(caplog.records) == 1
    assert "not written any more" in caplog.text


def test_writing_events_imports_no_torch() -> None:
    code = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1])\n"
        "from utils.training.tensorboard import tracker\n"
        "assert 'tensorboard' not in sys.modules, 'imported before it is needed'\n"
        "with tracker(pathlib.Path(sys.argv[2]), [{'epoch': 1, 'loss': 1.0}]): pass\n"
        "assert 'tensorboard' in sys.modules\n"
        "assert not {'torch', 'tensorflow'} & set(sys.modules)\n"
    )
    folder = "/dev/null/nowhere"
    subprocess.run([sys.executable, "-c", code, str(PROJECT_ROOT), folder], check=True)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(train.main, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


def test_history_and_events_of_a_resumed_run_are_those_of_a_whole_one(
    layout: Layout, tiny: str
) -> None:
    settings = {"encoder": str(tiny_encoder(layout.root)), "max_len": 16, "epochs": 1}
    (layout.root / "hyperparameters.json").write_text(json.dumps({"db_bhcn": settings}))
    run("-m", "db_bhcn", "-d", tiny)
    run("-m", "db_bhcn", "-d", tiny, "--resume", "-e", "3")
    (path,) = layout.weights.rglob("*_metrics.json")
    history = json.loads(path.read_text())["info"]["history"]
    assert [entry["epoch"] for entry in history] == [1, 2, 3]
    assert all({"seconds", "loss", "nll", "leaf_accuracy"} <= set(entry) for entry in history)
    (folder,) = (layout.output("db_bhcn", tiny) / "tensorboard").iterdir()
    assert f"best_{folder.name}_metrics.json" == path.name
    assert len(list(folder.iterdir())) == 2
    assert steps(folder) == [1, 2, 3]
    losses = [value for _, tag, value in tensorboard.read_events(folder) if tag == "train/loss"]
    assert losses == pytest.approx([entry["loss"] for entry in history])


def test_the_report_tells_of_the_epochs_that_were_run(layout: Layout, tiny: str) -> None:
    """Whether -e, --resume or `patience` decided how many."""
    settings = {"encoder": str(tiny_encoder(layout.root)), "max_len": 16, "epochs": 3}
    file = layout.root / "hyperparameters.json"
    file.write_text(json.dumps({"db_bhcn": settings}))

    def found() -> tuple[int, int, list[int], str]:
        path = max(layout.weights.rglob("*_metrics.json"))
        facts = json.loads(path.read_text())
        stored = Store(layout).get(f"db_bhcn_{tiny}").info.hyperparameters["epochs"]
        page = layout.report("db_bhcn", tiny).read_text()
        run = re.search(r"<dt>epochs run</dt><dd>(.*?)</dd>", page)
        epochs = [entry["epoch"] for entry in facts["info"]["history"]]
        assert run
        return facts["config"]["epochs"], stored, epochs, run[1]

    run("-m", "db_bhcn", "-d", tiny, "-e", "1")
    assert found() == (1, 1, [1], "1")
    output = run("-m", "db_bhcn", "-d", tiny, "--resume", "-e", "2")
    assert "after epoch 1 of 2" in output
    assert found() == (2, 2, [1, 2], "2")
    steady = {"patience": 1, "encoder_lr": 0.0, "classifier_lr": 1e-12, "epochs": 9}
    file.write_text(json.dumps({"db_bhcn": settings | steady}))
    run("-m", "db_bhcn", "-d", tiny)
    asked, stored, epochs, said = found()
    assert (asked, stored) == (9, 9)
    assert len(epochs) < 9
    assert said.startswith(f"{len(epochs)} of at most 9")


def test_a_run_goes_on_for_as_long_as_it_was_asked_to(layout: Layout, tiny: str) -> None:
    """The number of epochs of the first command counts, as -e of a later one does."""
    settings = {"encoder": str(tiny_encoder(layout.root)), "max_len": 16, "epochs": 1}
    (layout.root / "hyperparameters.json").write_text(json.dumps({"db_bhcn": settings}))
    run("-m", "db_bhcn", "-d", tiny, "-e", "2")
    (path,) = layout.weights.rglob("*_metrics.json")
    path.unlink()  # as if it had been stopped before its end
    assert "after epoch 2 of 2" in run("-m", "db_bhcn", "-d", tiny, "--resume")
    assert json.loads(path.read_text())["config"]["epochs"] == 2


def test_an_export_keeps_what_the_training_wrote_and_the_reverse(layout: Layout, tiny: str) -> None:
    from utils.common import outputs

    run("-m", "tfidf_lsgd", "-d", tiny)
    folder = layout.output("tfidf_lsgd", tiny)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {file.relative_to(folder).parts[0] for file in before} == set(outputs.TRAINED)
    (folder / "old.onnx.dvc").write_text("a pointer")
    for name in ("old.onnx", "new.onnx"):
        with atomic_dir(folder, keep=outputs.kept(folder)) as temporary:
            (temporary / name).write_text(name)
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(path.name for path in folder.iterdir()) == [
        "metrics.json", "new.onnx", "old.onnx.dvc", "plots", "report.html", "tensorboard",
    ]  # fmt: skip
    run("-m", "tfidf_lsgd", "-d", tiny)
    assert (folder / "new.onnx").read_text() == "new.onnx"
    assert len(list((folder / "tensorboard").iterdir())) == 2
