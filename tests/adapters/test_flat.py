"""``adapt.py flat`` through the real command: every format, every label shape, every mistake."""

from __future__ import annotations

import gzip
import json
import os
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import openpyxl.chart
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

import adapt
from utils.common.paths import Layout
from utils.hierarchy.dataset import Dataset, load_dataset

PATHS = [
    ("Health", "Vitamins", "Equate"),
    ("Health", "Oral Care"),
    ("Beauty", "Equate"),
    ("Beauty", "Hair, Skin", "Équipe"),
    ("Toys",),
]


def frame(rows: int = 120, seed: int = 0) -> pd.DataFrame:
    """Distinct texts with commas, quotes and newlines, evenly over PATHS."""
    generator = np.random.default_rng(seed)
    which = generator.permutation(np.arange(rows) % len(PATHS))
    texts = [f'Item {i}, "so-called" żółw\nof {i % 7}' for i in range(rows)]
    return pd.DataFrame({"id": range(rows), "text": texts, "path": [PATHS[i] for i in which]})


def labelled(shape: str, keep_lists: bool) -> tuple[pd.DataFrame, list[str]]:
    """A table with the labels in one of the shapes, and the options that read it."""
    table = frame()
    paths = table.pop("path")
    if shape == "columns":
        for level in range(3):
            table[f"L{level}"] = [p[level] if level < len(p) else None for p in paths]
        return table, ["-c", "L0,L1,L2"]
    if shape == "list":
        table["path"] = [list(p) if keep_lists else json.dumps(p) for p in paths]
        return table, ["-c", "path"]
    joined = [" >> ".join(p) for p in paths]
    table["path"] = [json.dumps([one]) for one in joined] if shape == "json" else joined
    return table, ["-c", "path", "--delimiter", " >> "]


def write_json_orient(orient: str) -> Callable[[pd.DataFrame, Path], None]:
    def write(table: pd.DataFrame, path: Path) -> None:
        table.to_json(path, orient=orient, force_ascii=False)

    return write


def write_packed(table: pd.DataFrame, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("__MACOSX/._data.csv", b"\0\0")
        archive.writestr("data.csv", table.to_csv(index=False))


FORMATS: dict[str, tuple[str, bool, Callable[[pd.DataFrame, Path], Any]]] = {
    "csv": ("d.csv", False, lambda t, p: t.to_csv(p, index=False)),
    "tsv": ("d.tsv", False, lambda t, p: t.to_csv(p, index=False, sep="\t")),
    "semicolon": ("d.csv", False, lambda t, p: t.to_csv(p, index=False, sep=";")),
    "utf-8-sig": ("d.csv", False, lambda t, p: t.to_csv(p, index=False, encoding="utf-8-sig")),
    "utf-16": ("d.csv", False, lambda t, p: t.to_csv(p, index=False, encoding="utf-16")),
    "csv.gz": ("d.csv.gz", False, lambda t, p: p.write_bytes(
        gzip.compress(t.to_csv(index=False).encode()))),
    "csv.zip": ("d.csv.zip", False, write_packed),
    "jsonl": ("d.jsonl", True, lambda t, p: t.to_json(
        p, orient="records", lines=True, force_ascii=False)),
    "parquet": ("d.parquet", True, lambda t, p: t.to_parquet(p)),
    "feather": ("d.feather", True, lambda t, p: t.to_feather(p)),
    "stream": ("d.arrow", True, lambda t, p: _write_stream(t, p)),
    "xlsx": ("d.xlsx", False, lambda t, p: t.to_excel(p, index=False)),
    **{f"json-{orient}": ("d.json", True, write_json_orient(orient))
       for orient in ("records", "columns", "index", "split", "table")},
}  # fmt: skip


def _write_stream(table: pd.DataFrame, path: Path) -> None:
    arrow = pa.Table.from_pandas(table)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, arrow.schema) as writer:
        writer.write_table(arrow)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(adapt.main, [str(argument) for argument in arguments])


def flat(*arguments: str | Path) -> Result:
    return run("flat", *arguments)


def rows_of(dataset: Dataset) -> set[tuple[str, tuple[str, ...]]]:
    tree = dataset.hierarchy
    return {
        (text, tree.path(int(node)))
        for split in (dataset.train, dataset.val, dataset.test)
        for text, node in zip(split.texts, tree.end_classes(split.codes), strict=True)
    }


def report_of(layout: Layout, name: str = "d") -> dict[str, Any]:
    value: dict[str, Any] = json.loads((layout.dataset(name) / "report.json").read_text())
    return value


