"""DVC, for those who use it: track what was written, fetch what is missing."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError

log = logging.getLogger(__name__)


def is_repository(root: Path) -> bool:
    """Whether `root` is a DVC repository."""
    return (root / ".dvc").is_dir()


def _run(root: Path, *arguments: str) -> None:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *arguments],
            cwd=root, capture_output=True, text=True, check=False,
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"DVC cannot be started: {error}. Use --no-dvc to go without.") from error
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[0]
        raise UserError(f"dvc {arguments[0]} failed: {reason} Use --no-dvc to go without.")


def add(root: Path, paths: Sequence[Path], wanted: bool | None = None) -> None:
    """Track files with ``dvc add``.

    Parameters
    ----------
    root
        The project's root.
    paths
        What to track, below `root`.
    wanted
        True: it is an error if the root is no DVC repository; None: only if it is one.
    """
    if wanted is False or not paths:
        return
    if not is_repository(root):
        if wanted:
            raise UserError(f"{root} is no DVC repository: run 'dvc init' there or use --no-dvc.")
        return
    _run(root, "add", "--quiet", "--", *[str(path.relative_to(root)) for path in paths])
    log.info("tracked %d files with DVC", len(paths))


def ensure(root: Path, path: Path) -> None:
    """Fetch `path` if it is missing and a ``.dvc`` file stands beside it."""
    pointer = path.with_name(path.name + ".dvc")
    if path.exists() or not pointer.exists():
        return
    target = str(pointer.relative_to(root))
    try:
        _run(root, "checkout", "--quiet", "--", target)
    except UserError:
        _run(root, "pull", "--quiet", "--", target)
