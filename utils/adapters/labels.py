"""From label columns to paths: every distinct label is looked at once, whatever the row count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from utils.adapters.cells import MAX_DEPTH, Label, Path, delimiter_hint, read_cells, spacing_hint
from utils.adapters.lookalikes import missing_note, one_spelling
from utils.adapters.renames import Renames, renamed, unused_note
from utils.adapters.several import (
    DROP,
    FIRST,
    JOIN,
    REFUSE,
    REPEAT,
    one_line,
    split_labels,
    whole,
    without_beginnings,
)  # fmt: skip
from utils.common.errors import UserError
from utils.common.names import tidy_name

if TYPE_CHECKING:
    import pyarrow as pa

EMPTY, BROKEN, ORPHAN, SEVERAL = -1, -2, -3, -4
GAPS = ("drop", "close", "stop")
_, CLOSE, STOP = GAPS


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """How labels become paths.

    Parameters
    ----------
    delimiter
        Separates the names inside one string.
    depth
        Longest path; deeper names are cut off. None keeps all.
    drop_names
        Names that match this regular expression (RE2) are taken out of their path.
    parents
        For each name, its ancestors, root first; put before a path that begins with it.
    several_paths
        What becomes of labels that hold several paths: one of `several.CHOICES`.
    gaps
        What becomes of paths in which a name is missing before another one: their rows are
        dropped, the gap is closed, or the path stops before it.
    fold
        Kinds of difference (`lookalikes.FOLDS`) that make no difference between names.
    missing
        Names that say that there is none, in any case.
    renames
        New names and paths by old ones.
    """

    delimiter: str | None = None
    depth: int | None = None
    drop_names: str | None = None
    parents: Mapping[str, tuple[str, ...]] | None = None
    several_paths: str = REFUSE
    gaps: str = GAPS[0]
    fold: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    renames: Renames | None = None

    def __post_init__(self) -> None:
        if self.drop_names is not None:
            _matching([""], self.drop_names)  # before anything is read


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The paths of a table's rows.

    Parameters
    ----------
    names
        Distinct class names.
    paths
        Distinct paths as indices into `names`, -1 beyond the end; shape (paths, depth).
    path_of_row
        Index into `paths`, or `EMPTY`, `BROKEN` (a gap in the path), `ORPHAN` (not among
        `LabelOptions.parents`), `SEVERAL` (more than one path); shape (rows,).
    source_row
        Row of the table that each of the rows above comes from; None: each from its own.
    cut_off
        Names that stand after a gap in a path.
    notes
        What a person should look at.
    """

    names: list[str]
    paths: NDArray[np.int64]
    path_of_row: NDArray[np.int64]
    source_row: NDArray[np.int64] | None = None
    cut_off: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def labels_of(
    table: pa.Table,
    columns: Sequence[str],
    options: LabelOptions,
    counts: NDArray[np.int64] | None = None,
) -> Labels:
    """Read the label columns of a table.

    Parameters
    ----------
    counts
        How many rows each row of the table stands for, if not for one.

    Raises
    ------
    UserError
        The delimiter stands in no label, labels hold several paths, or paths are absurdly long.
    """
    cells = read_cells(table, columns, options.delimiter)
    for path in (path for label in cells.labels for path in label):
        _checked_depth(whole(path)[: options.depth], options)
    notes: list[str] = []
    if options.several_paths == JOIN:
        labels = [_joined(label) for label in one_line(cells.labels)]
    else:
        labels, notes = split_labels(
            cells.labels, options.delimiter, cells.one_string, cells.levels
        )
    if not (options.delimiter or cells.levels) and (hint := delimiter_hint(labels)):
        notes.append(hint)
    if options.delimiter and (hint := spacing_hint(labels, options.delimiter)):
        notes.append(hint)
    weights = np.bincount(cells.rows, counts, minlength=len(labels)).astype(int).tolist()
    labels, parents, more = _with_final_names(labels, weights, options)
    notes += [*more, *missing_note(_rows_of_names(labels, weights), columns)]
    found = [_final_paths(label, options, parents) for label in labels]
    if parents is not None:
        _check_parents(labels, found)
    notes += _check_several(found, weights, options.several_paths)
    return _numbered(found, cells.rows, options.several_paths, _cut_off(labels, found), notes)


