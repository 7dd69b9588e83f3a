"""Which entries are meant: by filters, by a figure, by a version."""

from __future__ import annotations

from collections.abc import Iterable

from utils.common.errors import UserError, unknown
from utils.store.entries import FIELDS, Entry
from utils.store.info import TEST, is_better, lower_is_better
from utils.store.tags import BEST, LATEST, Tag

Entries = list[Entry]


def parse_filter(text: str) -> tuple[str, str]:
    """Read ``key=value``; the keys are `FIELDS`."""
    key, sign, value = text.partition("=")
    if key not in FIELDS:
        raise unknown("filter", key, FIELDS)
    if not sign or not value:
        raise UserError(f"{text!r} filters nothing: write {key}=VALUE.")
    return key, value


def sorted_by(entries: Entries, metric: str) -> Entries:
    """Best first; entries without the figure stay in their order, at the end."""
    if entries and metric not in _figures(entries):
        raise _no_figure(entries, metric, "the store")
    sign = 1 if lower_is_better(metric) else -1

    def key(entry: Entry) -> tuple[bool, float]:
        figure = entry.info.figure(metric)
        return figure is None, sign * (figure or 0.0)

    return sorted(entries, key=key)


def _figures(entries: Entries) -> list[str]:
    return list(dict.fromkeys(name for entry in entries for name in entry.info.figures()))


def _no_figure(entries: Entries, name: str, where: str) -> UserError:
    """The error for a figure that no entry has."""
    known = _figures(entries)
    if any(entry.info.validation for entry in entries) or name.startswith(TEST):
        return unknown(f"figure of {where}", name, known)
    return UserError(
        f"No run of {where} has figures of validation rows, such as {name!r}: name a run by its "
        f"time, or go by another figure: {', '.join(known)}."
    )


def resolved(entries: Entries, wanted: Tag, by: str, others: Iterable[str] = ()) -> Entry:
    """The entry of a pair that a version means: an alias, a name, a rule or a time.

    Parameters
    ----------
    others
        More versions to propose where it means none.
    """
    version = wanted.version
    for entry in entries:
        if version in (entry.info.name, entry.version, *entry.aliases):
            return entry
    if version == LATEST:
        return entries[-1]
    if version == BEST:
        return _best(entries, wanted, by)
    begun = [entry for entry in entries if entry.version.startswith(version)]
    if len(begun) == 1:
        return begun[0]
    known = [name for entry in entries for name in (entry.info.name, *entry.aliases) if name]
    known += [*others, LATEST, BEST, *(entry.version for entry in reversed(entries))]
    if begun:
        several = ", ".join(entry.version for entry in begun)
        raise UserError(f"{wanted} may be any of {several}: write more of it.")
    error = unknown(f"version of {wanted.model}_{wanted.dataset}", version, known)
    unread = [problem for entry in entries for problem in entry.problems]
    raise UserError(f"{error.message} Not all could be read: {unread[0]}") if unread else error


def _best(entries: Entries, wanted: Tag, by: str) -> Entry:
    """The entry with the best figure; of equal ones the newest."""
    best, record = None, 0.0
    for entry in reversed(entries):
        figure = entry.info.figure(by)
        if figure is not None and (best is None or is_better(by, figure, record)):
            best, record = entry, figure
    if best is None:
        raise _no_figure(entries, by, f"{wanted.model}_{wanted.dataset}")
    return best
