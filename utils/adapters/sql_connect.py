"""Ask a database: batches of Arrow columns, and one line for whatever it refuses."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

from utils.adapters.sql_classes import text_of_bytes
from utils.adapters.sql_config import Connection
from utils.common.errors import UserError
from utils.tables.batches import to_array

if TYPE_CHECKING:
    import pyarrow as pa

CONNECT_SECONDS = 10
_ROWS = 1 << 16
_LONGEST = 300
_STEPS = 100_000  # of SQLite's machine, some milliseconds
_BEFORE_CAUSE = re.compile(
    r"^.*?(?:ERROR|FATAL|Error|failed): +|^[A-Z_]+: \[libpq\] [^:]*: +|^\(\d+, ['\"]|['\"]\)$"
)
_DB_LIB = re.compile(r"DB-Lib error message \d+, severity \d+:\n?")
_NET_LIB = re.compile(r"\nNet-Lib error during ")
_REFUSED = re.compile(
    r"password authentication failed|no password supplied|Access denied|Login failed"
    r"|role .* does not exist|no pg_hba\.conf entry|pg_hba\.conf rejects",
    re.IGNORECASE,
)
_NO_RIGHT = re.compile(r"permission denied|permission was denied|command denied", re.IGNORECASE)
_NO_DATABASE = re.compile(r"database .* does not exist|Unknown database|Cannot open database")


class Answer(Protocol):
    """What one query gives: its columns are known, its rows are not read yet."""

    columns: tuple[str, ...]

    def batches(self, wanted: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Read the wanted columns."""


class Session(Protocol):
    """An open connection, in one transaction that only reads where the database has those."""

    def ask(self, query: str) -> Answer:
        """Begin a query."""


