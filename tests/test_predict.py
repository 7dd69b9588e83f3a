"""predict.py as a user sees it: any table in, the same rows with answers out."""

from __future__ import annotations

import contextlib
import csv
import datetime
import decimal
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

import predict
from models import MODELS, model_class
from tests.support.tiny import tiny_rows, write_tiny_dataset
from tests.support.tiny_encoder import tiny_encoder
from utils.common.checkpoints import read_checkpoint, write_checkpoint
from utils.common.config import build_config
from utils.common.errors import UserError
from utils.common.paths import PROJECT_ROOT, Layout
from utils.inference.pipeline import ahead, window_rows
from utils.runner import opener
from utils.tables.stream import open_rows

TIME = "2026-01-01T00:00:00"
QUICK = "tfidf_lsgd"
TEXTS = tiny_rows(40, seed=7)[0]


def train(layout: Layout, name: str, dataset: str, encoder: Path, seed: int = 0) -> Any:
    """Train a tiny model and save it as a run of `TIME`."""
    data = write_tiny_dataset(layout, dataset)
    cls = model_class(name)
    values = {"encoder": str(encoder), "max_len": 16, "epochs": 1} if "db_" in name else {}
    model = cls(data.hierarchy, build_config(cls.Config, values, name))
    for epoch in model.fit(data.train, data.val, epochs=None, seed=seed):
        model.info = {"epoch": epoch.number, "started": "then", "dataset": dataset}
    model.save(layout.weight_dir(name, dataset) / f"best_{TIME}.pt")
    return model


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("project")


@pytest.fixture(scope="module")
def quick_model(root: Path, encoder: Path) -> Any:
    return train(Layout(root), QUICK, "tiny", encoder)


