"""The docs hold what they say."""

from __future__ import annotations

import re
import runpy
from ast import literal_eval
from dataclasses import replace
from pathlib import Path

import pytest

from models import MODELS, model_class
from tests.support.stores import tiny_model
from tests.support.tiny import write_tiny_dataset
from tests.support.tiny_encoder import tiny_encoder
from utils.common.config import build_config
from utils.common.paths import PROJECT_ROOT, Layout
from utils.hierarchy.confidence import LevelMap
from utils.inference.classifier import Classifier
from utils.store import Store

PAGES = [PROJECT_ROOT / "README.md", *sorted((PROJECT_ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_every_page_is_reached_from_the_readme() -> None:
    text = PAGES[0].read_text(encoding="utf-8")
    for page in PAGES[1:]:
        assert f"docs/{page.name}" in text, page.name


def test_the_readme_names_every_model() -> None:
    assert all(f"`{name}`" in PAGES[0].read_text(encoding="utf-8") for name in MODELS)


@pytest.mark.parametrize("name", ["db_bhcn", "tfidf_hsgd", "tfidf_lsgd"])
def test_the_onnx_examples_answer_as_the_service_does(
    name: str, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = write_tiny_dataset(layout, "shop")
    cls = model_class(name)
    neural = name.startswith("db_")
    values = {"encoder": str(tiny_encoder(tmp_path)), "max_len": 8, "epochs": 1} if neural else {}
    model = cls(dataset.hierarchy, build_config(cls.Config, values, "x"))
    list(model.fit(dataset.train, dataset.val, epochs=None, seed=0))
    levels = (LevelMap(a=0.6, c=1.4, b=0.5), LevelMap(a=1.2, c=0.3), LevelMap(b=0.1))
    model.calibration = replace(model.calibration, levels=levels[: model.tree.depth])
    folder = layout.output(name, "shop")
    model.export_onnx(folder, 17)
    page = (PROJECT_ROOT / "docs" / "onnx.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(examples) == 3
    monkeypatch.chdir(layout.root)
    names: dict[str, object] = {}
    exec(examples[0], names)
    exec(examples[1 if neural else 2].replace("tfidf_hsgd", name), names)
    classify = names["classify"]
    assert callable(classify)
    texts = [*dataset.test.texts[:20], "wash " * 50, "zzz"]
    for text, answer in zip(texts, Classifier.load(folder).answer(texts), strict=True):
        label, probability = classify(text)
        assert label == " > ".join(answer.path)
        assert probability == pytest.approx(answer.confidence, abs=1e-4)


def test_the_runner_example_runs(
    layout: Layout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model(layout, dataset="shop")
    Store(layout).save_model(model)
    page = (PROJECT_ROOT / "docs" / "runner.md").read_text(encoding="utf-8")
    script = page.split("```python\n")[1].split("```")[0]
    file = tmp_path / "ask.py"
    file.write_text(script.replace("db_bhcn", "tfidf_hsgd"), encoding="utf-8")
    runpy.run_path(str(file), run_name="__main__")
    one, two, confidence, scores, both = capsys.readouterr().out.splitlines()
    assert set(literal_eval(one)) <= set(model.hierarchy.names)
    assert literal_eval(two) == literal_eval(both)
    assert 0 <= float(confidence) <= 1
    assert literal_eval(scores)[0] == 2
