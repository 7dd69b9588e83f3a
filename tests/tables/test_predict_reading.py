"""What predict.py reads: encodings, separators, titles, and where a broken row stands."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from utils.common.errors import UserError
from utils.common.paths import PROJECT_ROOT
from utils.hierarchy.tree import label_of
from utils.tables.batches import ReadOptions
from utils.tables.columns import texts_of
from utils.tables.dialect import without_escapes
from utils.tables.formats import Unescaped
from utils.tables.quotes import WellQuoted, joined_lines
from utils.tables.reading import open_reader as adapt_reader
from utils.tables.source_files import open_source
from utils.tables.stream import open_rows

TEXTS = ["café", "żółw, mały", "日本語", 'so-called "x"\nof two lines', "😀"]
MARKED = {
    "utf-8": "utf-8", "utf-8-sig": "utf-8-sig", "utf-16": "utf-16", "utf-32": "utf-32",
    "utf-16-le": "utf-16-le", "utf-16-be": "utf-16-be",
}  # fmt: skip


def texts(path: Path | None, kind: str = "csv", **options: Any) -> list[str]:
    with open_rows(path, kind, text=["text"], options=ReadOptions(**options)) as rows:
        return [text for chunk in rows.chunks(3) for text in chunk.texts]


def csv_of(cells: list[str], sep: str = ",") -> str:
    lines = [f'"{cell.replace(chr(34), chr(34) * 2)}"{sep}x' for cell in cells]
    return "\r\n".join([f"text{sep}other", *lines, ""])


def jsonl_of(cells: list[str]) -> str:
    return "".join(json.dumps({"text": cell}, ensure_ascii=False) + "\n" for cell in cells)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("encoding", MARKED)
def test_an_encoding_that_is_marked_is_read(
    encoding: str, kind: str, packed: bool, tmp_path: Path
) -> None:
    # Without a mark, mostly Latin text is what shows UTF-16.
    cells = [*TEXTS, *(f"plain text {i}" for i in range(40))]
    data = (csv_of(cells) if kind == "csv" else jsonl_of(cells)).encode(encoding)
    path = tmp_path / (f"t.{kind}" + ".gz" * packed)
    path.write_bytes(gzip.compress(data) if packed else data)
    found = texts(path, kind)
    assert found == cells
    reader = adapt_reader(open_source(path), ReadOptions(), ["text"])
    assert reader.read(["text"]).table["text"].to_pylist() == found  # as adapt.py reads it


@pytest.mark.parametrize("seed", range(2))
def test_characters_across_blocks_stay_whole(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("utils.tables.formats.BUFFER", 7)
    generator = np.random.default_rng(seed)
    cells = ["".join(generator.choice(list("aé日😀"), 9)) for _ in range(50)]
    (tmp_path / "t.csv").write_bytes(csv_of(cells).encode("utf-16"))
    assert texts(tmp_path / "t.csv") == cells


@pytest.mark.parametrize("encoding", ["cp1252", "cp1250", "cp1251", "cp932", "latin-1"])
def test_other_encodings_are_named_and_can_be_given(encoding: str, tmp_path: Path) -> None:
    samples = {
        "cp1250": "Zażółć gęślą jaźń", "cp1251": "Свежие овощи и фрукты",
        "cp932": "日本語のテキスト、新鮮な野菜と果物",
    }  # fmt: skip
    sample = samples.get(encoding, "crème brûlée à la carte")
    cells = [f"{sample} {i}" for i in range(30)]
    for kind, contents in (("csv", csv_of(cells)), ("jsonl", jsonl_of(cells))):
        path = tmp_path / f"t.{kind}"
        path.write_bytes(contents.encode(encoding))
        named = "cp1252" if encoding == "latin-1" else encoding
        with pytest.raises(UserError, match=f"is not UTF-8.*say --encoding {named}"):
            texts(path, kind)
        assert texts(path, kind, encoding=encoding) == cells


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("csv", {"encoding": "utf-99"}, "Unknown encoding 'utf-99'"),
        ("csv", {"encoding": "utf-16"}, "is not utf-16"),
        ("csv", {"encoding": "ascii"}, "is not ascii"),
        ("jsonl", {"encoding": "utf-32"}, "is not utf-32"),
        ("parquet", {"encoding": "cp1252"}, "--encoding is for text files"),
        ("jsonl", {"header_row": 2}, "--header-row is for csv and tsv files"),
    ],
)
def test_a_wrong_option_is_one_line(
    kind: str, options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    (tmp_path / "t").write_text("text,b\né,x\n", "utf-8")
    with pytest.raises(UserError, match=words):
        texts(tmp_path / "t", kind, **options)


def test_standard_input_is_recoded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    data = io.BytesIO(codecs.BOM_UTF16_LE + csv_of(TEXTS).encode("utf-16-le"))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=data, fileno=lambda: [].index(0)))
    assert texts(None) == TEXTS


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("sep", [";", "|", "\t"])
def test_a_first_line_names_the_separator(sep: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(f"sep={sep}\r\n{csv_of(TEXTS, sep)}".encode(encoding))
    assert texts(tmp_path / "t.csv") == TEXTS


def test_the_line_of_the_header_is_found_and_taken(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"Report 2026,\n\n{csv_of(TEXTS)}")
    with pytest.raises(UserError, match="seems to be line 3: --header-row 3"):
        texts(path)
    assert texts(path, header_row=3) == TEXTS
    path.write_text(f"# exported 2026\n\n{csv_of(TEXTS)}")
    with (
        pytest.raises(UserError, match="seems to be line 3: --header-row 3"),
        open_rows(path, "csv") as rows,
    ):
        list(rows.chunks(3))


RAGGED = {
    "short": ("y\n", 8), "long": ("y,1,2\n", 8), "quoted": ('"a\nb",2,3\n', 8),
    "after blank lines": ("\n\ny\n", 10), "an empty cell": (",,\n", 8),
}  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("case", RAGGED)
def test_the_line_of_a_ragged_row_is_named(case: str, encoding: str, tmp_path: Path) -> None:
    row, line = RAGGED[case]
    text = f'text,b\n"two\nlines",1\n\n"y",1\nx,1\n\n{row}x,1\n'
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    with pytest.raises(UserError, match=rf"line {line}: .*Expected 2 columns, got [13]"):
        texts(tmp_path / "t.csv")


def test_a_ragged_row_far_down_is_named(tmp_path: Path) -> None:
    rows = "".join(f"text {i},{'x' * 90}\n" for i in range(120_000))  # beyond the first block
    (tmp_path / "t.csv").write_text(f"text,b\n{rows}alone\n{rows}")
    with pytest.raises(UserError, match="line 120,002: "):
        texts(tmp_path / "t.csv")


def test_a_long_broken_row_is_not_printed_whole(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"text,b\n{'x' * 100_000}\n")
    with pytest.raises(UserError) as caught:
        texts(tmp_path / "t.csv")
    assert len(caught.value.message) < 600


def test_a_line_of_json_without_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("utils.tables.stream.LINE", 1 << 20)
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n{"text": "' + "x" * (1 << 21))
    with pytest.raises(UserError, match="line 2 has more than"):
        texts(tmp_path / "t.jsonl", "jsonl")


def test_the_page_says_how_names_are_escaped() -> None:
    page = (PROJECT_ROOT / "docs" / "predict.md").read_text(encoding="utf-8")
    for letter in (">", "\\"):
        assert label_of(("a", f"b{letter}c")) == f"a > b\\{letter}c"
        assert f"`\\{letter}`" in page


ESCAPED = [
    ['he said "hi", bye', "plain", "C:\\temp\\", 'all "quoted"'],
    ['a pipe of 42"', "plain", 'a pipe of 43"', "plain", "two\nlines"],
    ["\\" * 31, 'x "y" z', "\\" * 8 + '"a'],
]


def escaped(cells: list[str]) -> bytes:
    """A table of one column as MySQL writes it."""
    escapes = str.maketrans({"\\": "\\\\", '"': '\\"'})
    return "".join(f'"{cell.translate(escapes)}"\n' for cell in ["text", *cells]).encode()


@pytest.mark.parametrize("cells", ESCAPED)
def test_escaped_quotes_are_read_as_adapt_reads_them(cells: list[str], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(escaped(cells))
    reader = adapt_reader(open_source(tmp_path / "t.csv"), ReadOptions(), ["text"])
    assert reader.read(["text"]).table["text"].to_pylist() == cells
    assert texts(tmp_path / "t.csv") == cells


@pytest.mark.parametrize("size", range(1, 9))
@pytest.mark.parametrize("cells", ESCAPED)
def test_escapes_across_blocks_stay_whole(cells: list[str], size: int) -> None:
    class Slow(io.BytesIO):
        def read1(self, _: int | None = -1) -> bytes:
            return self.read(size)

    data = escaped(cells)
    assert io.BufferedReader(Unescaped(Slow(data))).read() == without_escapes(data, '"')


def test_backslashes_before_quotes_that_are_none_of_escapes_stay(tmp_path: Path) -> None:
    cells = ["C:\\temp\\", "D:\\", json.dumps({"said": 'say "hi", bye'})]
    (tmp_path / "t.csv").write_text(csv_of(cells))
    assert texts(tmp_path / "t.csv") == cells


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_columns_of_numbers_join_a_text_as_in_adapt(kind: str, tmp_path: Path) -> None:
    path, names = tmp_path / f"t.{kind}", ("title", "year", "tags")
    rows = [
        {"title": "red", "year": 1999, "tags": ["a", "b"]},
        {"title": "blue", "year": None, "tags": []},
        {"title": "grün", "year": 7, "tags": None},
    ]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    batch = adapt_reader(open_source(path), ReadOptions(), names).read(names)
    learned, _ = texts_of(batch.table, names)
    with open_rows(path, kind, text=names) as table:
        found = [text for chunk in table.chunks(2) for text in chunk.texts]
    assert found == learned.to_pylist()
    assert found[0].startswith("red\n1999\n")


STRAY = {
    "closed by another": ('x,"a\n2,b\n"3" pipe,c\nx,d\n', 2, 3),
    "behind a quoted cell": ('"two\nlines","a\nb,c\nd "e" f\nx,d\n', 3, 3),
    "never closed": ('x,d\nx,"a\ny,b\nz,c\n', 3, 3),
    "never closed in a quoted table": ('"x","d"\n"x","a\n"y""",""b""\n', 3, 2),
}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("above", [0, 3])
@pytest.mark.parametrize("case", STRAY)
def test_stray_quotes_that_join_lines_end_the_run(
    case: str, above: int, end: str, tmp_path: Path
) -> None:
    rows, line, count = STRAY[case]
    text = '"A title, 5" wide\n' * above + "text,b\n" + rows
    (tmp_path / "t.csv").write_text(text.replace("\n", end), newline="")
    row = above + 1 if above else None
    with pytest.raises(UserError) as caught:
        texts(tmp_path / "t.csv", header_row=row)
    assert f"line {line + above}: a stray quote joins {count} lines" in caught.value.message
    data = (tmp_path / "t.csv").read_bytes()
    assert joined_lines(data, ",", '"', above) == {line + above: count}
    lines = [line for line in rows.splitlines() if line.count(",") == 1]
    if len(lines) == rows.count("\n"):
        plain = texts(tmp_path / "t.csv", header_row=row, quote="")
        assert plain == [line.split(",")[0] for line in lines]


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_quotes_are_paired_across_blocks(size: int) -> None:
    class Slow(io.BytesIO):
        def read1(self, _: int | None = -1) -> bytes:
            return self.read(size)

    cells = ['a "q",\r\n"\n5"\n', '"', "\n", 'x\r\n""y', "", 'so 5" wide'] * 5
    table = csv_of(cells) + '5" pipe,7"\r\n'

    def read(data: bytes) -> bytes:
        stream: Any = Slow(data)
        options: Any = {"sep": ",", "quote": '"', "skipped": 0, "name": "t.csv"}
        return io.BufferedReader(WellQuoted(stream, **options)).read()

    assert read(table.encode()) == table.encode()
    with pytest.raises(UserError, match="joins 2 lines to one row"):
        read((table + 'x,"a\r\n"b",c\r\n' + table).encode())


def test_a_quote_that_separates_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(csv_of(TEXTS))
    with pytest.raises(UserError, match="--quote ',' separates the columns"):
        texts(tmp_path / "t.csv", quote=",")
