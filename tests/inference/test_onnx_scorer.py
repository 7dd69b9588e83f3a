from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from models.db_bhcn.db_bhcn import DB_BHCN, BHCNConfig
from tests.support.tiny import tiny_rows, write_tiny_dataset
from tests.support.tiny_encoder import tiny_encoder
from utils.common.errors import UserError
from utils.common.files import read_json
from utils.common.paths import PROJECT_ROOT, Layout
from utils.export import validation
from utils.hierarchy.dataset import Dataset
from utils.inference import onnx_scorer
from utils.inference.classifier import Classifier
from utils.inference.onnx_scorer import OnnxScorer, open_session, thread_count

ODD = ["", " ", "\ud83d", "żółć 猫 🙂", "x" * 100_000, "wash " * 1000, "\x00"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_tiny_dataset(Layout(tmp_path_factory.mktemp("project")), "tiny")


@pytest.fixture(scope="module", params=["distilbert", "bert"])
def model(
    request: pytest.FixtureRequest, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> DB_BHCN:
    folder = tiny_encoder(tmp_path_factory.mktemp("encoder"), request.param)
    pooling = "mean" if request.param == "bert" else "auto"
    config = BHCNConfig(encoder=str(folder), max_len=16, encoder_lr=1e-3, pooling=pooling)
    model = DB_BHCN(dataset.hierarchy, config)
    for _ in model.fit(dataset.train, dataset.val, epochs=1, seed=0):
        pass
    return model


@pytest.fixture(scope="module")
def exported(model: DB_BHCN, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outputs") / "db_bhcn_tiny"
    model.export_onnx(folder, 17)
    return folder


def test_the_folder_holds_what_a_consumer_needs(exported: Path) -> None:
    found = {str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()}
    assert found == {
        "model.onnx", "encoder/encoder.onnx", "classifier/classifier.onnx", "tokenizer.json",
        "hierarchy.json", "manifest.json",
    }  # fmt: skip
    manifest = read_json(exported / "manifest.json")
    assert manifest["opset"] == 17
    assert manifest["scorer"]["kind"] == "onnx"
    assert manifest["scorer"]["max_len"] == 16
    assert str(exported.parent) not in (exported / "manifest.json").read_text()


@pytest.mark.parametrize(("batch", "words"), [(1, 1), (1, 6), (2, 1), (2, 6), (7, 1), (7, 6)])
def test_graphs_equal_torch(model: DB_BHCN, exported: Path, batch: int, words: int) -> None:
    texts = [" ".join(text.split()[:words]) for text in tiny_rows(batch, seed=batch)[0]]
    scorer = OnnxScorer.load(exported, read_json(exported / "manifest.json")["scorer"])
    scores, features = scorer.score(texts)
    ((wanted, pooled),) = model.score_batches(texts)
    np.testing.assert_allclose(scores, wanted, atol=1e-4)
    np.testing.assert_allclose(features, pooled, atol=1e-4)
    assert (scores.argmax(1) == wanted.argmax(1)).all()


def test_encoder_and_classifier_in_a_row_equal_the_whole(model: DB_BHCN, exported: Path) -> None:
    ids, mask = model.tokenizer(["wash foam", "pretty skin shine"]).padded(np.arange(2))
    inputs = {"input_ids": ids, "attention_mask": mask}
    (encoded,) = open_session(exported / "encoder" / "encoder.onnx").run(None, inputs)
    parts = open_session(exported / "classifier" / "classifier.onnx").run(
        None, {"encoded": encoded}
    )
    whole = open_session(exported / "model.onnx").run(None, inputs)
    for part, want in zip(parts, whole, strict=True):
        np.testing.assert_allclose(part, want, atol=1e-4)


def test_answers_equal_those_of_test(model: DB_BHCN, exported: Path, dataset: Dataset) -> None:
    texts = [*ODD, *dataset.test.texts, *dataset.train.texts]
    found, _, _ = Classifier.load(exported).predict(texts)
    wanted = model.predict(texts)
    assert (found.ends == wanted.ends).all()
    np.testing.assert_allclose(found.confidence, wanted.confidence, atol=1e-4)


def test_order_and_neighbours_do_not_matter(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = OnnxScorer.load(exported, read_json(exported / "manifest.json")["scorer"])
    texts = [*ODD, *tiny_rows(40)[0]]
    whole, _ = scorer.score(texts)
    np.testing.assert_allclose(scorer.score(texts[::-1])[0][::-1], whole, atol=1e-5)
    monkeypatch.setattr(onnx_scorer, "MICRO_BATCH", 3)
    np.testing.assert_allclose(scorer.score(texts)[0], whole, atol=1e-5)
    scores, features = scorer.score([])
    assert scores.shape == (0, whole.shape[1])
    assert len(features) == 0


@pytest.mark.parametrize("opset", [11, 13, 14, 20])
def test_other_operator_sets(model: DB_BHCN, tmp_path: Path, opset: int) -> None:
    model.export_onnx(tmp_path / "out", opset)
    assert model.network.encoder.transformer.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("opset", [10, 21])
def test_operator_sets_that_cannot_be(model: DB_BHCN, tmp_path: Path, opset: int) -> None:
    with pytest.raises(UserError, match=f"--opset {opset} .* 11 to 20"):
        model.export_onnx(tmp_path / "out", opset)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_differs_leaves_nothing(
    model: DB_BHCN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "TOLERANCE", -1.0)
    with pytest.raises(UserError, match="differs from the model"):
        model.export_onnx(tmp_path / "out", 17)
    assert list(tmp_path.iterdir()) == []


def test_exporting_says_nothing(
    model: DB_BHCN, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model.export_onnx(tmp_path / "out", 17)
    assert capfd.readouterr() == ("", "")


def test_serving_needs_neither_torch_nor_transformers(exported: Path, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "from utils.inference.classifier import Classifier\n"
        f"answers = Classifier.load(pathlib.Path({str(exported)!r})).answer(['wash foam'])\n"
        "print(answers[0].path)\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(PROJECT_ROOT)},
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stderr == ""


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KTT_THREADS", raising=False)
    assert thread_count() >= 1
    monkeypatch.setenv("KTT_THREADS", "3")
    assert thread_count() == 3
    for wrong in ("0", "-1", "many", "99999", "1" * 5000):
        monkeypatch.setenv("KTT_THREADS", wrong)
        with pytest.raises(UserError, match="KTT_THREADS"):
            thread_count()


def test_no_graph_there(tmp_path: Path) -> None:
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    for name in ("junk.onnx", "none.onnx"):
        with pytest.raises(UserError, match="cannot be opened"):
            open_session(tmp_path / name)