class ArrowAnswer:
    """Of a driver that speaks Arrow; columns that nobody wants stay in the database."""

    def __init__(
        self, query: str, columns: tuple[str, ...], run: Callable[[str], Iterator[pa.RecordBatch]]
    ) -> None:
        self.columns, self._query, self._run = columns, query, run

    def batches(self, wanted: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Read the wanted columns."""
        if set(wanted) == set(self.columns):
            return self._run(self._query)
        names = ", ".join('"' + name.replace('"', '""') + '"' for name in wanted)
        # The newline ends a comment in which the query may end.
        return self._run(f"SELECT {names} FROM ({self._query}\n) AS ktt_query")


class RowAnswer:
    """Of a driver that gives rows; every column becomes text."""

    def __init__(self, cursor: Any) -> None:
        self.columns = tuple(one[0] for one in cursor.description or ())
        self._cursor = cursor

    def batches(self, wanted: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Read the wanted columns."""
        import pyarrow as pa

        places = [self.columns.index(name) for name in wanted]
        with closing(self._cursor):
            while rows := self._cursor.fetchmany(_ROWS):
                columns = list(zip(*rows, strict=True))
                arrays = [_texts(columns[place]) for place in places]
                yield pa.RecordBatch.from_arrays(arrays, names=list(wanted))


def _texts(values: tuple[Any, ...]) -> pa.Array:
    import pyarrow as pa

    kinds = set(map(type, values))
    if bytes in kinds:
        return to_array([text_of_bytes(v) if isinstance(v, bytes) else v for v in values])
    if int in kinds and kinds <= {int, type(None)}:
        with suppress(OverflowError):  # a shorter way to the same
            return pa.array(values, pa.int64()).cast(pa.large_string())
    return to_array(values)


class AdbcSession:
    """PostgreSQL through ADBC, which receives its binary COPY."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        with connection.cursor() as cursor:  # both queries see one state of the tables
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")

    def ask(self, query: str) -> Answer:
        """Begin a query."""
        with self._connection.cursor() as cursor:
            names = tuple(cursor.adbc_execute_schema(query).names)
        return ArrowAnswer(query, names, self._run)

    def _run(self, query: str) -> Iterator[pa.RecordBatch]:
        with self._connection.cursor() as cursor:
            cursor.execute(f"{query}\n")  # the driver wraps it, and it may end in a comment
            yield from cursor.fetch_record_batch()


class DuckSession:
    """DuckDB speaks Arrow itself."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        connection.execute("BEGIN TRANSACTION READ ONLY")

    def ask(self, query: str) -> Answer:
        """Begin a query."""
        columns = tuple(self._connection.sql(f"SELECT * FROM ({query}\n) AS ktt_query").columns)
        return ArrowAnswer(query, columns, self._run)

    def _run(self, query: str) -> Iterator[pa.RecordBatch]:
        yield from self._connection.sql(query).to_arrow_reader(_ROWS)


class RowSession:
    """A driver of Python's own kind: cursors that give rows."""

    def __init__(self, connection: Any, *begin: str) -> None:
        self._connection = connection
        for statement in begin:
            with closing(connection.cursor()) as cursor:
                cursor.execute(statement)

    def ask(self, query: str) -> Answer:
        """Begin a query."""
        cursor = self._connection.cursor()
        cursor.execute(query)
        return RowAnswer(cursor)


@dataclass(frozen=True, kw_only=True)
class Driver:
    """How databases of one kind are reached.

    Parameters
    ----------
    package, module
        What is installed, and imported when it is needed.
    errors
        Where in the module the base classes of its errors are.
    begin
        From the module and a connection to a session.
    requirements
        File that installs it.
    """

    package: str
    module: str
    begin: Callable[[Any, Connection], AbstractContextManager[Session]]
    errors: tuple[str, ...] = ("Error",)
    requirements: str = "requirements-sql.txt"


@contextmanager
def _postgresql(module: Any, place: Connection) -> Iterator[Session]:
    words = {
        "host": place.host, "port": place.port, "dbname": place.database, "user": place.user,
        "password": place.password, "connect_timeout": CONNECT_SECONDS, "application_name": "ktt",
        "client_encoding": "UTF8",
        **place.options,
    }  # fmt: skip
    with module.connect(conninfo(words)) as connection:
        yield AdbcSession(connection)


def conninfo(words: dict[str, Any]) -> str:
    """Keywords and values as libpq reads them; nothing in a value can end it."""
    escaped = {
        key: str(value).replace("\\", "\\\\").replace("'", "\\'")
        for key, value in words.items()
        if value is not None
    }
    return " ".join(f"{key}='{value}'" for key, value in escaped.items())


@contextmanager
def _sqlite(module: Any, place: Connection) -> Iterator[Session]:
    address = f"file:{quote(place.database)}?mode=ro"
    with closing(
        module.connect(address, uri=True, isolation_level=None, **place.options)
    ) as connection:
        connection.setlimit(module.SQLITE_LIMIT_ATTACHED, 0)  # ATTACH makes files
        connection.set_progress_handler(lambda: 0, _STEPS)  # Ctrl-C is heard while Python runs
        connection.text_factory = lambda text: text.decode("utf-8", "replace")
        yield RowSession(connection, "BEGIN", "SELECT 1 FROM sqlite_master")  # is it a database?


@contextmanager
def _duckdb(module: Any, place: Connection) -> Iterator[Session]:
    # a file of another kind is refused, not read by an extension that is fetched for it
    config = {"autoinstall_known_extensions": False, **place.options}
    with closing(module.connect(place.database, read_only=True, config=config)) as connection:
        yield DuckSession(connection)


def _streaming(module: Any) -> Any:
    base: Any = importlib.import_module(f"{module.__name__}.cursors").SSCursor

    class Cursor(base):
        """Gives rows as they come; closed early, it leaves the rest instead of reading it."""

        _result: Any

        def close(self) -> None:
            if self._result is not None:
                self._result.unbuffered_active = False
            self._result = None
            super().close()

        __del__ = close

    return Cursor


@contextmanager
def _mysql(module: Any, place: Connection) -> Iterator[Session]:
    options = {
        "connect_timeout": CONNECT_SECONDS, "charset": "utf8mb4", "cursorclass": _streaming(module),
        **place.options,
    }  # fmt: skip
    with closing(
        module.connect(
            host=place.host, port=place.port, user=place.user, database=place.database,
            password=(place.password or "").encode(), **options,  # the driver takes text as latin-1
        )
    ) as connection:  # fmt: skip
        yield RowSession(connection, "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")


@contextmanager
def _mssql(module: Any, place: Connection) -> Iterator[Session]:
    options = {"login_timeout": CONNECT_SECONDS, "charset": "UTF-8", **place.options}
    with closing(
        module.connect(
            server=place.host, port=str(place.port), user=place.user, password=place.password,
            database=place.database, read_only=True, **options,
        )
    ) as connection:  # fmt: skip
        yield RowSession(connection)


DRIVERS = {
    "postgresql": Driver(
        package="adbc-driver-postgresql",
        module="adbc_driver_postgresql.dbapi",
        begin=_postgresql,
        requirements="requirements.txt",
    ),
    "sqlite": Driver(package="sqlite3", module="sqlite3", begin=_sqlite),
    "duckdb": Driver(package="duckdb", module="duckdb", begin=_duckdb),
    "mysql": Driver(package="pymysql", module="pymysql", begin=_mysql, errors=("MySQLError",)),
    "mssql": Driver(
        package="pymssql",
        module="pymssql",
        begin=_mssql,
        errors=("Error", "_mssql.MSSQLException"),  # of options that it does not know
    ),
}


@contextmanager
def open_session(place: Connection) -> Iterator[Session]:
    """Connect to a database.

    Raises
    ------
    UserError
        The driver is not installed, the file or the server is not there, the user is refused.
    """
    module = _module(place.kind)
    if place.host is None and not Path(place.database).is_file():
        what = "Not a file but a folder" if Path(place.database).is_dir() else "No such file"
        raise UserError(f"{what}: {place.database} ('connection.database').")
    with ExitStack() as stack:
        try:
            session = stack.enter_context(DRIVERS[place.kind].begin(module, place))
        except _errors(place.kind) as error:
            raise _not_connected(place, _cause(place, error)) from None
        yield session


def _module(kind: str) -> Any:
    driver = DRIVERS[kind]
    try:
        return importlib.import_module(driver.module)
    except ImportError as error:
        raise UserError(
            f"Reading {kind} needs the package {driver.package!r}: "
            f"pip install -r {driver.requirements}"
        ) from error


def _errors(kind: str) -> tuple[type[Exception], ...]:
    """What a driver raises when it or its database cannot go on."""
    import pyarrow as pa

    return (
        *(attrgetter(name)(_module(kind)) for name in DRIVERS[kind].errors),
        pa.ArrowException,
        OSError,
        TypeError,
        ValueError,
    )


def _cause(place: Connection, error: Exception) -> str:
    """The first line of a driver's message without its preambles and without the password."""
    lines = [line.strip() for line in place.scrubbed(_message(error)).splitlines() if line.strip()]
    first = _BEFORE_CAUSE.sub("", lines[0]) if lines else ""
    return shorten(first, _LONGEST, placeholder=" …").rstrip(".") or type(error).__name__


def _message(error: Exception) -> str:
    """What a driver says; SQL Server's says it in bytes behind a number."""
    values = error.args
    if len(values) == 1 and isinstance(values[0], tuple):
        values = values[0]
    said = [v.decode(errors="backslashreplace") for v in values if isinstance(v, bytes)]
    return _NET_LIB.sub(": ", _DB_LIB.sub("\n", "\n".join(said))) if said else str(error)


def _not_connected(place: Connection, cause: str) -> UserError:
    if _REFUSED.search(cause):
        return UserError(
            f"The {place.place} refuses the user {place.user or '(none)'!r}: {cause}. Check "
            "'connection.user' and the password ('password_env' or 'password')."
        )
    if _NO_DATABASE.search(cause):
        return UserError(f"{cause} at {place.host}:{place.port}. Check 'connection.database'.")
    if place.host is None:
        return UserError(
            f"{place.database} cannot be read as a {place.kind} file: {cause}. Check "
            "'connection.database', 'kind' and 'options'."
        )
    return UserError(
        f"Cannot connect to the {place.place}: {cause}. Check 'connection.host', 'port' and "
        "'options', and that the server runs and lets this machine in."
    )


def _not_answered(place: Connection, what: str, cause: str) -> UserError:
    advice = f"Correct {what!r} in the configuration."
    if _NO_RIGHT.search(cause):
        advice = f"The user {place.user or '(none)'!r} needs the right to read it (GRANT SELECT)."
    return UserError(f"The {what} query fails: {cause}. {advice}")


def read_query(
    session: Session,
    place: Connection,
    what: str,
    query: str,
    choose: Callable[[Sequence[str]], Sequence[str]],
    progress: Callable[[int], None],
) -> pa.Table:
    """Read what a query gives.

    Parameters
    ----------
    what
        The query's key in the configuration.
    choose
        From all columns to those that are wanted.
    progress
        Is told the rows read so far.

    Raises
    ------
    UserError
        The database refuses the query, a column is not there, there are no rows.
    """
    import pyarrow as pa

    try:
        answer = session.ask(query)
        wanted = choose(answer.columns)
        batches, rows = [], 0
        for batch in answer.batches(wanted):
            batches.append(batch.select(list(wanted)))
            rows += batch.num_rows
            progress(rows)
    except _errors(place.kind) as error:
        raise _not_answered(place, what, _cause(place, error)) from None
    if not rows:
        raise UserError(f"The {what} query gives no rows.")
    return pa.Table.from_batches(batches)
