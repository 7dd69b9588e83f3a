"""From a table to a dataset: what all adapters share."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from utils.adapters.drops import Drops, drop_rest, drop_unusable, repeated_rows, vanished_note
from utils.adapters.labels import LabelOptions, Labels, labels_of
from utils.adapters.report import build_report
from utils.adapters.splitting import TRAIN, VAL, Ratios, random_split
from utils.common import dvc
from utils.common.errors import UserError
from utils.common.files import read_json
from utils.common.paths import Layout, given_path
from utils.hierarchy.dataset import HIERARCHY, REPORT, SPLITS, write_dataset
from utils.hierarchy.tree import Hierarchy, Ints

if TYPE_CHECKING:
    import pyarrow as pa

_CHUNK = 1 << 16
_SPLIT_WORD = re.compile(
    r"(?:^|[^a-z])(train|training|val|valid|validation|dev|test|testing)(?:[^a-z]|$)"
)
_SIDES = {"train": 0, "training": 0, "val": 1, "valid": 1, "validation": 1, "dev": 1,
          "test": 2, "testing": 2}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class AdaptOptions:
    """How a table becomes a dataset.

    Parameters
    ----------
    proportion
        Share of the rows to use, stratified by path.
    min_class_size
        Rows of paths with fewer rows than this are left out.
    keep_duplicates
        Keep rows that repeat the text and path of an earlier row.
    dvc
        True or False: track with DVC or not; None: if the root is a DVC repository.
    force
        Replace a dataset that was made otherwise.
    """

    labels: LabelOptions = field(default_factory=LabelOptions)
    ratios: Ratios = field(default_factory=Ratios)
    seed: int = 0
    proportion: float = 1.0
    min_class_size: int = 1
    keep_duplicates: bool = False
    dvc: bool | None = None
    force: bool = False

    def __post_init__(self) -> None:
        if self.labels.depth is not None and self.labels.depth < 1:
            raise UserError(f"--depth is {self.labels.depth}: a path has at least 1 level.")
        if self.labels.delimiter == "":
            raise UserError("--delimiter is empty. Give what separates names, or leave it out.")
        if not 0 < self.proportion <= 1:
            raise UserError(f"--proportion is {self.proportion:g}: it must be above 0, at most 1.")
        if self.min_class_size < 1:
            raise UserError(f"--min-class-size is {self.min_class_size}: it must be at least 1.")
        if self.seed < 0:
            raise UserError(f"--seed is {self.seed}: it must be 0 or more.")

    def recipe(self) -> dict[str, Any]:
        """The options that decide what the dataset holds, by name."""
        values = dataclasses.asdict(self)
        labels, ratios = values.pop("labels"), values.pop("ratios")
        for key in ("dvc", "force"):
            values.pop(key)
        usual = dataclasses.asdict(LabelOptions())
        chosen = {key: value for key, value in labels.items() if value != usual[key]}
        return {**values, **chosen, **ratios}


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of a table are the text, the classes and (if given) the split."""

    text: tuple[str, ...]
    classes: tuple[str, ...] = ()
    split: str | None = None


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a table comes from.

    Parameters
    ----------
    recipe
        The command and its options; the same recipe may replace its own dataset.
    broken, broken_at
        Rows that could not be read, and where the first are.
    notes
        What a person should know.
    """

    recipe: Mapping[str, Any]
    broken: int = 0
    broken_at: tuple[str, ...] = ()
    encodings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def recipe_of(command: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A command and its options as report.json has them, without those that say nothing."""
    return {"command": command} | {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in sorted(values.items())
        if value not in (None, (), False)
    }


def with_renames(options: AdaptOptions, file: str | None) -> AdaptOptions:
    """Read the file of ``--rename``, if there is one."""
    if file is None:
        return options
    from utils.adapters.renames import load_renames

    renames = load_renames(given_path(file), options.labels.delimiter)
    labels = dataclasses.replace(options.labels, renames=renames)
    return dataclasses.replace(options, labels=labels)


def check_target(
    layout: Layout, name: str, recipe: Mapping[str, Any], options: AdaptOptions
) -> str | None:
    """Refuse early to write over a dataset that another command made.

    Returns
    -------
    str or None
        What will be replaced, in words.

    Raises
    ------
    UserError
        There is such a dataset and `force` is not set, or DVC is wanted and not there.
    """
    folder = layout.dataset(name)
    dvc.check(layout.root, options.dvc, folder)
    if not folder.exists():
        return None
    dvc.ensure(layout, folder / REPORT)
    old = _old_report(folder / REPORT)
    if not options.force and not _may_replace(old.get("recipe"), recipe):
        raise UserError(
            f"Dataset {name!r} exists already, made by another command ({folder}). "
            "Choose another name, or replace it with --force."
        )
    rows = old["rows"].get("kept", "unknown") if isinstance(old.get("rows"), dict) else "unknown"
    return f"replaced the earlier dataset {name!r} ({rows} rows)"


