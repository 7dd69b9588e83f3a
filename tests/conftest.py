"""What many tests need: a project in a temporary folder, a tiny dataset, seeds."""

from __future__ import annotations

import os
import signal
from pathlib import Path

# Tests run side by side on tiny models: more threads each would only stand in each other's way.
# Read when torch is imported, so before the imports below.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("COLUMNS", None)  # some ways to run tests set it, and tables would follow it

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from tests.support.tiny import write_tiny_dataset
from utils.common.paths import Layout

# What runs in the background inherits that interrupts are ignored, and passes it on.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Generated cases are the same in every run, and may take as long as a busy machine needs for them.
settings.register_profile(
    "ktt", deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
settings.load_profile("ktt")


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in every run."""
    return np.random.default_rng(0)


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """An empty project; commands run in this process use it too."""
    monkeypatch.setenv("KTT_ROOT", str(tmp_path / "project"))
    return Layout(tmp_path / "project")


@pytest.fixture
def tiny(layout: Layout) -> str:
    """A tiny ragged three-level dataset in `layout`, by name."""
    write_tiny_dataset(layout, "tiny")
    return "tiny"