@pytest.mark.parametrize("shape", ["list", "delimited", "json", "columns"])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_and_label_shape_gives_the_same_rows(
    kind: str, shape: str, layout: Layout, tmp_path: Path
) -> None:
    name, keep_lists, write = FORMATS[kind]
    table, options = labelled(shape, keep_lists)
    write(table, tmp_path / name)
    result = flat(tmp_path / name, "d", "-t", "text", *options)
    assert result.exit_code == 0, result.output
    expected = {(text, path) for text, path in frame()[["text", "path"]].itertuples(index=False)}
    assert rows_of(load_dataset(layout, "d")) == expected
    report = report_of(layout)
    assert report["rows"] == {"read": 120, "kept": 120, "dropped": {}}
    assert report["splits"] == {"train": 96, "val": 12, "test": 12}


def test_json_values_have_numbered_columns(layout: Layout, tmp_path: Path) -> None:
    table, _ = labelled("delimited", False)
    table[["text", "path"]].to_json(tmp_path / "d.json", orient="values")
    assert (
        flat(tmp_path / "d.json", "d", "-t", "0", "-c", "1", "--delimiter", " >> ").exit_code == 0
    )
    assert len(rows_of(load_dataset(layout, "d"))) == 120


def test_a_class_column_is_never_sliced_to_characters(layout: Layout, tmp_path: Path) -> None:
    table = pd.DataFrame({"t": [f"text {i}" for i in range(40)], "c": ["Alpha", "Beta"] * 20})
    table.to_csv(tmp_path / "d.csv", index=False)
    assert flat(tmp_path / "d.csv", "d", "-t", "t", "-c", "c", "-d", "2").exit_code == 0
    assert load_dataset(layout, "d").hierarchy.names == ("Alpha", "Beta")


def test_depth_cuts_long_paths_and_leaves_short_ones(layout: Layout, tmp_path: Path) -> None:
    table, options = labelled("delimited", False)
    table.to_csv(tmp_path / "d.csv", index=False)
    assert flat(tmp_path / "d.csv", "d", "-t", "text", *options, "-d", "2").exit_code == 0
    assert {path for _, path in rows_of(load_dataset(layout, "d"))} == {p[:2] for p in PATHS}


def test_several_text_columns_and_names_with_commas(layout: Layout, tmp_path: Path) -> None:
    table = pd.DataFrame(
        {"Title, short": ["  a ", None, "c", ""], "Body": ["x", "y", None, " "], "c": list("pqpq")}
    )
    table.to_csv(tmp_path / "d.csv", index=False)
    result = flat(tmp_path / "d.csv", "d", "-t", "Title, short,Body", "-c", "c")
    assert result.exit_code == 0, result.output
    assert {text for text, _ in rows_of(load_dataset(layout, "d"))} == {"a\nx", "y", "c"}
    assert report_of(layout)["rows"]["dropped"] == {"empty_text": 1}


def test_what_is_left_out_is_counted_by_reason(layout: Layout, tmp_path: Path) -> None:
    lines = ["text,path", *(f"item {i},A > B{i % 2}" for i in range(20))]
    lines += ["  ,A > B0", "no class,", "gap,A >  > C", "item 0,A > B0", "item 0,A > B1", "short"]
    lines += ["long,A > B0,more", "bell\x07,A > B0", "spaced out, A  >\tB0 "]
    (tmp_path / "d.csv").write_text("\n".join(lines) + "\n")
    result = flat(tmp_path / "d.csv", "d", "-t", "text", "-c", "path", "--delimiter", ">")
    assert result.exit_code == 0, result.output
    report = report_of(layout)
    assert report["rows"] == {
        "read": 29, "kept": 23,
        "dropped": {"broken_row": 2, "empty_text": 1, "empty_path": 1, "broken_path": 1,
                    "duplicate": 1},
    }  # fmt: skip
    assert report["broken_at"] == ["d.csv:27", "d.csv:28"]
    assert report["control_characters"] == 1
    assert report["ambiguous_texts"] == 1
    rows = rows_of(load_dataset(layout, "d"))
    assert ("bell", ("A", "B0")) in rows
    assert ("spaced out", ("A", "B0")) in rows
    assert "d.csv:27" in result.output
    assert "23" in result.output


def test_keep_duplicates_min_class_size_and_proportion(layout: Layout, tmp_path: Path) -> None:
    texts = [f"t{i}" for i in range(300)] + ["t0", "rare"]
    classes = ["big", "small", "big"] * 100 + ["big", "one"]
    pd.DataFrame({"t": texts, "c": classes}).to_csv(tmp_path / "d.csv", index=False)
    base = [tmp_path / "d.csv", "d", "-t", "t", "-c", "c", "--force"]
    assert flat(*base, "--keep-duplicates").exit_code == 0
    assert report_of(layout)["rows"]["kept"] == 302
    assert flat(*base, "--min-class-size", "2").exit_code == 0
    assert report_of(layout)["rows"]["dropped"] == {"duplicate": 1, "small_class": 1}
    assert flat(*base, "--proportion", "0.1").exit_code == 0
    report = report_of(layout)
    assert report["terminal_classes"] == 3
    assert 30 <= report["rows"]["kept"] <= 32