def _joined(label: Label) -> Label:
    return (tuple(name for path in label for name in path),) if label else ()


def _with_final_names(
    labels: Sequence[Label], weights: Sequence[int], options: LabelOptions
) -> tuple[list[Label], Mapping[str, Path] | None, list[str]]:
    """Empty, rename, drop and fold names as the options say.

    Returns
    -------
    labels, parents, notes
        `parents` spelled as the labels are.
    """
    notes: list[str] = []
    if options.missing:
        missing = {tidy_name(name).casefold() for name in options.missing}
        labels = _mapped(labels, lambda path: tuple(
            "" if name.casefold() in missing else name for name in path))  # fmt: skip
    if options.renames is not None:
        rules, used = options.renames, set[Path]()
        labels = _mapped(labels, lambda path: renamed(path, rules, used))
        notes += unused_note(rules, used)
    if options.drop_names:
        dropped = _matching({n for label in labels for p in label for n in p}, options.drop_names)
        labels = _mapped(labels, lambda path: tuple(n for n in path if n not in dropped))
    parents = options.parents
    if options.fold:
        rows = _rows_of_names(labels, weights)
        rows.update({n: 0 for name, above in (parents or {}).items() for n in (name, *above)})
        spelling = one_spelling(rows, options.fold)
        labels = _mapped(labels, lambda path: tuple(spelling.get(n, n) for n in path))
        parents = parents and {
            spelling[name]: tuple(spelling[n] for n in above) for name, above in parents.items()
        }
    return list(labels), parents, notes


def _mapped(labels: Iterable[Label], change: Callable[[Path], Path]) -> list[Label]:
    return [tuple(map(change, label)) for label in labels]


def _rows_of_names(labels: Iterable[Label], weights: Iterable[int]) -> Counter[str]:
    rows: Counter[str] = Counter()
    for label, weight in zip(labels, weights, strict=True):
        for name in {name for path in label for name in path if name}:
            rows[name] += weight
    return rows


def _matching(names: Collection[str], pattern: str) -> set[str]:
    import pyarrow as pa
    import pyarrow.compute as pc

    distinct = pa.array(sorted(names), pa.large_string())
    try:
        return set(distinct.filter(pc.match_substring_regex(distinct, pattern)).to_pylist())
    except pa.ArrowInvalid as error:
        raise UserError(f"--drop-names {pattern!r} is no regular expression: {error}.") from error


def _final_paths(
    label: Label, options: LabelOptions, parents: Mapping[str, Path] | None
) -> tuple[Path, ...] | int:
    """The paths of a label, or why it has none: `EMPTY`, `BROKEN` or `ORPHAN`."""
    if not label:
        return BROKEN
    found = [_final_path(path, options, parents) for path in label]
    paths = without_beginnings([path for path in found if not isinstance(path, int)])
    return paths or next(path for path in found if isinstance(path, int))


def _final_path(
    path: Path, options: LabelOptions, parents: Mapping[str, Path] | None
) -> Path | int:
    if options.gaps == CLOSE:
        path = tuple(filter(None, path))
    path = whole(path if parents is not None else path[: options.depth])
    if "" in path:
        if options.gaps != STOP:
            return BROKEN
        path = path[: path.index("")]
    if not path:
        return EMPTY
    if parents is not None:
        if path[0] not in parents:
            return ORPHAN
        path = (*parents[path[0]], *path)[: options.depth]
    return _checked_depth(path, options)


