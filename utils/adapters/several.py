"""Labels that hold several values: found over the whole column, never joined into one path.

A list, or a cell with a separator, may be one path (root first), several paths one after the
other, or a set of names in any order. No single label shows which; all labels together do: where
paths are joined, a path begins anew at a root, and where sets are written, names stand first in
one label and later in another.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence

from utils.adapters.cells import Label, Path

CHOICES = ("refuse", "first", "repeat", "drop", "join")
REFUSE, FIRST, REPEAT, DROP, JOIN = CHOICES
_UNUSUAL = ("\n", ";", "|", "<br>", "<br/>", "<br />", "•", "·")  # in names of classes
_SEPARATORS = (*_UNUSUAL, ",", "/", "+", "&", " and ")
_SPACED = re.compile(r"[\d ]*|[#@]\S+(?: +[#@]\S+)*")
"""Labels in which a space separates: numbers and tags."""
_FEWEST_CELLS = 3


def split_labels(
    labels: Sequence[Label], delimiter: str | None, one_string: bool, levels: bool
) -> tuple[list[Label], list[str]]:
    """Divide labels that hold several values.

    Parameters
    ----------
    one_string
        Each label is a string that no delimiter divides.
    levels
        Each label comes from one column per level: doubts are noted, nothing is divided.

    Returns
    -------
    labels, notes
        Labels of several values have several paths, none of which is the beginning of another.
    """
    if one_string:
        strings = _split_strings(labels)
        return [without_beginnings(one) for one in one_line(strings)], _lists(strings)
    divided = one_line(_split_at_separators(labels, delimiter) if delimiter else labels)
    paths = {whole(label[0]) for label in divided if len(label) == 1}
    found, doubtful = _restarts({path for path in paths if path and all(path)})
    notes = _lists(divided) if levels else []
    if levels:
        found, doubtful = {}, {*doubtful, *found}
    divided = [found.get(whole(label[0]), label) if len(label) == 1 else label for label in divided]
    return [without_beginnings(label) for label in divided], [*_doubts(doubtful), *notes]


def one_line(labels: Iterable[Label]) -> list[Label]:
    """Make line breaks within names spaces."""
    return [
        tuple(tuple(name.replace("\n", " ") for name in path) for path in label) for label in labels
    ]


def whole(path: Path) -> Path:
    """Leave out empty names at the end, which are none."""
    end = len(path)
    while end and not path[end - 1]:
        end -= 1
    return path[:end]


def without_beginnings(paths: Sequence[Path]) -> Label:
    """Leave out repeated paths, and those that a longer one begins with."""
    if len(paths) < 2:
        return tuple(paths)
    distinct = [path for path in dict.fromkeys(map(whole, paths)) if path]
    begun = _beginnings(distinct)
    return tuple(path for path in distinct if path not in begun) or tuple(paths[:1])


def _beginnings(paths: Iterable[Path]) -> set[Path]:
    """The paths with which others begin: in sorted order one of these comes next."""
    return {path for path, other in itertools.pairwise(sorted(paths)) if other[: len(path)] == path}


def _doubts(paths: Collection[Path]) -> list[str]:
    if not paths:
        return []
    return [
        f"{len(paths):,} distinct labels, such as {' > '.join(min(paths))!r}, hold the root of "
        "another path, or the names of another one in a different order: they are taken as one "
        "path each"
    ]


def _lists(labels: Iterable[Label]) -> list[str]:
    """Note names that others make up, with a separator between them."""
    paths = {whole(label[0]) for label in labels if len(label) == 1}
    notes = []
    for level, names in enumerate(itertools.zip_longest(*sorted(paths), fillvalue=""), 1):
        known = {*names} - {""}
        lists = sorted(name for name in known if _is_list(name, known))
        if lists:
            notes.append(
                f"{len(lists):,} names of level {level}, such as {lists[0]!r}, are made up of "
                "other names of this level: each is taken as one name"
            )
    return notes


def _is_list(name: str, known: Collection[str]) -> bool:
    """Whether a separator divides a name into several known ones."""
    parts = (_parts(name, separator) for separator in _SEPARATORS if separator in name)
    return any(len(found) > 1 and all(part in known for part in found) for found in parts)


def _split_strings(labels: Sequence[Label]) -> list[Label]:
    """Divide flat labels at the separator at which they make sets, if there is one."""
    spaced = all(not label or _SPACED.fullmatch(label[0][0]) for label in labels)
    for separator in (*_SEPARATORS, " ") if spaced else _SEPARATORS:
        lists = [_parts(label[0][0], separator) if label else () for label in labels]
        several = {parts for parts in lists if len(parts) > 1}
        if len(several) >= _FEWEST_CELLS and _are_sets({*filter(None, lists)}):
            return [
                tuple((part,) for part in parts) if len(parts) > 1 else label
                for parts, label in zip(lists, labels, strict=True)
            ]
    return list(labels)


def _parts(text: str, separator: str) -> Path:
    return tuple(filter(None, map(str.strip, text.split(separator))))


def _split_at_separators(labels: Sequence[Label], delimiter: str) -> list[Label]:
    """Divide ``A > B; A > C``: after a separator a path begins anew at a known root."""
    result = list(labels)
    cells = {whole(label[0]) for label in labels if len(label) == 1} - {()}
    for separator in _SEPARATORS:
        used = any(separator in name for path in cells for name in path)
        if used and separator not in delimiter:
            roots = {path[0].split(separator)[0].strip() for path in cells} - {""}
            known = {(root,) for root in roots} if separator in _UNUSUAL else cells
            result = [
                _separated(label[0], separator, roots, known) if len(label) == 1 else label
                for label in result
            ]
    return result


def _separated(
    path: Path, separator: str, roots: Collection[str], known: Collection[Path]
) -> Label:
    """Divide one path before roots, if each piece is known or goes on from a root.

    Before anything else the separator belongs to a name.
    """
    if not any(separator in name for name in path):
        return (path,)
    pieces: list[list[str]] = [[]]
    for name in path:
        first, *others = name.split(separator)
        pieces[-1].append(first)
        for other in filter(str.strip, others):
            if other.strip() in roots:
                pieces.append([other])
            else:
                pieces[-1][-1] += separator + other
    paths = tuple(tuple(map(str.strip, piece)) for piece in pieces if "".join(piece).strip())
    sure = all(one in known or (len(one) > 1 and one[0] in roots) for one in paths)
    return paths if paths and sure else (path,)


def _are_sets(paths: Collection[Path]) -> bool:
    """Whether lists of names are sets: their order says nothing.

    Names that stand first in one list stand later in others, or the same names come in several
    orders. Within a set no name repeats.
    """
    several = [path for path in paths if len(path) > 1]
    repeats = sum(len(set(path)) < len(path) for path in several)
    if not several or 100 * repeats > len(several):
        return False
    firsts = {path[0] for path in paths}
    mixed = [path for path in several if any(n in firsts and n != path[0] for n in path[1:])]
    later = [name in firsts for path in mixed for name in path[1:]]
    if 2 * sum(later) <= len(later) and mixed:
        return False  # few of the later names begin a list: paths, one after the other
    return 2 * len(mixed) > len(several) or 4 * len(_turned(several)) >= len(several)


def _turned(paths: Iterable[Path]) -> set[Path]:
    """Lists whose members another list has in another order."""
    orders: defaultdict[tuple[str, ...], set[Path]] = defaultdict(set)
    for path in paths:
        orders[tuple(sorted(path))].add(path)
    return {path for same in orders.values() if len(same) > 1 for path in same}


def _numbered_by_level(paths: Collection[Path]) -> bool:
    """Whether more than a hundredth of the lists repeat a name side by side.

    Joined paths do not, but numbers that count within each level do: 1, 1 is the first of 1.
    """
    repeats = sum(any(map(str.__eq__, path, path[1:])) for path in paths)
    return 100 * repeats > len(paths)


def _restarts(paths: Collection[Path]) -> tuple[dict[Path, Label], set[Path]]:
    """Find the lists that are sets, or several paths one after the other.

    Returns
    -------
    found, doubtful
        The values of each such list; and lists that might be such, but more likely are paths in
        which the name of a root occurs again.
    """
    several = [path for path in paths if len(path) > 1]
    if _are_sets(paths):
        return {path: tuple((name,) for name in path) for path in several}, set()
    turned = _turned(several)
    roots = {path[0] for path in paths}
    cuts = {path: _cut(path, roots, paths) for path in several}
    cut = {path: pieces for path, pieces in cuts.items() if len(pieces) > 1}
    if _numbered_by_level(several):
        return {}, set()
    if not cut:
        return {}, turned
    plain = sorted(path for path in paths if path not in cut)
    ends = set(plain) - _beginnings(plain)
    sure = {
        path: pieces
        for path, pieces in cut.items()
        if min(map(len, pieces)) > 1
        and _begins_any(pieces[-1], plain)
        and all(piece in ends for piece in pieces[:-1])
    }
    if 2 * len(sure) >= len(cut) or 4 * len(cut) >= len(several):
        return cut, set()
    return sure, (set(cut) | turned) - set(sure)


def _begins_any(path: Path, ordered: Sequence[Path]) -> bool:
    place = bisect.bisect_left(ordered, path)
    return place < len(ordered) and ordered[place][: len(path)] == path


def _cut(path: Path, roots: Collection[str], paths: Collection[Path]) -> Label:
    """Cut a list where it begins anew at a root; whole where a piece would be no path.

    A piece of one name is a path only if it is a label elsewhere, and ``Home > Garden > Home``
    is one path: its last name is where it began.
    """
    starts = [place for place, name in enumerate(path) if not place or name in roots]
    pieces = tuple(
        path[start:end] for start, end in zip(starts, [*starts[1:], len(path)], strict=True)
    )
    begun = Counter(piece[0] for piece in pieces)
    if any(len(one) == 1 and (one not in paths or begun[one[0]] > 1) for one in pieces):
        return (path,)
    return pieces