def test_nested_json_with_its_own_split_and_parents(layout: Layout, tmp_path: Path) -> None:
    parts = {
        key: [
            [f"{key} {intent} {i}", intent] for intent in ("pay", "call", "eat") for i in range(n)
        ]
        for key, n in (("train", 9), ("val", 2), ("oos", 4), ("test", 3))
    }
    (tmp_path / "d.json").write_text(json.dumps(parts))
    domains = {"bank": ["pay"], "phone": ["call"], "food": ["eat"]}
    (tmp_path / "domains.json").write_text(json.dumps(domains))
    command = [tmp_path / "d.json", "d", "-t", "0", "-c", "1", "--records", "train,val,test",
               "--split-column", "records"]  # fmt: skip
    assert flat(*command, "--parents", tmp_path / "domains.json").exit_code == 0
    dataset = load_dataset(layout, "d")
    assert report_of(layout)["splits"] == {"train": 27, "val": 6, "test": 9}
    assert all(text.startswith("test") for text in dataset.test.texts)
    assert {path for _, path in rows_of(dataset)} == {
        ("bank", "pay"), ("phone", "call"), ("food", "eat")
    }  # fmt: skip
    pd.DataFrame({"up": ["bank", "phone"], "leaf": ["pay", "call"]}).to_csv(
        tmp_path / "two.csv", index=False
    )
    assert flat(*command, "--parents", tmp_path / "two.csv", "--force").exit_code == 0
    assert report_of(layout)["rows"]["dropped"] == {"no_parent": 14}
    wrong = flat(tmp_path / "d.json", "e", "-t", "0", "-c", "1")
    assert wrong.exit_code == 1
    assert "--records train,val" in wrong.output


def test_lines_of_several_files_with_the_split_in_their_names(
    layout: Layout, tmp_path: Path
) -> None:
    for name, count in (("q_train.txt", 40), ("q_test.txt", 8)):
        lines = [
            f"{'NUM' if i % 2 else 'LOC'}:{'other'} {name} question {i} ?" for i in range(count)
        ]
        (tmp_path / name).write_text(
            "\n".join([*lines, "NUM:Bad no", "", "nothing"]) + "\n", "latin-1"
        )
    pattern = r"(?P<coarse>[A-Z]+):(?P<fine>[a-z]+) (?P<text>.+)"
    result = flat(tmp_path / "q_*.txt", "d", "--lines", pattern, "-t", "text", "-c", "coarse,fine",
                  "--split-column", "file")  # fmt: skip
    assert result.exit_code == 0, result.output
    report = report_of(layout)
    assert report["rows"] == {"read": 52, "kept": 48, "dropped": {"broken_row": 4}}
    assert report["broken_at"] == [
        "q_test.txt:9",
        "q_test.txt:11",
        "q_train.txt:41",
        "q_train.txt:43",
    ]
    assert report["splits"]["test"] == 8
    assert report["splits"]["val"] > 0
    assert load_dataset(layout, "d").hierarchy.names == ("LOC", "NUM", "other", "other")


def test_a_given_split_loses_leaks_and_unseen_classes(layout: Layout, tmp_path: Path) -> None:
    rows = [(f"a{i}", "A", "train") for i in range(5)] + [(f"b{i}", "B", "train") for i in range(5)]
    rows += [("v", "A", "dev"), ("a0", "A", "test"), ("a0", "B", "test"), ("new", "C", "test"),
             ("ok", "B", "test"), ("none", "A", "")]  # fmt: skip
    pd.DataFrame(rows, columns=["t", "c", "s"]).to_csv(tmp_path / "d.csv", index=False)
    assert flat(tmp_path / "d.csv", "d", "-t", "t", "-c", "c", "--split-column", "s").exit_code == 0
    report = report_of(layout)
    assert report["rows"]["dropped"] == {
        "no_split": 1, "leaked": 2, "unseen_class": 1
    }  # fmt: skip
    assert report["splits"] == {"train": 10, "val": 1, "test": 1}


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "Crème brûlée – “très bien” à la carte"),
        ("cp1252", "café, été, ça"),
        ("cp1252", "Não há opções, limões"),
        ("cp1250", "Zażółć gęślą jaźń, śledź i żur"),
        ("cp1250", "MĄKA PSZENNA, ŁOSOŚ, ŻÓŁTY SER"),
        ("cp1250", "Příliš žluťoučký kůň úpěl ďábelské ódy"),
        ("cp1250", "Gyümölcs és őszibarack, fűszer"),
        ("cp1251", "Свежие овощи и фрукты, мясо"),
        ("koi8_r", "Свежие овощи и фрукты, мясо"),
        ("cp1254", "Güneş ışığı çok şık, ağaç"),
        ("cp932", "日本語のテキスト、新鮮な野菜と果物"),
        ("gb18030", "新鲜的蔬菜和水果，肉类"),
        ("cp850", "Größe über Straße, schöne Grüße"),
    ],
)
def test_other_encodings_are_detected_and_reported(
    encoding: str, text: str, layout: Layout, tmp_path: Path
) -> None:
    body = "".join(f'"{text} numer {i}",{"ab"[i % 2]}\n' for i in range(60))
    (tmp_path / "d.csv").write_bytes(("t,c\n" + body).encode(encoding))
    result = flat(tmp_path / "d.csv", "d", "-t", "t", "-c", "c", "--encoding", encoding)
    assert result.exit_code == 0
    assert f"{text} numer 3" in {t for t, _ in rows_of(load_dataset(layout, "d"))}
    result = flat(tmp_path / "d.csv", "guessed", "-t", "t", "-c", "c")
    assert result.exit_code == 0
    assert "the encoding was guessed" in result.output
    texts = {t for t, _ in rows_of(load_dataset(layout, "guessed"))}
    assert f"{text} numer 3" in texts


