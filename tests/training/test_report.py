"""The page about a training."""

from __future__ import annotations

import html.parser
import json
import re
import time
from typing import Any

import numpy as np
import pytest

from tests.support.tiny import columns_of, random_tree
from utils.hierarchy.confidence import Calibration
from utils.hierarchy.dataset import Split
from utils.hierarchy.decode import Predictions, decode
from utils.hierarchy.metrics import class_scores, evaluate
from utils.hierarchy.tree import Hierarchy
from utils.training import report
from utils.training.report import all_labels
from utils.training.svg import Series, line_chart, nice_ticks

EVIL = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>\"'&"
VOID = {"meta", "input", "img", "br", "link"}


class Reader(html.parser.HTMLParser):
    """Collects tags, attributes, scripts and visible text; checks that tags close."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = self.open[-1] if self.open else ""
        if inside == "script":
            self.scripts.append(data)
        elif inside != "style" and data.strip():
            self.text.append(" ".join(data.split()))


def answered(
    hierarchy: Hierarchy, codes: Any, texts: list[str], rng: np.random.Generator, right: float = 2.0
) -> tuple[Predictions, Split]:
    """Answers to rows of which some are right."""
    tree = hierarchy.full_depth()
    last = tree.last_codes(codes, hierarchy)
    scores = rng.normal(size=(len(codes), tree.level_sizes[-1])).astype(np.float32)
    scores[np.arange(len(codes)), last] += right
    found = decode(scores, hierarchy, tree, Calibration(temperature=1.3))
    return found, Split(texts=texts, codes=codes)


def facts(**more: Any) -> dict[str, Any]:
    history = [
        {"epoch": k, "seconds": 60.0, "loss": 3 / k, "nll": 2 / k, "leaf_accuracy": 1 - 0.5 / k}
        for k in (1, 2, 3)
    ]
    info = {
        "seed": 7, "epoch": 2, "history": history, "rows": {"train": 10, "val": 2, "test": 2},
        "started": "2026-01-01T10:00:00", "versions": {"python": "3.11.9"}, "fingerprint": "f" * 64,
    }  # fmt: skip
    found = {"model": "db_bhcn", "dataset": "shop", "checkpoint": "best_x.pt", "temperature": 1.3}
    return found | {"config": {"epochs": 3, "display_name": ""}, "info": info} | more


def drawn(predictions: Predictions, split: Split, **more: Any) -> str:
    return report.report_html(facts(**more), predictions, split, evaluate(predictions, split.codes))


@pytest.fixture
def rows(rng: np.random.Generator) -> tuple[Predictions, Split]:
    hierarchy, codes = random_tree(rng)
    return answered(hierarchy, codes, [f"text {k}" for k in range(len(codes))], rng)


def test_a_page_has_every_part_and_needs_nothing_else(rows: tuple[Predictions, Split]) -> None:
    page = drawn(*rows)
    reader = Reader(page)
    ids = {values.get("id") for _, values in reader.tags}
    assert {"learning", "levels", "confidence", "confusions", "texts", "classes", "run"} <= ids
    assert len([tag for tag, values in reader.tags if values.get("role") == "img"]) == 4
    metrics = evaluate(rows[0], rows[1].codes)
    for name in ("leaf_accuracy", "calibration_error", "calibration_error_raw"):
        assert report.percent(metrics[name]).replace("\xa0", " ") in " ".join(reader.text)
    for _, values in reader.tags:
        for name, value in values.items():
            assert not name.startswith("on")
            assert name not in ("src", "style")
            assert name != "href" or str(value).startswith("#")
    assert not re.search(r"https?:|@import|url\(", page)


def test_names_and_texts_are_text(rng: np.random.Generator) -> None:
    paths = [("A", EVIL), ("A", "b"), (EVIL,), ("A", "b")] * 5
    hierarchy, codes = Hierarchy.from_paths(columns_of(paths))
    predictions, split = answered(hierarchy, codes, [EVIL] * len(codes), rng, right=0.0)
    assert (predictions.ends != hierarchy.end_classes(codes)).any()
    page = drawn(predictions, split, dataset=EVIL, config={"display_name": EVIL, EVIL: EVIL})
    reader = Reader(page)
    assert len(reader.scripts) == 2, "the data and our own"
    assert {tag for tag, _ in reader.tags} & {"img", "iframe", "object", "link"} == set()
    data = json.loads(reader.scripts[0])
    assert any("<img src=x" in row[0] for row in data), "the name is there, but as a string"
    assert EVIL in reader.text
    assert page.count("alert(1)") > 3


def test_the_policy_lets_only_our_own_script_run(rows: tuple[Predictions, Split]) -> None:
    import base64
    import hashlib

    reader = Reader(drawn(*rows))
    (policy,) = [v["content"] for t, v in reader.tags if t == "meta" and "http-equiv" in v]
    digest = base64.b64encode(hashlib.sha256(reader.scripts[-1].encode()).digest()).decode()
    assert policy is not None
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def test_class_counts_are_those_of_the_metrics(rows: tuple[Predictions, Split]) -> None:
    predictions, split = rows
    hierarchy = predictions.hierarchy
    table = report.class_rows(predictions, split, report.all_labels(hierarchy))["rows"]
    for level in range(hierarchy.depth):
        here = [row for row in table if row[1] == level + 1]
        f1 = np.mean([2 * right / (wanted + given) for _, _, wanted, given, right in here])
        sizes = hierarchy.level_sizes[level]
        known = class_scores(split.codes[:, level], predictions.codes[:, level], sizes)
        assert f1 == pytest.approx(known[2])
    assert {row[0] for row in table} <= {hierarchy.label(k) for k in range(hierarchy.class_count)}
    assert [row[2] for row in table] == sorted((row[2] for row in table), reverse=True)


def test_confusions_are_counted_under_the_class_where_paths_part() -> None:
    names = [("A", "x", "1"), ("A", "x", "2"), ("A", "y"), ("B",), ("A", "x")]
    hierarchy, codes = Hierarchy.from_paths(columns_of(names))
    tree = hierarchy.full_depth()
    true = [0] * 5 + [1] * 2 + [2] * 3 + [4]
    found = [1, 1, 1, 2, 3, 0, 1, 3, 3, 2, 0]
    last = tree.last_codes(codes, hierarchy)
    scores = np.full((len(found), tree.level_sizes[-1]), -9, dtype=np.float32)
    scores[np.arange(len(found)), last[found]] = 9
    predictions = decode(scores, hierarchy, tree)
    split = Split(texts=["t"] * len(true), codes=codes[true])
    result = report.confusions(predictions, split, report.all_labels(hierarchy))
    assert result["errors"] == 9
    groups = {group["label"]: group for group in result["groups"]}
    flat = {
        label: [(pair["true"], pair["found"], pair["count"], pair["of"]) for pair in g["pairs"]]
        for label, g in groups.items()
    }
    assert set(flat) == {"A > x", "A", ""}
    assert flat["A > x"][0] == ("1", "2", 3, 5)
    assert set(flat["A > x"][1:]) == {("2", "1", 1, 2), ("", "1", 1, 1)}
    assert flat["A"] == [("x > 1", "y", 1, 5)]
    assert flat[""] == [("A > y", "B", 2, 3), ("A > x > 1", "B", 1, 5)]
    parting = {part["level"]: part["rows"] for part in result["parting"]}
    assert parting == {1: 3, 2: 1, 3: 5}


def test_the_surest_mistakes_come_first(rows: tuple[Predictions, Split]) -> None:
    predictions, split = rows
    entries = report.wrong_texts(predictions, split, report.all_labels(predictions.hierarchy))
    sure = [entry["confidence"] for entry in entries]
    wrong = predictions.ends != predictions.hierarchy.end_classes(split.codes)
    assert sure == sorted(sure, reverse=True)
    assert sure[0] == pytest.approx(predictions.confidence[wrong].max())
    assert len(entries) == min(report.WRONG, wrong.sum())
    for entry in entries:
        row = split.texts.index(entry["text"])
        assert wrong[row]
        node = int(predictions.hierarchy.end_classes(split.codes)[row])
        parts = [part for part in (entry["above"], entry["true"]) if part]
        assert " > ".join(parts) == predictions.hierarchy.label(node)
        if entry["rank"]:
            assert entry["rank"] >= 2
            assert entry["true_confidence"] <= entry["confidence"]


def test_texts_are_cut_and_hold_nothing_that_hides_or_turns() -> None:
    assert report.cut("a\n b\0c\u202ed\u2066") == "a b c d"
    assert report.cut("x" * 400) == "x" * 400
    assert report.cut("word " * 10_000).endswith(" …")
    assert len(report.cut("word " * 10_000)) <= 402
    assert report.cut(" " * 10_000 + "x").endswith("…")


def test_without_test_rows_the_page_says_so(rows: tuple[Predictions, Split]) -> None:
    hierarchy = rows[0].hierarchy
    codes = np.zeros((0, hierarchy.depth), dtype=np.int32)
    tree = hierarchy.full_depth()
    nothing = decode(np.zeros((0, tree.level_sizes[-1]), dtype=np.float32), hierarchy, tree)
    reader = Reader(drawn(nothing, Split(texts=[], codes=codes)))
    assert any("nothing was tested" in text for text in reader.text)


def test_all_right_and_one_epoch_are_no_obstacle(rng: np.random.Generator) -> None:
    hierarchy, codes = random_tree(rng, depth=1)
    predictions, split = answered(hierarchy, codes, ["t"] * len(codes), rng, right=99.0)
    text = Reader(drawn(predictions, split, info={}, config={})).text
    assert "Every answer is right." in text
    assert "Learning curves" not in text


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (0.123, 0.127), (3.0, 3.0), (0.0, 0.0), (-5, 1e6), (1e-9, 2e-9)]
)
def test_ticks_are_few_and_hold_all_values(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 8
    assert ticks[0] <= low + 1e-12
    assert ticks[-1] >= high - 1e-12


@pytest.mark.parametrize("epochs", [1, 2, 3, 12, 200])
def test_points_of_a_chart_lie_inside_it(epochs: int) -> None:
    points = [(float(k), 1.0 / k) for k in range(1, epochs + 1)]
    svg = line_chart([Series(name="a", points=points)], label="l", x_label="x", mark=1.0)
    places = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)
    assert len(places) == epochs
    assert all(0 < float(x) < 360 and 0 < float(y) < 220 for x, y in places)
    heights = [float(y) for _, y in places]
    assert heights == sorted(heights), "a falling curve falls"


def test_a_large_tree_is_quick_and_the_file_small(rng: np.random.Generator) -> None:
    leaves, rows = 10_000, 100_000
    paths = [(f"root {k % 20}", f"branch {k % 400}", f"a leaf named {k}") for k in range(leaves)]
    hierarchy, codes = Hierarchy.from_paths(columns_of(paths))
    tree = hierarchy.full_depth()
    true = rng.integers(leaves, size=rows)
    top = np.stack([np.where(rng.random(rows) < 0.7, true, rng.integers(leaves, size=rows))] * 5)
    log_probs = np.sort(-rng.random((rows, 5)).astype(np.float32), axis=1)[:, ::-1]
    predictions = Predictions(
        hierarchy=hierarchy, tree=tree, top=top.T.astype(np.int32), top_probs=np.exp(log_probs),
        level_probs=np.ones((rows, 3), dtype=np.float32), independent=codes[true],
        raw_best=top[0].astype(np.int32), raw_confidence=np.exp(log_probs[:, 0]),
    )  # fmt: skip
    split = Split(texts=["some text"] * rows, codes=codes[true])
    metrics = evaluate(predictions, split.codes)
    started = time.process_time()
    page = report.report_html(facts(), predictions, split, metrics)
    assert time.process_time() - started < 2
    assert len(page) < 1_500_000


def test_names_of_classes_cannot_reorder_what_stands_around_them() -> None:
    hierarchy, _ = Hierarchy.from_paths([["a\u202eb", "a\x1bc"]])
    assert sorted(all_labels(hierarchy)) == ["a b", "a c"]


def run_facts(page: str) -> dict[str, str]:
    """The pairs of the page's lists."""
    return dict(re.findall(r"<dt[^>]*>(.*?)</dt><dd[^>]*>(.*?)</dd>", page))


@pytest.mark.parametrize(("done", "asked"), [(1, 1), (2, 2), (3, 3), (2, 9)])
def test_the_epochs_that_were_run_are_listed(
    rows: tuple[Predictions, Split], done: int, asked: int
) -> None:
    info = facts()["info"]
    info |= {"history": info["history"][:done], "epoch": 1}
    page = drawn(*rows, info=info, config={"epochs": asked})
    table = page[page.index("All figures of every epoch") :]
    listed = table[table.index("<tbody>") : table.index("</tbody>")]
    assert listed.count("<tr>") == done
    said = run_facts(page)
    assert said["epochs run"].split()[0] == str(done)
    assert ("of at most 9" in said["epochs run"]) == (asked == 9)
    assert said["epochs"] == str(asked)
    Reader(page)  # well-formed
