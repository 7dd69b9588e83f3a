"""Intermediate datasets: three Parquet files and a tree."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.common import dvc
from utils.common.errors import UserError, unknown
from utils.common.files import atomic_dir, is_plain, pointers, read_json, write_json
from utils.common.paths import Layout
from utils.hierarchy.tree import Hierarchy, Ints

if TYPE_CHECKING:
    import pyarrow as pa

SPLITS = ("train", "val", "test")
HIERARCHY, REPORT = "hierarchy.json", "report.json"


@dataclass(frozen=True, kw_only=True)
class Split:
    """Texts with their codes.

    Parameters
    ----------
    texts
        One string per row.
    codes
        Shape (rows, depth), -1 beyond the row's end.
    """

    texts: list[str]
    codes: Ints

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Any) -> Split:
        """The rows of an index array or slice."""
        picked = np.arange(len(self))[rows]
        return Split(texts=[self.texts[row] for row in picked], codes=self.codes[picked])


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """An intermediate dataset in memory; `fingerprint` tells whether two are the same.

    `text_columns` are those of the table that it was made from, as far as they are known.
    """

    name: str
    hierarchy: Hierarchy
    train: Split
    val: Split
    test: Split
    fingerprint: str
    text_columns: tuple[str, ...] = ()

    def splits(self) -> dict[str, Split]:
        """The three splits by name."""
        return {name: getattr(self, name) for name in SPLITS}


def write_dataset(
    layout: Layout,
    name: str,
    hierarchy: Hierarchy,
    splits: dict[str, pa.Table],
    report: dict[str, Any],
) -> Path:
    """Write a dataset's folder, whole. DVC's small files of the one it replaces stay.

    Parameters
    ----------
    splits
        For each of train, val and test a table with `name` (string) and `codes` (list<int32>).
    report
        What was read, dropped and kept; becomes report.json.
    """
    import pyarrow.parquet as pq

    folder = layout.dataset(name)
    with atomic_dir(folder, keep=pointers(folder)) as temporary:
        for split in SPLITS:
            pq.write_table(splits[split], temporary / f"{split}.parquet", compression="zstd")
        hierarchy.save(temporary / HIERARCHY)
        write_json(temporary / REPORT, report)
    return folder


def load_dataset(layout: Layout, name: str) -> Dataset:
    """Read a dataset; what is missing is fetched where a ``.dvc`` file stands beside it.

    Raises
    ------
    UserError
        There is no such dataset, or a file of it is damaged.
    """
    folder = layout.dataset(name)
    files = dataset_files(folder)
    if not folder.is_dir():
        error = unknown("dataset", name, layout.dataset_names())
        raise UserError(
            f"{error.message} Make it with: python adapt.py flat FILE {name} …, "
            f"adapt.py sql {name} or adapt.py demo {name}"
        )
    dvc.ensure(layout, *files, folder / REPORT)
    for file in files:
        if not file.is_file():
            reason = "is no file" if file.exists() else "is missing"
            raise UserError(f"Dataset {name!r} is incomplete: {file} {reason}. Run adapt.py again.")
    hierarchy = Hierarchy.load(files[0])
    splits = {file.stem: _read_split(file, hierarchy) for file in files[1:]}
    if not len(splits["train"]):
        raise UserError(f"Dataset {name!r} has no training rows. Run adapt.py again.")
    return Dataset(
        name=name,
        hierarchy=hierarchy,
        fingerprint=fingerprint(files),
        text_columns=_text_columns(folder / REPORT),
        **splits,
    )


def _text_columns(report: Path) -> tuple[str, ...]:
    """The columns that became the texts, by what adapt.py wrote down; none if it did not."""
    try:
        text = read_json(report)["recipe"]["text"]
    except (UserError, KeyError, TypeError):
        return ()
    return tuple(text.split(",")) if isinstance(text, str) and is_plain(text) else ()


def dataset_files(folder: Path) -> list[Path]:
    """What a dataset consists of, in the order in which `fingerprint` takes it."""
    return [folder / HIERARCHY, *(folder / f"{split}.parquet" for split in SPLITS)]


def fingerprint(files: list[Path]) -> str:
    """What two datasets with the same files share."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _read_split(path: Path, hierarchy: Hierarchy) -> Split:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=["name", "codes"])
        names = table["name"].cast(pa.string())
        names.validate(full=True)  # files hold bytes, which need not be UTF-8
        codes = table["codes"].cast(pa.list_(pa.int32())).combine_chunks()
    except (pa.ArrowException, OSError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is no split of a dataset: {reason} Run adapt.py again.") from error
    matrix = code_matrix(codes, hierarchy.depth)
    if names.null_count or len(matrix) != len(names):
        raise UserError(f"{path} has rows without a text or codes. Run adapt.py again.")
    if (row := hierarchy.check_codes(matrix)) is not None:
        raise UserError(
            f"{path}: row {row} has codes {matrix[row].tolist()}, which are no path of the "
            "hierarchy. Run adapt.py again."
        )
    return Split(texts=names.to_pylist(), codes=matrix)


def code_matrix(codes: Any, depth: int) -> Ints:
    """Turn an Arrow list<int32> array into a matrix.

    Returns
    -------
    Ints
        Shape (rows, depth), -1 beyond a row's end.
    """
    if not len(codes):
        return np.zeros((0, depth), dtype=np.int32)
    if hasattr(codes, "combine_chunks"):
        codes = codes.combine_chunks()
    lengths = codes.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    if lengths.max() > depth:
        raise UserError(f"A row has {lengths.max()} codes in a tree of {depth} levels.")
    matrix = np.full((len(codes), depth), -1, dtype=np.int32)
    matrix[np.arange(depth) < lengths[:, None]] = codes.flatten().fill_null(-1).to_numpy()
    return matrix
