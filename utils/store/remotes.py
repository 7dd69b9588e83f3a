"""Other places for models: URLs, and the remotes that a configuration file names."""

from __future__ import annotations

import configparser
import errno
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from utils.common.errors import UserError, unknown
from utils.common.files import atomic_path, read_json, scratch
from utils.common.paths import Layout, given_path
from utils.store.archive import read_file

if TYPE_CHECKING:
    from utils.store.archive import Readable

FILE = "store.json"
KEYS = ("url", "endpoint", "region")
WHOLE = ("s3", "gs", "gcs", "abfs", "az", "memory", "http", "https")
"""Where a file appears when it is closed, not before. Elsewhere it is written beside and moved."""
BLOCK = 1 << 24
"""Bytes that are asked for at once: on S3 each read is a request."""
SILENCE = 60.0
"""Seconds after which an HTTP server that sends nothing is given up."""
DVC_FOLDER = "ktt-store"
"""Below a DVC remote, beside the files that DVC keeps there."""
_SILENT = "the server does not answer"
_UNKNOWN = "no server of that name is known here"
_UNREACHABLE = "the server cannot be reached"
_UNREACHED = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN)
_STATUS = {
    401: ", it wants to know who asks",
    403: ", it refuses that",
    404: ", it has no such file",
}
_OF_CURL = {"6": _UNKNOWN, "7": _UNREACHABLE, "28": _SILENT}
_CURL = re.compile(r"curlCode: (?P<code>6|7|28)\b[^;]*;? *(?:Details: )?(?P<details>.*)")
"""How Arrow's client for S3 tells it."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where files lie: a folder or a file, as a path or a URL.

    Parameters
    ----------
    url
        A path of this machine, or ``scheme://…``.
    endpoint, region
        Of a server that speaks S3, if it is not Amazon's.
    """

    url: str
    endpoint: str | None = None
    region: str | None = None

    def __str__(self) -> str:
        return shown(self.url)

    def __truediv__(self, name: str) -> Place:
        folder = self.url if self.url.endswith("://") else self.url.rstrip("/")
        url = f"{folder}/{name}"
        return Place(url=url, endpoint=self.endpoint, region=self.region)

    @property
    def path(self) -> Path | None:
        """The path, if it is one of this machine."""
        if self.url.startswith("file://"):
            return Path(self.url.removeprefix("file://"))
        return None if is_url(self.url) else Path(self.url)


def is_url(text: str) -> bool:
    """Whether something is a URL rather than a path."""
    return "://" in text


def shown(url: str) -> str:
    """A URL without what may be secret in it."""
    if not is_url(url):
        return url
    scheme, _, rest = url.partition("://")
    rest = re.sub(r"^[^/]*@", "", rest)
    return f"{scheme}://{rest.partition('?')[0]}"


# -- which place ----------------------------------------------------------------------------


def remote(layout: Layout, name: str | None = None) -> Place:
    """The remote of a name, or the default one: of store.json, else of DVC.

    Raises
    ------
    UserError
        There is none, or the configuration says what cannot be.
    """
    file = layout.root / FILE
    if not file.exists():
        found = None if name else _dvc_remote(layout.root)
        if found:
            return found
        raise UserError(
            f"No remote is configured: write {file} with "
            '{"default": "team", "remotes": {"team": {"url": "s3://bucket/models"}}}'
        )
    values = read_json(file)
    if mistakes := _mistakes(values):
        raise UserError(f"{file}: {'; '.join(mistakes)}.")
    remotes = values["remotes"]
    name = name or values.get("default") or (next(iter(remotes)) if len(remotes) == 1 else None)
    if name is None:
        raise UserError(f"{file} names no default: add --remote with one of {', '.join(remotes)}.")
    if name not in remotes:
        raise unknown("remote", name, remotes)
    return _absolute(Place(**remotes[name]), layout.root)


