"""DVC, for those who use it: track what was written, fetch what is missing.

It takes a second to start, so it runs as a program of its own, and only when there is work for it.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from utils.common.dvc_pointers import FOLDER, check_listing, checked_sum, pointer_of
from utils.common.errors import UserError
from utils.common.files import POINTER
from utils.common.paths import PROJECT_ROOT, Layout

log = logging.getLogger(__name__)

PATIENCE = 120.0
"""Seconds to wait for another DVC command, which holds the repository or a file of ours."""
PAUSE = 0.5
LONGEST_NAME = 255  # characters that a file system takes
LARGEST_NUMBER = 10**18
_BUSY = ("Unable to acquire lock", "it is being blocked by")
_QUIET = {"DVC_NO_ANALYTICS": "1", "CI": "true"}
"""DVC asks no server whether there is a newer one, nor tells anybody that it ran."""
_REASONS = {
    "No module named dvc": "DVC is not installed: pip install dvc.",
    "no default remote": "it is not in DVC's cache, and no remote is set: dvc remote add -d …",
    "neither locally nor on remote": "it is neither in DVC's cache nor on the remote, or the "
    "remote cannot be reached. Whoever has it runs 'dvc push'.",
}
_PROGRAMS = re.compile(
    r"[^#=]*?(\w*_command|configpath|credentialpath|plugins_path|site_cache_dir)[^#=]*=",
    re.IGNORECASE,
)
"""Settings that make DVC, or what it calls, run a program or read pickled files."""
_REMOTE = re.compile(r"^\s*\['?remote\b", re.MULTILINE)
_FOLDERS = ("datasets/*", "weights/*/*", "outputs/*", "build/*")


def is_repository(root: Path) -> bool:
    """Whether `root` is a DVC repository."""
    return (root / ".dvc").is_dir()


def is_used(root: Path) -> bool:
    """Whether files in `root` are tracked without being asked for.

    They are in a DVC repository. The toolkit's own folder is one from the start, for its pipeline
    to run in a fresh clone: it counts once it has a remote or a tracked file.
    """
    if not is_repository(root):
        return False
    return root != PROJECT_ROOT or _has_remote(root) or _has_pointers(root)


def _has_remote(root: Path) -> bool:
    files = [root / ".dvc" / name for name in ("config", "config.local")]
    return any(
        file.exists() and _REMOTE.search(file.read_text("utf-8", "replace")) for file in files
    )


def _has_pointers(root: Path) -> bool:
    return any(True for folder in _FOLDERS for _ in root.glob(f"{folder}/*{POINTER}"))


def check(root: Path, wanted: bool | None, *paths: Path) -> None:
    """Find out before the work that what will be written cannot be tracked.

    Raises
    ------
    UserError
        Tracking is wanted, and `root` is no DVC repository or its pipeline tracks one of `paths`.
    """
    if not wanted:
        return
    if not is_repository(root):
        raise UserError(f"{root} is no DVC repository: run 'dvc init' there or use --no-dvc.")
    for path in paths:
        if stage := pipeline_stage(root, path):
            raise UserError(
                f"{path.relative_to(root)} is of stage {stage!r} of dvc.yaml, which tracks it: "
                "run 'dvc repro', or use --no-dvc."
            )


def add(root: Path, paths: Sequence[Path], wanted: bool | None = None) -> None:
    """Track files and folders with ``dvc add``.

    Parameters
    ----------
    root
        The project's root.
    paths
        What to track, below `root`.
    wanted
        True: it is an error if that cannot be; None: where DVC `is_used`, and of what is not the
        pipeline's, which tracks its own.
    """
    check(root, wanted, *paths)
    if wanted is None and is_used(root):
        paths = [path for path in paths if not pipeline_stage(root, path)]
    elif not wanted:
        return
    if not paths:
        return
    if reason := _run(root, "add", "--", *[str(path.relative_to(root)) for path in paths]):
        raise UserError(f"dvc add failed: {reason} Use --no-dvc to go without.")
    log.info("tracked %d files with DVC", len(paths))


def ensure(layout: Layout, *paths: Path) -> None:
    """Fetch those of `paths` that are missing and have a ``.dvc`` file beside them.

    From DVC's cache, else from its remote.

    Raises
    ------
    UserError
        One cannot be fetched, or the layout says not to.
    """
    missing = [path for path in paths if pointer_of(path).exists() and _is_missing(path)]
    if not missing:
        return
    shown = missing[0].relative_to(layout.root)
    if not layout.fetch:
        raise UserError(f"{shown} is missing. DVC has it: leave out --no-dvc to fetch it.")
    log.info("fetching %d files with DVC, the first is %s", len(missing), shown)
    sums = {path: checked_sum(layout.root, path) for path in missing}
    _check_folders(layout.root, {p: md5 for p, md5 in sums.items() if md5.endswith(FOLDER)})
    reason = _run(layout.root, "pull", "--", *[_target(layout.root, path) for path in missing])
    for path in filter(_is_missing, missing):
        shown = path.relative_to(layout.root)
        reason = reason or f"{shown}{POINTER} is damaged."
        raise UserError(f"{shown} is missing, and DVC cannot fetch it: {reason}")


def _check_folders(root: Path, sums: Mapping[Path, str]) -> None:
    """Have the lists of folders' files in the cache, and see that they stay in their folders."""
    if not sums:
        return
    reason = _run(root, "fetch", "--", *[_target(root, path) for path in sums])
    code, printed = _called(root, "cache", "dir")
    if reason or code:
        shown = next(iter(sums)).relative_to(root)
        reason = reason or _reason(printed)
        raise UserError(f"{shown} is missing, and DVC cannot fetch it: {reason}")
    for path, md5 in sums.items():
        check_listing(Path(printed.strip()), md5, path.relative_to(root))


