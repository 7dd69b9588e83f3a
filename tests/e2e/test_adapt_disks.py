"""Adapting to disks that refuse: a real process, real mounts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.test_interruptions import mounted
from utils.common.paths import PROJECT_ROOT, Layout

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("options", "reason"),
    [("size=64k", "No space left on device"), ("ro", "Read-only file system")],
)
def test_disks_that_refuse(tmp_path: Path, options: str, reason: str) -> None:
    layout = Layout(tmp_path / "root")
    argv = [sys.executable, str(PROJECT_ROOT / "adapt.py"), "demo", "d", "--no-dvc"]
    environment = os.environ | {"KTT_ROOT": str(layout.root)}
    with mounted(layout.datasets, options):
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
        left = list(layout.datasets.iterdir())
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: Cannot write")
    assert reason in line
    assert left == []
