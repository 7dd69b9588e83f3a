"""Starting a bundle as a user does, and talking to it: for the demo and the tests."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEALTHY_WITHIN = 90.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a server answered."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running bundle; `log` is what it has written to stdout and stderr."""

    port: int
    log: Path
    home: Path

    def request(
        self,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        method: str = "POST",
    ) -> Reply:
        """Send one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            return Reply(
                status=response.status, body=response.read(), headers=dict(response.headers)
            )
        finally:
            connection.close()

    def ask(self, path: str, document: Any) -> Reply:
        """POST a JSON document."""
        body = json.dumps(document).encode()
        return self.request(path, body, {"Content-Type": "application/json"})

    def get(self, path: str) -> Reply:
        """GET a path."""
        return self.request(path, method="GET")


def free_port() -> int:
    """A port of this machine that nothing uses.

    The system gives ports above these to whoever connects to something: one of them might be taken
    again before a server has started on it.
    """
    for port in random.SystemRandom().sample(range(20_000, 32_000), 1000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
    raise OSError("No port is free.")


@contextlib.contextmanager
def served(bundle: Path, command: str, bentoml: Path, home: Path) -> Iterator[Server]:
    """Run `bentoml COMMAND BUNDLE` until the block ends.

    Parameters
    ----------
    command
        ``serve`` or ``serve-gunicorn``.
    bentoml
        The executable of the environment to run in.
    home
        BENTOML_HOME, and the current folder of the server.
    """
    home.mkdir(parents=True, exist_ok=True)
    server = Server(port=free_port(), log=home / "console.log", home=home)
    env = {**os.environ, "BENTOML_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    env.pop("PYTHONPATH", None)
    argv = [str(bentoml), command, str(bundle), "--port", str(server.port)]
    with server.log.open("wb") as log:
        process = subprocess.Popen(
            argv, stdout=log, stderr=log, cwd=home, env=env, start_new_session=True
        )
    try:
        _wait_until_healthy(server, process)
        yield server
    finally:
        _stop(process)


def _wait_until_healthy(server: Server, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + HEALTHY_WITHIN
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError, http.client.HTTPException):
            if server.get("/healthz").status == 200:
                return
        time.sleep(0.2)
    raise RuntimeError(
        f"The server did not come up:\n{server.log.read_text(errors='replace')[-4000:]}"
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop the server with the workers that it has started."""
    group = os.getpgid(process.pid) if process.poll() is None else process.pid
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    process.wait()
