"""adapter_sql.json: where the database is and what to ask it; all mistakes told at once."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

from utils.common.errors import UserError
from utils.common.files import read_json
from utils.common.paths import given_path

EXAMPLE = "docs/adapter_sql.json"
HIDDEN = "***"
FILE_KINDS = ("sqlite", "duckdb")
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
KINDS = ("postgresql", "mysql", "sqlite", "mssql", "duckdb")
_ALSO_CALLED = {"mariadb": "mysql", "sqlserver": "mssql"}
# What a driver is told beside the place and the person; secrets are not among it.
OPTIONS: dict[str, tuple[str, ...]] = {
    "postgresql": (
        "sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl", "connect_timeout",
        "application_name", "target_session_attrs", "channel_binding", "gssencmode", "krbsrvname",
        "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count",
    ),
    "mysql": (
        "connect_timeout", "read_timeout", "unix_socket", "ssl_ca", "ssl_cert",
        "ssl_key", "ssl_verify_cert", "ssl_verify_identity",
    ),
    "mssql": ("login_timeout", "timeout", "tds_version", "encryption", "appname"),
    "sqlite": ("timeout",),
    "duckdb": ("threads", "memory_limit"),
}  # fmt: skip
_HALF = re.compile("[\ud800-\udfff]")  # of a character, or bytes that are no UTF-8
_WORDS = {str: "text", int: "a whole number", dict: "an object"}
_TOP = {"connection": dict, "items": str, "classes": str, "columns": dict}
_CONNECTION = {
    "kind": str, "host": str, "port": int, "database": str, "user": str, "password": str,
    "password_env": str, "options": dict,
}  # fmt: skip
_COLUMNS = ("text", "class", "id", "parent", "name")
_FOR_SERVERS = ("host", "port", "user", "password", "password_env")


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Where the database is and who asks.

    Parameters
    ----------
    database
        Name of the database; of SQLite and DuckDB the file.
    password
        Shown nowhere.
    options
        Further settings of the driver, of those in `OPTIONS`.
    """

    kind: str
    database: str
    host: str | None = None
    port: int | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """The database in words, for messages."""
        if self.kind in FILE_KINDS:
            return self.database
        return f"{self.kind} database {self.database!r} at {self.host}:{self.port}"

    def scrubbed(self, text: str) -> str:
        """Take the password out of a text, however it is written there."""
        if not self.password:
            return text
        forms = {
            self.password, quote(self.password), quote(self.password, safe=""),
            quote_plus(self.password), repr(self.password)[1:-1],
            repr(self.password.encode())[2:-1],
            self.password.replace("\\", "\\\\").replace("'", "\\'"),
        }  # fmt: skip
        pattern = "|".join(map(re.escape, sorted(forms, key=len, reverse=True)))
        return re.sub(pattern, HIDDEN, text)


@dataclass(frozen=True, kw_only=True)
class SqlColumns:
    """Names of the columns that the two queries give."""

    text: tuple[str, ...] = ("name",)
    class_: str = "class_id"
    id: str = "id"
    parent: str = "parent_id"
    name: str | None = None


@dataclass(frozen=True, kw_only=True)
class SqlConfig:
    """What adapter_sql.json holds.

    Parameters
    ----------
    items
        Query that gives a row per text, with its class.
    classes
        Query that gives a row per class, with its parent.
    """

    connection: Connection
    items: str
    classes: str
    columns: SqlColumns = field(default_factory=SqlColumns)

    def recipe(self) -> dict[str, Any]:
        """What decides what is read; neither who asks nor the password."""
        place = self.connection
        values = {
            "kind": place.kind, "host": place.host, "port": place.port, "database": place.database,
            "items": self.items, "classes": self.classes, "text": ",".join(self.columns.text),
            "class": self.columns.class_, "id": self.columns.id, "parent": self.columns.parent,
            "name": self.columns.name,
        }  # fmt: skip
        return {
            key: self.connection.scrubbed(value) if isinstance(value, str) else value
            for key, value in values.items()
        }


def load_sql_config(path: Path) -> SqlConfig:
    """Read adapter_sql.json.

    Raises
    ------
    UserError
        The file is missing or no JSON, or anything in it is wrong: all in one message.
    """
    if not path.exists():
        raise UserError(
            f"No such file: {path} (--config). Copy {EXAMPLE} and fill it in; docs/sql.md tells "
            "how."
        )
    values = read_json(path, once=True)
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a JSON object, as {EXAMPLE} does.")
    mistakes = _mistakes(values)
    if mistakes:
        raise UserError(f"{path}: {'; '.join(mistakes)}. An example: {EXAMPLE}.")
    return SqlConfig(
        connection=_connection(values["connection"], path),
        items=_bare(values["items"]),
        classes=_bare(values["classes"]),
        columns=_columns(values.get("columns", {})),
    )


def _columns(values: Mapping[str, Any]) -> SqlColumns:
    named: dict[str, Any] = {key: values[key] for key in ("id", "parent", "name") if key in values}
    if "text" in values:
        text = values["text"]
        named["text"] = (text,) if isinstance(text, str) else tuple(text)
    if "class" in values:
        named["class_"] = values["class"]
    return SqlColumns(**named)


