"""Names that differ in what a reader hardly notices, and names that say that there is none."""

from __future__ import annotations

import html
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from utils.common.errors import UserError
from utils.common.names import tidy_name
from utils.common.normalise import normalise
from utils.hierarchy.tree import Hierarchy

_SHOWN = 3
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_MOST_LAYERS = 3  # of &amp;amp;amp;
_PUNCTUATION = str.maketrans(
    dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u02bc\u02b9`\xb4", "'")
    | dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\xab\xbb", '"')
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2043\u2212\ufe58\ufe63\uff0d", "-")
    | {"\u2026": "...", "\u2044": "/", "\u2215": "/", "\uff06": "&"}
)
# Letters of Cyrillic and Greek that are drawn as Latin ones.
_LETTERS = str.maketrans(
    "АВЕКМНОРСТУХІЈЅаеорсухіјѕԁһԛԝΑΒΕΖΗΙΚΜΝΟΡΤΥΧονԍӏ",
    "ABEKMHOPCTYXIJSaeopcyxijsdhqwABEZHIKMNOPTYXovGl",
)
_NOTHING = (
    r"n/a n.a. n.a na #n/a #na <na> nan nat null (null) <null> nil none (none) \n - -- --- – — ? "
    "?? ??? . .. ... undefined missing (missing) (blank) (empty) #ref! #value! #div/0! #name? "
    "#num! #null!"
)
MISSING = frozenset(_NOTHING.split())


def decoded(name: str) -> str:
    """Read HTML's entities in a name: ``&amp;`` is ``&``."""
    for _ in range(_MOST_LAYERS):
        plain = _ENTITY.sub(lambda match: html.unescape(match[0]), name)
        if plain == name:
            break
        name = plain
    return tidy_name(name)


FOLDS: dict[str, Callable[[str], str]] = {
    "entities": decoded,
    "width": lambda name: normalise("NFKC", name),
    "punctuation": lambda name: name.translate(_PUNCTUATION),
    "letters": lambda name: name.translate(_LETTERS),
    "case": str.casefold,
    "space": lambda name: "".join(name.split()),
}


def fold_kinds(value: str) -> tuple[str, ...]:
    """Read ``--fold``.

    Raises
    ------
    UserError
        A kind is not known.
    """
    kinds = tuple(kind.strip().lower() for kind in value.split(",") if kind.strip())
    for kind in kinds:
        if kind not in FOLDS:
            raise UserError(f"--fold {kind!r}: choose from {', '.join(FOLDS)}, comma-separated.")
    return tuple(kind for kind in FOLDS if kind in kinds)


def folded(name: str, kinds: Iterable[str]) -> str:
    """What names that differ in `kinds` only have in common."""
    for kind in kinds:
        name = FOLDS[kind](name)
    return name


def one_spelling(rows: Mapping[str, int], kinds: Sequence[str]) -> dict[str, str]:
    """Choose one spelling for names that differ in `kinds` only: that of most rows.

    Parameters
    ----------
    rows
        Of each name; of equal counts the first is chosen.

    Returns
    -------
    dict
        The spelling of each name; entities are always read.
    """
    count: defaultdict[str, int] = defaultdict(int)
    plain = {name: decoded(name) if "entities" in kinds else name for name in rows}
    for name, number in rows.items():
        count[plain[name]] += number
    best: dict[str, str] = {}
    for name in count:
        key = folded(name, kinds)
        if key not in best or count[name] > count[best[key]]:
            best[key] = name
    return {name: best[folded(plain[name], kinds)] for name in rows}


def lookalike_notes(hierarchy: Hierarchy) -> list[str]:
    """Name sibling classes that look alike, with the option that makes them one."""
    twins: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    first: dict[tuple[int, str], int] = {}
    group: list[int] = []  # of each class: the first class that looks like it
    for node, name in enumerate(hierarchy.names):
        parent = int(hierarchy.parents_global[node])
        key = (group[parent] if parent >= 0 else -1, folded(name, FOLDS))
        group.append(first.setdefault(key, node))
        other = hierarchy.names[group[node]]
        if name != other:
            twins[_difference(name, other)].append(f"{hierarchy.label(group[node])!r} / {name!r}")
    notes = [
        f"sibling classes differ in {' and '.join(kinds)} only: {_some(pairs)}. "
        f"--fold {','.join(kinds)} makes them one"
        for kinds, pairs in twins.items()
    ]
    coded = [repr(name) for name in dict.fromkeys(hierarchy.names) if decoded(name) != name]
    if coded:
        notes.append(f"names with entities of HTML: {_some(coded)}. --fold entities reads them")
    return notes


def _difference(name: str, other: str) -> tuple[str, ...]:
    """The kinds in which two names differ."""
    kinds = list(FOLDS)
    for kind in FOLDS:
        fewer = [one for one in kinds if one != kind]
        if folded(name, fewer) == folded(other, fewer):
            kinds = fewer
    return tuple(kinds)


def missing_note(rows: Mapping[str, int], columns: Collection[str]) -> list[str]:
    """Note names that say that there is none, or that repeat the header."""
    found = [name for name in rows if name.casefold() in MISSING or name in columns]
    if not found:
        return []
    shown = _some([f"{name!r} ({rows[name]:,} rows)" for name in found])
    return [
        f"classes that look like missing values: {shown}. "
        f"--missing {','.join(found)!r} makes such cells empty"
    ]


def _some(examples: Sequence[str]) -> str:
    return ", ".join(examples[:_SHOWN]) + (", …" if len(examples) > _SHOWN else "")
