"""evaluate.py: the figures of a test report, for any dataset with the same classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import evaluate
from models import MODELS
from tests.support.tiny import tiny_rows, write_rows
from tests.support.tiny_encoder import tiny_encoder
from tests.test_predict import TIME, refused, train
from utils.common.paths import Layout
from utils.hierarchy.dataset import Split, load_dataset
from utils.hierarchy.metrics import evaluate as figures


def run(*arguments: str, name: str = "tfidf_hsgd") -> Result:
    return CliRunner().invoke(evaluate.main, ["-m", name, "-d", "tiny", *arguments])


def report(result: Result, layout: Layout, stem: str, name: str = "tfidf_hsgd") -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    path = layout.weight_dir(name, "tiny") / f"best_{TIME}_on_{stem}.json"
    assert str(path) in result.output
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.fixture
def model(layout: Layout, tmp_path: Path) -> Any:
    return train(layout, "tfidf_hsgd", "tiny", tmp_path)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_gets_the_figures_of_its_test(
    name: str, layout: Layout, tmp_path: Path
) -> None:
    model = train(layout, name, "tiny", tiny_encoder(tmp_path))
    test = load_dataset(layout, "tiny").test
    found = report(run(name=name), layout, "tiny_test", name)
    assert found["metrics"] == pytest.approx(figures(model.test(test), test.codes), abs=1e-6)
    assert found["split"] == "test"
    assert found["checkpoint"] == f"best_{TIME}.pt"


def test_links_among_the_weights_are_not_written_through(
    layout: Layout, model: Any, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    mine.write_text("precious")
    planted = layout.weight_dir("tfidf_hsgd", "tiny") / f"best_{TIME}_on_tiny_test.json"
    planted.symlink_to(mine)
    assert report(run(), layout, "tiny_test")
    assert mine.read_text() == "precious"
    assert not planted.is_symlink()
    named = tmp_path / "named.json"
    named.symlink_to(mine)
    assert run("-o", str(named)).exit_code == 0
    assert json.loads(mine.read_text())["split"] == "test"


def test_another_dataset_with_classes_in_another_order(layout: Layout, model: Any) -> None:
    texts, paths = tiny_rows(70, seed=9)
    # without its first class, so that codes mean other classes and the tree is less deep
    kept = [row for row, path in enumerate(paths) if path[0] != "Beauty" and len(path) < 3]
    other = write_rows(layout, "other", [texts[i] for i in kept], [paths[i] for i in kept])
    assert other.hierarchy.depth < model.hierarchy.depth
    found = report(run("--on", "other", "--split", "train"), layout, "other_train")["metrics"]
    nodes = [model.hierarchy.label(node) for node in model.predict(other.train.texts).ends]
    truth = [other.hierarchy.label(node) for node in other.hierarchy.end_classes(other.train.codes)]
    hits = [a == b for a, b in zip(nodes, truth, strict=True)]
    assert found["leaf_accuracy"] == pytest.approx(sum(hits) / len(hits))
    assert sum(hits) > 0
    assert found["rows"] == len(hits)


@pytest.mark.parametrize("runtime", ["torch", "onnx"])
def test_rows_that_have_changed_since_the_training_are_warned_of(
    runtime: str, layout: Layout, model: Any
) -> None:
    path = layout.weight_dir("tfidf_hsgd", "tiny") / f"best_{TIME}.pt"
    model.info |= {
        "checkpoint": path.name, "fingerprint": load_dataset(layout, "tiny").fingerprint
    }  # fmt: skip
    model.save(path)
    model.export_classifier(layout.output("tfidf_hsgd", "tiny"))
    assert "other rows" not in run("--runtime", runtime).output
    texts, paths = tiny_rows(70, seed=9)
    write_rows(layout, "tiny", texts, paths)
    assert "dataset 'tiny' has other rows" in run("--runtime", runtime).stderr


def test_the_export_can_be_scored(layout: Layout, model: Any, tmp_path: Path) -> None:
    refused(run("--runtime", "onnx"), "no ONNX export")
    model.info["checkpoint"] = f"best_{TIME}.pt"
    model.export_classifier(layout.output("tfidf_hsgd", "tiny"))
    target = tmp_path / "deep" / "figures.json"
    result = run("--runtime", "onnx", "-o", str(target))
    assert result.exit_code == 0, result.output
    assert "ONNX export" in result.output
    test = load_dataset(layout, "tiny").test
    expected = figures(model.test(test), test.codes)
    assert json.loads(target.read_text())["metrics"] == pytest.approx(expected, abs=1e-4)


def test_rows_of_unknown_classes_can_be_skipped_and_are_counted(layout: Layout, model: Any) -> None:
    """Unknown: a class that the tree has not, below or above one it has, and a new end."""
    texts, paths = tiny_rows(140, seed=9)
    other: dict[tuple[str, ...], tuple[str, ...]] = {
        ("Toys",): ("Toys", "Trains"), ("Beauty", "Brushes"): ("Beauty",),
        ("Beauty", "Equate", "Soap"): ("Fashion", "Equate", "Soap"),
    }  # fmt: skip
    data = write_rows(layout, "other", texts, [other.get(path, path) for path in paths])
    refused(run("--on", "other", "--split", "train"), "'Fashion'", "--skip-unknown")
    result = run("--on", "other", "--split", "train", "--skip-unknown")
    assert result.exit_code == 0, result.output
    (path,) = layout.weights.rglob("*_on_other_train.json")
    found = json.loads(path.read_text())
    labels = [data.hierarchy.label(node) for node in data.hierarchy.end_classes(data.train.codes)]
    unknown = {"Toys > Trains", "Beauty", "Fashion > Equate > Soap"}
    assert found["skipped"]["classes"] == {label: labels.count(label) for label in unknown}
    left = [row for row, label in enumerate(labels) if label not in unknown]
    assert found["skipped"]["rows"] == len(labels) - len(left)
    assert found["metrics"]["rows"] == len(left)
    assert f"Skipped {len(labels) - len(left)} of {len(labels)} rows" in result.output
    nodes = model.predict([data.train.texts[row] for row in left]).ends
    hits = [
        model.hierarchy.label(node) == labels[row] for node, row in zip(nodes, left, strict=True)
    ]
    assert found["metrics"]["leaf_accuracy"] == pytest.approx(sum(hits) / len(hits))


def test_nothing_is_skipped_where_all_is_known_and_nothing_scored_where_none_is(
    layout: Layout, model: Any
) -> None:
    found = report(run("--skip-unknown"), layout, "tiny_test")
    assert found["skipped"] == {"rows": 0, "classes": {}}
    texts, paths = tiny_rows(49)
    write_rows(layout, "foreign", texts, [("X", *path) for path in paths])
    refused(run("--on", "foreign", "--skip-unknown"), "none of the 7 rows", "'foreign'")


def test_mistakes(layout: Layout, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(run("--on", "tinny"), "Unknown dataset 'tinny'", "Did you mean 'tiny'?")
    refused(run(name="tfidf"), "Unknown model 'tfidf'")
    refused(run("--time", "2020"), "no 'best' checkpoint", "2020")
    texts, paths = tiny_rows(49)
    strange = [("Toys", "Trains") if path == ("Toys",) else path for path in paths]
    write_rows(layout, "strange", texts, strange)
    refused(
        run("--on", "strange"), "'Toys > Trains'", "--skip-unknown", "tfidf_hsgd · tiny", "1 such"
    )
    early = [("Beauty",) if path[:2] == ("Beauty", "Brushes") else path for path in paths]
    write_rows(layout, "early", texts, early)
    refused(run("--on", "early"), "'Beauty'", "where no answer may end")
    nothing = Split(texts=[], codes=load_dataset(layout, "tiny").test.codes[:0])
    monkeypatch.setattr("utils.hierarchy.dataset.Dataset.splits", lambda _: {"test": nothing})
    refused(run(), "test split", "no rows")
