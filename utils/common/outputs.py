"""Names in a pair's folder of outputs that a training writes."""

from __future__ import annotations

from pathlib import Path

from utils.common.files import pointers

REPORT, TENSORBOARD, METRICS, PLOTS = "report.html", "tensorboard", "metrics.json", "plots"
TRAINED = (REPORT, TENSORBOARD, METRICS, PLOTS)
"""What a training writes into a pair's folder of outputs; an export leaves it there."""


def kept(folder: Path) -> list[str]:
    """Names of what an export leaves in a pair's folder of outputs."""
    return [*TRAINED, *pointers(folder)]
