"""Which kind of file a table lies in, by name and first bytes, and what to do with the others."""

from __future__ import annotations

import re
import zipfile
from io import BytesIO
from pathlib import Path

from utils.common.errors import UserError

KINDS = {
    ".csv": "csv", ".tsv": "csv", ".tab": "csv", ".psv": "csv", ".txt": "csv", ".dat": "csv",
    ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".parquet": "parquet", ".pq": "parquet",
    ".feather": "arrow", ".arrow": "arrow", ".ipc": "arrow", ".arrows": "arrow",
    ".xlsx": "xlsx", ".xlsm": "xlsx",
}  # fmt: skip
TEXT_KINDS = ("csv", "json", "jsonl")
_RESAVE = "open it in a spreadsheet program and save it as xlsx or csv"
_MAGIC = {b"PAR1": ("parquet", "a Parquet file"), b"ARROW1": ("arrow", "an Arrow file")}
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_FOREIGN = {
    b"\x1f\x8b": "a gzip file. Give it the ending .gz, or unpack it.",
    b"BZh": "a bzip2 file. Give it the ending .bz2, or unpack it.",
    b"\xfd7zXZ": "an xz file. Give it the ending .xz, or unpack it.",
    b"\x28\xb5\x2f\xfd": "a Zstandard file: unpack it (zstd -d).",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive: unpack it and name the files to read.",
    b"Rar!\x1a": "a RAR archive: unpack it and name the files to read.",
    b"SQLite format 3\x00": "a SQLite database: read it with adapt.py sql (docs/sql.md).",
    b"\x89HDF": "an HDF5 file: write its table as Parquet (pandas: to_parquet).",
    b"Obj\x01": "an Avro file: write its rows as Parquet or JSON lines.",
    b"\x80\x04\x95": "a pickle, which could run code: write its table as Parquet.",
    b"\x93NUMPY": "a NumPy file: write its table as Parquet or CSV.",
    b"\x89PNG": "a PNG image, not a table.",
    b"\xff\xd8\xff": "a JPEG image, not a table.",
    b"%PDF": "a PDF document: copy its table into a spreadsheet and save that as xlsx or csv.",
    _OLE: "an old Office document: save it as xlsx or csv.",
}
_LOCKED = f"a workbook locked with a password: {_RESAVE}, without a password."
_PAGE = re.compile(rb"\s*(?:<!doctype html|<html|<table|<\?xml|<!--)", re.IGNORECASE)
_ZIP = b"PK\x03\x04"
# What a zip holds that is a document of some program.
_ZIPPED = {
    "xl/workbook.bin": f"a binary workbook (.xlsb): {_RESAVE}.",
    "content.xml": f"an OpenDocument file (.ods): {_RESAVE}.",
    "word/document.xml": "a Word document: copy its table into a spreadsheet and save that as csv.",
    "ppt/presentation.xml": "a PowerPoint document, not a table.",
    "Index/Document.iwa": f"an Apple Numbers document: {_RESAVE}.",
}


def sniffed_kind(head: bytes) -> str:
    """The kind of a file whose name says nothing."""
    for magic, (kind, _) in _MAGIC.items():
        if head.startswith(magic):
            return kind
    if head.startswith(_ZIP):
        return "xlsx"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    return "json" if start[:1] in (b"{", b"[") else "csv"


def refuse_foreign(path: Path, kind: str, head: bytes, packed: bytes | None) -> None:
    """Refuse contents that are of another kind than the file's name says, or of none.

    Raises
    ------
    UserError
        It says what the file is and what can be done with it.
    """
    for magic, (found, words) in _MAGIC.items():
        if head.startswith(magic) and found != kind:
            raise UserError(f"{path} is {words}, not {kind.upper()}. Give it the right ending.")
    if head.startswith(_OLE) and _is_locked(path, packed):
        raise UserError(f"{path} is {_LOCKED}")
    for magic, words in _FOREIGN.items():
        if head.startswith(magic):
            twice = packed is not None and words.endswith("or unpack it.")
            raise UserError(f"{path} is {'packed twice: unpack it once.' if twice else words}")
    if head[257:262] == b"ustar":
        raise UserError(f"{path} is a tar archive: unpack it and name the files to read.")
    if head.startswith(_ZIP):
        _refuse_zip(path, kind, packed)
    elif kind == "xlsx":
        raise UserError(f"{path} is not an xlsx workbook, whatever its name says.")
    if kind == "parquet" and not head.startswith(b"PAR1"):
        raise UserError(f"{path} is not a Parquet file, whatever its name says.")


def refuse_page(path: Path, head: bytes) -> None:
    """Refuse what spreadsheet programs open as a table and is none: HTML, also named .xls.

    Raises
    ------
    UserError
        It begins as such a document does.
    """
    if _PAGE.match(head):
        raise UserError(f"{path} is an HTML or XML document, not a text table: {_RESAVE}.")


def _is_locked(path: Path, packed: bytes | None) -> bool:
    """Whether an OLE file wraps an encrypted workbook; the name stands in its directory."""
    name = "EncryptedPackage".encode("utf-16-le")
    return name in (path.read_bytes() if packed is None else packed)


def _refuse_zip(path: Path, kind: str, packed: bytes | None) -> None:
    names = _names_in(path, packed)
    for name, words in _ZIPPED.items():
        if name in names:
            raise UserError(f"{path} is {words}")
    workbook = any(name.startswith("xl/") for name in names)
    if kind != "xlsx":
        right = ".xlsx" if workbook else ".zip, or of a workbook .xlsx"
        raise UserError(
            f"{path} is a zip or xlsx file, not {kind.upper()}. Give it the ending {right}."
        )
    if names and not workbook:
        raise UserError(f"{path} is a zip archive, not an xlsx workbook: unpack it.")


def _names_in(path: Path, packed: bytes | None) -> set[str]:
    """Names in a zip; none if it is damaged, which its reader says."""
    try:
        with zipfile.ZipFile(path if packed is None else BytesIO(packed)) as archive:
            return set(archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return set()