def _bare(query: str) -> str:
    """A query without the semicolon at its end."""
    return query.strip().rstrip(";").rstrip()


def _connection(values: Mapping[str, Any], path: Path) -> Connection:
    kind, database = values["kind"], values["database"]
    if kind in FILE_KINDS:
        file = path.resolve().parent / given_path(database)
        return Connection(kind=kind, database=str(file), options=values.get("options", {}))
    return Connection(
        kind=kind,
        database=database,
        host=values.get("host", "localhost"),
        port=values.get("port", PORTS[kind]),
        user=values.get("user"),
        password=values.get("password") or os.environ.get(values.get("password_env", ""), None),
        options=values.get("options", {}),
    )


def _mistakes(values: Mapping[str, Any]) -> list[str]:
    """All that is wrong, in words. Values are not quoted: one may be a password."""
    if not _is_text(values):
        return ["a text in it holds NUL or half a character (\\ud800 to \\udfff)"]
    found = _shape("", values, _TOP)
    found += [
        f"{key!r} is missing" for key in ("connection", "items", "classes") if key not in values
    ]
    found += [
        f"{key!r} is empty"
        for key in ("items", "classes")
        if isinstance(values.get(key), str) and not _bare(values[key])
    ]
    connection, columns = values.get("connection"), values.get("columns")
    if isinstance(connection, dict):
        found += _connection_mistakes(connection)
    if isinstance(columns, dict):
        found += _column_mistakes(columns)
    return found


def _is_text(value: Any) -> bool:
    """Whether every text in a JSON value can be handed to a driver."""
    if isinstance(value, dict):
        return all(_is_text(one) for pair in value.items() for one in pair)
    if isinstance(value, list):
        return all(map(_is_text, value))
    return not isinstance(value, str) or ("\0" not in value and not _HALF.search(value))


def _shape(where: str, values: Mapping[str, Any], wanted: Mapping[str, type]) -> list[str]:
    found = []
    for key, value in values.items():
        if key not in wanted:
            found.append(_unknown_key(where, key, tuple(wanted)))
        elif not isinstance(value, wanted[key]) or isinstance(value, bool):
            found.append(f"{where + key!r} must be {_WORDS[wanted[key]]}")
    return found


def _unknown_key(where: str, key: str, known: tuple[str, ...]) -> str:
    return f"unknown key {where + key!r} ({_hint(key, known)})"


def _hint(value: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(value, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known) or 'none'}"


def _connection_mistakes(values: Mapping[str, Any]) -> list[str]:
    found = _shape("connection.", values, _CONNECTION)
    found += [
        f"'connection.{key}' is missing" for key in ("kind", "database") if not values.get(key, 1)
        or key not in values
    ]  # fmt: skip
    for key in ("kind", "host", "database", "user"):
        if "://" in str(values.get(key, "")) or (key == "host" and "@" in str(values.get(key))):
            found.append(f"'connection.{key}' is an address: give its parts under their own keys")
    port = values.get("port")
    if isinstance(port, int) and not 0 < port < 1 << 16:
        found.append("'connection.port' must lie between 1 and 65535")
    kind = values.get("kind")
    if not isinstance(kind, str) or "://" in kind:
        return found
    if kind not in KINDS:
        meant = _ALSO_CALLED.get(kind.lower(), kind.lower())
        return [*found, f"unknown kind {kind!r} ({_hint(meant, KINDS)})"]
    found += _option_mistakes(kind, values.get("options"))
    if kind in FILE_KINDS:
        given = [f"'connection.{key}'" for key in _FOR_SERVERS if key in values]
        return [*found, f"{kind} is a file and takes no {', '.join(given)}"] if given else found
    return found + _password_mistakes(values)


def _option_mistakes(kind: str, options: Any) -> list[str]:
    if not isinstance(options, dict):
        return []
    return [
        _unknown_key("connection.options.", key, OPTIONS[kind])
        if key not in OPTIONS[kind]
        else f"'connection.options.{key}' must be text, a number, true or false"
        for key, value in options.items()
        if key not in OPTIONS[kind] or not isinstance(value, str | int | float)
    ]


def _password_mistakes(values: Mapping[str, Any]) -> list[str]:
    variable = values.get("password_env")
    if "password" in values and variable is not None:
        return ["give 'connection.password' or 'connection.password_env', not both"]
    if isinstance(variable, str) and variable not in os.environ:
        return [
            f"the environment variable {variable!r} of 'connection.password_env' is not set: "
            f"export {variable}=…"
        ]
    if isinstance(variable, str) and not _is_text(os.environ[variable]):
        return [f"the environment variable {variable!r} is not UTF-8"]
    return []


def _column_mistakes(values: Mapping[str, Any]) -> list[str]:
    found = [_unknown_key("columns.", key, _COLUMNS) for key in values if key not in _COLUMNS]
    for key in _COLUMNS:
        value = values.get(key, "x")
        texts = value if key == "text" and isinstance(value, list) and value else [value]
        if not all(isinstance(text, str) and text for text in texts):
            kind = "a column's name, or a list of them" if key == "text" else "a column's name"
            found.append(f"'columns.{key}' must be {kind}")
    names = SqlColumns()
    if values.get("id", names.id) == values.get("parent", names.parent):
        found.append("'columns.id' and 'columns.parent' must be two columns")
    return found