def _may_replace(old: Any, recipe: Mapping[str, Any]) -> bool:
    """Whether a dataset is the same command's, or generated as the new one is: no data is lost."""
    both = [found.get("command") for found in (old, recipe) if isinstance(found, Mapping)]
    return old == recipe or both == ["demo", "demo"]


def _old_report(path: Path) -> dict[str, Any]:
    """Read a report that may be damaged: such a dataset is one that another command made."""
    try:
        value = read_json(path)
    except (UserError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def adapt_table(
    table: pa.Table,
    columns: Columns,
    *,
    name: str,
    options: AdaptOptions,
    source: Provenance,
    layout: Layout,
    labels: Labels | None = None,
) -> dict[str, Any]:
    """Clean a table, discover its tree, split it and write ``datasets/NAME/``.

    Parameters
    ----------
    labels
        The paths of the rows where the class columns do not tell them.

    Returns
    -------
    dict
        What report.json holds.

    Raises
    ------
    UserError
        No row or only one class is left, the delimiter is wrong, …
    """
    from utils.tables.columns import encoded, refuse_nested, texts_of

    replaced = check_target(layout, name, source.recipe, options)
    refuse_nested(table)
    texts, control = texts_of(table, columns.text)
    labels = labels or labels_of(table, columns.classes, options.labels)
    given, notes = _given_split(table, columns.split)
    texts, given, repeated = _with_repeated_rows(texts, given, labels)
    text_codes, _ = encoded(texts)
    drops = Drops.none(len(texts), source.broken, repeated)
    _drop_rows(drops, texts, text_codes, labels, given, options)
    _check_left(drops, labels, options, source.notes)
    rows = np.flatnonzero(drops.keep)
    paths, numbers = labels.path_of_row[rows], text_codes[rows]
    chosen = _sides(None if given is None else given[rows], paths, numbers, options)
    hierarchy, codes = _tree(labels, paths)
    splits = {
        side: _split_table(texts, rows[chosen == number], codes[chosen == number])
        for number, side in enumerate(SPLITS)
    }
    report = build_report(
        name=name, recipe=source.recipe, drops=drops, hierarchy=hierarchy, codes=codes,
        sides={side: part.num_rows for side, part in splits.items()},
        extra={
            "encodings": list(source.encodings), "broken_at": list(source.broken_at),
            "control_characters": control, "ambiguous_texts": _ambiguous(numbers, paths),
        },
        notes=[*source.notes, *notes, *_notes(labels, drops.keep, splits, hierarchy, options)],
    )  # fmt: skip
    folder = write_dataset(layout, name, hierarchy, splits, report)
    files = [folder / HIERARCHY, folder / REPORT, *(folder / f"{side}.parquet" for side in SPLITS)]
    dvc.add(layout.root, files, options.dvc)
    return {**report, "replaced": replaced, "folder": str(folder)}


def _with_repeated_rows(
    texts: pa.Array, given: NDArray[np.int64] | None, labels: Labels
) -> tuple[pa.Array, NDArray[np.int64] | None, int]:
    """Repeat texts and sides for rows of several paths, and count the rows that this adds."""
    import pyarrow as pa

    source = labels.source_row
    if source is None:
        return texts, given, 0
    repeated = texts.take(pa.array(source))
    return repeated, None if given is None else given[source], len(source) - len(texts)


def _drop_rows(
    drops: Drops,
    texts: pa.Array,
    text_codes: NDArray[np.int64],
    labels: Labels,
    given: NDArray[np.int64] | None,
    options: AdaptOptions,
) -> None:
    drop_unusable(drops, texts, labels, given)
    drop_rest(
        drops, text_codes, labels, given, keep_duplicates=options.keep_duplicates,
        min_class_size=options.min_class_size, proportion=options.proportion, seed=options.seed,
    )  # fmt: skip


def _given_split(table: pa.Table, column: str | None) -> tuple[NDArray[np.int64] | None, list[str]]:
    """Side of each row from a column, -1 where it names none."""
    from utils.tables.columns import encoded, strings

    if column is None:
        return None, []
    import pyarrow.compute as pc

    codes, values = encoded(pc.fill_null(strings(table[column]), ""))
    words: list[str] = values.to_pylist()
    found = np.array([_side_of(word) for word in words], dtype=np.int64)
    if TRAIN not in found:
        shown = ", ".join(map(repr, words[:5]))
        raise UserError(
            f"Column {column!r} names no training rows. It holds {shown}; "
            "train, val and test are understood."
        )
    other = [word for word, side in zip(words, found, strict=True) if side < 0 and word]
    notes = [f"split column {column!r}: not understood: {', '.join(other[:5])}"] if other else []
    return found[codes], notes


def _side_of(value: str) -> int:
    match = _SPLIT_WORD.search(value.lower())
    return _SIDES[match.group(1)] if match else -1


def _check_left(drops: Drops, labels: Labels, options: AdaptOptions, notes: Sequence[str]) -> None:
    if not drops.read:
        raise UserError("The input has a header but no rows.")
    rows = np.flatnonzero(drops.keep)
    if not len(rows):
        reasons = "; ".join([drops.explained(), *notes])
        raise UserError(f"None of the {drops.read:,} rows can be used: {reasons}.")
    in_use = np.bincount(labels.path_of_row[rows], minlength=len(labels.paths)) > 0
    paths = labels.paths[in_use]
    label = options.labels
    flat = not (paths[:, 1:] >= 0).any()
    if flat and label.delimiter and label.depth != 1 and label.parents is None:
        raise UserError(
            f"With the delimiter {label.delimiter!r} every path has one level only "
            f"(the first is {labels.names[paths[0][0]]!r}). Check --delimiter, or leave it out."
        )
    if len(paths) == 1:
        only = " > ".join(labels.names[code] for code in paths[0] if code >= 0)
        others = f" ({drops.explained()})" if len(rows) < drops.read else ""
        raise UserError(
            f"All {len(rows):,} usable rows{others} have one class, {only!r}: there is nothing to "
            "learn. "
            "Check the class columns, --depth and --min-class-size."
        )


def _sides(
    given: NDArray[np.int64] | None,
    paths: NDArray[np.int64],
    texts: NDArray[np.int64],
    options: AdaptOptions,
) -> NDArray[np.int64]:
    """Side of each kept row: at random, or as given; a given split without val gets one."""
    if given is None:
        return random_split(paths, texts, options.ratios, options.seed)
    if not (given == VAL).any():
        train = given == TRAIN
        share = options.ratios.val / (options.ratios.train + options.ratios.val)
        inner = Ratios(train=1 - share, val=share)
        given[train] = random_split(paths[train], texts[train], inner, options.seed)
    return given


def _tree(labels: Labels, path_of_row: NDArray[np.int64]) -> tuple[Hierarchy, Ints]:
    """The tree of the paths in use, and the codes of the rows."""
    import pyarrow as pa

    used = np.flatnonzero(np.bincount(path_of_row, minlength=len(labels.paths)))
    place = np.zeros(len(labels.paths), dtype=np.int64)
    place[used] = np.arange(len(used))
    names = pa.array(labels.names, pa.string())
    columns = [names.take(pa.array(column, mask=column < 0)) for column in labels.paths[used].T]
    hierarchy, codes = Hierarchy.from_paths(columns)
    return hierarchy, codes[place[path_of_row]]


def _split_table(texts: pa.Array, rows: NDArray[np.int64], codes: Ints) -> pa.Table:
    import pyarrow as pa

    step = len(rows) if texts.nbytes < 1 << 31 else _CHUNK
    picked = [  # in pieces: a plain string array holds 2 GiB at most
        texts.take(pa.array(rows[start : start + step])).cast(pa.string())
        for start in range(0, len(rows), max(step, 1))
    ]
    lengths = (codes >= 0).sum(axis=1)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(codes[codes >= 0]))
    return pa.table({"name": pa.chunked_array(picked, pa.string()), "codes": lists})


def _ambiguous(texts: NDArray[np.int64], paths: NDArray[np.int64]) -> int:
    """How many texts stand under several paths."""
    distinct = ~repeated_rows(texts, paths)
    return int((np.bincount(texts[distinct], minlength=1) > 1).sum())


def _notes(
    labels: Labels,
    keep: NDArray[np.bool_],
    splits: Mapping[str, pa.Table],
    hierarchy: Hierarchy,
    options: AdaptOptions,
) -> list[str]:
    notes = [*labels.notes, *vanished_note(labels, keep, options.min_class_size)]
    empty = [side for side, part in splits.items() if not part.num_rows]
    if empty:
        notes.append(f"no rows for {' and '.join(empty)}: too few per class, or not in the split")
    depth = options.labels.depth
    if depth is not None and depth > hierarchy.depth:
        notes.append(f"--depth {depth}: the longest path has {hierarchy.depth} levels")
    return notes