def _checked_depth(path: Path, options: LabelOptions) -> Path:
    if len(path) > MAX_DEPTH:
        doubt = f"Is the delimiter {options.delimiter!r} right? " if options.delimiter else ""
        raise UserError(
            f"A path has {len(path)} names, more than {MAX_DEPTH}. {doubt}Cut paths with --depth."
        )
    return path


def _check_parents(labels: Sequence[Label], found: Sequence[tuple[Path, ...] | int]) -> None:
    lost = [label for label, paths in zip(labels, found, strict=True) if paths == ORPHAN]
    if lost and not any(isinstance(paths, tuple) for paths in found):
        first = whole(lost[0][0])[0]
        raise UserError(f"No label is in the --parents file (the first label is {first!r}).")


def _check_several(
    found: Sequence[tuple[Path, ...] | int], weights: Sequence[int], choice: str
) -> list[str]:
    """Refuse labels with several paths unless it is said what becomes of them; note them."""
    several = [
        (paths, weight) for paths, weight in zip(found, weights, strict=True)
        if isinstance(paths, tuple) and len(paths) > 1
    ]  # fmt: skip
    if not several:
        return []
    rows = sum(weight for _, weight in several)
    example = " and ".join(repr(" > ".join(path)) for path in several[0][0][:3])
    what = f"{rows:,} of {sum(weights):,} rows hold several paths in their label, such as {example}"
    if choice == REFUSE:
        raise UserError(
            f"{what}. Say what becomes of them with --several-paths: first (the first path is "
            "taken), repeat (one row for each path), drop (the rows are left out) or join (no, "
            "each is one path)."
        )
    taken = {FIRST: "the first is taken", REPEAT: "a row for each is made", DROP: "left out"}
    return [f"{what}: {taken[choice]}"]


def _cut_off(labels: Sequence[Label], found: Sequence[tuple[Path, ...] | int]) -> frozenset[str]:
    broken = [label for label, paths in zip(labels, found, strict=True) if paths == BROKEN]
    gaps = [path for label in broken for path in label if "" in path]
    return frozenset(name for path in gaps for name in path[path.index("") :] if name)


def _numbered(
    found: Sequence[tuple[Path, ...] | int], rows: NDArray[np.int64], choice: str,
    cut_off: frozenset[str], notes: Sequence[str],
) -> Labels:  # fmt: skip
    """Number names and paths, and give each row its path, or with REPEAT each of its paths."""
    numbers: dict[Path, int] = {}
    codes: list[list[int]] = []
    for paths in found:
        if isinstance(paths, int):
            codes.append([paths])
        elif choice == DROP and len(paths) > 1:
            codes.append([SEVERAL])
        else:
            wanted = paths if choice == REPEAT else paths[:1]
            codes.append([numbers.setdefault(path, len(numbers)) for path in wanted])
    counts = np.array([len(one) for one in codes], dtype=np.int64)
    flat = np.array([code for one in codes for code in one], dtype=np.int64)
    starts = np.cumsum(counts) - counts
    source = np.repeat(np.arange(len(rows)), counts[rows])
    within = np.arange(len(source)) - np.searchsorted(source, source)
    names, matrix = _name_matrix(numbers)
    return Labels(
        names=names,
        paths=matrix,
        path_of_row=flat[starts[rows[source]] + within],
        source_row=source if len(source) > len(rows) else None,
        cut_off=cut_off,
        notes=tuple(notes),
    )


def _name_matrix(paths: Collection[Path]) -> tuple[list[str], NDArray[np.int64]]:
    """Distinct names, and the paths as indices into them; -1 beyond the end of a path."""
    names = list(dict.fromkeys(name for path in paths for name in path))
    place = {name: index for index, name in enumerate(names)}
    width = max(map(len, paths), default=1)
    rows = [[place[name] for name in path] + [-1] * (width - len(path)) for path in paths]
    return names, np.array(rows, dtype=np.int64).reshape(len(paths), width)
