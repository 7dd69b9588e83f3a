"""Who may post to the monitor: the service that has its token, and no page of a browser."""

from __future__ import annotations

import hmac
import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from werkzeug.datastructures import Headers
from werkzeug.http import parse_options_header

from monitor_tree import SetupError

TOKEN = "KTT_MONITOR_TOKEN"
HOSTS = "KTT_MONITOR_HOSTS"
CHARSETS = {"utf-8", "utf8"}


class Denied(Exception):
    """A request that is not allowed: one line, and a status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Access:
    """What a post must bring.

    Parameters
    ----------
    token
        Empty: none is needed.
    hosts
        Names of this monitor beside addresses and names without a dot. A page whose own name leads
        here (DNS rebinding) asks for that name.
    """

    token: str = ""
    hosts: frozenset[str] = frozenset()

    @classmethod
    def of_environment(cls, environ: Mapping[str, str] = os.environ) -> Access:
        """Read KTT_MONITOR_TOKEN and KTT_MONITOR_HOSTS.

        Raises
        ------
        SetupError
            The token is blank, or nothing that a header can hold.
        """
        given = environ.get(TOKEN, "")
        token = given.strip()
        if given and not (token and token.isascii() and token.isprintable() and " " not in token):
            raise SetupError(
                f"{TOKEN} is blank, or has spaces or characters that are not ASCII. "
                "Set another, or leave it empty for none."
            )
        named = {name.strip().lower() for name in environ.get(HOSTS, "").split(",")}
        return cls(token=token, hosts=frozenset({*named, socket.gethostname().lower()} - {""}))

    def check_post(self, headers: Headers) -> None:
        """Let a post pass that a service may have sent.

        Raises
        ------
        Denied
            It comes from a page in a browser, without the token, or holds no JSON.
        """
        origin = headers.get("Origin")
        if origin is not None and _site(origin) != f"//{headers.get('Host', '')}".lower():
            raise Denied(403, "Pages of other origins cannot post here.")
        if self.token:
            self._check_token(headers.get("Authorization", ""))
        else:  # whoever knows the token is no foreign page
            self.check_host(headers)
        kind, options = parse_options_header(headers.get("Content-Type"))
        if (
            kind.lower() != "application/json"
            or options.get("charset", "utf-8").lower() not in CHARSETS
        ):
            raise Denied(415, "Send application/json in UTF-8.")

    def check_host(self, headers: Headers) -> None:
        """Let a request pass that asks for this monitor.

        Raises
        ------
        Denied
            It asks for another name.
        """
        name = _host(headers.get("Host", ""))
        if name and not (_is_local(name) or name in self.hosts):
            raise Denied(403, f"The monitor does not go by this name: add it to {HOSTS}.")

    def _check_token(self, authorization: str) -> None:
        scheme, _, given = authorization.partition(" ")
        known = hmac.compare_digest(given.strip().encode("utf-8", "replace"), self.token.encode())
        if scheme.lower() != "bearer" or not known:
            raise Denied(401, f"Send the monitor's token ({TOKEN}): Authorization: Bearer …")


def _site(origin: str) -> str:
    """An origin without its scheme; a page without one has the origin ``null``."""
    return origin[origin.find("//") :].lower() if "//" in origin else ""


def _host(field: str) -> str:
    """The name in a Host field, in lower case."""
    try:
        return (urlsplit(f"//{field}").hostname or field).rstrip(".")
    except ValueError:
        return field


def _is_local(name: str) -> bool:
    """Whether a name can be none of a site: an address, localhost, a service of docker-compose."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "." not in name or name.endswith(".localhost")
    return True