@pytest.fixture
def model(quick_model: Any, root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A trained linear model, in the project that commands use."""
    monkeypatch.setenv("KTT_ROOT", str(root))
    return quick_model


def run(*arguments: object, name: str = QUICK, stdin: bytes | None = None) -> Result:
    words = ["-m", name, "-d", "tiny", *map(str, arguments)]
    return CliRunner().invoke(predict.main, words, input=stdin)


def ran(*arguments: object, **values: Any) -> Result:
    result = run(*arguments, **values)
    assert result.exit_code == 0, result.output
    return result


def refused(result: Result, *parts: str) -> None:
    """The command failed with status 1 and one line about it that holds all `parts`."""
    assert result.exit_code == 1, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    *before, line = result.stderr.splitlines()
    assert len(before) <= 1, result.stderr
    assert all(text.startswith("Answering ") for text in before)
    assert line.startswith("Error: ")
    for part in parts:
        assert part in line, line


def labels(model: Any, texts: list[str]) -> list[str]:
    return [model.hierarchy.label(int(node)) for node in model.predict(texts).ends]


def write_csv(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix in (".csv", ".tsv"):
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(tmp_path: Path, kind: str) -> Path:
    """Rows with an id, a text, and a cell that needs care."""
    rows = [
        {"id": i, "text": text, "remark": 'a "b", c\nd' if i % 3 else "ż"}
        for i, text in enumerate(TEXTS)
    ]
    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        return write_jsonl(path, rows)
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
        return path
    return write_csv(path, rows, "\t" if kind == "tsv" else ",")


# -- answers ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_answers_as_in_memory_from_checkpoint_and_export(
    name: str, layout: Layout, encoder: Path, tmp_path: Path
) -> None:
    model = train(layout, name, "tiny", encoder)
    path, out = write_csv(tmp_path / "a.csv", [{"text": t} for t in TEXTS]), tmp_path / "b.parquet"
    found = model.predict(TEXTS)
    folder = layout.output(name, "tiny")
    for runtime in ("torch", "onnx"):
        if runtime == "onnx":
            model.info["checkpoint"] = f"best_{TIME}.pt"
            model.export_classifier(folder)
        result = ran(path, "-o", out, "--runtime", runtime, "--top", 3, name=name)
        assert ("ONNX export" if runtime == "onnx" else "checkpoint best_") in result.stderr
        rows = read(out)
        assert [row["prediction"] for row in rows] == labels(model, TEXTS)
        assert [tuple(row["prediction_path"]) for row in rows] == [
            model.hierarchy.path(int(node)) for node in found.ends
        ]
        probs = [[a["confidence"] for a in row["prediction_alternatives"]] for row in rows]
        np.testing.assert_allclose(probs, found.top_probs[:, :3], atol=1e-5)
        np.testing.assert_allclose(
            [row["prediction_confidence"] for row in rows], found.confidence, atol=1e-5
        )


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("out", ["csv", "tsv", "jsonl", "parquet"])
def test_every_format_into_every_other(tmp_path: Path, model: Any, kind: str, out: str) -> None:
    source, target = table(tmp_path, kind), tmp_path / f"out.{out}"
    ran(source, "-o", target, "--top", 2)
    before, after = read(source), read(target)
    assert [row["prediction"] for row in after] == labels(model, TEXTS)
    for old, new in zip(before, after, strict=True):
        kept = {key: new[key] for key in old}
        assert {k: str(v) for k, v in kept.items()} == {k: str(v) for k, v in old.items()}
        if {kind, out} <= {"jsonl", "parquet"} or {kind, out} <= {"csv", "tsv"}:
            assert kept == old
    second = [model.hierarchy.label(int(model.tree.ending[code])) for code in found_second(model)]
    if out in ("csv", "tsv"):
        assert [row["prediction_2"] for row in after] == second
        assert all(float(row["prediction_1_confidence"]) <= 1 for row in after)
    else:
        assert [row["prediction_alternatives"][1]["prediction"] for row in after] == second


def found_second(model: Any) -> list[int]:
    return model.predict(TEXTS).top[:, 1].tolist()


def test_min_confidence_stops_where_it_is_sure(tmp_path: Path, model: Any) -> None:
    source, target = table(tmp_path, "jsonl"), tmp_path / "out.jsonl"
    found = model.predict(TEXTS)
    sure = float(np.median(found.confidence)) + 1e-4
    ran(source, "-o", target, "--min-confidence", sure)
    ends, rows = found.ends_at(sure), read(target)
    assert 0 < sum(row["prediction_stopped_early"] for row in rows) < len(rows)
    for row, end, whole in zip(rows, ends.tolist(), found.ends.tolist(), strict=True):
        expected = None if end < 0 else model.hierarchy.label(end)
        assert row["prediction"] == expected
        assert row["prediction_depth"] == (0 if end < 0 else len(row["prediction_path"]))
        assert row["prediction_stopped_early"] == (end != whole)
        assert end < 0 or row["prediction_confidence"] >= sure - 1e-6


def test_rows_without_a_text_get_no_answer_and_keep_their_place(tmp_path: Path, model: Any) -> None:
    odd = [{"text": None}, {"id": 1}, {"text": 5}, {"text": ["a"]}, {"text": " "}, {}]
    rows = [row for text, bad in zip(TEXTS, odd, strict=False) for row in ({"text": text}, bad)]
    rows += [{"text": "wash \ud83d foam"}, {"text": "żółć 猫 🙂"}, {"text": "x" * 5000}]
    source, target = write_jsonl(tmp_path / "a.jsonl", rows), tmp_path / "out.jsonl"
    result = ran(source, "-o", target)
    after = read(target)
    assert "6 of 15 rows have no text" in result.stderr
    assert [{k: v for k, v in row.items() if k in ("text", "id")} for row in after] == rows
    answers = [row["prediction"] for row in after]
    assert answers[1:12:2] == [None] * 6
    assert answers[:12:2] == labels(model, TEXTS[:6])
    assert None not in answers[12:]
    assert all(row["prediction_confidence"] is None for row in after[1:12:2])


def test_empty_cells_of_a_csv_are_no_texts(tmp_path: Path, model: Any) -> None:
    source = tmp_path / "a.csv"
    source.write_text("text,b\nwash foam,1\n,2\n  ,3\n")
    result = ran(source)
    target = tmp_path / "a.predictions.csv"
    assert "2 of 3 rows have no text" in result.stderr
    assert [bool(row["prediction"]) for row in read(target)] == [True, False, False]


def test_more_rows_than_a_window_keep_their_order(tmp_path: Path, model: Any) -> None:
    texts = tiny_rows(2 * window_rows(20) + 5, seed=3)[0]
    source = write_csv(tmp_path / "a.csv", [{"n": i, "text": t} for i, t in enumerate(texts)])
    ran(source, "-o", tmp_path / "b.csv")
    rows = read(tmp_path / "b.csv")
    assert [int(row["n"]) for row in rows] == list(range(len(texts)))
    assert [row["prediction"] for row in rows] == labels(model, texts)


def test_workers_answer_as_one_process_does(tmp_path: Path, model: Any) -> None:
    texts = tiny_rows(1500, seed=3)[0]
    source = write_csv(tmp_path / "a.csv", [{"n": i, "text": t} for i, t in enumerate(texts)])
    outputs = [tmp_path / f"{workers}.csv" for workers in (0, 2)]
    for workers, out in zip((0, 2), outputs, strict=True):
        ran(source, "-o", out, "--workers", workers, "--top", 3)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_several_text_columns_are_joined_as_adapt_does(tmp_path: Path, model: Any) -> None:
    rows = [{"title": f" {text.split()[0]} ", "body": text.split()[1]} for text in TEXTS]
    source = write_csv(tmp_path / "a.csv", rows)
    ran(source, "-t", "title,body", "-o", tmp_path / "b.csv")
    joined = [f"{row['title'].strip()}\n{row['body']}" for row in rows]
    assert [row["prediction"] for row in read(tmp_path / "b.csv")] == labels(model, joined)


def test_a_split_of_a_dataset_is_a_table_too(tmp_path: Path, model: Any, root: Path) -> None:
    source = Layout(root).dataset("tiny") / "test.parquet"
    ran(source, "-o", tmp_path / "out.parquet")
    rows = read(tmp_path / "out.parquet")
    assert [row["prediction"] for row in rows] == labels(model, [row["name"] for row in rows])


def test_a_header_alone_gives_a_header_alone(tmp_path: Path, model: Any) -> None:
    source = tmp_path / "a.csv"
    source.write_text("id,text\n")
    ran(source)
    text = (tmp_path / "a.predictions.csv").read_text()
    assert text == "id,text,prediction,prediction_confidence\n"


def test_json_lines_are_left_as_they_were_written(tmp_path: Path, model: Any) -> None:
    line = '{"big": 123456789012345678901234567890, "f": 1.50, "text": "wash \\u0041", "n": [] }'
    source = tmp_path / "a.jsonl"
    source.write_text("\ufeff" + line + "\n\n{ }\n", encoding="utf-8")
    ran(source)
    first, second = (tmp_path / "a.predictions.jsonl").read_text().splitlines()
    assert first.startswith(line.removesuffix("}"))
    assert json.loads(first)["prediction"] == labels(model, ["wash A"])[0]
    assert json.loads(second)["prediction"] is None


def test_packed_files(tmp_path: Path, model: Any) -> None:
    source = table(tmp_path, "jsonl")
    packed, target = tmp_path / "p.jsonl.gz", tmp_path / "out.csv.gz"
    packed.write_bytes(gzip.compress(source.read_bytes()))
    ran(packed, "-o", target)
    rows = list(csv.DictReader(io.StringIO(gzip.decompress(target.read_bytes()).decode())))
    assert [row["prediction"] for row in rows] == labels(model, TEXTS)


def test_columns_of_every_type(tmp_path: Path, model: Any) -> None:
    day = datetime.datetime(2026, 1, 2, 3, 4)
    columns = {
        "text": pa.array(TEXTS[:3]).dictionary_encode(),
        "list": pa.array([["a", "b,c"], None, []]),
        "struct": pa.array([{"x": 1, "y": ["ż"]}, None, {"x": None, "y": None}]),
        "day": pa.array([day, None, day]),
        "money": pa.array([decimal.Decimal("1.10"), None, decimal.Decimal("2.00")]),
        "float": pa.array([1.5, float("nan"), None]),
        "bytes": pa.array([b"raw", b"\xff", None]),
        "flag": pa.array([True, None, False]),
        "none": pa.nulls(3),
    }
    source = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), source)
    for kind in ("csv", "jsonl", "parquet"):
        ran(source, "-o", tmp_path / f"b.{kind}")
    before, answers = read(source), labels(model, TEXTS[:3])
    cells, objects, rows = (read(tmp_path / f"b.{kind}") for kind in ("csv", "jsonl", "parquet"))
    for found in (cells, objects, rows):
        assert [row["prediction"] for row in found] == answers
    assert str([{key: row[key] for key in columns} for row in rows]) == str(before)
    assert json.loads(cells[0]["list"]) == objects[0]["list"] == ["a", "b,c"]
    assert json.loads(cells[0]["struct"]) == objects[0]["struct"] == {"x": 1, "y": ["ż"]}
    assert cells[1]["list"] == cells[1]["flag"] == cells[1]["none"] == ""
    assert (cells[0]["money"], cells[0]["flag"], cells[0]["bytes"]) == ("1.10", "true", "raw")
    assert cells[0]["day"].startswith("2026-01-02 03:04")
    assert objects[0]["day"].startswith("2026-01-02 03:04")
    assert (objects[1]["float"], objects[0]["float"], objects[0]["money"]) == (None, 1.5, "1.10")


def test_rows_longer_than_a_block(tmp_path: Path, model: Any) -> None:
    for length in (3_000_000, 9_000_000):
        source = tmp_path / f"{length}.csv"
        source.write_text(f"id,text\n1,wash\n2,{'foam ' * (length // 5)}\n3,wash\n")
        if length < 4_000_000:
            ran(source, "-o", tmp_path / "out.jsonl")
            assert len(read(tmp_path / "out.jsonl")) == 3
        else:
            refused(run(source), "longer than 4 MB")


def test_names_of_columns(tmp_path: Path, model: Any) -> None:
    for kind in ("csv", "jsonl", "parquet"):
        source = tmp_path / f"a.{kind}"
        rows = [{"text": "wash", "prediction": "old"}]
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), source)
        else:
            (write_csv if kind == "csv" else write_jsonl)(source, rows)
        refused(run(source), "already has a column 'prediction'", "--column")
        assert sorted(path.name for path in tmp_path.iterdir()) == [source.name]
        target = tmp_path / f"b.{kind}"
        ran(source, "--column", "new", "-o", target)
        (row,) = read(target)
        assert (row["prediction"], row["new"]) == ("old", labels(model, ["wash"])[0])
        source.unlink(), target.unlink()


# -- which weights ------------------------------------------------------------------------


def test_an_export_of_other_weights_is_not_used(
    layout: Layout, encoder: Path, tmp_path: Path
) -> None:
    model = train(layout, "db_linear", "tiny", encoder)
    source = table(tmp_path, "csv")

    def says(*arguments: str) -> str:
        return ran(source, *arguments, name="db_linear").stderr

    def refuses(*arguments: str, parts: tuple[str, ...]) -> None:
        refused(run(source, *arguments, name="db_linear"), *parts)

    fix = "export.py -m db_linear -d tiny"
    assert "with checkpoint" in says()
    refuses("--runtime", "onnx", parts=("no ONNX export", fix))
    model.info["checkpoint"] = f"best_{TIME}.pt"
    folder = layout.output("db_linear", "tiny")
    model.export_classifier(folder)
    assert "with the ONNX export" in says()
    assert "with checkpoint" in says("--runtime", "torch")
    manifest = json.loads((folder / "manifest.json").read_text())
    for change in ({"checkpoint": "best_2025-01-01T00:00:00.pt"}, {"epoch": 7}):
        other = manifest | {"info": manifest["info"] | change}
        (folder / "manifest.json").write_text(json.dumps(other))
        assert "with checkpoint" in says()
        refuses("--runtime", "onnx", parts=("export is of", fix))
        refuses("--runtime", "onnx", "--time", TIME, parts=("export is of", f"{fix} -t {TIME}"))
    with pytest.raises(UserError, match="Unknown runtime 'tf'"):
        opener(layout, "db_linear", "tiny", runtime="tf")()
    refuses("--time", "2025", parts=("no 'best' checkpoint", "2025"))
    for path in layout.weight_dir("db_linear", "tiny").iterdir():
        path.unlink()
    assert "with the ONNX export" in says()  # one that travelled alone


@pytest.mark.parametrize("info", [None, [1], "x"])
def test_an_odd_checkpoint_beside_an_export_is_one_line(
    layout: Layout, encoder: Path, tmp_path: Path, info: Any
) -> None:
    model = train(layout, QUICK, "tiny", encoder)
    model.info["checkpoint"] = f"best_{TIME}.pt"
    model.export_classifier(layout.output(QUICK, "tiny"))
    path = layout.weight_dir(QUICK, "tiny") / f"best_{TIME}.pt"
    arrays, meta = read_checkpoint(path)
    write_checkpoint(path, arrays, meta | {"info": info})
    source = table(tmp_path, "csv")
    refused(run(source), f"best_{TIME}.pt is damaged")
    refused(run(source, "--runtime", "onnx"), "is of an earlier state of")


def test_a_linear_model_answers_quicker_from_its_checkpoint(
    layout: Layout, encoder: Path, tmp_path: Path
) -> None:
    model = train(layout, QUICK, "tiny", encoder)
    model.info["checkpoint"] = f"best_{TIME}.pt"
    model.export_classifier(layout.output(QUICK, "tiny"))
    source = table(tmp_path, "csv")
    assert "with checkpoint" in ran(source).stderr
    assert "with the ONNX export" in ran(source, "--runtime", "onnx").stderr


# -- mistakes -----------------------------------------------------------------------------


def test_mistakes_are_one_line_and_leave_nothing(tmp_path: Path, model: Any) -> None:
    def file(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    (tmp_path / "folder").mkdir()
    cases: list[tuple[list[object], tuple[str, ...]]] = [
        ([tmp_path / "missing.csv"], ("missing.csv", "No such file")),
        ([tmp_path / "folder", "--input-format", "csv", "-o", tmp_path / "x.csv"], ("folder",)),
        ([file("empty.csv", "")], ("empty.csv is empty",)),
        ([file("empty.jsonl", "\n\n")], ("empty.jsonl is empty",)),
        ([file("a.csv", "txt,b\n1,2\n"), "-t", "text"], ("'text'", "Did you mean 'txt'?")),
        ([file("b.csv", "x,y\n1,2\n")], ("-t COLUMN", "x, y")),
        ([file("c.csv", "text,text\n1,2\n"), "-t", "text"], ("several columns 'text'",)),
        ([file("d.xyz", "text\n1\n")], ("'.xyz'", "--input-format")),
        ([file("e.csv", "text,b\n\xff".encode("latin1") + b",2\n")], ("not UTF-8", "row #2")),
        ([file("p.csv", b"text,\xff\nx,1\n")], ("not UTF-8", "names of its columns")),
        ([file("q.csv", "text\na\n"), "--column", "\udcff"], ("cannot be encoded",)),
        ([file("r.jsonl", '{"text": "a", "\\ud800": 1}'), "--format", "csv"], ("Line 1", "jsonl")),
        ([file("f.csv", "text,b\nx,1\ny\n")], ("f.csv", "Row #3", "Expected 2 columns, got 1")),
        ([file("g.jsonl", '{"text": "a"}\n{"text": \n')], ("line 2 is not JSON",)),
        ([file("h.jsonl", '[{"text": "a"}]\n')], ("line 1 is no JSON object",)),
        ([file("i.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n')], ("not UTF-8", "line 2")),
        ([file("j.jsonl", '{"txt": "a"}\n'), "-t", "text"], ("'text'", "'txt'")),
        ([file("k.parquet", "nothing")], ("k.parquet", "as Parquet")),
        ([file("l.csv.gz", "nothing")], ("l.csv.gz", "gzip")),
        ([file("m.csv", "text\na\n"), "--sep", "ab"], ("--sep 'ab'",)),
        ([file("n.csv", "text\na\n"), "-o", tmp_path / "n.txt"], ("'.txt'", "--format")),
    ]  # fmt: skip
    numbers = tmp_path / "o.parquet"
    pq.write_table(pa.table({"text": [1, 2]}), numbers)
    cases.append(([numbers], ("holds int64, not text",)))
    before = sorted(path.name for path in tmp_path.iterdir())
    for arguments, parts in cases:
        refused(run(*arguments), *parts)
        assert sorted(path.name for path in tmp_path.iterdir()) == before, arguments
    refused(run(cases[4][0][0], name="tfidf"), "Unknown model 'tfidf'")
    refused(run(tmp_path / "n.csv", name="tfidf_hsgd"), "no weights of tfidf_hsgd")


def test_a_pipe_is_written_to_and_a_link_followed(tmp_path: Path, model: Any) -> None:
    source = write_csv(tmp_path / "a.csv", [{"text": "wash"}])
    pipe, link = tmp_path / "pipe", tmp_path / "link.csv"
    os.mkfifo(pipe)
    descriptor = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    ran(source, "-o", pipe, "--format", "csv")
    assert os.read(descriptor, 4096).startswith(b"text,prediction,")
    os.close(descriptor)
    assert pipe.is_fifo()
    link.symlink_to(tmp_path / "b.csv")
    ran(source, "-o", link)
    assert link.is_symlink()
    assert read(tmp_path / "b.csv")[0]["text"] == "wash"


def test_what_came_with_a_table_is_not_written_through(tmp_path: Path, model: Any) -> None:
    source = write_csv(tmp_path / "a.csv", [{"text": "wash"}])
    mine, planted = tmp_path / "mine", tmp_path / "a.predictions.csv"
    mine.write_text("precious")
    planted.symlink_to(mine)
    ran(source)
    assert mine.read_text() == "precious"
    assert read(planted)[0]["text"] == "wash"
    planted.unlink()
    os.mkfifo(planted)
    refused(run(source), "is a device or a pipe")


def test_a_mistake_far_down_leaves_no_file(tmp_path: Path, model: Any) -> None:
    good = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS * 250)
    source = tmp_path / "a.jsonl"
    source.write_text(good + "{\n")
    refused(run(source), "line 10,001 is not JSON")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_json_that_is_no_table(tmp_path: Path, model: Any) -> None:
    rows = [{"text": "wash", "a": 1}] * (window_rows(20) + 1)
    for last, parts in (({"text": "foam", "b": 2}, ("'b'",)), ({"a": "word"}, ("Lines",))):
        source = write_jsonl(tmp_path / "a.jsonl", [*rows, last])
        refused(run(source, "-o", tmp_path / "b.parquet"), *parts, "--format jsonl")
        ran(source, "-o", tmp_path / "b.jsonl")


# -- processes ----------------------------------------------------------------------------


def start(root: Path, *arguments: object, **values: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, PROJECT_ROOT / "predict.py", "-m", QUICK, "-d", "tiny", *arguments]
    environment = os.environ | {"KTT_ROOT": str(root)}
    return subprocess.Popen(list(map(str, command)), env=environment, **values)


def test_standard_input_to_standard_output(root: Path, model: Any) -> None:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
    pipe = subprocess.PIPE
    process = start(root, "-", stdin=pipe, stdout=pipe, stderr=pipe)
    out, err = process.communicate(lines)
    assert process.returncode == 0, err
    # nothing but data
    assert [json.loads(line)["prediction"] for line in out.splitlines()] == labels(model, TEXTS)
    assert b"standard input" in err
    table = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": TEXTS}), table)
    given = table.getvalue().to_pybytes()
    result = run("-", "--input-format", "parquet", "--format", "csv", stdin=given)
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [row["prediction"] for row in rows] == labels(model, TEXTS)
    refused(run("-", stdin=b"text\nwash\n"), "line 1 is not JSON", "--input-format")
    refused(run("-", stdin=b""), "standard input is empty")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_stopped_leaves_no_output(
    root: Path, model: Any, tmp_path: Path, how: signal.Signals
) -> None:
    target = tmp_path / "out" / "answers.jsonl"
    process = start(root, "-", "-o", target, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdin
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
    limit = time.monotonic() + 60
    while not any(path.stat().st_size for path in target.parent.glob(".tmp-*")):
        process.stdin.write(lines * 100)
        assert process.poll() is None
        assert time.monotonic() < limit
    process.send_signal(how)
    expected = {signal.SIGKILL: -9, signal.SIGINT: 1}[how]
    assert process.wait(60) == expected  # though its input is still open
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    assert not target.exists()
    assert how == signal.SIGKILL or not list(target.parent.iterdir())


def test_a_full_disk_behind_standard_output_is_one_line(root: Path, model: Any) -> None:
    with open("/dev/full", "wb") as full:
        process = start(root, "-", stdin=subprocess.PIPE, stdout=full, stderr=subprocess.PIPE)
        _, err = process.communicate(json.dumps({"text": TEXTS[0]}).encode())
    assert process.returncode == 1
    assert b"Error: Cannot write to standard output: No space left" in err
    assert b"Traceback" not in err


# -- threads ------------------------------------------------------------------------------


def test_a_thread_runs_ahead_but_not_far() -> None:
    made: list[int] = []

    def numbers() -> Any:
        for number in range(100):
            made.append(number)
            yield number

    stream = ahead(numbers(), 2)
    assert next(stream) == 0
    deadline = time.monotonic() + 60
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert made == [0, 1, 2, 3]
    assert list(stream) == list(range(1, 100))


def test_errors_cross_threads_and_closing_ends_them() -> None:
    before = set(threading.enumerate())

    def broken() -> Any:
        yield 1
        raise ValueError("why")

    stream = ahead(x for x in ahead(broken()))
    assert next(stream) == 1
    with pytest.raises(ValueError, match="why"):
        next(stream)
    endless = ahead(x for x in ahead(iter(int, 1)))
    assert next(endless) == 0
    endless.close()
    assert set(threading.enumerate()) <= before


def test_rows_say_how_far_they_are(tmp_path: Path) -> None:
    for kind in ("csv", "jsonl", "parquet"):
        with open_rows(table(tmp_path, kind), kind) as rows:
            sizes = [len(chunk) for chunk in rows.chunks(16)]
            assert sum(sizes) == len(TEXTS)
            assert max(sizes) <= 16
            assert rows.part() == 1.0


def test_the_columns_that_the_dataset_was_made_from_are_read(layout: Layout) -> None:
    from adapt import main as adapt
    from train import train as train_pair
    from utils.training.run import Options

    words = ["wash" if row % 2 else "metal" for row in range(120)]
    lines = [f"item {row},{word},{word}s" for row, word in enumerate(words)]
    shop = layout.root / "shop.csv"
    shop.parent.mkdir(exist_ok=True)
    shop.write_text("\n".join(["name,description,class", *lines]) + "\n")
    arguments = ["flat", str(shop), "joined", "-t", "name,description", "-c", "class"]
    assert CliRunner().invoke(adapt, arguments).exit_code == 0
    train_pair(layout, QUICK, "joined", Options())
    options = ["-m", QUICK, "-d", "joined"]
    result = CliRunner().invoke(predict.main, [*options, str(shop)])
    assert "(name, description)" in result.stderr
    assert all(
        row["prediction"] == row["class"] for row in read(shop.with_stem("shop.predictions"))
    )
    alone = write_csv(layout.root / "alone.csv", [{"name": "wash"}])
    assert "(name)" in CliRunner().invoke(predict.main, [*options, str(alone)]).stderr
    assert "(name)" in CliRunner().invoke(predict.main, [*options, "-t", "name", str(shop)]).stderr


def test_a_column_that_holds_separators_is_not_taken_for_the_text(
    tmp_path: Path, model: Any
) -> None:
    table = tmp_path / "semi.csv"
    table.write_text("words;more\na;b\n")
    refused(run(table), "say --sep ';'")
    assert not table.with_stem("semi.predictions").exists()
    refused(run(table, "--sep", "|"), "say --sep ';'")


# -- how the input is written -------------------------------------------------------------


@pytest.mark.usefixtures("model")
def test_options_reach_the_reader(tmp_path: Path) -> None:
    path, out = tmp_path / "t.csv", tmp_path / "o.jsonl"
    path.write_bytes("Bericht für 2026\ntext,b\nKäse,1\nÖl,2\n".encode("cp1252"))
    refused(run(path), "t.csv")
    ran(path, "-o", out, "--encoding", "cp1252", "--header-row", "2")
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [row["text"] for row in rows] == ["Käse", "Öl"]


@pytest.mark.usefixtures("model")
def test_a_name_that_no_file_can_have_is_one_line(tmp_path: Path) -> None:
    long = "x" * 300
    (tmp_path / "t.csv").write_text("text\na\n")
    (tmp_path / f"{'y' * 250}.csv").write_text("text\na\n")
    refused(run(tmp_path / f"{long}.csv"), "File name too long")
    refused(run(tmp_path / "t.csv", "-o", tmp_path / f"{long}.csv"), "File name too long")
    refused(run(tmp_path / f"{'y' * 250}.csv"), "File name too long")


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("sep", ["tab", "\\t", "\t"])
def test_a_tab_can_be_named(sep: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text\tb\na, b\t1\n", "utf-16")
    ran(tmp_path / "t.csv", "-o", tmp_path / "o.jsonl", "--sep", sep)
    assert read(tmp_path / "o.jsonl")[0]["text"] == "a, b"


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("name", ["t.xlsx", "t.XLS", "t.ods"])
def test_workbooks_are_named_with_what_to_do(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PK")
    refused(run(tmp_path / name), "is a workbook: save its sheet as CSV")
