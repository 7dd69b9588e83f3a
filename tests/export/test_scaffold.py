"""Generated files are fresh, and a new model's folder works."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from models import MODELS
from utils.common.errors import UserError
from utils.common.paths import PROJECT_ROOT
from utils.export.scaffold import KINDS, generated_files, registered, write_model


@pytest.mark.parametrize("name", sorted(MODELS))
def test_generated_files_are_fresh(name: str) -> None:
    class_name, kind = registered()[name]
    for relative, content in generated_files(class_name, kind).items():
        path = PROJECT_ROOT / "models" / name / relative
        assert path.read_text() == content, f"{path} is stale: python -m utils.scaffold --refresh"


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_model_has_a_complete_folder(kind: str, tmp_path: Path) -> None:
    folder = write_model("my_model", "My_Model", kind, tmp_path)
    tree = ast.parse((folder / "my_model.py").read_text())
    assert "My_Model" in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    for file in (
        "__init__.py",
        "bentoml/__init__.py",
        "bentoml/svc_lts.py",
        "bentoml/requirements.txt",
    ):
        assert "{{" not in (folder / file).read_text()
    with pytest.raises(UserError, match="exists"):
        write_model("my_model", "My_Model", kind, tmp_path)
    for wrong in ("my model", "../x", "1st", ""):
        with pytest.raises(UserError, match="Python name"):
            write_model(wrong, "My_Model", kind, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_models_template_trains(kind: str, tmp_path, layout, monkeypatch) -> None:
    import importlib.util
    import sys

    from tests.support.tiny import write_tiny_dataset
    from tests.support.tiny_encoder import tiny_encoder
    from utils.common.config import build_config

    file = write_model("fresh", "Fresh", kind, tmp_path) / "fresh.py"
    spec = importlib.util.spec_from_file_location("models.fresh.fresh", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "models.fresh.fresh", module)
    spec.loader.exec_module(module)
    dataset = write_tiny_dataset(layout, "tiny")
    values = {"encoder": str(tiny_encoder(tmp_path)), "max_len": 16} if kind == "pytorch" else {}
    model = module.Fresh(dataset.hierarchy, build_config(module.Fresh.Config, values, "x"))
    epochs = list(model.fit(dataset.train, dataset.val, epochs=1, seed=0))
    assert epochs[-1].metrics["coherence"] == 1.0
    assert model.name == "fresh"
