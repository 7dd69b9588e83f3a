"""Whether runs were trained on their datasets as they are now."""

from __future__ import annotations

from collections.abc import Sequence

from utils.data import dataset_files, fingerprint
from utils.paths import Layout
from utils.store.entries import Entry
from utils.store.tags import Tag

MOST_BYTES = 1 << 26
"""Of all datasets that are read for one list: 0.05 s."""


def trained_on_others(layout: Layout, entries: Sequence[Entry]) -> set[Tag]:
    """The entries that were not trained on what their dataset holds now.

    Whether they were is not known where the dataset is not here. Of datasets that are too large
    to be read for this, entries are compared with the newest of them.
    """
    present, room = {}, MOST_BYTES
    for entry in sorted(entries, key=lambda entry: entry.version, reverse=True):
        if entry.info.fingerprint and entry.dataset not in present:
            found, size = _present(layout, entry, room)
            present[entry.dataset] = found
            room -= size
    return {
        entry.tag
        for entry in entries
        if entry.info.fingerprint and present[entry.dataset] not in (None, entry.info.fingerprint)
    }


def _present(layout: Layout, entry: Entry, room: int) -> tuple[str | None, int]:
    """Fingerprint that its dataset has or should have, None if unknown, and the bytes read."""
    files = dataset_files(layout.dataset(entry.dataset))
    try:
        size = sum(path.stat().st_size for path in files)
        return (entry.info.fingerprint, 0) if size > room else (fingerprint(files), size)
    except OSError:
        return None, 0