def _mistakes(values: Any) -> list[str]:
    """All that is wrong with store.json."""
    if not isinstance(values, dict) or not isinstance(values.get("remotes"), dict):
        return ['it must be an object with "remotes": {NAME: {"url": …}}']
    if not values["remotes"]:
        return ["it names no remote"]
    found = [f"unknown key {key!r}" for key in values if key not in ("default", "remotes")]
    if values.get("default", next(iter(values["remotes"]))) not in list(values["remotes"]):
        found.append(f"default {values.get('default')!r} is no remote")
    for name, given in values["remotes"].items():
        found += [f"remote {name!r}: {mistake}" for mistake in _wrong(given)]
    return found


def _wrong(given: Any) -> list[str]:
    if not isinstance(given, dict) or not isinstance(given.get("url"), str) or not given["url"]:
        return ['it needs a "url"']
    found = [
        f"unknown key {key!r} (known: {', '.join(KEYS)}; credentials do not belong here)"
        for key in given
        if key not in KEYS
    ]
    found += [f"{key} is no text" for key in KEYS if not isinstance(given.get(key, ""), str)]
    found += [
        f"{key} has characters that no place has"
        for key in KEYS
        if not str(given.get(key, "")).isprintable()
    ]
    for key in ("url", "endpoint"):
        if isinstance(given.get(key), str) and is_url(given[key]):
            found += [f"its {key} {mistake}" for mistake in _wrong_url(given[key])]
    return found


def _wrong_url(url: str) -> list[str]:
    try:
        parts = urlsplit(url)
    except ValueError:
        return ["is no address"]
    if parts.password is not None:
        return ["holds a password, which does not belong here"]
    if parts.scheme != "s3" and (parts.query or parts.fragment):
        return ["holds a ? or #, behind which no files lie"]
    return [] if parts.netloc or parts.path else ["names no place"]


def _absolute(place: Place, folder: Path) -> Place:
    if is_url(place.url):
        return place
    path = folder / given_path(place.url)
    return Place(url=str(path), endpoint=place.endpoint, region=place.region)


def _dvc_remote(root: Path) -> Place | None:
    """The default remote of DVC's configuration, if the root has one."""
    config = configparser.ConfigParser(interpolation=None)
    files = [root / ".dvc" / name for name in ("config", "config.local")]
    try:
        config.read(files, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):
        return None
    name = config.get("core", "remote", fallback=None)
    section = f"'remote \"{name}\"'"
    if not name or not config.has_option(section, "url"):
        return None
    place = Place(
        url=config.get(section, "url"),
        endpoint=config.get(section, "endpointurl", fallback=None),
        region=config.get(section, "region", fallback=None),
    )
    return _absolute(place, root / ".dvc") / DVC_FOLDER


# -- reading and writing --------------------------------------------------------------------


@contextmanager
def opened(place: Place) -> Iterator[tuple[Readable, int | None]]:
    """Open a file for reading, and tell its size where that is known.

    Raises
    ------
    UserError
        It is not there, or cannot be reached.
    """
    if place.path:
        with read_file(place.path) as found:
            yield found
        return
    with _explained(place, "read"):
        files, path = _file_system(place)
        file = files.open(path, "rb")
    with file:
        yield _Stream(file, place), getattr(file, "size", None)


class _Stream:
    """A remote file, read in large blocks; its failures are the user's errors."""

    def __init__(self, file: Any, place: Place) -> None:
        self._file = file
        self._place = place
        self._block = memoryview(b"")

    def read(self, size: int = -1, /) -> bytes:
        """At most so many bytes."""
        if not self._block:
            with _explained(self._place, "read"):
                self._block = memoryview(bytes(self._file.read(BLOCK)))
        end = size if size >= 0 else len(self._block)
        found, self._block = self._block[:end], self._block[end:]
        return bytes(found)


@contextmanager
def written(place: Place) -> Iterator[Path]:
    """Yield a temporary file of this machine that becomes the place's when the block ends well.

    Raises
    ------
    UserError
        It cannot be written.
    """
    if place.path:
        with atomic_path(place.path) as temporary:
            yield temporary
        return
    with scratch() as folder:
        temporary = folder / "file"
        yield temporary
        with _explained(place, "write"):
            _upload(temporary, place)