def test_one_broken_byte_does_not_spoil_utf8(layout: Layout, tmp_path: Path) -> None:
    body = "".join(f"żółw {i},{'ab'[i % 2]}\n" for i in range(50)).encode()
    (tmp_path / "d.csv").write_bytes(b"t,c\n" + body + b"x\xff,a\n")
    result = flat(tmp_path / "d.csv", "d", "-t", "t", "-c", "c")
    assert result.exit_code == 0
    assert "1 bytes are not UTF-8" in result.output
    assert "żółw 3" in {t for t, _ in rows_of(load_dataset(layout, "d"))}


def test_lines_of_utf8_among_others_stay_so(layout: Layout, tmp_path: Path) -> None:
    lines = [f"café {i},{'ab'[i % 3 % 2]}\n" for i in range(30)]
    coded = [line.encode("cp1252" if i % 2 else "utf-8") for i, line in enumerate(lines)]
    (tmp_path / "d.csv").write_bytes(b"t,c\n" + b"".join(coded))
    result = flat(tmp_path / "d.csv", "d", "-t", "t", "-c", "c")
    assert result.exit_code == 0
    assert "15 lines are not UTF-8 as 15 others are: read as cp1252" in result.output
    assert {t for t, _ in rows_of(load_dataset(layout, "d"))} == {f"café {i}" for i in range(30)}


def test_long_separators_no_header_and_stray_quotes(layout: Layout, tmp_path: Path) -> None:
    body = "".join(f'"Item {i}||{"ab"[i % 2]}\n' for i in range(30))
    (tmp_path / "d.txt").write_text(body)
    result = flat(tmp_path / "d.txt", "d", "-t", "0", "-c", "1", "--sep", "||", "--no-header",
                  "--quote", "")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert '"Item 3' in {t for t, _ in rows_of(load_dataset(layout, "d"))}


def test_a_quote_that_is_never_closed_costs_no_rows_in_silence(
    layout: Layout, tmp_path: Path
) -> None:
    rows = "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(200))
    (tmp_path / "d.csv").write_text(f't,c\n{rows}"open,a\n{rows}')
    command = [tmp_path / "d.csv", "d", "-t", "t", "-c", "c", "--keep-duplicates", "--force"]
    result = flat(*command)
    assert result.exit_code == 0
    rows_left = report_of(layout)["rows"]
    assert rows_left["kept"] == 200
    assert rows_left["dropped"]["broken_row"] >= 201
    assert "stray quote" in result.output
    assert "d.csv:202" in result.output
    assert flat(*command, "--quote", "").exit_code == 0
    assert report_of(layout)["rows"] == {"read": 401, "kept": 401, "dropped": {}}


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("sep", ["|", "::", "§", "\x01"])
def test_newlines_and_separators_of_every_sort(
    newline: str, sep: str, layout: Layout, tmp_path: Path
) -> None:
    lines = ["", f"t{sep}c", *(f"text {i}{sep}{'ab'[i % 2]}" for i in range(20)), f"x{sep}"]
    (tmp_path / "d.csv").write_bytes(newline.join(lines).encode())
    result = flat(tmp_path / "d.csv", "d", "-t", "t", "-c", "c", "--sep", sep)
    assert result.exit_code == 0, result.output
    assert report_of(layout)["rows"] == {"read": 21, "kept": 20, "dropped": {"empty_path": 1}}


def test_a_cell_larger_than_a_block(layout: Layout, tmp_path: Path) -> None:
    lines = ["t,c", *(f"text {i},{'ab'[i % 2]}" for i in range(20)), f'"{"long, " * 10**6}",a']
    (tmp_path / "d.csv").write_text("\n".join(lines))
    assert flat(tmp_path / "d.csv", "d", "-t", "t", "-c", "c").exit_code == 0
    assert report_of(layout)["rows"]["kept"] == 21


