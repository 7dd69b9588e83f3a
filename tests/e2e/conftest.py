"""A trained model and the folder of its system, made once for all tests that deploy it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.deployed import container_environment, monitor_python
from utils.common.paths import PROJECT_ROOT, Layout


def command(layout: Layout, *arguments: str) -> str:
    """Run a command of the project; what it printed."""
    script, *rest = arguments
    done = subprocess.run(
        [sys.executable, str(PROJECT_ROOT / script), *rest],
        env={**os.environ, "KTT_ROOT": str(layout.root)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A project with the demo data."""
    layout = Layout(tmp_path_factory.mktemp("project"))
    command(layout, "adapt.py", "demo", "shop", "--rows", "3000")
    return layout


@pytest.fixture(scope="session")
def monitors_run(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Without containers: one environment for all monitoring services."""
    if container_environment() is None:
        template = PROJECT_ROOT / "templates" / "monitoring"
        work = tmp_path_factory.mktemp("monitoring")
        os.environ["KTT_MONITOR_PYTHON"] = monitor_python(template, work)


@pytest.fixture(scope="session")
def system_of(shop: Layout, monitors_run: None) -> dict[str, tuple[Path, str]]:
    """Folder of a model's system and what its export printed, by the model's name."""

    class Systems(dict[str, tuple[Path, str]]):
        def __missing__(self, name: str) -> tuple[Path, str]:
            extra = [] if name.startswith("tfidf") else ["--encoder", "minilm", "-e", "1"]
            command(shop, "train.py", "-m", name, "-d", "shop", "-r", *extra)
            printed = command(shop, "export.py", "-m", name, "-d", "shop", "--monitoring")
            self[name] = shop.bundle(name, "shop"), printed
            return self[name]

    return Systems()
