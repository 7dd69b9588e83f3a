"""Whether runs were trained on their datasets as they are now."""

from __future__ import annotations

from collections.abc import Sequence

from utils.common.paths import Layout
from utils.hierarchy.dataset import dataset_files, fingerprint
from utils.store.entries import Entry
from utils.store.tags import Tag

MOST_BYTES = 1 << 26
"""Of all datasets that are read for one list: 0.05 s."""


def changes(layout: Layout, entries: Sequence[Entry]) -> dict[Tag, bool | None]:
    """Whether the dataset of each entry holds other rows now than it was trained on.

    None if that is not known: the dataset is not here, or the entry does not say. Of datasets that
    are too large to be read for this, entries are compared with the newest of them.
    """
    present, room = {}, MOST_BYTES
    for entry in sorted(entries, key=lambda entry: entry.version, reverse=True):
        if entry.info.fingerprint and entry.dataset not in present:
            found, size = _present(layout, entry, room)
            present[entry.dataset] = found
            room -= size
    return {entry.tag: _changed(entry, present.get(entry.dataset)) for entry in entries}


def _changed(entry: Entry, present: str | None) -> bool | None:
    trained = entry.info.fingerprint
    return trained != present if trained and present else None


def _present(layout: Layout, entry: Entry, room: int) -> tuple[str | None, int]:
    """Fingerprint that its dataset has or should have, None if unknown, and the bytes read."""
    files = dataset_files(layout.dataset(entry.dataset))
    try:
        size = sum(path.stat().st_size for path in files)
        return (entry.info.fingerprint, 0) if size > room else (fingerprint(files), size)
    except OSError:
        return None, 0
