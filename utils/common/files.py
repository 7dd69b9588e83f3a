"""Files are written whole: under a hidden temporary name first, then renamed."""

from __future__ import annotations

import ctypes
import fcntl
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.common.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

TEMPORARY_PREFIX = ".tmp-"
POINTER = ".dvc"  # ends the names of DVC's small files, which stand for what it tracks
STALE = 3600.0  # seconds
DEPTH = 16  # of JSON values within values
WIDEST = 1_000  # bits of a whole number: every figure can be a float
_HERE = -100  # AT_FDCWD: paths are relative to the current folder
_EXCHANGE = 2  # RENAME_EXCHANGE


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refused(path: Path, error: OSError) -> UserError:
    # shutil's own errors list all files that it could not copy, with a number in each reason
    number = error.errno or next(map(int, re.findall(r"\[Errno (\d+)\]", str(error))), None)
    reason = error.strerror or (os.strerror(number) if number else str(error))
    return UserError(f"Cannot write {path}: {reason}. Free some space or choose a writable place.")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn a failure to write below `path` into the user's error."""
    try:
        yield
    except OSError as error:
        # tempfile names its files from the root on
        folder = Path(os.path.realpath(path.parent))
        named = Path(os.path.realpath(os.fsdecode(error.filename))) if error.filename else folder
        if folder not in (named, *named.parents) and named not in folder.parents:
            raise  # about something else, that was read meanwhile
        raise _refused(path, error) from error


class NoLocks(UserError):
    """The file system knows no locks."""


@contextmanager
def lock(path: Path, busy: str | None = None) -> Iterator[TextIOWrapper]:
    """Hold a lock on a file, which is made for that; the kernel takes it from a process that dies.

    Parameters
    ----------
    busy
        What to say if another process holds it; None: wait for that one.

    Raises
    ------
    UserError
        Another process holds it.
    NoLocks
        There can be none.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError as error:
            raise UserError(busy or str(error)) from error
        except OSError as error:
            raise NoLocks(
                f"Cannot lock {path}: {error.strerror}. Choose a root (KTT_ROOT) on a file system "
                "with flock."
            ) from error
        yield file


def is_device(path: Path) -> bool:
    """Whether something is there that is written to as it is: a pipe, a device."""
    with suppress(OSError):  # a name that is too long: what comes next says so
        return path.exists() and not path.is_file() and not path.is_dir()
    return False


def followed(path: Path) -> Path:
    """The file that a link leads to, or the path itself: what a person who names a link means."""
    with suppress(OSError):  # a name that is too long: what comes next says so
        if path.is_symlink() and not is_device(path):
            return Path(os.path.realpath(path))
    return path


def _prepare(path: Path) -> None:
    """Make the folder of a path; a name that no file can have is an error before the work."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.exists()
    _sweep(path.parent)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `path` when the block ends well.

    The temporary file lies in the same folder under a hidden name; readers see the old file or
    the whole new one. On any exception it is removed and `path` stays as it was.

    Raises
    ------
    UserError
        The file cannot be written (disk full, read-only folder, …), or is no file.
    """
    if is_device(path):
        raise UserError(f"{path} is a device or a pipe, not a file. Choose another place.")
    with explained(path):
        _prepare(path)
        handle, name = tempfile.mkstemp(prefix=_prefix(), suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o644)
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_dir(path: Path, keep: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends well.

    An existing folder at `path` is moved aside, replaced and only then removed.

    Parameters
    ----------
    keep
        Entries of the existing folder that the new one shall have too. They are linked into it
        before it takes the old one's place, so that at no moment they are missing.

    Raises
    ------
    UserError
        The folder cannot be written.
    """
    with explained(path):
        _prepare(path)
        temporary = Path(tempfile.mkdtemp(prefix=_prefix(), dir=path.parent))
        try:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _sync(file)
            temporary.chmod(0o755)
            for name in keep:
                _link_tree(path / name, temporary / name)
            _swap(temporary, path)
            _sync(path.parent)
        finally:
            _remove(temporary)


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """Yield a hidden folder inside `folder`: what `move_in` does not take out of it is lost.

    A `folder` that was made for it and stays empty goes again, with its empty parents.

    Raises
    ------
    UserError
        It cannot be written.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    with explained(folder / "staging"):
        temporary = _made_in(folder)
        _sweep(folder)
        try:
            yield temporary
        finally:
            _remove(temporary)
            with suppress(OSError):  # not empty
                for path in made:
                    path.rmdir()


def _made_in(folder: Path) -> Path:
    """A new hidden folder inside `folder`, also where others remove that whenever it is empty."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            return Path(tempfile.mkdtemp(prefix=_prefix(), dir=folder))


