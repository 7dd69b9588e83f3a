"""Cases of users that concern monitoring, where they are there: ``../shared/cases``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import adapt
import export
import train
from monitor_metrics import top_shares
from monitor_reference import load_setup
from utils.common.paths import PROJECT_ROOT, Layout
from utils.inference.classifier import Classifier
from utils.serving.observation import Watch

pytest.importorskip("ktt_bentoml_compat", reason="pip install ./packages/bentoml-py311")
CASES = PROJECT_ROOT.parent / "shared" / "cases"
MODEL = "tfidf_hsgd"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases")


def trained(layout: Layout, table: Path, *options: str) -> Layout:
    for command, arguments in (
        (adapt.main, ["flat", str(table), "case", *options]),
        (train.main, ["-m", MODEL, "-d", "case", "-r"]),
    ):
        result = CliRunner().invoke(command, arguments)
        assert result.exit_code == 0, result.output
    return layout


def exported() -> Result:
    return CliRunner().invoke(export.main, ["-m", MODEL, "-d", "case", "--monitoring"])


def test_a_reference_set_that_is_too_small_is_refused(layout: Layout) -> None:
    table = CASES / "too_small_reference" / "t.csv"
    trained(layout, table, "-t", "text", "-c", "label")
    result = exported()
    assert result.exit_code == 1
    assert "a reference set of 20 rows or more" in result.output.splitlines()[-1]
    assert "Start it" not in result.output
    assert not layout.bundle(MODEL, "case").exists()


def test_a_class_called_other_is_told_from_the_others(layout: Layout) -> None:
    table = CASES / "class_called_other" / "t.jsonl"
    trained(layout, table, "-t", "text", "-c", "path")
    result = exported()
    assert result.exit_code == 0, result.output
    folder = layout.bundle(MODEL, "case")
    (found,) = folder.glob("inference/**/hierarchy.json")
    classifier = Classifier.load(found.parent)
    texts = [json.loads(row)["text"] for row in table.read_text().splitlines()]
    tops = [answer.path[0] for answer in classifier.answer(texts)]
    watch = Watch(classifier)
    watch.answer(texts, [f"{number:032x}" for number in range(len(texts))])
    assert watch.reporter is not None
    watch.reporter.close()
    value = watch.metrics.registry.get_sample_value
    shown = sorted(path[0] for path in watch.paths if len(path) == 1)[:50]
    assert value("ktt_answers_total", {"top": "other"}) == tops.count("other") > 10
    rest = sum(top not in shown for top in tops)
    assert value("ktt_answers_total", {"top": "(other)"}) == rest > 100

    setup = load_setup(folder / "monitoring")
    shares = top_shares(setup.reference, setup.columns.tree)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["other"] < shares["(other)"]