def _is_missing(path: Path) -> bool:
    """Whether a file is not there, or nothing is left of a folder."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def _target(root: Path, path: Path) -> str:
    """How a fetching command is told of a file.

    DVC takes what follows a colon for the name of a stage; names of checkpoints have colons. With
    a name, which it ignores, at the end, all of what is before that is the file's.
    """
    return f"{pointer_of(path).relative_to(root)}:_"


def _run(root: Path, *arguments: str) -> str:
    """Run DVC once others are done with it; why it failed, else nothing."""
    if refusal := _refusal(root):
        return refusal
    end = time.monotonic() + PATIENCE
    told = False
    while True:
        code, printed = _called(root, *arguments)
        if not code:
            return ""
        if not any(sign in printed for sign in _BUSY):
            return _reason(printed)
        if time.monotonic() > end:
            return (
                f"another DVC command has been at work in {root} for {PATIENCE:.0f} seconds. "
                "Wait for its end, or end it."
            )
        if not told:
            log.warning("waiting for another DVC command in %s", root)
            told = True
        time.sleep(PAUSE)


def _refusal(root: Path) -> str:
    """Why DVC is not called by the settings that come with a project; empty if it may be."""
    # a root that is no repository may lie in one
    repository = next((folder for folder in (root, *root.parents) if is_repository(folder)), root)
    file = repository / ".dvc" / "config"
    if found := _program_setting(file):
        return (
            f"{file} sets {found}, which can run a program of whoever wrote it. If it is yours, "
            "move it to your own settings (dvc config --local or --global)."
        )
    return ""


def _program_setting(file: Path) -> str:
    """A setting that may run a program; empty if none."""
    try:
        text = file.read_text("utf-8", "replace")
    except OSError:
        return ""
    # in lines as DVC has them: a form feed, say, ends one too
    matches = map(_PROGRAMS.match, text.splitlines())
    return next((found[1] for found in matches if found), "")


def _called(root: Path, *arguments: str) -> tuple[int, str]:
    """Call DVC: its exit status, and what it printed; its complaints if it failed."""
    try:
        done = subprocess.run(
            # without -P any utils.py in the root would be taken for one of Python's modules
            [sys.executable, "-P", "-m", "dvc", *arguments],
            cwd=root, env={**os.environ, **_QUIET}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, errors="replace", check=False,
        )  # fmt: skip
    except OSError as error:
        return 1, f"it cannot be started ({error})"
    return done.returncode, (done.stderr or done.stdout) if done.returncode else done.stdout


def _reason(printed: str) -> str:
    """What DVC says about its failure, in one line."""
    if found := [words for sign, words in _REASONS.items() if sign in printed]:
        return found[0]
    told = printed.partition("ERROR: ")[2].removeprefix("unexpected error - ") or printed
    told = " ".join(told.partition("\n\n")[0].split()).rstrip(".")
    return f"{told or 'no message'}."


# -- the pipeline ---------------------------------------------------------------------------


def pipeline_stage(root: Path, path: Path) -> str | None:
    """The stage of dvc.yaml with an output that is `path`, lies in it or holds it; None if none."""
    for stage, output in _outputs(root):
        place = root / output
        if path.is_relative_to(place) or place.is_relative_to(path):
            return stage
    return None


def _outputs(root: Path) -> Iterator[tuple[str, str]]:
    """Stages and their outputs, of dvc.yaml and, with all names filled in, of dvc.lock."""
    for file in (root / "dvc.yaml", root / "dvc.lock"):
        content = _read_yaml(file)
        values = _variables(content)
        stages = content.get("stages")
        for name, stage in stages.items() if isinstance(stages, dict) else ():
            known = isinstance(name, str) and isinstance(stage, dict)
            for output in _stage_outputs(stage) if known else ():
                yield name.partition("@")[0], _filled(output, values)


def _read_yaml(file: Path) -> dict[str, Any]:
    """A YAML file; nothing where it is damaged, which DVC itself tells better."""
    import yaml

    with suppress(OSError, ValueError, RecursionError, yaml.YAMLError):
        found = yaml.safe_load(file.read_text("utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def _variables(content: Mapping[str, Any]) -> dict[str, Any]:
    given = content.get("vars")
    blocks = given if isinstance(given, list) else []
    # no lists, objects or long texts: written out, those of a few lines of YAML fill the memory
    return {
        key: value
        for block in blocks if isinstance(block, dict)
        for key, value in block.items() if _is_part_of_name(value)
    }  # fmt: skip


def _is_part_of_name(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= LONGEST_NAME
    return isinstance(value, int | float) and abs(value) < LARGEST_NUMBER


def _stage_outputs(stage: Mapping[str, Any]) -> Iterator[str]:
    for kind in ("outs", "metrics", "plots"):
        entries = stage.get(kind)
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, dict):  # as dvc.lock has it, or with options
                entry = entry.get("path", next(iter(entry), ""))
            if isinstance(entry, str):
                yield entry


def _filled(text: str, values: Mapping[str, Any]) -> str:
    return re.sub(r"\$\{(\w+)\}", lambda found: str(values.get(found[1], found[0])), text)
