"""Workbooks as people make them: merged cells, errors, formulas, titles, hidden sheets."""

from __future__ import annotations

import datetime
import re
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pytest

from tests.adapters.test_flat import flat, report_of, rows_of
from utils.common.errors import UserError
from utils.common.paths import Layout
from utils.hierarchy.dataset import load_dataset
from utils.tables.batches import Batch, ReadOptions
from utils.tables.reading import open_reader
from utils.tables.source_files import open_source

Cells = Sequence[Sequence[Any]]


def workbook(path: Path, rows: Cells, merged: Iterable[str] = (), title: str = "Sheet") -> Path:
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = title
    for row in rows:
        sheet.append(row)
    for area in merged:
        sheet.merge_cells(area)
    book.save(path)
    return path


def read(path: Path, *wanted: str, **options: Any) -> Batch:
    reader = open_reader(open_source(path), ReadOptions(**options), wanted)
    return reader.read(wanted or reader.columns)


def rows(batch: Batch) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in batch.table.to_pylist()]


def edited(path: Path, change: Callable[[str], str], part: str = "sheet1.xml") -> Path:
    """Change the XML of a workbook's part: what openpyxl does not write itself."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, contents in parts.items():
            if name.endswith(part):
                contents = change(contents.decode()).encode()
            archive.writestr(name, contents)
    return path


# -- merged cells -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_merged_cells_read_as_if_they_were_not_merged(seed: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(seed)
    plain: list[list[str]] = []
    areas = []
    for column in range(2):
        start = 0
        for length in generator.integers(1, 5, 9):
            value = f"{column}-{start}"
            for row in range(start, start + length):
                plain += [["", "", f"text {len(plain)}"]] * (row == len(plain))
                plain[row] = [*plain[row]]
                plain[row][column] = value
            if length > 1:
                letter = "AB"[column]
                areas.append(f"{letter}{start + 2}:{letter}{start + length + 1}")
            start += length
    path = workbook(tmp_path / "m.xlsx", [["one", "two", "text"], *plain], areas)
    assert rows(read(path)) == [tuple(cell or None for cell in row) for row in plain]


def test_a_merged_block_has_one_value_in_all_rows_and_columns(tmp_path: Path) -> None:
    table = [["a", "b", "n"], ["x", None, 1], [None, None, 2], ["y", "z", 3]]
    batch = read(workbook(tmp_path / "m.xlsx", table, ["A2:B3"]))
    assert rows(batch) == [("x", "x", "1"), ("x", "x", "2"), ("y", "z", "3")]
    assert batch.notes == ("1 groups of merged cells were read: each of their cells has the value",)


def test_what_lies_hidden_below_a_merged_cell_is_not_read(tmp_path: Path) -> None:
    path = workbook(tmp_path / "m.xlsx", [["a", "t"], ["seen", 1], ["hidden", 2]])
    edited(path, lambda xml: xml.replace(
        "</sheetData>", '</sheetData><mergeCells count="1"><mergeCell ref="A2:A3"/></mergeCells>'
    ))  # fmt: skip
    assert rows(read(path)) == [("seen", "1"), ("seen", "2")]


def test_rows_that_are_wholly_merged_are_one_row(tmp_path: Path) -> None:
    table = [["a", "t"], ["x", "one"], [None, None], ["y", "two"]]
    assert rows(read(workbook(tmp_path / "m.xlsx", table, ["A2:A3", "B2:B3"]))) == [
        ("x", "one"), ("y", "two")
    ]  # fmt: skip


def test_a_header_of_two_merged_rows_is_one_header(tmp_path: Path) -> None:
    table = [["text", "class", None], [None, "group", "kind"], ["a", "A", "B"]]
    path = workbook(tmp_path / "h.xlsx", table, ["A1:A2", "B1:C1"])
    assert open_reader(open_source(path), ReadOptions(), ()).columns == ("text", "group", "kind")
    assert rows(read(path, "text", "group", "kind")) == [("a", "A", "B")]


def test_merged_cells_of_a_million_rows_cost_nothing(tmp_path: Path) -> None:
    table = [["a", "t"], ["x", 1], [None, 2]]
    path = workbook(tmp_path / "m.xlsx", table)
    edited(path, lambda xml: xml.replace(
        "</sheetData>",
        '</sheetData><mergeCells count="1"><mergeCell ref="A2:A1048576"/></mergeCells>',
    ))  # fmt: skip
    assert rows(read(path)) == [("x", "1"), ("x", "2")]


# -- cells that hold no value -------------------------------------------------------------


ERRORS = ("#N/A", "#REF!", "#DIV/0!", "#VALUE!", "#NAME?", "#NUM!", "#NULL!")


def test_error_cells_are_empty_and_counted(layout: Layout, tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(["text", "label", "other"])
    for i in range(42):
        sheet.append([f"text {i}", "ab"[i % 2], "x"])
        cell = sheet.cell(i + 2, 2 if i < 14 else 3)
        if i < 28:
            cell.value, cell.data_type = ERRORS[i % 7], "e"
    book.save(tmp_path / "e.xlsx")
    result = flat(tmp_path / "e.xlsx", "d", "-t", "text", "-c", "label")
    assert result.exit_code == 0, result.output
    report = report_of(layout)
    assert report["rows"]["dropped"] == {"empty_path": 14}
    assert {path for _, path in rows_of(load_dataset(layout, "d"))} == {("a",), ("b",)}
    (note,) = report["notes"]
    assert note.startswith("14 cells hold errors and were read as empty: ")
    assert all(f"{word} 2" in note for word in ERRORS)


def formulas(path: Path, stored: str) -> Path:
    """Classes that are formulas, with what is stored of their results."""
    table = [["text", "label"], *([f"text {i}", "ab"[i % 2]] for i in range(20))]
    table += [[f"more {i}", "=A1"] for i in range(3)]
    cell = re.compile(r"><f>A1</f><v ?(/>|></v>)")
    return edited(workbook(path, table), lambda xml: cell.sub(stored, xml))


def test_formulas_without_a_stored_value_are_named(layout: Layout, tmp_path: Path) -> None:
    path = formulas(tmp_path / "f.xlsx", "><f>A1</f><v/>")
    assert flat(path, "d", "-t", "text", "-c", "label").exit_code == 0
    report = report_of(layout)
    assert report["rows"]["dropped"] == {"empty_path": 3}
    assert "3 formulas have no stored value" in report["notes"][0]
    assert "the first in B22" in report["notes"][0]


def test_formulas_with_a_stored_value_have_it(layout: Layout, tmp_path: Path) -> None:
    path = formulas(tmp_path / "f.xlsx", ' t="str"><f>A1</f><v>b</v>')
    assert flat(path, "d", "-t", "text", "-c", "label").exit_code == 0
    assert report_of(layout)["rows"]["kept"] == 23
    assert report_of(layout)["notes"] == []


def test_formulas_that_give_an_error_or_nothing_are_no_classes(
    layout: Layout, tmp_path: Path
) -> None:
    for stored, words in (
        (' t="str"><f>A1</f><v>#N/A</v>', "#N/A 3"),
        (' t="str"><f>A1</f><v/>', ""),
    ):
        path = formulas(tmp_path / "f.xlsx", stored)
        assert flat(path, "d", "-t", "text", "-c", "label", "--force").exit_code == 0
        report = report_of(layout)
        assert report["rows"]["dropped"] == {"empty_path": 3}
        assert [words in note for note in report["notes"]] == [True] * bool(words)


def test_labels_are_what_a_spreadsheet_shows(tmp_path: Path) -> None:
    day, hour = datetime.datetime(2026, 1, 5), datetime.datetime(2026, 1, 5, 7, 30)
    values = [1, 1.0, 1.5, 0.1 + 0.2, True, False, day, hour, hour.time(), 12345678901, "001"]
    path = workbook(tmp_path / "v.xlsx", [["t", "v"], *(["x", value] for value in values)])
    assert [value for _, value in rows(read(path))] == [
        "1", "1", "1.5", "0.3", "TRUE", "FALSE", "2026-01-05", "2026-01-05 07:30:00", "07:30:00",
        "12345678901", "001",
    ]  # fmt: skip


# -- where the table is -------------------------------------------------------------------


TITLED = [["Report 2026"], [], ["text", "label"], ["a", "A"], ["b", "B"], ["c", "A"], ["d", "B"]]


def test_the_line_of_the_header_is_found_and_taken(layout: Layout, tmp_path: Path) -> None:
    path = workbook(tmp_path / "t.xlsx", TITLED, ["A1:B1"])
    refused = flat(path, "d", "-t", "text", "-c", "label")
    assert refused.exit_code == 1
    assert "seems to be line 3: --header-row 3" in refused.output
    result = flat(path, "d", "-t", "text", "-c", "label", "--header-row", "3")
    assert result.exit_code == 0, result.output
    assert report_of(layout)["rows"] == {"read": 4, "kept": 4, "dropped": {}}


def test_a_broken_row_has_the_number_that_the_sheet_shows(tmp_path: Path) -> None:
    path = workbook(tmp_path / "b.xlsx", [["a", "b"], [], ["x", "y"], [], ["x", "y", "z"]])
    batch = read(path)
    assert batch.broken_at == ("b.xlsx:5",)
    assert rows(batch) == [("x", "y")]


def test_the_first_sheet_that_is_not_hidden_is_read(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    book.active.title = "Lists"
    book.active.append(["text", "label"])
    for name in ("Rows", "More"):
        book.create_sheet(name).append(["text", "label"])
        book[name].append([name, "A"])
    book["Lists"].sheet_state = "hidden"
    book.active = 1
    book.save(tmp_path / "h.xlsx")
    batch = read(tmp_path / "h.xlsx")
    assert rows(batch) == [("Rows", "A")]
    assert batch.notes == ("sheet 'Rows' of 3 was read (hidden: 'Lists')",)
    assert rows(read(tmp_path / "h.xlsx", sheet="More")) == [("More", "A")]
    assert rows(read(tmp_path / "h.xlsx", sheet="Lists")) == []


def test_columns_on_another_sheet_are_found(tmp_path: Path) -> None:
    path = workbook(tmp_path / "s.xlsx", [["about"], ["nothing"]], title="Readme")
    book = openpyxl.load_workbook(path)
    sheet = book.create_sheet("Data 2")
    for row in TITLED:
        sheet.append(row)
    book.save(path)
    result = flat(path, "d", "-t", "text", "-c", "label")
    assert result.exit_code == 1
    assert "--sheet 'Data 2' --header-row 3" in result.output


def test_rows_that_repeat_the_header_are_left_out(tmp_path: Path) -> None:
    table = [["t", "c"], ["a", "A"], ["t", "c"], ["b", "B"], ["t", "B"]]
    batch = read(workbook(tmp_path / "r.xlsx", table))
    assert rows(batch) == [("a", "A"), ("b", "B"), ("t", "B")]
    assert batch.notes == ("1 lines repeat the header and were left out",)


def test_a_huge_range_of_empty_cells_is_no_rows(tmp_path: Path) -> None:
    path = workbook(tmp_path / "e.xlsx", [["t", "c"], ["a", "A"]])
    empty = "".join(f'<row r="{r}"><c r="B{r}" s="0"/></row>' for r in range(3, 20_000))
    last = '<row r="1048576"><c r="XFD1048576" s="0"/></row>'
    edited(path, lambda xml: xml.replace("</sheetData>", f"{empty}{last}</sheetData>"))
    assert rows(read(path)) == [("a", "A")]


# -- other programs' documents ------------------------------------------------------------


OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)
DOCUMENTS = {
    "old": ("t.xls", OLE, "is an old Office document: save it as xlsx or csv."),
    "locked": ("t.xlsx", OLE + "EncryptedPackage".encode("utf-16-le"), "locked with a password"),
    "page": ("t.xls", b"<html><table><tr><td>x", "is an HTML or XML document"),
    "2003": ("t.xls", b'<?xml version="1.0"?><Workbook/>', "is an HTML or XML document"),
    "no workbook": ("t.xlsx", b"text,label\na,A\n", "is not an xlsx workbook"),
}
ZIPPED = {
    "t.xlsb": ("xl/workbook.bin", "binary workbook (.xlsb)"),
    "t.ods": ("content.xml", "OpenDocument"),
    "u.xlsx": ("word/document.xml", "Word document"),
    "v.xlsx": ("t.csv", "is a zip archive, not an xlsx workbook: unpack it"),
}


@pytest.mark.parametrize("case", DOCUMENTS)
def test_other_documents_are_named_with_what_to_do(case: str, tmp_path: Path) -> None:
    name, contents, words = DOCUMENTS[case]
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(UserError) as caught:
        open_reader(open_source(tmp_path / name), ReadOptions(), ())
    assert words in caught.value.message
    assert "not CSV" not in caught.value.message


@pytest.mark.parametrize("name", ZIPPED)
def test_other_zipped_documents_are_named_with_what_to_do(name: str, tmp_path: Path) -> None:
    part, words = ZIPPED[name]
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr(part, "x")
    with pytest.raises(UserError) as caught:
        open_source(tmp_path / name)
    assert words in caught.value.message


def test_a_workbook_that_unpacks_to_far_more_is_refused(tmp_path: Path) -> None:
    path = workbook(tmp_path / "z.xlsx", [["t", "c"], ["a", "A"]])
    blanks = " " * 70_000_000
    edited(path, lambda xml: xml.replace("</sheetData>", f"{blanks}</sheetData>"))
    with pytest.raises(UserError, match="unpacks to more than 200 times"):
        open_reader(open_source(path), ReadOptions(), ())


# -- what programs write differently ------------------------------------------------------


def test_characters_that_xml_cannot_hold_are_read(tmp_path: Path) -> None:
    cells = [("t", "c"), ("two_x000D_\nlines", "Food_x000D_"), ("_x005F_x000D_ _xyz_", "Food")]
    found = rows(read(workbook(tmp_path / "b.xlsx", cells)))
    assert found == [("two\r\nlines", "Food\r"), ("_x000D_ _xyz_", "Food")]


def test_strict_open_xml_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = workbook(tmp_path / "b.xlsx", [("t", "c"), ("a", "A")])

    def strict(text: str) -> str:
        for kind in ("spreadsheetml", "officeDocument"):
            before = f"http://schemas.openxmlformats.org/{kind}/2006"
            text = text.replace(before, f"http://purl.oclc.org/ooxml/{kind}")
        return text

    for part in ("workbook.xml", "workbook.xml.rels", "sheet1.xml"):
        edited(path, strict, part)
    with pytest.raises(UserError, match="no sheet that can be read: .* Strict Open XML"):
        read(path, "t", "c")