def test_drop_names_takes_names_out_of_the_path(layout: Layout, tmp_path: Path) -> None:
    pd.DataFrame(
        {"t": ["a", "b", "c"], "c": ['["A >> B >> Trunca..."]', '["A >> C"]', '["Gone..."]']}
    ).to_csv(tmp_path / "d.csv", index=False)
    result = flat(tmp_path / "d.csv", "d", "-t", "t", "-c", "c", "--delimiter", " >> ",
                  "--drop-names", r"\.\.\.$")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert rows_of(load_dataset(layout, "d")) == {("a", ("A", "B")), ("b", ("A", "C"))}
    assert report_of(layout)["rows"]["dropped"] == {"empty_path": 1}


def test_broken_lines_of_json_are_counted(layout: Layout, tmp_path: Path) -> None:
    lines = [json.dumps({"t": f"text {i}", "c": ["A", "B" if i % 2 else "C"]}) for i in range(20)]
    lines[7] = '{"t": "half'
    lines += ["[1]", '{"t": 5, "c": ["A", null]}', '{"c": ["A", "B"]}']
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    assert flat(tmp_path / "d.jsonl", "d", "-t", "t", "-c", "c").exit_code == 0
    report = report_of(layout)
    assert report["rows"]["dropped"] == {"broken_row": 2, "empty_text": 1}
    assert report["broken_at"][0] == "d.jsonl:8"
    assert ("5", ("A",)) in rows_of(load_dataset(layout, "d"))


LINES = [{"t": f"text {i}", "c": "ab"[i % 2]} for i in range(20)]


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_lists_among_objects_are_broken_rows(ending: str, layout: Layout, tmp_path: Path) -> None:
    rows = [*LINES, ["b", "a text"], ["a", "a text"]]
    lines = json.dumps(rows) if ending == "json" else "\n".join(map(json.dumps, rows))
    (tmp_path / f"d.{ending}").write_text(lines)
    assert flat(tmp_path / f"d.{ending}", "d", "-t", "t", "-c", "c").exit_code == 0
    assert report_of(layout)["rows"]["dropped"] == {"broken_row": 2}
    assert load_dataset(layout, "d").hierarchy.names == ("a", "b")


def test_two_objects_on_a_line_are_a_broken_row(layout: Layout, tmp_path: Path) -> None:
    lines = [*map(json.dumps, LINES), '{"t": "x", "c": "a"} {"t": "y", "c": "b"}']
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    assert flat(tmp_path / "d.jsonl", "d", "-t", "t", "-c", "c").exit_code == 0
    assert report_of(layout)["rows"]["dropped"] == {"broken_row": 1}
    assert report_of(layout)["broken_at"] == ["d.jsonl:21"]


def test_columns_may_begin_after_a_thousand_lines(layout: Layout, tmp_path: Path) -> None:
    early = [json.dumps({"t": f"early {i}"}) for i in range(1001)]
    late = [json.dumps({**row, "side": "train"}) for row in LINES]
    (tmp_path / "d.jsonl").write_text("\n".join(early + late))
    result = flat(tmp_path / "d.jsonl", "d", "-t", "t", "-c", "c", "--split-column", "side")
    assert result.exit_code == 0, result.output
    assert report_of(layout)["rows"]["dropped"] == {"empty_path": 1001}


def test_numbers_and_nan_in_columnar_files(layout: Layout, tmp_path: Path) -> None:
    table = pa.table({"t": pa.array(["a", "b", "c"]), "c": pa.array([1.0, float("nan"), 2.0])})
    pq.write_table(table, tmp_path / "d.parquet")
    assert flat(tmp_path / "d.parquet", "d", "-t", "t", "-c", "c").exit_code == 0
    assert load_dataset(layout, "d").hierarchy.names == ("1", "2")


def test_the_same_command_replaces_and_another_refuses(layout: Layout, tmp_path: Path) -> None:
    frame(50).assign(path="x").assign(path=["A", "B"] * 25).to_csv(tmp_path / "d.csv", index=False)
    command = [tmp_path / "d.csv", "d", "-t", "text", "-c", "path"]
    assert flat(*command).exit_code == 0
    first = {file.name: file.read_bytes() for file in layout.dataset("d").iterdir()}
    again = flat(*command)
    assert again.exit_code == 0
    assert "replaced the earlier dataset" in again.output
    assert {file.name: file.read_bytes() for file in layout.dataset("d").iterdir()} == first
    other = flat(*command, "--seed", "1")
    assert other.exit_code == 1
    assert "--force" in other.output
    assert {file.name: file.read_bytes() for file in layout.dataset("d").iterdir()} == first
    assert flat(*command, "--seed", "1", "--force").exit_code == 0
    assert (layout.dataset("d") / "train.parquet").read_bytes() != first["train.parquet"]