@contextmanager
def scratch() -> Iterator[Path]:
    """Yield a folder for a while, where the system keeps such things (``TMPDIR``).

    Raises
    ------
    UserError
        It cannot be written.
    """
    try:
        home = tempfile.gettempdir()
    except FileNotFoundError as error:
        raise UserError(
            f"{error.strerror}. Free some space, or set TMPDIR to a writable folder."
        ) from error
    with explained(Path(home) / "scratch"):
        folder = Path(tempfile.mkdtemp(prefix="ktt-"))
        try:
            yield folder
        finally:
            _remove(folder)


def move_in(source: Path, path: Path) -> None:
    """Move a finished file or folder to its place, with what it holds safely on the disk."""
    for file in source.rglob("*") if source.is_dir() else [source]:
        _sync(file)
    source.replace(path)
    _sync(path.parent)


def remove_all(paths: Sequence[Path]) -> None:
    """Remove files and folders in this order; those that are gone already are no mistake.

    Raises
    ------
    UserError
        One cannot be removed.
    """
    for path in paths:
        with explained(path), suppress(FileNotFoundError):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _link_tree(source: Path, target: Path) -> None:
    """Make the files below `source`, or the file `source`, stand at `target` as well."""
    if source.is_symlink():  # stays one, wherever it leads to
        target.symlink_to(source.readlink())
    elif source.is_dir():
        half = shutil.ignore_patterns(f"{TEMPORARY_PREFIX}*")
        shutil.copytree(source, target, True, half, copy_function=_link_or_copy)
    elif source.exists():
        _link_or_copy(source, target)


def _link_or_copy(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there."""
    with suppress(OSError):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _swap(new: Path, path: Path) -> None:
    """Put `new` in the place of `path`, which then lies where `new` was, or is gone."""
    if not path.exists() and not path.is_symlink():
        new.rename(path)
    elif not _exchange(new, path):
        # Where folders cannot be exchanged in one step there is a moment without any.
        aside = Path(tempfile.mkdtemp(prefix=_prefix(), dir=path.parent))
        path.rename(aside / "old")
        try:
            new.rename(path)
        except OSError:
            (aside / "old").rename(path)
            raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths in one step; False where the system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    done = libc.renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE)
    return bool(done == 0)


def _prefix() -> str:
    """A hidden beginning that tells whose temporary file it is."""
    return f"{TEMPORARY_PREFIX}{os.getpid()}-"


def _sweep(folder: Path) -> None:
    """Remove what killed processes left behind, once it is an hour old."""
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        owner = path.name.removeprefix(TEMPORARY_PREFIX).partition("-")[0]
        with suppress(OSError):
            old = time.time() - path.lstat().st_mtime > STALE
            if old and not Path(f"/proc/{owner}").exists():
                _remove(path)


def pointers(folder: Path) -> list[str]:
    """Names of the small files that DVC writes beside what it tracks in a folder."""
    return [path.name for pattern in (f"*{POINTER}", ".gitignore") for path in folder.glob(pattern)]


def link(source: Path, path: Path) -> None:
    """Make `path` the same file as `source` (a copy where links are not possible), whole."""
    with atomic_path(path) as temporary:
        temporary.unlink()
        _link_or_copy(source, temporary)


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write an Arrow table as Parquet, whole."""
    import pyarrow.parquet as pq

    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON, whole."""
    with atomic_path(path) as temporary:
        text = json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path, *, once: bool = False) -> Any:
    """Read a JSON file.

    Parameters
    ----------
    once
        Refuse an object that gives a key twice; JSON's readers take the last one.

    Raises
    ------
    UserError
        The file is missing or is not JSON.
    """
    try:
        if path.is_char_device():  # which may never end
            raise UserError(f"{path} is a device, not a file.")
        return json.loads(
            path.read_text(encoding="utf-8"), object_pairs_hook=_given_once if once else None
        )
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from error


def is_plain(value: Any, depth: int = DEPTH) -> bool:
    """Whether a value can be written as JSON, and shown; it was read from some."""
    if isinstance(value, dict):
        return depth > 0 and all(is_plain(one, depth - 1) for pair in value.items() for one in pair)
    if isinstance(value, list):
        return depth > 0 and all(is_plain(one, depth - 1) for one in value)
    if isinstance(value, str):
        return not any("\ud800" <= letter <= "\udfff" for letter in value)
    if isinstance(value, int):
        return value.bit_length() < WIDEST
    return not isinstance(value, float) or math.isfinite(value)


def _given_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if twice:
        raise ValueError(f"the key {twice[0]!r} is given twice; keep one")
    return dict(pairs)
