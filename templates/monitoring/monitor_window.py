"""The rolling window, in an SQLite file that survives kill -9.

Two tables: the newest rows whole, and the answers of many more rows, so that true labels which
come late still find what was answered. Both are trimmed with every batch.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import math
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from monitor_stored import Kept, Labelled, kept_of, labelled_of
from monitor_wire import Answered, Columns

FORMAT = "3"
NAME = "window.sqlite"
HISTORY = 50_000  # answers that feedback can still be about
WAITING = 10_000  # feedback that has come before its row
TABLES = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS rows (
    seq INTEGER PRIMARY KEY, class INTEGER NOT NULL, confidence REAL NOT NULL, length REAL,
    features BLOB NOT NULL, came REAL NOT NULL);
CREATE TABLE IF NOT EXISTS answers (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE, class INTEGER NOT NULL,
    confidence REAL NOT NULL, scores TEXT NOT NULL, truth INTEGER);
CREATE INDEX IF NOT EXISTS labelled ON answers (seq) WHERE truth IS NOT NULL;
CREATE TABLE IF NOT EXISTS feedback (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, truth INTEGER NOT NULL);
"""

ROWS = "SELECT seq, class, confidence, length, features, came FROM rows ORDER BY seq DESC LIMIT ?"
LABELLED = (
    "SELECT seq, class, truth, confidence, scores FROM answers WHERE truth IS NOT NULL "
    "ORDER BY seq DESC LIMIT ?"
)

FEEDBACK = (  # one that comes again is as new as the others
    "INSERT OR REPLACE INTO feedback (seq, id, truth) "
    "VALUES ((SELECT coalesce(max(seq), 0) + 1 FROM feedback), ?, ?)"
)

DAMAGED = (sqlite3.DatabaseError, UnicodeDecodeError, OverflowError)
"""What a damaged file leads to: what SQLite says of its tables need not be UTF-8 either."""

log = logging.getLogger("monitoring")


class NotKept(Exception):
    """The window cannot be read or written now: one line."""


class _Other(Exception):
    """The file is a window that cannot be gone on with: what it is called now, and why."""


def span(rows: int, since: float, until: float) -> str:
    """How many rows, from when to when."""
    return f"{rows:,} rows from {utc(since)} to {utc(until)}" if rows else "no rows"