@pytest.mark.parametrize("contents", ['{"rows": []}', "{", "[]", "5", "[" * 100_000])
def test_force_gets_past_a_damaged_report(contents: str, layout: Layout, tmp_path: Path) -> None:
    command = [good_csv(tmp_path), "d", *GOOD]
    assert flat(*command).exit_code == 0
    (layout.dataset("d") / "report.json").write_text(contents)
    assert "--force" in flat(*command).output
    assert flat(*command, "--force").exit_code == 0
    assert report_of(layout)["rows"]["kept"] == 20


def test_a_sheet_of_charts_is_no_table(layout: Layout, tmp_path: Path) -> None:
    result = flat(charts(tmp_path, True), "d", "-t", "text", "-c", "label")
    assert result.exit_code == 0, result.output
    assert report_of(layout)["rows"]["kept"] == 20


def test_cells_nested_in_lists_are_broken_paths(layout: Layout, tmp_path: Path) -> None:
    cells = ["a", "b"] * 9 + ["[" * 50_000 + "]" * 50_000, '[["a", ["b"]]]', '[{"a": 1}]']
    pd.DataFrame({"t": [f"t{i}" for i in range(21)], "c": cells}).to_csv(tmp_path / "d.csv")
    result = flat(tmp_path / "d.csv", "d", "-t", "t", "-c", "c")
    assert result.exit_code == 0, result.output
    assert report_of(layout)["rows"]["dropped"] == {"broken_path": 3}


def test_a_pipe_is_read(layout: Layout, tmp_path: Path) -> None:
    contents = good_csv(tmp_path).read_bytes()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(contents,), daemon=True)
    writer.start()
    assert flat(pipe, "d", *GOOD).exit_code == 0
    assert report_of(layout)["rows"]["kept"] == 20


def test_pointers_of_dvc_survive_a_replacement(layout: Layout, tmp_path: Path) -> None:
    frame(20).assign(path=["A", "B"] * 10).to_csv(tmp_path / "d.csv", index=False)
    command = [tmp_path / "d.csv", "d", "-t", "text", "-c", "path", "--no-dvc"]
    assert flat(*command).exit_code == 0
    pointer = layout.dataset("d") / "train.parquet.dvc"
    pointer.write_text("outs: []\n")
    assert flat(*command).exit_code == 0
    assert pointer.read_text() == "outs: []\n"


def good_csv(folder: Path) -> Path:
    path = folder / "good.csv"
    pd.DataFrame(
        {"text": [f"t{i}" for i in range(20)], "label": ["A > B", "A > C"] * 10, "n": range(20)}
    ).to_csv(path, index=False)
    return path