def _upload(source: Path, place: Place) -> None:
    files, path = _file_system(place)
    whole = urlsplit(place.url).scheme in WHOLE
    beside = path if whole else f"{path}.part-{os.getpid()}"
    if not whole:
        files.makedirs(path.rpartition("/")[0], exist_ok=True)
    with source.open("rb") as file, files.open(beside, "wb") as to:
        shutil.copyfileobj(file, to, 1 << 20)
    if not whole:
        files.mv(beside, path)


def names(place: Place) -> list[str]:
    """Names of the files in a folder; none where there is no such folder."""
    if place.path:
        found = place.path.iterdir() if place.path.is_dir() else iter(())
        return sorted(path.name for path in found if path.is_file())
    with _explained(place, "read"):
        files, path = _file_system(place)
        try:
            return sorted(name.rstrip("/").rpartition("/")[2] for name in files.ls(path, False))
        except FileNotFoundError:
            return []


def _file_system(place: Place) -> tuple[Any, str]:
    """What reads and writes there, and the path as it knows it."""
    parts = urlsplit(place.url)
    if parts.scheme == "s3":
        return _s3(place), place.url.partition("://")[2]  # where ? and # are letters like others
    from fsspec.core import url_to_fs

    found: tuple[Any, str] = url_to_fs(place.url, **_limits(parts.scheme))
    return found


def _limits(scheme: str) -> dict[str, Any]:
    """How long an HTTP server may be silent. By default it may not take more than five minutes."""
    if scheme not in ("http", "https"):
        return {}
    from aiohttp import ClientTimeout

    return {
        "client_kwargs": {"timeout": ClientTimeout(total=None, sock_connect=10, sock_read=SILENCE)}
    }


def _s3(place: Place) -> Any:
    """Arrow's client: it is here already, and takes credentials from where Amazon's tools do."""
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow.fs import S3FileSystem

    endpoint = place.endpoint or os.environ.get("AWS_ENDPOINT_URL_S3")
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL")
    region = place.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    options: dict[str, Any] = {"region": region or "us-east-1", "connect_timeout": 10}
    if endpoint:
        options |= {"endpoint_override": endpoint}
    return ArrowFSWrapper(S3FileSystem(**options))


def _reason(error: BaseException, place: Place) -> str:
    """What an error says, in one line and without what may be secret in URLs."""
    if isinstance(error, NotImplementedError):
        return "places of this kind can only be read"
    if of_network := _of_network(error):
        return of_network
    if isinstance(error, FileNotFoundError) and str(error) == place.url:
        if not error.__cause__:
            return "there is no such file"
        error = error.__cause__  # it was not asked
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    reason = re.sub(r"\w+://[^\s'\"]+", lambda found: shown(found[0]), reason)
    return reason.rstrip(".")[:300]


def _of_network(error: BaseException) -> str:
    """Why a server gave nothing, if that is what an error or one of its causes says."""
    status = getattr(error, "status", None)  # of a server that speaks HTTP
    if isinstance(status, int):
        return f"the server answers {status}{_STATUS.get(status, '')}"
    if isinstance(error, TimeoutError):
        return _SILENT
    if isinstance(error, socket.gaierror):
        return _UNKNOWN
    if isinstance(error, OSError) and error.errno in _UNREACHED:
        return f"{_UNREACHABLE}: {os.strerror(error.errno)}"
    if found := _CURL.search(str(error)):
        return f"{_OF_CURL[found['code']]}: {found['details']}".rstrip(". ")
    return _of_network(error.__cause__) if error.__cause__ else ""


@contextmanager
def _explained(place: Place, verb: str) -> Iterator[None]:
    """Turn what any of a dozen libraries may raise into the user's error."""
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        scheme = urlsplit(place.url).scheme
        raise UserError(f"{scheme}:// needs another package: {error}.") from error
    except Exception as error:
        raise UserError(f"Cannot {verb} {place}: {_reason(error, place)}.") from error
