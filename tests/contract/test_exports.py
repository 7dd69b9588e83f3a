"""What every registered model's export owes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export import by_small_graph
from models import MODELS
from models.model import Model
from tests.contract.test_models import ODD_TEXTS, quick, train
from tests.support.tiny import tiny_rows, write_tiny_dataset
from tests.support.tiny_encoder import tiny_encoder
from utils.common.errors import UserError
from utils.common.files import read_json
from utils.common.paths import PROJECT_ROOT, Layout
from utils.export import validation
from utils.export.validation import Evidence
from utils.hierarchy.dataset import Dataset
from utils.inference.classifier import Classifier
from utils.inference.onnx_scorer import OnnxScorer, open_session
from utils.inference.scorers import front_end

TEXTS = [*ODD_TEXTS, "\ud83d", "wash " * 2000, *tiny_rows(30, seed=3)[0]]


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return Layout(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def dataset(layout: Layout) -> Dataset:
    return write_tiny_dataset(layout, "tiny")


@pytest.fixture(scope="module", params=sorted(MODELS))
def model(
    request: pytest.FixtureRequest, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Model:
    encoder = tiny_encoder(tmp_path_factory.mktemp("encoder"), "bert")
    trained: Model = train(request.param, dataset, quick(request.param, encoder))
    return trained


@pytest.fixture(scope="module")
def evidence(dataset: Dataset) -> Evidence:
    return Evidence(rows=dataset.val, origin="validation rows of tiny")


@pytest.fixture(scope="module", params=[11, 17])
def exported(
    request: pytest.FixtureRequest,
    model: Model,
    evidence: Evidence,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("outputs") / "export"
    model.export_onnx(folder, request.param, evidence=evidence)
    versions = {x.version for x in onnx.load(folder / "model.onnx").opset_import if not x.domain}
    assert versions == {request.param}
    return folder


def scores_of(model: Model, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    scores, features = zip(*model.score_batches(texts), strict=True)
    return np.concatenate(scores), np.concatenate(features)


def part_scorer(folder: Path) -> OnnxScorer:
    entry = read_json(folder / "manifest.json")["scorer"]
    names = ("encoder/encoder.onnx", "classifier/classifier.onnx")
    graphs = [open_session(folder / name) for name in names if (folder / name).exists()]
    return OnnxScorer(front_end(folder, entry), *graphs)


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("words", [2, 6])
def test_graphs_equal_the_model(model: Model, exported: Path, batch: int, words: int) -> None:
    texts = [" ".join(text.split()[:words]) for text in tiny_rows(batch, seed=batch)[0]]
    wanted = scores_of(model, texts)
    for scorer in (Classifier.load(exported).scorer, part_scorer(exported)):
        for have, want in zip(scorer.score(texts), wanted, strict=True):
            np.testing.assert_allclose(have, want, atol=1e-4, rtol=1e-4)


def test_raw_texts_of_all_kinds_are_decided_alike(model: Model, exported: Path) -> None:
    classifier = Classifier.load(exported)
    found, scores, _ = classifier.predict(TEXTS)
    wanted = model.predict(TEXTS)
    np.testing.assert_allclose(scores, scores_of(model, TEXTS)[0], atol=1e-4, rtol=1e-4)
    assert (found.ends == wanted.ends).all()
    for row in (0, 3, len(TEXTS) - 1):
        alone, _, _ = classifier.predict([TEXTS[row]])
        assert alone.ends[0] == wanted.ends[row]
    assert len(classifier.scorer.score([])[0]) == 0


def test_tokenising_and_scoring_are_two_steps(exported: Path) -> None:
    scorer = Classifier.load(exported).scorer
    assert isinstance(scorer, OnnxScorer)
    rows = scorer.encode(TEXTS)
    assert len(rows) == len(TEXTS)
    for one, other in zip(scorer.run(rows), scorer.score(TEXTS), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_manifest_is_complete_and_its_hashes_are_right(model: Model, exported: Path) -> None:
    manifest = read_json(exported / "manifest.json")
    files = {
        path.relative_to(exported).as_posix(): path
        for path in exported.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
    assert set(manifest["files"]) == set(files)
    assert {"model.onnx", "classifier/classifier.onnx", "hierarchy.json"} <= set(files)
    for name, path in files.items():
        known = manifest["files"][name]
        assert known["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest(), name
        assert known["bytes"] == path.stat().st_size
    assert [tuple(label) for label in manifest["labels"]] == [
        model.hierarchy.path(node) for node in model.tree.ending
    ]
    assert manifest["temperature"] == model.calibration.temperature
    assert manifest["calibration"] == model.calibration.level_values() != []
    assert {"onnx", "onnxruntime", "python", "numpy"} <= set(manifest["versions"])
    assert set(manifest["scorer"]["stages"]) == {"outside", "inside"}
    figures = manifest["parity"]["model.onnx"]
    assert figures["largest_gap"] <= validation.TOLERANCE
    assert figures["equal_decisions"] > 0.99
    assert figures["batch_sizes"][:2] == [1, 7]
    assert manifest["quantization"] is None
    content = (exported / "manifest.json").read_text(encoding="utf-8")
    for place in (PROJECT_ROOT, exported.parent):
        assert str(place) not in content


@pytest.mark.parametrize("name", ["model.onnx", "hierarchy.json", "service.json"])
def test_a_file_that_was_changed_is_not_used(
    model: Model, name: str, tmp_path: Path, evidence: Evidence
) -> None:
    model.export_classifier(tmp_path / "export", evidence=evidence)
    Classifier.load(tmp_path / "export")
    with (tmp_path / "export" / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(UserError, match=f"{name} is not the file"):
        Classifier.load(tmp_path / "export")
    (tmp_path / "export" / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        Classifier.load(tmp_path / "export")


@pytest.mark.parametrize("monitoring", [False, True])
def test_service_json_says_how_it_is_run(
    model: Model, exported: Path, monitoring: bool, tmp_path: Path
) -> None:
    model.info |= {"dataset": "tiny", "checkpoint": "best_2026-01-01T00:00:00.pt"}
    model.export_classifier(tmp_path / "export", monitoring=monitoring)
    said = {"model": model.name, "dataset": "tiny", "checkpoint": model.info["checkpoint"]}
    said |= {"runtime": "onnx", "monitoring": monitoring}
    assert read_json(tmp_path / "export" / "service.json") == said
    assert asdict(Classifier.load(tmp_path / "export").service) == said
    assert not (exported / "service.json").exists()
    assert Classifier.load(exported).service.monitoring is False


def test_an_edited_manifest_is_one_line(model: Model, tmp_path: Path, evidence: Evidence) -> None:
    model.export_classifier(tmp_path / "export", evidence=evidence)
    good = read_json(tmp_path / "export" / "manifest.json")
    changes: list[tuple[str, Any]] = [
        (key, value) for key in ("scorer", "files", "temperature") for value in (None, "x", [], {})
    ]
    changes += [("temperature", value) for value in (0, -1, float("nan"))]
    changes += [("calibration", value) for value in ("x", [[1, 1, 0]], [[1, -1, 0]] * 3)]
    changes += [("files", dict.fromkeys(good["files"], "x"))]
    changes += [
        ("scorer", good["scorer"] | {key: value})
        for key in {"file", "tokenizer", "vocabulary", "max_len", "tfidf"} & set(good["scorer"])
        for value in (-1, ["x"])
    ]
    for key, value in changes:
        path = tmp_path / "export" / "manifest.json"
        path.write_text(json.dumps(good | {key: value}))
        with pytest.raises(UserError, match="Export again"):
            Classifier.load(tmp_path / "export")


def tampered(path: Path, factor: float) -> None:
    """Multiply the largest tensor of a graph's weights."""
    graph = onnx.load(path)
    tensors = [t for t in graph.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    largest = max(tensors, key=lambda tensor: int(np.prod(tensor.dims)))
    array = numpy_helper.to_array(largest) * np.float32(factor)
    largest.CopyFrom(numpy_helper.from_array(array, largest.name))
    onnx.save(graph, path)


@pytest.mark.parametrize("known", [True, False], ids=["validation rows", "generated texts"])
def test_a_graph_that_differs_is_an_error_and_the_older_export_stays(
    model: Model, known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evidence: Evidence
) -> None:
    evidence = evidence if known else validation.NOTHING
    folder = tmp_path / "export"
    model.export_onnx(folder, evidence=evidence)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    write = model.write_graph

    def wrong(folder: Path, opset: int) -> dict[str, Any]:
        entry = write(folder, opset)
        tampered(folder / "model.onnx", 1.5)
        return entry

    monkeypatch.setattr(model, "write_graph", wrong)
    for target in (folder, tmp_path / "other"):
        for export in (model.export_onnx, model.export_classifier):
            with pytest.raises(UserError, match="differs from the model by"):
                export(target, evidence=evidence)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert list(tmp_path.iterdir()) == [folder]


def test_a_part_that_differs_is_an_error(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = model.write_parts

    def wrong(folder: Path, opset: int) -> tuple[str, ...]:
        names = write(folder, opset)
        own = folder / "copy.onnx"  # TF-IDF models: the same file as model.onnx until then
        own.write_bytes((folder / names[-1]).read_bytes())
        tampered(own, 1.5)
        own.replace(folder / names[-1])
        return names

    monkeypatch.setattr(model, "write_parts", wrong)
    with pytest.raises(UserError, match=r"classifier/classifier\.onnx differs"):
        model.export_onnx(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# -- int8 ---------------------------------------------------------------------------------


def loosen_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models this small, hardly trained, flip more decisions than real ones."""
    monkeypatch.setattr(validation, "EQUAL_DECISIONS", 0.5)
    monkeypatch.setattr(validation, "ACCURACY_LOSS", 0.5)


def test_monitoring_compares_8_bit_answers_with_8_bit_answers(
    model: Model,
    layout: Layout,
    dataset: Dataset,
    evidence: Evidence,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loosen_the_gate(monkeypatch)
    monkeypatch.setattr(
        model, "info", {"dataset": dataset.name, "fingerprint": dataset.fingerprint}
    )
    folder = tmp_path / "classifier"
    model.export_classifier(folder, evidence=evidence)
    assert by_small_graph(layout, model, folder) is None
    model.export_classifier(folder, quantize="int8", evidence=evidence)
    found = by_small_graph(layout, model, folder)
    assert found is not None
    answers, _, pooled = Classifier.load(folder).predict(dataset.test.texts)
    np.testing.assert_allclose(found["confidence"], answers.top_probs[:, 0], rtol=1e-5)
    np.testing.assert_allclose(found["0"], pooled[:, 0], rtol=1e-5)
    own = model.gen_reference_set(dataset.test)
    assert own.column_names == found.column_names
    assert not np.allclose(own["confidence"], found["confidence"], rtol=1e-5)
    (layout.dataset(dataset.name) / "test.parquet").rename(tmp_path / "test.parquet")
    try:
        assert by_small_graph(layout, model, folder) is None
    finally:
        (tmp_path / "test.parquet").rename(layout.dataset(dataset.name) / "test.parquet")


def test_int8_is_smaller_and_its_figures_are_in_the_manifest(
    model: Model,
    exported: Path,
    evidence: Evidence,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loosen_the_gate(monkeypatch)
    model.export_onnx(tmp_path / "out", quantize="int8", evidence=evidence)
    manifest = read_json(tmp_path / "out" / "manifest.json")
    assert manifest["quantization"]["type"] == "int8"
    gate = manifest["quantization"]["gate"]
    assert 0.5 <= gate["equal_decisions"] <= 1
    assert {"leaf_accuracy", "leaf_accuracy_of_the_model", "asked"} <= set(gate)
    small, large = tmp_path / "out" / "model.onnx", exported / "model.onnx"
    assert small.stat().st_size < large.stat().st_size
    kinds = {tensor.data_type for tensor in onnx.load(small).graph.initializer}
    assert kinds & {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    parts = onnx.load(tmp_path / "out" / "classifier" / "classifier.onnx").graph.initializer
    assert onnx.TensorProto.INT8 not in {tensor.data_type for tensor in parts}
    Classifier.load(tmp_path / "out").answer(TEXTS)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {p.name for p in exported.iterdir()}


def towards(model: Model, texts: list[str]) -> np.ndarray:
    """What added to scores makes each answer one that the model gave seldom or never."""
    tree, answers = model.tree, model.predict(texts).top[:, 0]
    rare = int(np.bincount(answers, minlength=tree.level_sizes[-1]).argmin())
    bias = np.zeros(scores_of(model, ["x"])[0].shape[1], dtype=np.float32)
    path = tree.path_codes[tree.level_slice(tree.depth - 1)][rare]
    flat = len(bias) == tree.level_sizes[-1]
    bias[rare if flat else path + tree.level_offsets[:-1]] = 1e4
    return bias


def test_int8_that_changes_decisions_is_refused_with_figures(
    model: Model, evidence: Evidence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    model.export_onnx(folder, evidence=evidence)
    before = (folder / "model.onnx").read_bytes()
    quantized = model.quantized
    assert evidence.rows is not None
    bias = towards(model, evidence.rows.texts)

    def bad(source: Path, target: Path) -> Iterator[dict[str, Any]]:
        for how in quantized(source, target):
            spoil(target)
            yield how

    def spoil(target: Path) -> None:
        graph = onnx.load(target)
        last = next(node for node in graph.graph.node if "scores" in node.output)
        last.output[0] = "right"
        graph.graph.initializer.append(numpy_helper.from_array(bias, "bias"))
        graph.graph.node.append(onnx.helper.make_node("Add", ["right", "bias"], ["scores"]))
        onnx.save(graph, target)

    monkeypatch.setattr(model, "quantized", bad)
    figures = (
        r"int8 \([\w ]+\) is not good enough: \d+\.\d\d% of \d+ validation .* 0\.\d{4} → 0\.\d{4}"
    )
    for export in (model.export_onnx, model.export_classifier):
        with pytest.raises(UserError, match=figures) as caught:
            export(folder, quantize="int8", evidence=evidence)
        assert "\n" not in caught.value.message
    assert (folder / "model.onnx").read_bytes() == before
    assert list(tmp_path.iterdir()) == [folder]


def test_every_graph_has_the_operator_set_asked_for(
    model: Model, evidence: Evidence, tmp_path: Path
) -> None:
    model.export_onnx(tmp_path / "out", 12, quantize="int8", evidence=evidence)
    graphs = sorted((tmp_path / "out").rglob("*.onnx"))
    assert len(graphs) >= 2
    for graph in graphs:
        versions = {x.version for x in onnx.load(graph).opset_import if not x.domain}
        assert versions == {12}, graph
    assert read_json(tmp_path / "out" / "manifest.json")["opset"] == 12


def test_int8_without_validation_rows_is_refused(model: Model, tmp_path: Path) -> None:
    reason = Evidence(rows=None, origin="dataset 'tiny' is gone")
    with pytest.raises(UserError, match=r"int8 needs the validation rows .* 'tiny' is gone"):
        model.export_onnx(tmp_path / "out", quantize="int8", evidence=reason)
    assert list(tmp_path.iterdir()) == []
