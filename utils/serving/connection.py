"""Where the monitoring service is, what it wants to be sent, and a connection to it."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import os
import re
import socket
import threading
from collections.abc import Iterator, Mapping

from utils.common.errors import UserError

HOST, PORT = "EVIDENTLY_HOST", "EVIDENTLY_PORT"
TOKEN = "KTT_MONITOR_TOKEN"
DEFAULT_ADDRESS = ("localhost", 5001)
ANSWER_BYTES = 65_536
WHOLE = 3

_HOST_NAME = re.compile(r"(?=.{1,253}$)\w([\w-]{0,61}\w)?(\.\w([\w-]{0,61}\w)?)*\.?", re.ASCII)
_STALE = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)
"""What a connection says that the other side has closed since its last use."""


def monitor_address(environ: Mapping[str, str] = os.environ) -> tuple[str, int]:
    """Host and port of the monitoring service.

    Raises
    ------
    UserError
        EVIDENTLY_HOST or EVIDENTLY_PORT cannot be what they should be.
    """
    host = environ.get(HOST) or DEFAULT_ADDRESS[0]
    port = environ.get(PORT) or str(DEFAULT_ADDRESS[1])
    if not (_HOST_NAME.fullmatch(host) or _is_address(host)):
        raise UserError(f"{HOST}={host!r} is no name of a host. Give its name or address alone.")
    if not (port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 65_536):
        raise UserError(f"{PORT}={port!r} is no port. Give a number from 1 to 65535.")
    return host, int(port)


def monitor_token(environ: Mapping[str, str] = os.environ) -> str:
    """What the monitoring service wants to be sent; empty: nothing.

    Raises
    ------
    UserError
        KTT_MONITOR_TOKEN is blank, or nothing that a header can hold.
    """
    given = environ.get(TOKEN, "")
    token = given.strip()
    if given and not (token and token.isascii() and token.isprintable() and " " not in token):
        raise UserError(
            f"{TOKEN} is blank, or has spaces or characters that are not ASCII. "
            "Set another, or leave it empty for none."
        )
    return token


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class Connection:
    """A connection that is kept for the next request, and opened anew when that does not do.

    Parameters
    ----------
    timeout
        Seconds for each step of a request, and `WHOLE` times as many for all of it, however often
        something of its answer comes.
    """

    def __init__(self, address: tuple[str, int], timeout: float, token: str) -> None:
        self._connection = http.client.HTTPConnection(*address, timeout=timeout)
        self._timeout = timeout
        self._headers = {"Content-Type": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"

    def set_timeout(self, timeout: float) -> None:
        """Change the time-out of what follows."""
        self._connection.timeout = self._timeout = timeout
        if self._connection.sock is not None:
            self._connection.sock.settimeout(timeout)

    def post(self, path: str, body: bytes) -> int:
        """Send a body of JSON.

        Returns
        -------
        int
            The status of the answer.

        Raises
        ------
        OSError, http.client.HTTPException
            There is none.
        """
        used = self._connection.sock is not None
        try:
            return self._post(path, body)
        except _STALE:
            if not used:
                raise
        return self._post(path, body)

    def _post(self, path: str, body: bytes) -> int:
        try:
            if self._connection.sock is None:
                self._connection.connect()
            with self._deadline():
                self._connection.request("POST", path, body, self._headers)
                answer = self._connection.getresponse()
                answer.read(ANSWER_BYTES)
        except BaseException:
            self.close()
            raise
        if not answer.isclosed():
            self.close()
        return answer.status

    @contextlib.contextmanager
    def _deadline(self) -> Iterator[None]:
        """End an exchange that takes too long, as one whose answer comes in drops does."""
        expired, sock = threading.Event(), self._connection.sock

        def end() -> None:
            expired.set()
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(WHOLE * self._timeout, end)
        timer.daemon = True
        timer.start()
        try:
            yield
        except (OSError, http.client.HTTPException):
            if not expired.is_set():
                raise
        finally:
            timer.cancel()
        if expired.is_set():
            raise TimeoutError("The exchange took too long.")

    def close(self) -> None:
        """Close it; the next request opens it again."""
        with contextlib.suppress(OSError):
            self._connection.close()