def _file(name: str, contents: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(contents)
        return folder / name

    return make


def nested(folder: Path, value: object) -> Path:
    pq.write_table(pa.table({"text": ["a", "b"], "label": [value] * 2}), folder / "n.parquet")
    return folder / "n.parquet"


def workbook_of(folder: Path, xml: str) -> Path:
    with zipfile.ZipFile(folder / "b.xlsx", "w") as archive:
        for name in ("[Content_Types].xml", "xl/workbook.xml"):
            archive.writestr(name, xml)
    return folder / "b.xlsx"


def charts(folder: Path, drawn: bool) -> Path:
    """A workbook whose first sheet is a chart."""
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(["text", "label"])
    for i in range(20):
        sheet.append([f"text {i}", "ab"[i % 2]])
    page = book.create_chartsheet("Chart", 0)
    if drawn:
        chart = openpyxl.chart.BarChart()
        chart.add_data(openpyxl.chart.Reference(sheet, min_col=2, min_row=1, max_row=9))
        page.add_chart(chart)
    book.save(folder / "c.xlsx")
    return folder / "c.xlsx"


GOOD = ("-t", "text", "-c", "label", "--delimiter", " > ")
NOISE = np.random.default_rng(0).bytes(5000)
MISTAKES: dict[str, tuple[Callable[[Path], Path], tuple[str, ...], str]] = {
    "missing file": (lambda f: f / "none.csv", GOOD, "No such file"),
    "misspelt file": (lambda f: (good_csv(f), f / "goood.csv")[1], GOOD, "Did you mean"),
    "folder": (lambda f: f, GOOD, "is a folder"),
    "unknown column": (good_csv, ("-t", "txet", "-c", "label"), "Did you mean 'text'? Known: "),
    "unknown class column": (good_csv, ("-t", "text", "-c", "n,labels"), "Unknown column 'labels'"),
    "empty file": (_file("e.csv", b""), GOOD, "is empty"),
    "blank file": (_file("e.csv", b" \n\n"), GOOD, "is empty"),
    "only a header": (_file("h.csv", b"text,label\n"), GOOD, "no rows"),
    "one class": (_file("o.csv", b"text,label\na,A > B\nb,A > B\n"), GOOD, "one class, 'A > B'"),
    "binary": (_file("b.csv", NOISE), GOOD, "binary file"),
    "png": (_file("p.csv", b"\x89PNG" + NOISE), GOOD, "PNG image"),
    "xlsx named csv": (_file("x.csv", b"PK\x03\x04" + NOISE), GOOD, "xlsx"),
    "wrong delimiter": (good_csv, ("-t", "text", "-c", "label", "--delimiter", "|"), "' > '"),
    "depth 0": (good_csv, (*GOOD, "-d", "0"), "--depth is 0"),
    "ratios": (good_csv, (*GOOD, "--train-ratio", ".9", "--val-ratio", ".2"), "sum to 1.1"),
    "ratio": (good_csv, (*GOOD, "--train-ratio", "1.5"), "--train-ratio is 1.5"),
    "proportion": (good_csv, (*GOOD, "--proportion", "0"), "--proportion is 0"),
    "class size": (good_csv, (*GOOD, "--min-class-size", "0"), "--min-class-size is 0"),
    "seed": (good_csv, (*GOOD, "--seed", "-1"), "--seed is -1"),
    "encoding": (good_csv, (*GOOD, "--encoding", "utf-99"), "Unknown encoding 'utf-99'"),
    "wrong encoding": (_file("l.csv", "text,label\né,A > B\n".encode("latin-1")),
                       (*GOOD, "--encoding", "utf-8"), "is not utf-8"),
    "no usable row": (_file("n.csv", b"text,label\n ,A > B\nx,\n"), GOOD, "None of the 2 rows"),
    "broken JSON": (_file("b.json", b'[{"text": "a", '), GOOD, "not valid JSON"),
    "JSON scalar": (_file("b.json", b"5"), GOOD, "no table"),
    "broken lines": (_file("b.jsonl", b'{"text"\n{"tex'), GOOD, "no line of JSON"),
    "broken zip": (_file("b.csv.zip", b"PK\x03\x04" + NOISE), GOOD, "Cannot unpack"),
    "broken gzip": (_file("b.csv.gz", b"\x1f\x8b" + NOISE), GOOD, "Cannot unpack"),
    "broken xlsx": (_file("b.xlsx", b"PK\x03\x04" + NOISE), GOOD, "cannot be read as an xlsx"),
    "broken parquet": (_file("b.parquet", b"PAR1" + NOISE), GOOD, "cannot be read as a Parquet"),
    "no parquet": (_file("b.parquet", b"text,label\n"), GOOD, "not a Parquet file"),
    "broken feather": (_file("b.feather", b"ARROW1" + NOISE), GOOD, "cannot be read as an Arrow"),
    "bad pattern": (good_csv, (*GOOD, "--lines", "("), "no regular expression"),
    "no groups": (good_csv, (*GOOD, "--lines", "a"), "no named groups"),
    "bad drop": (good_csv, (*GOOD, "--drop-names", "("), "no regular expression"),
    "bad name": (good_csv, (*GOOD,), "cannot be used"),
    "no parents file": (good_csv, (*GOOD, "--parents", "none.json"), "No such file: none.json"),
    "split column": (good_csv, (*GOOD, "--split-column", "n"), "names no training rows"),
    "sheet": (lambda f: (frame(9).assign(path="x").to_excel(f / "s.xlsx"), f / "s.xlsx")[1],
              (*GOOD, "--sheet", "Nope"), "Unknown sheet 'Nope'"),
    "not a text encoding": (good_csv, (*GOOD, "--encoding", "base64"), "Unknown encoding"),
    "empty delimiter": (good_csv, (*GOOD[:4], "--delimiter", ""), "--delimiter is empty"),
    "long quote": (good_csv, (*GOOD, "--quote", "ab"), "--quote 'ab'"),
    "empty separator": (good_csv, (*GOOD, "--sep", ""), "--sep ''"),
    "records of a CSV": (good_csv, (*GOOD, "--records", "a"), "--records is for json"),
    "sheet of a CSV": (good_csv, (*GOOD, "--sheet", "a"), "--sheet is for xlsx"),
    "look-around": (good_csv, ("-t", "t", "-c", "c", "--lines", "(?P<t>.)(?P<c>.)(?=a)"),
                    "look-around"),
    "text is class": (good_csv, ("-t", "text,label", "-c", "label"), "both --text and --classes"),
    "drops all": (good_csv, (*GOOD, "--drop-names", "."), "None of the 20 rows"),
    "all too small": (good_csv, (*GOOD, "--min-class-size", "99"), "20 of too small a class"),
    "gaps only": (good_csv, (*GOOD[:4], "--delimiter", "A"), "20 with a gap"),
    "struct": (lambda f: nested(f, {"n": "a"}), GOOD[:4], "of the type struct<n: string>"),
    "list of structs": (lambda f: nested(f, [{"n": "a"}]), GOOD[:4], "type list<"),
    "list of lists": (lambda f: nested(f, [["a", "b"]]), GOOD[:4], "type list<"),
    "JSON objects": (_file("o.json", b'[{"text": "a", "label": {"n": "x"}}]'), GOOD[:4],
                     "Column 'label' holds objects"),
    "JSON lists of lists": (_file("o.jsonl", b'{"text": "a", "label": [["x", "y"]]}'), GOOD[:4],
                            "Column 'label' holds lists of lists"),
    "broken XML": (lambda f: workbook_of(f, "<a"), GOOD, "cannot be read as an xlsx"),
    "chart without drawing": (lambda f: charts(f, False), GOOD, "cannot be read as an xlsx"),
    "short header": (_file("s.csv", b"text,label\n" + b"x,A > B,\n" * 9), GOOD,
                     "9 rows have 3 fields, the header has 2"),
    "one of few rows": (_file("s.csv", b"text,label\nx,A > B,\ny,A > B\n"), GOOD,
                        "All 1 usable rows (1 broken) have one class"),
    "a device": (lambda f: Path("/dev/null"), GOOD, "not a regular file"),
    "deep parents": (lambda f: (_file("p.json", b"[" * 100_000)(f), good_csv(f))[1],
                     (*GOOD, "--parents", "in/p.json"), "nested too deeply"),
    "half for val": (good_csv, (*GOOD, "--val-ratio", ".5"), "--val-ratio 0.5 leaves nothing"),
    "val above 1": (good_csv, (*GOOD, "--val-ratio", "1.5"), "--val-ratio is 1.5"),
    "no DVC": (good_csv, (*GOOD, "--dvc"), "no DVC repository"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(
    case: str, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, options, message = MISTAKES[case]
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "in"
    folder.mkdir()
    result = flat(make(folder), "../up" if case == "bad name" else "d", *options)
    assert result.exit_code == 1, result.output
    lines = [line for line in result.output.splitlines() if line.strip()]
    assert len(lines) == 1, result.output
    assert lines[0].startswith("Error: ")
    assert message in lines[0]
    assert not layout.root.exists() or not list(layout.root.rglob("*"))


def test_a_forgotten_name_takes_no_files_place(layout: Layout, tmp_path: Path) -> None:
    path = good_csv(tmp_path)
    result = flat(path, path, *GOOD)
    assert result.exit_code == 1
    assert "NAME, which comes after the files, is missing" in result.output
    assert not layout.root.exists()


def test_several_kinds_of_files_are_refused(layout: Layout, tmp_path: Path) -> None:
    frame(9).to_parquet(tmp_path / "a.parquet")
    result = flat(good_csv(tmp_path), tmp_path / "a.parquet", "d", *GOOD)
    assert result.exit_code == 1
    assert "several kinds: csv, parquet" in result.output


def test_a_read_only_target_is_one_line(layout: Layout, tmp_path: Path) -> None:
    layout.root.mkdir()
    layout.datasets.write_text("in the way")  # root may write anywhere: a file stops it too
    result = flat(good_csv(tmp_path), "d", *GOOD)
    assert result.exit_code == 1
    assert result.output.startswith("Error: Cannot write")
    assert len(result.output.splitlines()) == 1


def test_a_forgotten_delimiter_is_pointed_out(layout: Layout, tmp_path: Path) -> None:
    result = flat(good_csv(tmp_path), "d", "-t", "text", "-c", "label")
    assert result.exit_code == 0
    assert "did you forget --delimiter ' > '" in result.output


@pytest.mark.parametrize("option", ["refuse", "join"])
def test_a_forgotten_delimiter_in_lists_of_one_path(
    layout: Layout, tmp_path: Path, option: str
) -> None:
    cells = [[f"A >> {'BC'[i % 2]}"] for i in range(20)]
    pd.DataFrame({"t": [f"text {i}" for i in range(20)], "c": map(json.dumps, cells)}).to_csv(
        tmp_path / "d.csv", index=False
    )
    arguments = "-t", "t", "-c", "c", "--several-paths", option
    result = flat(tmp_path / "d.csv", "d", *arguments)
    assert result.exit_code == 0, result.output
    assert "did you forget --delimiter ' >> '" in result.output
    assert "forget" not in flat(tmp_path / "d.csv", "e", *arguments, "--delimiter", " >> ").output


def test_works_from_another_folder(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good_csv(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert flat("good.csv", "d", *GOOD).exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"good.csv", "project"}
    assert {path.name for path in layout.dataset("d").iterdir()} == {
        "train.parquet", "val.parquet", "test.parquet", "hierarchy.json", "report.json"
    }  # fmt: skip
