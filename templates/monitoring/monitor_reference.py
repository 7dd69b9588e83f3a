"""The reference set: rows that the same model has answered, from a Parquet file."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from monitor_drift import Floats, Rows
from monitor_settings import load_settings
from monitor_tree import Ints, SetupError, Tree
from monitor_wire import Columns

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from monitor_settings import Settings

LAST = ("predicted", "confidence", "length")
SCORE_BATCH = 256  # rows; a reference set may have thousands of score columns
LEAST_ROWS = 20


@dataclass(frozen=True, eq=False, kw_only=True)
class Setup:
    """All that a monitor is started with.

    Parameters
    ----------
    accuracy
        Share of the reference's answers that are right.
    """

    settings: Settings
    columns: Columns
    reference: Rows
    accuracy: float


def load_service(folder: Path) -> dict[str, Any]:
    """What service.json says of the exported weights; empty without one."""
    with contextlib.suppress(OSError, ValueError):
        held = json.loads((folder / "service.json").read_text(encoding="utf-8"))
        if isinstance(held, dict):
            return held
    return {}


def load_setup(folder: Path) -> Setup:
    """Read evidently.yaml, hierarchy.json and the reference set of a monitoring folder.

    Raises
    ------
    SetupError
        Anything in it is wrong.
    """
    settings, named = load_settings(folder / "evidently.yaml")
    tree = Tree.load(folder / "hierarchy.json")
    path = folder / settings.reference_path
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            setup = _read(file, settings, tree, named, path)
    except (OSError, pa.ArrowException) as error:
        raise SetupError(f"{path} cannot be read ({error}). Make it with train.py -r.") from error
    checkpoint = str(load_service(folder).get("checkpoint", ""))
    return replace(setup, columns=replace(setup.columns, checkpoint=checkpoint))


def _read(
    file: pq.ParquetFile, settings: Settings, tree: Tree, named: list[str] | None, path: Path
) -> Setup:
    names = list(file.schema_arrow.names)
    features = _feature_count(names, path)
    scores = named or [name for name in names[1 + features :] if name not in LAST]
    columns = Columns(tree=tree, features=features, classes=_classes(scores, names, tree, path))
    if file.metadata.num_rows < LEAST_ROWS:
        raise SetupError(
            f"{path} has fewer than {LEAST_ROWS} rows: nothing can be learned from it."
        )
    # Old reference sets do not say what was answered: their scores do.
    new = "predicted" in names and "confidence" in names
    best, sure = (
        (_labelled(file, "predicted", tree, path), _numbers(file, "confidence", path))
        if new
        else _from_scores(file, scores, columns)
    )
    rows = Rows(
        classes=best,
        features=_single(_table(file, [str(i) for i in range(features)], path)),
        confidence=sure,
        length=_numbers(file, "length", path)
        if "length" in names
        else np.full(file.metadata.num_rows, np.nan),
    )
    _check(rows, path)
    truth = _labelled(file, "targets", tree, path)
    return Setup(
        settings=settings, columns=columns, reference=rows, accuracy=float((truth == best).mean())
    )


def _feature_count(names: list[str], path: Path) -> int:
    if not names or names[0] != "targets":
        raise SetupError(f"{path} is no reference set: its first column is not 'targets'.")
    count = 0
    while count + 1 < len(names) and names[count + 1] == str(count):
        count += 1
    if len(set(names)) != len(names):
        raise SetupError(f"{path} has two columns of one name.")
    return count


def _classes(scores: list[str], names: list[str], tree: Tree, path: Path) -> tuple[int, ...]:
    found, there = [], set(names)
    for name in scores:
        node = tree.class_of_column(name)
        if name not in there or node is None:
            raise SetupError(
                f"{path}: score column {name!r} is not in it, or is no class of hierarchy.json. "
                "Export again: reference set, evidently.yaml and hierarchy.json belong together."
            )
        found.append(node)
    if not found:
        raise SetupError(f"{path} has no score columns: it is no reference set.")
    return tuple(found)


def _table(file: pq.ParquetFile, names: list[str], path: Path) -> Floats:
    if not names:
        return np.zeros((file.metadata.num_rows, 0))
    columns = file.read(columns=names).columns
    return np.stack(
        [_floats(column, name, path) for name, column in zip(names, columns, strict=True)], axis=1
    )


def _numbers(file: pq.ParquetFile, name: str, path: Path) -> Floats:
    return _table(file, [name], path)[:, 0]


def _floats(column: pa.ChunkedArray, name: str, path: Path) -> Floats:
    import pyarrow as pa

    try:
        if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
            raise TypeError(f"it holds {column.type}")
        chunks = [_plain(chunk.cast(pa.float64())) for chunk in column.chunks]
    except (TypeError, ValueError) as error:
        raise SetupError(f"{path}: column {name!r} does not hold numbers: {error}.") from error
    return np.concatenate([np.zeros(0), *chunks])


def _plain(array: pa.Array) -> Floats:
    """The values of an array of float64; NaN for null."""
    if not len(array):
        return np.zeros(0)
    # Arrow's own way imports pandas, which the service has no other use for.
    held = np.frombuffer(array.buffers()[1], dtype=np.float64, offset=8 * array.offset)
    nulls = np.array(array.is_null().to_pylist(), dtype=bool) if array.null_count else False
    return np.where(nulls, np.nan, held[: len(array)])


def _labelled(file: pq.ParquetFile, name: str, tree: Tree, path: Path) -> Ints:
    labels = file.read(columns=[name]).column(0).to_pylist()
    classes = [tree.by_label.get(label, -1) for label in labels]
    if -1 in classes:
        raise SetupError(
            f"{path}: column {name!r} holds {labels[classes.index(-1)]!r}, which is no class of "
            "hierarchy.json. Export again: the two belong together."
        )
    return np.array(classes, dtype=np.int64)


def _from_scores(file: pq.ParquetFile, scores: list[str], columns: Columns) -> tuple[Ints, Floats]:
    import pyarrow as pa

    best, sure = [], []
    for batch in file.iter_batches(batch_size=SCORE_BATCH, columns=scores):
        held = {name: batch.column(name).cast(pa.float64()) for name in scores}
        values = np.stack([_plain(held[name]) for name in scores], axis=1)
        best.append(values.argmax(axis=1))
        sure.append(values.max(axis=1))
    return np.array(columns.classes)[np.concatenate(best)], np.concatenate(sure)


def _single(values: Floats) -> Floats:
    """As 32-bit floats, which live features are."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32).astype(np.float64)


def _check(rows: Rows, path: Path) -> None:
    if not np.isfinite(rows.features).all():
        raise SetupError(f"{path}: a feature is no finite number. Make it again with train.py -r.")
    if not ((rows.confidence >= -1e-6) & (rows.confidence <= 1 + 1e-6)).all():
        raise SetupError(f"{path}: a confidence is no probability. Make it again with train.py -r.")


if __name__ == "__main__":  # the export asks whether the service would start
    try:
        load_setup(Path())
    except SetupError as problem:
        sys.exit(str(problem))
