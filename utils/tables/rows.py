"""Rows of a table as a stream, whatever they are read from."""

from __future__ import annotations

import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from utils.common.errors import UserError, unknown
from utils.tables.arrow_types import plain_table
from utils.tables.columns import texts_of
from utils.tables.formats import Input, open_input
from utils.tables.source_files import likely_encoding

if TYPE_CHECKING:
    import pyarrow as pa

TEXT_COLUMNS = ("text", "name")
"""Looked for if the text column is not named: the usual name, and that of dataset splits."""
WINDOW_BYTES = 8_000_000
BLOCK = 4 << 20  # of a text table; a row has to fit
_GUESSED = 4 << 20
_SHOWN = 200  # characters of a reason, which may quote a row


@dataclass(frozen=True, kw_only=True, eq=False)
class Chunk:
    """Some consecutive rows.

    Parameters
    ----------
    texts
        One per row, empty where there is none.
    table
        The rows as they were read, from a columnar format.
    lines, records, numbers
        The rows as they were read, as JSON, as values, and where they stand in the file.
    """

    texts: list[str]
    table: pa.Table | None = None
    lines: list[str] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts)


class Rows(ABC):
    """An open table.

    Parameters
    ----------
    source
        Where it is read from.
    wanted
        Text columns, empty for the usual ones.
    trained
        Those that the model learned from: taken first where none are wanted.

    Attributes
    ----------
    columns
        Names of its columns; for JSON lines those of the first rows.
    text
        The text columns.
    """

    columns: tuple[str, ...]
    text: tuple[str, ...]

    def __init__(self, source: Input, wanted: Sequence[str], trained: Sequence[str] = ()) -> None:
        self.source = source
        self.name = source.name
        self._wanted, self._trained = tuple(wanted), tuple(trained)
        if source.size == 0:
            raise self.empty()

    @abstractmethod
    def chunks(self, size: int) -> Iterator[Chunk]:
        """Yield rows in order, at most `size` at a time."""

    def part(self) -> float | None:
        """Share of the table that has been read, None if its size is not known."""
        return self.source.part

    def stop(self) -> None:
        """Wait for no further bytes, whoever is reading."""
        self.source.counted.stopped = True

    def empty(self) -> UserError:
        """The error for a file without anything."""
        return UserError(f"{self.name} is empty.")

    def not_utf8(self, where: str) -> UserError:
        """The error for other encodings, with the most likely one."""
        found = self._guess()
        advice = f"It seems to be {found}: say" if found else "Say which encoding it has, such as"
        return UserError(
            f"{self.name} is not UTF-8 ({where}). {advice} --encoding {found or 'cp1252'}."
        )

    def _guess(self) -> str:
        """The encoding that the beginning of a file seems to have; nothing where that is gone."""
        if self.source.size is None:
            return ""
        with open_input(self.source.path) as again:
            data = again.stream.read(_GUESSED)
        return likely_encoding(data[: data.rfind(b"\n") + 1] or data)

    def place(self) -> str:
        """Where the row that could not be read stands, if that is known."""
        return ""

    def advice(self) -> str:
        """What may help where rows cannot be read."""
        return ""

    def choose(self, columns: Sequence[str]) -> tuple[str, ...]:
        """The text columns among the table's.

        Raises
        ------
        UserError
            A named one is not there, or none was named and the usual ones are not there.
        """
        for name in self._wanted:
            if name not in columns:
                raise unknown("column", name, columns)
            if columns.count(name) > 1:
                raise UserError(f"{self.name} has several columns {name!r}. Rename all but one.")
        if not self._wanted and self._trained and all(columns.count(x) == 1 for x in self._trained):
            return self._trained
        usual = [name for name in TEXT_COLUMNS if columns.count(name) == 1]
        if not self._wanted and not usual and len(columns) != 1:
            raise UserError(
                f"Which column of {self.name} holds the text? Say -t COLUMN. There are: "
                f"{', '.join(columns)}."
            )
        return self._wanted or (*usual, *columns)[:1]


class TableRows(Rows):
    """A table whose columns are known from the beginning."""

    def _chunks(self, tables: Iterator[pa.Table], size: int) -> Iterator[Chunk]:
        table = None
        for table in tables:
            rows = max(1, min(size, size * WINDOW_BYTES // max(table.nbytes, WINDOW_BYTES)))
            for start in range(0, table.num_rows, rows):
                yield self._chunk(table.slice(start, rows))
        if table is None:  # its columns are worth writing all the same
            yield self._chunk(self._schema().empty_table())

    @abstractmethod
    def _schema(self) -> pa.Schema:
        """The columns."""

    def _chunk(self, table: pa.Table) -> Chunk:
        texts, _ = texts_of(plain_table(self._picked(table)), self.text)
        return Chunk(texts=texts.to_pylist(), table=table)

    def _picked(self, table: pa.Table) -> pa.Table:
        """The text columns."""
        return table.select([table.column_names.index(name) for name in self.text])


@contextmanager
def explained(rows: Rows, kind: str) -> Iterator[None]:
    """Turn the ways in which a damaged file fails into the user's error."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, EOFError, zlib.error) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        if "Empty CSV" in reason:
            raise rows.empty() from error
        if "invalid UTF8" in reason:
            where = re.search(r"Row #\d+", reason)
            raise rows.not_utf8(where[0].lower() if where else "somewhere") from error
        if "straddling" in reason:
            reason = f"a row is longer than {BLOCK >> 20} MB, or a quote is never closed"
        shown = reason[:_SHOWN] + ("…" if len(reason) > _SHOWN else "")
        raise UserError(
            f"{rows.name} cannot be read as {kind}: {rows.place()}{shown}. {rows.advice()}"
        ) from error
