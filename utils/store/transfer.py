"""What of an entry travels in an archive, and whether what came in one belongs together."""

from __future__ import annotations

from pathlib import Path

from utils.common.checkpoints import Run, checkpoint_meta
from utils.common.errors import UserError
from utils.common.files import read_json
from utils.store import archive
from utils.store.changes import run_files
from utils.store.entries import Entry
from utils.store.info import Info, entry_file, info_of
from utils.store.user_info import said


def archived(entry: Entry) -> list[Path]:
    """The files that travel: the best checkpoint, what was measured, and the custom objects."""
    if not entry.run.best.exists():
        raise UserError(f"{entry.tag} has no best checkpoint yet: {entry.run.best} is missing.")
    found: list[Path] = []
    for path in run_files(entry.run):
        if path.is_dir():
            found += sorted(file for file in path.iterdir() if file.is_file())
        elif path.name.startswith(f"best_{entry.version}") and path.suffix != ".dvc":
            found.append(path)
    return found


def verified(staged: Path, head: archive.Head) -> Info:
    """What an archive's own files say, if that is what its manifest says.

    Raises
    ------
    UserError
        It is not: whole, but put together by somebody else.
    """
    try:
        return _consistent(Run(folder=staged, time=head.time), head)
    except (
        ArithmeticError,
        AttributeError,
        TypeError,
        ValueError,
    ) as error:  # values of any type where others belong
        raise UserError(
            f"The archive's checkpoint or entry is not as KTT writes them ({error}). "
            "Nothing was imported."
        ) from error


def _consistent(run: Run, head: archive.Head) -> Info:
    meta = checkpoint_meta(run.best)
    trained = meta.get("info", {}).get("dataset", head.dataset)
    if (meta.get("model"), trained) != (head.model, head.dataset):
        raise UserError(
            f"The archive's manifest says {head.model}_{head.dataset}, its checkpoint is of "
            f"{meta.get('model')!r} on {trained!r}. Nothing was imported."
        )
    entry = run.folder / entry_file(run)
    info = Info.from_dict(read_json(entry), entry.name) if entry.exists() else info_of(meta)
    said(info.name, info.labels, info.metadata, info.signatures)
    return info
