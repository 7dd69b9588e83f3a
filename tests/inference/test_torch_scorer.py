"""A bundle's model as TorchScript: it answers as the ONNX graph does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from export import main
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

TEXTS = [*ODD_TEXTS, "wash " * 2000, *tiny_rows(60, seed=3)[0]]
KINDS = {name: "bert" for name in MODELS if name.startswith("db_")} | {
    "db_linear": "roberta", "db_bhcn": "distilbert"
}  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_tiny_dataset(Layout(tmp_path_factory.mktemp("project")), "tiny")


@pytest.fixture(scope="module", params=sorted(KINDS))
def model(
    request: pytest.FixtureRequest, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Model:
    encoder = tiny_encoder(tmp_path_factory.mktemp("encoder"), KINDS[request.param])
    trained: Model = train(request.param, dataset, quick(request.param, encoder))
    return trained


@pytest.fixture(scope="module")
def folders(
    model: Model, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("exports")
    evidence = Evidence(rows=dataset.val, origin="validation rows of tiny")
    for runtime in ("onnx", "torch"):
        model.export_classifier(base / runtime, runtime=runtime, evidence=evidence)
    return {runtime: base / runtime for runtime in ("onnx", "torch")}


def test_answers_are_those_of_the_graph(folders: dict[str, Path]) -> None:
    onnx, torch_ = (Classifier.load(folders[runtime]) for runtime in ("onnx", "torch"))
    for batch in (1, 7, len(TEXTS)):
        want, scores, features = onnx.predict(TEXTS[-batch:])
        have, own_scores, own_features = torch_.predict(TEXTS[-batch:])
        assert (have.ends == want.ends).all()
        np.testing.assert_allclose(own_scores, scores, atol=1e-4, rtol=1e-4)
        np.testing.assert_allclose(own_features, features, atol=1e-4, rtol=1e-4)
    assert torch_.answer([]) == []
    assert len(torch_.scorer.score([])[0]) == 0


def test_its_folder_says_what_it_is(folders: dict[str, Path]) -> None:
    names = {path.name for path in folders["torch"].iterdir()}
    assert names == {
        "model.torchscript", "tokenizer.json", "hierarchy.json", "service.json", "manifest.json",
    }  # fmt: skip
    assert Classifier.load(folders["torch"]).service.runtime == "torch"
    manifest = read_json(folders["torch"] / "manifest.json")
    assert manifest["parity"]["model.torchscript"]["largest_gap"] <= validation.TOLERANCE
    assert manifest["opset"] is None
    assert str(PROJECT_ROOT).encode() not in (folders["torch"] / "model.torchscript").read_bytes()


@pytest.mark.filterwarnings("ignore:.*torch.jit.load:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.load:DeprecationWarning")
def test_no_device_is_fixed_in_the_script(folders: dict[str, Path]) -> None:
    """A trace writes down where tensors are made; numbers alone may stand on the CPU."""
    script: Any = torch.jit.load(str(folders["torch"] / "model.torchscript"))
    graph = script.inlined_graph
    constants = [node.output() for node in graph.findAllNodes("prim::Constant")]
    assert "DeviceObjType" not in {value.type().kind() for value in constants}
    tensors = [value.toIValue() for value in constants if value.type().kind() == "TensorType"]
    assert all(tensor.dim() == 0 for tensor in tensors)


# -- what is alike for all of them ---------------------------------------------------------


@pytest.fixture(scope="module")
def one(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Model:
    encoder = tiny_encoder(tmp_path_factory.mktemp("encoder"), "distilbert")
    trained: Model = train("db_linear", dataset, quick("db_linear", encoder))
    return trained


@pytest.fixture(scope="module")
def its_folders(one: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("exports")
    for runtime in ("onnx", "torch"):
        one.export_classifier(base / runtime, runtime=runtime)
    return {runtime: base / runtime for runtime in ("onnx", "torch")}


def test_a_script_that_differs_is_an_error_and_nothing_is_left(
    one: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = one.write_script

    def wrong(folder: Path) -> dict[str, Any]:
        weight = next(p for p in one.network.scoring.parameters() if p.dim() == 2)  # type: ignore[attr-defined]
        with torch.no_grad():
            weight.mul_(2)
            entry = write(folder)
            weight.div_(2)
        return entry

    monkeypatch.setattr(one, "write_script", wrong)
    with pytest.raises(UserError, match="model.torchscript differs from the model"):
        one.export_classifier(tmp_path / "out", runtime="torch")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_one_line(its_folders: dict[str, Path], tmp_path: Path) -> None:
    from utils.inference.torch_scorer import TorchScorer

    entry = read_json(its_folders["torch"] / "manifest.json")["scorer"]
    (tmp_path / "tokenizer.json").write_bytes(
        (its_folders["torch"] / "tokenizer.json").read_bytes()
    )
    (tmp_path / "model.torchscript").write_bytes(b"junk")
    with pytest.raises(UserError, match="cannot be opened"):
        TorchScorer.load(tmp_path, entry)


def test_int8_is_of_the_other_runtime(one: Model, tmp_path: Path, dataset: Dataset) -> None:
    rows = Evidence(rows=dataset.val, origin="x")
    with pytest.raises(UserError, match="--quantize int8 is of ONNX graphs"):
        one.export_classifier(tmp_path / "o", runtime="torch", quantize="int8", evidence=rows)


def test_a_half_that_decides_otherwise_is_not_used(
    one: Model, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evidence = Evidence(rows=dataset.val, origin="x")
    for asked, used in ((0.0, True), (1.1, None)):
        monkeypatch.setattr(validation, "EQUAL_DECISIONS", asked)
        monkeypatch.setattr(validation, "ACCURACY_LOSS", 1.0)
        one.export_classifier(tmp_path / "out", runtime="torch", evidence=evidence)
        assert read_json(tmp_path / "out" / "manifest.json")["scorer"].get("half") is used


@pytest.mark.parametrize("runtime", ["onnx", "torch"])
def test_each_runtime_leaves_the_others_library_alone(
    its_folders: dict[str, Path], runtime: str, tmp_path: Path
) -> None:
    code = (
        "import sys, pathlib\n"
        "from utils.inference.classifier import Classifier\n"
        f"Classifier.load(pathlib.Path({str(its_folders[runtime])!r})).observe(['wash foam'])\n"
        "names = ('torch', 'onnxruntime', 'transformers')\n"
        "print([name for name in names if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True,
        env={"PYTHONPATH": str(PROJECT_ROOT)},
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.strip() == str([{"onnx": "onnxruntime", "torch": "torch"}[runtime]])


def test_tfidf_models_have_no_such_runtime(dataset: Dataset, tmp_path: Path) -> None:
    for name in sorted(set(MODELS) - set(KINDS)):
        trained = train(name, dataset, quick(name, tmp_path))
        with pytest.raises(UserError, match=f"{name} has no --runtime torch"):
            trained.export_classifier(tmp_path / "out", runtime="torch")
    assert list(tmp_path.iterdir()) == []


def test_it_is_of_bundles(layout: Layout) -> None:
    done = CliRunner().invoke(main, ["--runtime", "torch"])
    assert done.exit_code == 1
    assert "add --bento" in done.output


@pytest.mark.parametrize("bundle", ["--bento", "--monitoring"])
def test_an_operator_set_is_of_graphs(layout: Layout, bundle: str) -> None:
    arguments = ["--runtime", "torch", bundle, "--opset", "11"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: --opset 11 is of ONNX graphs: ")
    for allowed in ([*arguments, "--onnx"], arguments[:3]):
        assert "Nothing trained" in CliRunner().invoke(main, allowed).stderr
