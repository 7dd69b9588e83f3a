"""A server that speaks S3, on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

from utils.serving.local_server import free_port

BUCKET = "bucket"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "a secret",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_REGION": "us-east-1",
}


@contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """Run moto's server in a process of its own, with an empty bucket; its address."""
    address = f"http://127.0.0.1:{(port := free_port())}"
    with (folder / "moto.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-p", str(port)],
            stdout=log, stderr=log, env=os.environ | CREDENTIALS,
        )  # fmt: skip
    try:
        _wait(f"{address}/moto-api/", server)
        with urlopen(Request(f"{address}/{BUCKET}", method="PUT"), timeout=60):
            yield address
    finally:
        server.terminate()
        server.wait(60)


def _wait(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert server.poll() is None, "moto's server ended; see moto.log"
        try:
            with urlopen(url, timeout=10):
                return
        except (URLError, OSError):
            time.sleep(0.1)
    raise TimeoutError(url)
