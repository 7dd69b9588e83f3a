"""Tables as people have them: dialects, folders, Arrow types, packed files, keys."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import tarfile
import time
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from tests.adapters.test_flat import flat, report_of, rows_of
from utils.adapters.lookup import Lookup
from utils.common.errors import UserError
from utils.common.paths import Layout
from utils.hierarchy.dataset import load_dataset
from utils.tables.batches import Batch, ReadOptions
from utils.tables.dialect import declared_separator, escape_signs, without_escapes
from utils.tables.reading import open_reader
from utils.tables.source_files import open_source


def read(path: Path, contents: str | bytes = "", **options: Any) -> Batch:
    """The columns t and c of a file that may be written first."""
    if contents:
        path.write_bytes(contents.encode() if isinstance(contents, str) else contents)
    wanted = ("t", "c")
    return open_reader(open_source(path), ReadOptions(**options), wanted).read(wanted)


def rows(batch: Batch) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in batch.table.to_pylist()]


ROWS = [("a, b", "A"), ("c; d", "B"), ('say "x"', "A")]


# -- dialects -----------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize(("first", "sep"), [("sep=;", ";"), ("SEP=,", ","), ('"sep=\t"', "\t"),
                                            ("sep=|", "|"), ("sep=§", "§")])  # fmt: skip
def test_a_first_line_names_the_separator(
    first: str, sep: str, encoding: str, tmp_path: Path
) -> None:
    quoted = [
        sep.join('"' + cell.replace('"', '""') + '"' for cell in row)
        for row in [("t", "c"), *ROWS, ("é", "A")]
    ]
    text = "\r\n".join([first, *quoted, ""])
    batch = read(tmp_path / "s.csv", (text + "broken\r\n").encode(encoding))
    assert rows(batch) == [*ROWS, ("é", "A")]
    assert batch.broken_at == ("s.csv:7",)


def test_a_text_that_begins_like_it_names_no_separator() -> None:
    assert declared_separator(b"sep=;,c\na,A\n") is None
    assert declared_separator(b"sep,c\na,A\n") is None


def escaped(path: Path, cells: list[tuple[str, str]]) -> bytes:
    """A table as MySQL writes it."""
    lines = [
        ",".join('"' + cell.replace("\\", "\\\\").replace('"', '\\"') + '"' for cell in row)
        for row in [("t", "c"), *cells]
    ]
    return "\n".join(lines).encode() + b"\n"


@pytest.mark.parametrize(
    "texts",
    [
        ['he said "hi", bye', "plain"],
        ['a pipe of 42"', 'a pipe of 43"', "plain", 'a pipe of 44"'],
        ["C:\\temp\\", 'and "quoted"'],
        ['"', '""', 'x"y'],
    ],
)
def test_escaped_quotes_are_read(texts: list[str], tmp_path: Path) -> None:
    cells = [(text, "AB"[i % 2]) for i, text in enumerate(texts)]
    batch = read(tmp_path / "e.csv", escaped(tmp_path, cells))
    assert rows(batch) == cells
    assert batch.broken == 0
    assert "backslashes before quotes were read as escapes" in batch.notes


@pytest.mark.parametrize(
    "texts",
    [
        ["C:\\temp\\", "D:\\"],
        [json.dumps({"said": 'say "hi", bye'}), json.dumps(['5"', "b"])],
        [json.dumps({"path": "C:\\x\\"}), 'a "b" \\ c', "\\N"],
    ],
)
def test_backslashes_of_an_ordinary_table_stay(texts: list[str], tmp_path: Path) -> None:
    cells = [(text, "AB"[i % 2]) for i, text in enumerate(texts)]
    stream = io.StringIO()
    csv.writer(stream, quoting=csv.QUOTE_ALL).writerows([("t", "c"), *cells])
    batch = read(tmp_path / "e.csv", stream.getvalue())
    assert rows(batch) == cells
    assert not batch.notes


@pytest.mark.parametrize("seed", range(3))
def test_random_cells_survive_both_dialects(seed: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(seed)
    letters = list('ab ,\n\\"')
    cells = [("".join(generator.choice(letters, 12)) + "x", "AB"[i % 2]) for i in range(200)]
    cells.append(('x "y" z', "A"))  # without a sign of it nobody could tell
    assert rows(read(tmp_path / "e.csv", escaped(tmp_path, cells))) == cells


def test_the_search_for_escapes_is_linear() -> None:
    def cost(count: int) -> float:
        data = b't,c\n"' + b'\\""a,"\\"' * count + b'x","' * count
        times = []
        for _ in range(5):
            start = time.process_time()
            escape_signs(data, ",", '"')
            without_escapes(data, '"')
            times.append(time.process_time() - start)
        return min(times)

    assert cost(2_000_000) < 6 * cost(500_000)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_headers_of_joined_files_are_left_out(mark: str, tmp_path: Path) -> None:
    text = f"t,c\na,A\n{mark}t,c\nb,B\nt,B\n{mark}t,c\n"
    batch = read(tmp_path / "j.csv", text)
    assert rows(batch) == [("a", "A"), ("b", "B"), ("t", "B")]
    assert batch.notes == ("2 lines repeat the header and were left out",)


TITLED = '# exported 2026\n\n"a remark\nof two lines"\nt,c\na,A\nb,B\nc\n'


def test_the_line_of_the_header_is_found_and_taken(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(TITLED)
    refused = flat(tmp_path / "t.csv", "d", "-t", "t", "-c", "c")
    assert refused.exit_code == 1
    assert "The header seems to be line 5: --header-row 5." in refused.output
    batch = read(tmp_path / "t.csv", header_row=5)
    assert rows(batch) == [("a", "A"), ("b", "B")]
    assert batch.broken_at == ("t.csv:8",)


def test_a_misspelt_column_is_no_reason_to_doubt_the_header(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("t,c\nt,A\nb,B\n")
    refused = flat(tmp_path / "t.csv", "d", "-t", "t", "-c", "d")
    assert "Unknown column 'd'" in refused.output
    assert "--header-row" not in refused.output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--header-row", "0"), "--header-row is 0"),
        (("--header-row", "99"), "--header-row is 99: there are not so many lines"),
        (("--header-row", "1", "--no-header"), "--header-row and --no-header exclude each other"),
        (("--header-row", "1", "--lines", "(?P<t>.)(?P<c>.)"), "--header-row and --lines"),
    ],
)
def test_a_wrong_line_is_refused(options: tuple[str, ...], words: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("t,c\na,A\nb,B\n")
    refused = flat(tmp_path / "t.csv", "d", "-t", "t", "-c", "c", *options)
    assert refused.exit_code == 1
    assert words in refused.output


# -- folders ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_folders_that_name_the_class_give_it(kind: str, layout: Layout, tmp_path: Path) -> None:
    expected = set()
    for label in ("A", "B%20C", "__HIVE_DEFAULT_PARTITION__"):
        folder = tmp_path / "in" / "year=2026" / f"label={label}"
        folder.mkdir(parents=True)
        (folder / "_SUCCESS").write_text("")
        (folder / ".part.crc").write_text("x")
        table = pa.table({"text": [f"{label} {i}" for i in range(10)], "n": range(10)})
        path = folder / f"part-0.{kind}"
        if kind == "parquet":
            pq.write_table(table, path)
        elif kind == "csv":
            table.to_pandas().to_csv(path, index=False)
            (folder / "part-1.csv").write_text("")  # as Spark leaves them
        else:
            table.to_pandas().to_json(path, orient="records", lines=True)
        if not label.startswith("_"):
            expected |= {(f"{label} {i}", (label.replace("%20", " "),)) for i in range(10)}
    for pattern in (tmp_path / "in", tmp_path / "in" / "*", tmp_path / "in" / "**" / f"*.{kind}"):
        if kind == "csv" and "**" in str(pattern):
            continue  # names the empty file, which is refused
        result = flat(pattern, "d", "-t", "text", "-c", "label", "--force")
        assert result.exit_code == 0, result.output
        assert rows_of(load_dataset(layout, "d")) == expected
        assert report_of(layout)["rows"]["dropped"] == {"empty_path": 10}
    assert flat(tmp_path / "in", "e", "-t", "text", "-c", "year,label").exit_code == 0
    assert load_dataset(layout, "e").hierarchy.names[0] == "2026"


def test_a_column_of_the_file_comes_before_its_folder(layout: Layout, tmp_path: Path) -> None:
    folder = tmp_path / "label=folder"
    folder.mkdir()
    pq.write_table(pa.table({"t": list("abcd"), "label": list("ABAB")}), folder / "p.parquet")
    assert flat(folder, "d", "-t", "t", "-c", "label").exit_code == 0
    assert load_dataset(layout, "d").hierarchy.names == ("A", "B")


def test_the_names_of_files_can_be_the_classes(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("Toys.csv", "Pets.csv"):
        (tmp_path / "in" / name).write_text(f"t,n\n{name} one,1\n{name} two,2\n")
    assert flat(tmp_path / "in", "d", "-t", "t", "-c", "file").exit_code == 0
    assert load_dataset(layout, "d").hierarchy.names == ("Pets.csv", "Toys.csv")


def test_a_folder_without_tables_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "_SUCCESS").write_text("")
    refused = flat(tmp_path, "d", "-t", "t", "-c", "c")
    assert refused.exit_code == 1
    assert "is a folder without tables" in refused.output


# -- Arrow --------------------------------------------------------------------------------


STRINGS = ["A", "A", None, "B", "A", "A"]
LISTS = [["A", "B"], None, [], ["C", None], ["A", "B"], ["C"]]


def _views() -> pa.Array:
    """Lists that share their items and are in another order than these."""
    items = pa.array(["C", None, "A", "B"])
    offsets, sizes = [2, 0, 0, 0, 2, 0], [2, 0, 0, 2, 2, 1]
    starts, lengths = pa.array(offsets, pa.int32()), pa.array(sizes, pa.int32())
    return pa.ListViewArray.from_arrays(starts, lengths, items)


LAYOUTS: dict[str, tuple[Callable[[], pa.Array], list[Any]]] = {
    "dictionary": (lambda: pa.array(STRINGS).dictionary_encode(), STRINGS),
    "run ends": (lambda: pc.run_end_encode(pa.array(STRINGS)), STRINGS),
    "string view": (lambda: pa.array(STRINGS, pa.string_view()), STRINGS),
    "large string": (lambda: pa.array(STRINGS, pa.large_string()), STRINGS),
    "binary": (lambda: pa.array(STRINGS, pa.binary()), STRINGS),
    "JSON": (lambda: pa.array(STRINGS, pa.json_()), STRINGS),
    "list": (lambda: pa.array(LISTS), LISTS),
    "large list": (lambda: pa.array(LISTS, pa.large_list(pa.string())), LISTS),
    "list view": (lambda: pa.array(LISTS, pa.list_view(pa.string())), LISTS),
    "large list view": (lambda: pa.array(LISTS, pa.large_list_view(pa.string_view())), LISTS),
    "shared views": (_views, [["A", "B"], [], [], ["C", None], ["A", "B"], ["C"]]),
    "list of dictionaries": (
        lambda: pa.array(LISTS, pa.list_(pa.dictionary(pa.int8(), pa.string()))), LISTS),
    "fixed size": (lambda: pa.array([["A", "B"], None, ["C", "D"]] * 2, pa.list_(pa.string(), 2)),
                   [["A", "B"], None, ["C", "D"]] * 2),
    "dictionary of lists": (
        lambda: pa.DictionaryArray.from_arrays(pa.array([0, 1, None] * 2),
                                               pa.array([["A", "B"], ["C"]])),
        [["A", "B"], ["C"], None] * 2),
}  # fmt: skip


@pytest.mark.parametrize("slicing", [slice(None), slice(1, 5)])
@pytest.mark.parametrize("case", LAYOUTS)
def test_every_layout_of_arrow_is_read(case: str, slicing: slice, tmp_path: Path) -> None:
    make, expected = LAYOUTS[case]
    table = pa.table({"t": [f"text {i}" for i in range(6)], "c": make()})[slicing]
    with (
        pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table)
    batch = read(tmp_path / "a.arrow")
    values = [value.decode() if isinstance(value, bytes) else value
              for value in batch.table["c"].to_pylist()]  # fmt: skip
    assert values == expected[slicing]


@pytest.mark.parametrize("case", LAYOUTS)
def test_every_layout_of_arrow_becomes_a_dataset(case: str, layout: Layout, tmp_path: Path) -> None:
    make, expected = LAYOUTS[case]
    table = pa.table({"t": [f"text {i}" for i in range(6)], "c": make()})
    with (
        pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as writer,
    ):
        writer.write_table(table)
    result = flat(tmp_path / "a.arrow", "d", "-t", "t", "-c", "c")
    assert result.exit_code == 0, result.output
    empty = sum(not value for value in expected)
    assert report_of(layout)["rows"]["dropped"] == ({"empty_path": empty} if empty else {})


def test_arrow_files_with_wild_offsets_are_refused(tmp_path: Path) -> None:
    offsets = pa.py_buffer(np.array([0, 5, 1 << 30, 9], np.int32).tobytes())
    wild = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"abcdefghi")])
    table = pa.table({"t": ["a", "b", "c"], "c": wild})
    with (
        pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as writer,
    ):
        writer.write_table(table)
    with pytest.raises(UserError, match="cannot be read as an Arrow"):
        read(tmp_path / "a.arrow")


def features(**columns: Any) -> dict[bytes, bytes]:
    return {b"huggingface": json.dumps({"info": {"features": columns}}).encode()}


LABEL = {"names": ["World", "Sports", "Tech"], "_type": "ClassLabel"}
ID_COLUMNS: dict[str, tuple[Any, Any, list[Any]]] = {
    "one": (pa.array([0, 2, 1, -1, None, 7]), LABEL, ["World", "Tech", "Sports", None, None, None]),
    "small": (pa.array([0, 2, 1, 0, 2, 1], pa.int8()), LABEL, ["World", "Tech", "Sports"] * 2),
    "dictionary": (pa.array([0, 2, 1] * 2).dictionary_encode(), LABEL,
                   ["World", "Tech", "Sports"] * 2),
    "sequence": (pa.array([[0, 1], [2], [], None, [1], [1, -1]]),
                 {"feature": LABEL, "_type": "Sequence", "length": -1},
                 [["World", "Sports"], ["Tech"], [], None, ["Sports"], ["Sports", None]]),
    "old sequence": (pa.array([[0, 1], [2]] * 3), [LABEL], [["World", "Sports"], ["Tech"]] * 3),
    "list view": (pa.array([[0, 1], [2]] * 3, pa.list_view(pa.int64())),
                  {"feature": LABEL, "_type": "LargeList"}, [["World", "Sports"], ["Tech"]] * 3),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["parquet", "feather", "arrow"])
@pytest.mark.parametrize("case", ID_COLUMNS)
def test_ids_are_read_as_the_class_names_of_the_file(case: str, kind: str, tmp_path: Path) -> None:
    column, feature, expected = ID_COLUMNS[case]
    if case == "list view" and kind == "parquet":
        column = pa.array(column.to_pylist())
    text = {"dtype": "string", "_type": "Value"}
    table = pa.table({"t": list("abcdef"), "c": column})
    table = table.replace_schema_metadata(features(t=text, c=feature))
    path = tmp_path / f"h.{kind}"
    if kind == "parquet":
        pq.write_table(table, path)
    elif kind == "feather":
        pyarrow.feather.write_feather(table, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    batch = read(path)
    assert batch.table["c"].to_pylist() == expected
    assert batch.notes == ("column 'c': ids were read as the class names that the file holds",)


@pytest.mark.parametrize(
    "metadata",
    [b"{", b"[]", b'{"info": 3}', b'{"info": {"features": [1]}}', b"[" * 100_000,
     b'{"info": {"features": {"c": {"_type": "ClassLabel", "names": [1, 2]}}}}',
     b'{"info": {"features": {"c": {"_type": "Value"}, "gone": {"names": ["a"]}}}}'],
)  # fmt: skip
def test_metadata_that_names_no_classes_is_passed_over(metadata: bytes, tmp_path: Path) -> None:
    table = pa.table({"t": list("abc"), "c": [0, 1, 2]})
    pq.write_table(
        table.replace_schema_metadata({b"huggingface": metadata}), tmp_path / "p.parquet"
    )
    batch = read(tmp_path / "p.parquet")
    assert batch.table["c"].to_pylist() == [0, 1, 2]
    assert not batch.notes


# -- keys of another table ----------------------------------------------------------------


NAMES = {"1": "Toys", "2": "Pets", "3": "Books"}


def _lookup_file(folder: Path, kind: str) -> Path:
    table = pa.table({"id": [*map(int, NAMES)], "title": [*NAMES.values()]})
    path = folder / f"names.{kind}"
    if kind == "parquet":
        pq.write_table(table, path)
    elif kind == "csv":
        table.to_pandas().to_csv(path, index=False, sep=";")
    elif kind == "xlsx":
        table.to_pandas().to_excel(path, index=False)
    else:
        table.to_pandas().to_json(path, orient="records")
    return path


@pytest.mark.parametrize("kind", ["csv", "parquet", "xlsx", "json"])
def test_keys_are_replaced_by_names_of_another_table(
    kind: str, layout: Layout, tmp_path: Path
) -> None:
    ids = [1, 2, 3, 1, 2, 3, 9, 9, 8, None]
    pq.write_table(pa.table({"t": [f"t{i}" for i in range(10)], "c": ids}), tmp_path / "d.parquet")
    names = _lookup_file(tmp_path, kind)
    result = flat(
        tmp_path / "d.parquet", "d", "-t", "t", "-c", "c", "--lookup", f"c={names}:id:title"
    )
    assert result.exit_code == 0, result.output
    assert {path for _, path in rows_of(load_dataset(layout, "d"))} == {
        ("Toys",),
        ("Pets",),
        ("Books",),
    }
    report = report_of(layout)
    assert report["rows"]["dropped"] == {"empty_path": 4}
    assert any("3 values are no keys" in note and "2 different: '9', '8'" in note
               for note in report["notes"])  # fmt: skip


def test_keys_in_lists_and_of_several_columns_are_looked_up(layout: Layout, tmp_path: Path) -> None:
    names = _lookup_file(tmp_path, "csv")
    lines = [{"t": f"t{i}", "a": [1, 2] if i % 2 else [3], "b": 2} for i in range(8)]
    (tmp_path / "l.jsonl").write_text("\n".join(map(json.dumps, lines)))
    spec = f"{names}:id:title"
    result = flat(tmp_path / "l.jsonl", "d", "-t", "t", "-c", "a", "--lookup", f"a={spec}")
    assert result.exit_code == 0, result.output
    assert {path for _, path in rows_of(load_dataset(layout, "d"))} == {
        ("Toys", "Pets"),
        ("Books",),
    }
    (tmp_path / "c.csv").write_text("t,a,b\nx,1,2\ny,1,3\nz,2,3\n")
    result = flat(tmp_path / "c.csv", "e", "-t", "t", "-c", "a,b",
                  "--lookup", f"a={spec}", "--lookup", f"b={spec}")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert {path for _, path in rows_of(load_dataset(layout, "e"))} == {
        ("Toys", "Pets"), ("Toys", "Books"), ("Pets", "Books")
    }  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("c=names.csv:id", "is not COLUMN=FILE:key:name"),
        ("names.csv:id:title", "is not COLUMN=FILE:key:name"),
        ("c=none.csv:id:title", "No such file: none.csv"),
        ("c=names.csv:key:title", "Unknown column 'key'"),
        ("d=names.csv:id:title", "Unknown column 'd'"),
        ("c=names.csv:title:id", "none of its values is in the column 'title'"),
        ("c=twice.csv:id:title", "1 keys more than once in its column 'id', the first is '1'"),
    ],
)
def test_a_wrong_lookup_is_one_line(
    spec: str, words: str, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("names.csv").write_text("id,title\n1,Toys\n2,Pets\n")
    Path("twice.csv").write_text("id,title\n1,Toys\n2,Pets\n 1 ,Books\n")
    Path("d.csv").write_text("t,c\na,1\nb,2\nc,1\n")
    result = flat("d.csv", "d", "-t", "t", "-c", "c", "--lookup", spec)
    assert result.exit_code == 1, result.output
    assert words in " ".join(result.output.split())


def test_a_lookup_is_part_of_the_command_that_made_a_dataset(
    layout: Layout, tmp_path: Path
) -> None:
    names = _lookup_file(tmp_path, "csv")
    (tmp_path / "d.csv").write_text("t,c\na,1\nb,2\nc,1\nd,2\n")
    command = [tmp_path / "d.csv", "d", "-t", "t", "-c", "c"]
    assert flat(*command, "--lookup", f"c={names}:id:title").exit_code == 0
    assert flat(*command, "--lookup", f"c={names}:id:title").exit_code == 0
    assert "made by another command" in flat(*command).output


def test_a_file_with_colons_in_its_name_can_be_looked_up() -> None:
    assert Lookup.parsed("c=C:\\data\\n.csv:id:title").file == "C:\\data\\n.csv"


# -- packed files -------------------------------------------------------------------------


LARGE = b"t,c\n" + b"some words,A\n" * 6_000_000  # 78 MB
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": lambda data: gzip.compress(data, 9),
    "bz2": lambda data: bz2.compress(data, 9),
    "xz": lambda data: lzma.compress(data, preset=0),
}


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zip"])
def test_what_unpacks_to_absurdly_much_is_one_line(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("utils.tables.unpacking.SMALL", 1 << 20)
    data, path = LARGE[: 4 << 20], tmp_path / f"b.csv.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("b.csv", data)
    else:
        path.write_bytes(PACKERS[kind](data))
    assert len(data) > 200 * path.stat().st_size
    refused = flat(path, "d", "-t", "t", "-c", "c")
    assert refused.exit_code == 1
    assert "unpacks to more than 200 times" in refused.output
    assert len(refused.output.splitlines()) == 1


def test_a_small_file_may_repeat_itself(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "r.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../r\n.csv", LARGE[: 4 << 20])
    assert read(tmp_path / "r.zip").table.num_rows > 100_000


def _zip(folder: Path, *names: str) -> Path:
    with zipfile.ZipFile(folder / "z.zip", "w") as archive:
        for name in names:
            archive.writestr(name, "t,c\n")
    return folder / "z.zip"


def _tar(folder: Path) -> Path:
    with tarfile.open(folder / "t.tar.gz", "w:gz") as archive:
        archive.add(_zip(folder, "a.csv"))
    return folder / "t.tar.gz"


def _twice(folder: Path) -> Path:
    (folder / "t.csv.gz.gz").write_bytes(gzip.compress(gzip.compress(b"t,c\na,A\n")))
    return folder / "t.csv.gz.gz"


PACKED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a zip in a zip": (lambda f: _zip(f, "a.zip"), "packed twice ('a.zip' inside): unpack it once"),
    "a gzip in a zip": (lambda f: _zip(f, "a.csv.gz"), "packed twice"),
    "many members": (lambda f: _zip(f, *(f"{i}\n.csv" for i in range(1000))), "and 995 more"),
    "a tar": (_tar, "is a tar archive: unpack it and name the files to read"),
    "packed twice": (_twice, "is packed twice: unpack it once"),
}


@pytest.mark.parametrize("case", PACKED)
def test_archives_are_named_with_what_to_do(case: str, tmp_path: Path) -> None:
    make, words = PACKED[case]
    refused = flat(make(tmp_path), "d", "-t", "t", "-c", "c")
    assert refused.exit_code == 1
    assert words in refused.output
    assert len(refused.output.splitlines()) == 1


def test_too_little_memory_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise pa.ArrowMemoryError("malloc of size 4294967296 failed")

    (tmp_path / "d.csv").write_text("t,c\na,A\n")
    monkeypatch.setattr("utils.tables.delimited.CsvReader.read", fail)
    refused = flat(tmp_path / "d.csv", "d", "-t", "t", "-c", "c")
    assert refused.exit_code == 1
    assert refused.output.startswith("Error: The input needs more memory than there is")


def test_lines_of_a_page_can_be_read_by_a_pattern(layout: Layout, tmp_path: Path) -> None:
    rows = "".join(f"<i c='{'AB'[i % 2]}'>text {i}</i>\n" for i in range(10))
    (tmp_path / "p.xml").write_text(f"<?xml version='1.0'?>\n{rows}")
    pattern = "<i c='(?P<c>.)'>(?P<t>.*)</i>"
    result = flat(tmp_path / "p.xml", "d", "-t", "t", "-c", "c", "--lines", pattern)
    assert result.exit_code == 0, result.output
    assert report_of(layout)["rows"]["kept"] == 10


@pytest.mark.parametrize("first", ["ORC", "Rar!", "Obj", "7z"])
def test_a_header_that_looks_like_a_signature_is_one(first: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"{first},t,c\nx,a,A\n")
    assert rows(read(tmp_path / "t.csv")) == [("a", "A")]


def test_uuids_are_as_people_write_them(tmp_path: Path) -> None:
    ids = [uuid.UUID(int=seed * 0x1234567890ABCDEF1234567) for seed in range(1, 5)]
    column = pa.array([*(one.bytes for one in ids), None], pa.uuid())
    table = pa.table({"t": list("abcde"), "c": column})
    pq.write_table(table, tmp_path / "u.parquet")
    pyarrow.feather.write_feather(table, tmp_path / "u.feather")
    for name in ("u.parquet", "u.feather"):
        assert [c for _, c in rows(read(tmp_path / name))] == [*map(str, ids), None]


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl"])
@pytest.mark.parametrize("encoding", ["utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be"])
def test_a_mark_decides_the_encoding(encoding: str, kind: str, tmp_path: Path) -> None:
    cells = [{"t": f"żółw {i}", "c": "Ł"} for i in range(20)]
    lines = [json.dumps(cell, ensure_ascii=False) for cell in cells]
    text = {
        "csv": "t,c\n" + "".join(f"{cell['t']},Ł\n" for cell in cells),
        "json": f"[{','.join(lines)}]",
        "jsonl": "\n".join(lines),
    }[kind]
    found = read(tmp_path / f"e.{kind}", ("\ufeff" + text).encode(encoding))
    assert rows(found) == [tuple(cell.values()) for cell in cells]


@pytest.mark.parametrize("contents", ["t,c", "t,c\n", "title\nt,c"])
def test_a_header_alone_is_a_table_without_rows(contents: str, tmp_path: Path) -> None:
    found = read(tmp_path / "h.csv", contents, header_row=1 + contents.count("title"))
    assert rows(found) == []


def test_a_header_of_very_many_columns_is_whole(tmp_path: Path) -> None:
    names = [f"number_{i:06}" for i in range(30_000)]
    contents = ",".join([*names, "t", "c"]) + "\n" + ",".join(["1"] * 30_000 + ["a", "A"]) + "\n"
    assert rows(read(tmp_path / "w.csv", contents)) == [("a", "A")]


@pytest.mark.parametrize("sep", [",", "||"])
def test_stray_quotes_that_join_lines_are_named(sep: str, tmp_path: Path) -> None:
    lines = [f"text {i}{sep}{'AB'[i % 2]}" for i in range(40)]
    lines[3] = f'"5 inch pipe" and more{sep}A'  # harms nobody
    lines[4] = f'"two\nlines ""so"" {sep}"{sep}A'
    for i in (9, 14, 20, 22):
        lines[i] = '"' + lines[i]
    contents = f"t{sep}c\n" + "\n".join(lines) + "\n"
    found = read(tmp_path / "q.csv", contents, sep=sep)
    (note,) = found.notes
    assert note.startswith("stray quotes joined 9 lines to 2 rows, the first 6 from line 12 on")
    plain = read(tmp_path / "q.csv", contents, sep=sep, quote="")
    assert not [note for note in plain.notes if "joined" in note]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_cells_of_several_lines_are_no_doubt(end: str, tmp_path: Path) -> None:
    cells = [(f'a "q" {i},{end}"{end}5"{end}', "A") for i in range(20)] + [("\n", '"'), ("x", "")]
    stream = io.StringIO()
    csv.writer(stream, lineterminator=end).writerows([("t", "c"), *cells])
    assert not read(tmp_path / "q.csv", stream.getvalue()).notes
    unquoted = f't,c{end}5" pipe,A{end}"two{end}lines",B{end}7" and 8",A{end}'
    assert not read(tmp_path / "q.csv", unquoted).notes