def utc(seconds: float) -> str:
    """A time since 1970 as people read it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def fingerprint(columns: Columns) -> str:
    """Tell windows of different models, or of different weights, apart."""
    parts = [columns.features, columns.tree.labels, columns.classes, columns.checkpoint]
    held = json.dumps(parts)
    return hashlib.sha256(held.encode("utf-8", "surrogatepass")).hexdigest()


class Window:
    """The newest rows, and the feedback about them.

    Parameters
    ----------
    folder
        Where the file lies; made if need be.
    columns
        What a row holds. A file of other columns or weights is moved aside.
    size
        Number of rows.
    """

    def __init__(self, folder: Path, columns: Columns, size: int) -> None:
        self.path = folder / NAME
        self.size = size
        self.columns = columns
        self._print = fingerprint(columns)
        self._lock = threading.Lock()
        self._held: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None

    # -- opening ------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the file, so that its state is known."""
        with self._use():
            pass

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            with contextlib.suppress(sqlite3.Error):
                held.close()

    @contextlib.contextmanager
    def _use(self) -> Iterator[sqlite3.Connection]:
        """One transaction, by one thread at a time."""
        with self._lock:
            try:
                held = self._opened()
                with held:
                    held.execute("BEGIN IMMEDIATE")
                    yield held
            except (*DAMAGED, OSError) as error:
                self._drop()
                if _of_the_disk(error):
                    raise NotKept(f"The window cannot be kept: {_line(error)}.") from None
                self._aside("damaged", _line(error))
                raise NotKept("The window was damaged; a new one is begun.") from None

    def _opened(self) -> sqlite3.Connection:
        if self._held is not None and self._file != _file_of(self.path):
            log.warning("%s has been taken away or replaced: it is opened anew", NAME)
            self._drop()
        if self._held is None:
            try:
                self._held = self._connected()
            except _Other as other:
                self._aside(*other.args)
                self._held = self._connected()
            except DAMAGED as error:
                if _of_the_disk(error):
                    raise
                self._aside("damaged", _line(error))
                self._held = self._connected()
            self._file = _file_of(self.path)
        return self._held

    def _connected(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        held = sqlite3.connect(self.path, timeout=5, isolation_level=None, check_same_thread=False)
        held.text_factory = _text  # a damaged text is a wrong value, not an error
        try:
            self._prepare(held)
        except BaseException:
            held.close()
            raise
        return held

    def _prepare(self, held: sqlite3.Connection) -> None:
        held.execute("PRAGMA journal_mode=WAL")
        held.execute("PRAGMA synchronous=NORMAL")
        held.execute("PRAGMA journal_size_limit=16777216")
        found = held.execute("PRAGMA quick_check(1)").fetchone()
        if found != ("ok",):
            raise sqlite3.DatabaseError("its check failed")
        self._refuse_others(held)  # before its tables are touched, which may be others
        held.executescript(TABLES)
        held.executemany(
            "INSERT OR IGNORE INTO meta VALUES (?, ?)",
            [("format", FORMAT), ("model", self._print)],
        )
        for select in (ROWS, LABELLED):  # whether its tables have these columns
            held.execute(select, (0,))

    def _refuse_others(self, held: sqlite3.Connection) -> None:
        if not held.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
            return
        kept = dict(held.execute("SELECT name, value FROM meta"))
        if kept.get("format", FORMAT) != FORMAT:
            raise _Other("other-format", f"it is in format {kept['format']}, not {FORMAT}")
        if kept.get("model", self._print) != self._print:
            raise _Other("other-model", "it was kept for another model, or other weights of it")

    def _aside(self, kind: str, why: str) -> None:
        """Move the file out of the way; the one moved before it is gone then."""
        log.warning("%s is moved to %s.%s and a new window begun: %s", NAME, NAME, kind, why)
        for ending in ("-wal", "-shm", ""):
            source = self.path.with_name(NAME + ending)
            target = self.path.with_name(f"{NAME}.{kind}{ending}")
            target.unlink(missing_ok=True)
            if source.exists():
                source.rename(target)

    # -- writing ------------------------------------------------------------------------------

    def add(self, batch: Answered) -> tuple[int, int]:
        """Keep rows.

        Returns
        -------
        new : int
            Rows that were not there yet: one sent twice, by its id, is kept once.
        matched : int
            Rows whose true label had come before them.
        """
        with self._use() as held:
            (last,) = held.execute("SELECT coalesce(max(seq), 0) FROM answers").fetchone()
            new = self._add(held, batch, last + 1)
            matched = _label_new(held, last)
            self._trim(held)
        return new, matched

    def _add(self, held: sqlite3.Connection, batch: Answered, first: int) -> int:
        """Insert what is not there yet, by numbers from `first` on."""
        rows = batch.rows
        classes, confidence = rows.classes.tolist(), rows.confidence.tolist()
        now = time.time()
        scores = (json.dumps(pairs) for pairs in batch.scores)
        held.executemany(
            "INSERT OR IGNORE INTO answers (seq, id, class, confidence, scores) "
            "VALUES (?, ?, ?, ?, ?)",
            zip(itertools.count(first), batch.ids, classes, confidence, scores),
        )
        found = held.execute("SELECT seq FROM answers WHERE seq >= ? ORDER BY seq", (first,))
        new = [seq for (seq,) in found]
        lengths = [None if math.isnan(length) else length for length in rows.length.tolist()]
        held.executemany(
            "INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?)",
            (
                (seq, classes[at], confidence[at], lengths[at], rows.features[at].tobytes(), now)
                for seq in new[-self.size :]
                for at in (seq - first,)
            ),
        )
        return len(new)

    def _trim(self, held: sqlite3.Connection) -> None:
        (last,) = held.execute("SELECT max(seq) FROM answers").fetchone()
        # Numbers are given in turn, but a repeated row may have used one up.
        keep = held.execute(
            "SELECT seq FROM rows ORDER BY seq DESC LIMIT 1 OFFSET ?", (self.size,)
        ).fetchone()
        if keep is not None:
            held.execute("DELETE FROM rows WHERE seq <= ?", keep)
        if last is not None:
            history = max(HISTORY, self.size)
            held.execute("DELETE FROM answers WHERE seq <= ?", (last - history,))

    def label(self, items: list[tuple[str, int]]) -> tuple[int, int, int]:
        """Take true classes by request id.

        Returns
        -------
        matched, waiting, gone : int
            Those whose row is there, those kept until it comes, and those (of these and of older
            ones) that are not kept, as newer ones are enough.
        """
        with self._use() as held:
            early = [(name, truth) for name, truth in items if not _label_old(held, name, truth)]
            held.executemany(FEEDBACK, early)
            gone = held.execute(
                "DELETE FROM feedback WHERE seq <= "
                "(SELECT seq FROM feedback ORDER BY seq DESC LIMIT 1 OFFSET ?)",
                (WAITING,),
            ).rowcount
            kept = {name for (name,) in held.execute("SELECT id FROM feedback")} if early else set()
        return len(items) - len(early), sum(name in kept for name, _ in early), gone

    def forget(self, rows: Iterable[int], answers: Iterable[int]) -> None:
        """Delete rows and answers by their numbers."""
        with self._use() as held:
            held.executemany("DELETE FROM rows WHERE seq = ?", ((seq,) for seq in rows))
            held.executemany("DELETE FROM answers WHERE seq = ?", ((seq,) for seq in answers))

    # -- reading ------------------------------------------------------------------------------

    def kept(self) -> Kept:
        """The window, and from when to when it is."""
        with self._use() as held:
            found = held.execute(ROWS, (self.size,)).fetchall()
        return kept_of(found[::-1], self.columns)

    def seen(self) -> Kept:
        """The window as another process keeps it, which is left as it is.

        Raises
        ------
        NotKept
            It cannot be read, or is another model's.
        """
        address = f"{self.path.absolute().as_uri()}?mode=ro"
        try:
            with contextlib.closing(sqlite3.connect(address, timeout=5, uri=True)) as held:
                held.text_factory = _text
                self._refuse_others(held)
                found = held.execute(ROWS, (self.size,)).fetchall()
        except _Other as other:
            raise NotKept(f"The window cannot be read: {other.args[1]}.") from None
        except DAMAGED as error:
            raise NotKept(f"The window cannot be read: {_line(error)}.") from None
        return kept_of(found[::-1], self.columns)

    def labelled(self) -> Labelled:
        """The newest answers with a true class, as many as the window has rows."""
        with self._use() as held:
            found = held.execute(LABELLED, (self.size,)).fetchall()
        return labelled_of(found[::-1], self.columns)


def _file_of(path: Path) -> tuple[int, int] | None:
    """Which file a path leads to; None for none."""
    with contextlib.suppress(OSError):
        found = path.stat()
        return found.st_dev, found.st_ino
    return None


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _of_the_disk(error: Exception) -> bool:
    """Whether an error may pass: the disk is full, or somebody else has the file."""
    if isinstance(error, sqlite3.OperationalError):
        return getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_ERROR
    return isinstance(error, OSError)


def _label_old(held: sqlite3.Connection, name: str, truth: int) -> bool:
    """Give an answer its true class, if it is there."""
    done = held.execute("UPDATE answers SET truth = ? WHERE id = ?", (truth, name))
    return done.rowcount > 0


def _label_new(held: sqlite3.Connection, last: int) -> int:
    """Give the answers after a number the true classes that waited for them; how many there are."""
    held.execute(
        "UPDATE answers SET truth = (SELECT truth FROM feedback WHERE id = answers.id) "
        "WHERE seq > ? AND id IN (SELECT id FROM feedback)",
        (last,),
    )
    return held.execute(
        "DELETE FROM feedback WHERE id IN (SELECT id FROM answers WHERE seq > ?)", (last,)
    ).rowcount


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
