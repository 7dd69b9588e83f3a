"""The pieces of adapting: labels, cleaning, splitting, the demo; checked against plain loops."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

import adapt
from tests.adapters.test_flat import report_of, rows_of
from utils.adapters.demo import generate, read_catalogue
from utils.adapters.labels import BROKEN, EMPTY, LabelOptions, labels_of
from utils.adapters.parents import load_parents
from utils.adapters.pipeline import AdaptOptions, Columns, Provenance, adapt_table
from utils.adapters.splitting import TEST, TRAIN, VAL, Ratios, random_split, sample
from utils.common.errors import UserError
from utils.common.files import TEMPORARY_PREFIX
from utils.common.paths import PROJECT_ROOT, Layout
from utils.hierarchy.dataset import SPLITS, load_dataset
from utils.tables.columns import texts_of
from utils.tables.reading import select_columns
from utils.tables.source_files import _is_utf8


def paths_of(values: list[object], **options: object) -> list[tuple[str, ...] | int]:
    table = pa.table({"c": pa.array(values)})
    labels = labels_of(table, ["c"], LabelOptions(**options))  # type: ignore[arg-type]
    return [
        tuple(labels.names[code] for code in labels.paths[path] if code >= 0) if path >= 0
        else int(path)
        for path in labels.path_of_row
    ]  # fmt: skip


def test_names_are_cleaned_and_gaps_are_found() -> None:
    found = paths_of([" a >\tb\n c", "a > b c", "a", "a > ", "", None, "a > > c", " > c"],
                     delimiter=">")  # fmt: skip
    assert found == [
        ("a", "b c"), ("a", "b c"), ("a",), ("a",), EMPTY, EMPTY, BROKEN, BROKEN
    ]  # fmt: skip


def test_lists_in_cells_of_json_python_and_numpy() -> None:
    cells = ['["a", "b"]', "['a', 'b']", "['a' 'b']", '["a", null]', "[broken", "[]", "[1, 2]"]
    assert paths_of(cells) == [
        ("a", "b"), ("a", "b"), ("a", "b"), ("a",), ("[broken",), EMPTY, ("1", "2")
    ]  # fmt: skip


def test_list_columns_with_nulls_of_every_kind() -> None:
    values = [["a", "b"], ["a", None], [None, "b"], [], None, ["a > c"]]
    assert paths_of(values, delimiter=">") == [
        ("a", "b"), ("a",), BROKEN, EMPTY, EMPTY, ("a", "c")
    ]  # fmt: skip


def test_equal_letters_in_other_unicode_forms_are_one_name() -> None:
    assert len(set(paths_of(["Żółw", "Z\u0307o\u0301łw"]))) == 1


def test_absurd_depth_asks_for_the_delimiter() -> None:
    with pytest.raises(UserError, match="Is the delimiter ' ' right"):
        paths_of([" ".join("abcdefghij" * 5), "a b"], delimiter=" ")


@pytest.mark.parametrize("seed", range(5))
def test_random_dirty_labels_agree_with_a_plain_loop(seed: int) -> None:
    generator = np.random.default_rng(seed)
    pieces = np.array(["a", " b ", "", "  ", "c\nd", "a", "é", "b"], dtype=object)
    rows = [list(generator.choice(pieces, generator.integers(0, 5))) for _ in range(400)]

    def expected(row: list[str], depth: int | None) -> tuple[str, ...] | int:
        names = [" ".join(name.split()) for name in row][:depth]
        while names and not names[-1]:
            names.pop()
        return EMPTY if not names else tuple(names) if all(names) else BROKEN

    for depth in (None, 1, 2):
        assert paths_of(rows, depth=depth) == [expected(row, depth) for row in rows]
        joined = [">".join(row) for row in rows]
        assert paths_of(joined, delimiter=">", depth=depth) == [
            expected(row, depth) for row in rows
        ]


@pytest.mark.parametrize("seed", range(3))
def test_random_dirty_texts_agree_with_a_plain_loop(seed: int) -> None:
    generator = np.random.default_rng(seed)
    letters = np.array(list("ab  \n\t\x00\x07\x7f\x85\xa0é\u2003Â\u3000z"))
    texts = [
        None if size == 6 else "".join(generator.choice(letters, size))
        for size in generator.integers(7, size=2000)
    ]
    control = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
    found, count = texts_of(pa.table({"t": pa.chunked_array([texts[:700], texts[700:]])}), ["t"])
    assert found.to_pylist() == [control.sub(" ", text or "").strip() for text in texts]
    assert count == sum(bool(control.search(text or "")) for text in texts)


def test_utf8_is_checked_over_slices() -> None:
    for before in range(65_530, 65_540):
        good = b"a" * before + "ż€😀".encode() + b"b" * 70_000
        assert _is_utf8(good)
        assert _is_utf8(good + "é".encode())
        assert not _is_utf8(good + b"\xc3")
        assert not _is_utf8(good[:before] + b"\xff" + good[before:])
        assert not _is_utf8(good[: before + 1] + good[before + 2 :])


def test_sliced_columns_are_cleaned_in_place() -> None:
    column = pa.array(["x", " a ", "b\x01", "c"]).slice(1, 2)
    assert texts_of(pa.table({"t": column}), ["t"])[0].to_pylist() == ["a", "b"]


def test_columns_are_chosen_by_whole_names_first() -> None:
    columns = ["a", "b", "a,b", "x, y", "twice", "twice"]
    assert select_columns("a,b", columns) == ("a,b",)
    assert select_columns("b,a", columns) == ("b", "a")
    assert select_columns("x, y,a", columns) == ("x, y", "a")
    with pytest.raises(UserError, match="more than once"):
        select_columns("twice", columns)


@pytest.mark.parametrize("seed", range(6))
def test_split_is_stratified_whole_and_repeatable(seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows = int(generator.integers(300, 3000))
    paths = np.minimum(generator.geometric(0.08, rows), 60) - 1
    texts = generator.integers(rows * 3 // 4, size=rows)
    sides = random_split(paths, texts, Ratios(), seed)
    assert (sides == random_split(paths, texts, Ratios(), seed)).all()
    assert (sides != random_split(paths, texts, Ratios(), seed + 1)).any()
    assert set(paths) == set(paths[sides == TRAIN])
    side_of = defaultdict(set)
    for text, side in zip(texts, sides, strict=True):
        side_of[text].add(side)
    assert all(len(found) == 1 for found in side_of.values())


def test_split_is_eight_to_one_to_one_overall_and_per_class() -> None:
    generator = np.random.default_rng(0)
    paths = np.repeat(np.arange(40), generator.integers(2, 400, 40))
    sides = random_split(paths, np.arange(len(paths)), Ratios(), 0)
    counts = np.bincount(sides)
    assert abs(counts[VAL] - 0.1 * len(paths)) <= 2
    assert abs(counts[TEST] - 0.1 * len(paths)) <= 2
    for path in range(40):
        size, aside = (paths == path).sum(), sides[paths == path]
        assert abs((aside == VAL).sum() - 0.1 * size) <= 1.5
        assert abs((aside == TEST).sum() - 0.1 * size) <= 1.5


def test_singletons_train_and_other_ratios_hold() -> None:
    paths = np.concatenate([np.arange(50), np.full(1000, 50)])
    sides = random_split(paths, np.arange(1050), Ratios(train=0.5, val=0.3), 3)
    assert (sides[:50] == TRAIN).all()
    assert np.abs(np.bincount(sides[50:]) - [500, 300, 200]).max() <= 1


def test_a_class_known_only_from_a_shared_text_is_in_train() -> None:
    for seed in range(20):
        texts = np.concatenate([np.arange(100), [7]])
        paths = np.concatenate([np.arange(100) % 4, [4]])
        sides = random_split(paths, texts, Ratios(), seed)
        assert sides[100] == sides[7] == TRAIN


def test_sample_takes_evenly_and_from_every_path() -> None:
    paths = np.concatenate([np.repeat(np.arange(5), 200), [5]])
    kept = sample(paths, np.arange(1001), 0.1, 0)
    assert np.bincount(paths[kept]).tolist() == pytest.approx([20, 20, 20, 20, 20, 1], abs=1)


@pytest.mark.parametrize(
    ("train", "val", "expected"),
    [
        (None, None, (0.8, 0.1)),
        (None, 0.3, (0.4, 0.3)),
        (0.9, None, (0.9, 0.05)),
        (0.6, 0.4, (0.6, 0.4)),
    ],
)
def test_ratios(train: float | None, val: float | None, expected: tuple[float, float]) -> None:
    ratios = Ratios.checked(train, val)
    assert (ratios.train, ratios.val) == pytest.approx(expected)
    assert ratios.test == pytest.approx(1 - sum(expected))


@pytest.mark.parametrize(
    ("train", "val"), [(0, None), (1, None), (-0.1, 0.1), (0.8, 0.3), (0.8, 0), (float("nan"), 0.1)]
)
def test_impossible_ratios(train: float, val: float | None) -> None:
    with pytest.raises(UserError):
        Ratios.checked(train, val)


@pytest.mark.parametrize("seed", range(4))
def test_random_dirty_tables_are_accounted_for(seed: int, layout: Layout) -> None:
    generator = np.random.default_rng(seed)
    texts = np.array(["", " ", None, *(f"text {i}" for i in range(150))], dtype=object)
    tops = np.array(["A", " B", "C ", "", None], dtype=object)
    table = pa.table({
        "t": pa.array(texts[generator.integers(len(texts), size=800)], pa.string()),
        "x": pa.array(tops[generator.integers(5, size=800)], pa.string()),
        "y": pa.array(tops[generator.integers(5, size=800)], pa.string()),
    })  # fmt: skip
    report = adapt_table(
        table, Columns(text=("t",), classes=("x", "y")), name="d", options=AdaptOptions(seed=seed),
        source=Provenance(recipe={"command": "test"}, broken=3), layout=layout,
    )  # fmt: skip
    wanted = set()
    for row in table.to_pylist():
        path = [(row[key] or "").strip() for key in ("x", "y")]
        if (row["t"] or "").strip() and path[0]:
            wanted.add((row["t"].strip(), tuple(name for name in path if name)))
    dataset = load_dataset(layout, "d")
    assert rows_of(dataset) == wanted
    rows = report["rows"]
    assert rows["read"] == 803 == rows["kept"] + sum(rows["dropped"].values())
    assert rows["kept"] == len(wanted) == sum(report["splits"].values())
    sides = [set(getattr(dataset, side).texts) for side in SPLITS]
    assert len(set().union(*sides)) == sum(map(len, sides))
    seen = {tuple(codes) for codes in dataset.train.codes}
    held_out = np.concatenate([dataset.val.codes, dataset.test.codes])
    assert {tuple(codes) for codes in held_out} <= seen


def test_the_report_tells_what_the_files_hold(layout: Layout) -> None:
    table = pa.table(
        {"t": [f"t{i}" for i in range(50)], "c": [["A"], ["A", "B"]] * 20 + [["a"]] * 10}
    )
    report = adapt_table(
        table, Columns(text=("t",), classes=("c",)), name="d", options=AdaptOptions(),
        source=Provenance(recipe={}), layout=layout,
    )  # fmt: skip
    assert [level["classes"] for level in report["levels"]] == [2, 1]
    assert [level["rows"] for level in report["levels"]] == [50, 20]
    assert report["ragged_share"] == 0.6
    assert report["imbalance"] == 2
    assert (report["terminal_classes"], report["terminal_inner_classes"]) == (3, 1)
    assert "differ in case only" in " ".join(report["notes"])
    for side, count in report["splits"].items():
        schema = pq.read_table(layout.dataset("d") / f"{side}.parquet")
        assert schema.num_rows == count
        assert schema.schema.types == [pa.string(), pa.list_(pa.int32())]


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("p.json", {"food": {"fruit": ["apple", "pear"], "bread": []}, "pet": ["cat"]}),
        (
            "p.json",
            {"apple": "fruit", "pear": "fruit", "fruit": "food", "bread": "food", "cat": "pet"},
        ),
    ],
)
def test_parents_of_json(name: str, contents: object, tmp_path: Path) -> None:
    (tmp_path / name).write_text(json.dumps(contents))
    parents = load_parents(tmp_path / name)
    assert parents["apple"] == ("food", "fruit")
    assert parents["cat"] == ("pet",)
    assert parents["fruit"] == ("food",)
    assert parents["bread"] == ("food",)


@pytest.mark.parametrize(
    "contents", [{"a": ["x"], "b": ["x"]}, {"a": "b", "b": "a"}, ["a"], {"a": 5}]
)
def test_parents_that_make_no_tree(contents: object, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps(contents))
    with pytest.raises(UserError):
        load_parents(tmp_path / "p.json")


def test_parents_are_spelled_as_the_labels_are(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"To\u0301p": ["cafe\u0301", "a\x01 b"], "Lonely": {}, "Bare": []}))
    assert load_parents(path) == {
        "café": ("Tóp",), "a b": ("Tóp",), "Lonely": (), "Bare": (), "Tóp": ()
    }  # fmt: skip
    path.write_text(json.dumps({"tea": "cafe\u0301", "café": "Tóp"}))
    assert load_parents(path)["tea"] == ("Tóp", "café")


@pytest.mark.parametrize("contents", ["[" * 100_000, '{"a":' * 5000 + "[]" + "}" * 5000])
def test_parents_nested_too_deeply_are_one_line(contents: str, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(contents)
    with pytest.raises(UserError, match="nested too deeply"):
        load_parents(tmp_path / "p.json")


def test_parents_of_a_table_with_paths(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"text": ["?", "?"], "c": [["a", "b", "x"], ["a", "y"]]}), tmp_path / "p.parquet"
    )
    assert load_parents(tmp_path / "p.parquet")["x"] == ("a", "b")


def test_demo_is_ragged_imbalanced_and_repeatable(layout: Layout) -> None:
    first, again, other = generate(1500, 0), generate(1500, 0), generate(1500, 1)
    assert first.equals(again)
    assert not first.equals(other)
    result = CliRunner().invoke(adapt.main, ["demo", "data001", "--rows", "1500"])
    assert result.exit_code == 0, result.output
    report = report_of(layout, "data001")
    assert len(report["levels"]) == 3
    assert report["ragged_share"] > 0.02
    assert report["imbalance"] > 10
    assert report["terminal_inner_classes"] > 0
    leaves = Counter(path[-1] for path in read_catalogue().paths)
    assert sum(count > 1 for count in leaves.values()) >= 5


def test_demo_is_hard_but_learnable(layout: Layout) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.svm import LinearSVC

    assert CliRunner().invoke(adapt.main, ["demo", "data001"]).exit_code == 0
    dataset = load_dataset(layout, "data001")
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    ends = dataset.hierarchy.end_classes
    model = LinearSVC().fit(words.fit_transform(dataset.train.texts), ends(dataset.train.codes))
    texts = [*dataset.val.texts, *dataset.test.texts]
    truth = np.concatenate([ends(dataset.val.codes), ends(dataset.test.codes)])
    assert 0.72 < (model.predict(words.transform(texts)) == truth).mean() < 0.92


def test_demo_data_replaces_demo_data_and_nothing_else(layout: Layout, tmp_path: Path) -> None:
    def demo(name: str, rows: int) -> Result:
        return CliRunner().invoke(adapt.main, ["demo", name, "--rows", str(rows)])

    assert demo("d", 150).exit_code == 0
    assert demo("d", 200).exit_code == 0
    assert json.loads((layout.dataset("d") / "report.json").read_text())["rows"]["kept"] == 200
    table = tmp_path / "own.csv"
    table.write_text("text,class\n" + "".join(f"text {k},c{k % 2}\n" for k in range(40)))
    own = ["flat", str(table), "own", "-t", "text", "-c", "class"]
    assert CliRunner().invoke(adapt.main, own).exit_code == 0
    refused = demo("own", 150)
    assert refused.exit_code == 1
    assert "made by another command" in refused.stderr
    own[2] = "d"
    assert CliRunner().invoke(adapt.main, own).exit_code == 1


def test_too_few_rows_for_a_demo(layout: Layout) -> None:
    result = CliRunner().invoke(adapt.main, ["demo", "d", "--rows", "5"])
    assert result.exit_code == 1
    assert "--rows is 5" in result.output


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, adapt\n"
        "from click.testing import CliRunner\n"
        "for line in (['--help'], ['flat', '--help'], ['demo', '--help']):\n"
        "    assert CliRunner().invoke(adapt.main, line).exit_code == 0\n"
        "print(*{'pandas', 'pyarrow', 'numpy', 'torch', 'rich'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


@pytest.mark.slow
def test_a_killed_run_leaves_no_half_dataset(layout: Layout, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    table = pd.DataFrame({"t": [f"text {i} " * 5 for i in range(60_000)]})
    table["c"] = [f"class {i % 50}" for i in range(len(table))]
    table.to_csv(tmp_path / "d.csv", index=False)
    command = [sys.executable, str(PROJECT_ROOT / "adapt.py"), "flat", str(tmp_path / "d.csv"), "d",
               "-t", "t", "-c", "c", "--no-dvc"]  # fmt: skip
    environment = {**os.environ, "KTT_ROOT": str(layout.root)}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    finished = 0
    for turn in range(8):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        # soon after its start, or soon after it has begun to write
        half_made = f"{TEMPORARY_PREFIX}{process.pid}-*"
        while turn % 4 and process.poll() is None and not any(layout.datasets.glob(half_made)):
            time.sleep(0.001)
        time.sleep(float(generator.uniform(0, 0.1 if turn % 4 else 1.0)))
        process.send_signal(signal.SIGKILL)
        finished += process.wait() == 0
        assert layout.dataset_names() in (["d"], [])
        if layout.dataset_names():
            assert len(load_dataset(layout, "d").train) == 48_000
    assert finished < 8
