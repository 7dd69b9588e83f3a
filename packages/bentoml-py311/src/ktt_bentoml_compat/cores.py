"""How many cores there are to use, and what they are used for."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

CORES = "KTT_CORES"
THREADS = "KTT_THREADS"
MOST = max(64, os.cpu_count() or 1)
"""Of either; each core is a process that holds the model, and thousands are a mistake."""


def cores() -> int:
    """Count the cores to use: what ``KTT_CORES`` says, else what this process may use.

    Raises
    ------
    ValueError
        ``KTT_CORES`` is no number from 1 to `MOST`.
    """
    if asked_for := _number(CORES):
        return asked_for
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    return max(1, min([allowed, *(math.floor(quota) for quota in quotas())]))


def threads_asked_for() -> int | None:
    """Threads per worker that ``KTT_THREADS`` asks for.

    Raises
    ------
    ValueError
        It is no number from 1 to `MOST`.
    """
    return _number(THREADS)


def _number(variable: str) -> int | None:
    given = os.environ.get(variable, "")
    if not given:
        return None
    number = given.strip()
    if not (number.isascii() and number.isdecimal() and 0 < int(number[:6]) <= MOST):
        raise ValueError(f"{variable}={given!r} is no whole number from 1 to {MOST}.")
    return int(number)


def quotas(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> Iterator[float]:
    """Cores that each control group around this process is held to, where one is.

    A container sees its own group as the root; without a container the groups are nested.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _quotas_above(root, path, _quota_v2)
        elif "cpu" in controllers.split(","):
            yield from _quotas_above(root / "cpu", path, _quota_v1)


def _quotas_above(
    root: Path, path: str, read: Callable[[Path], tuple[int, int]]
) -> Iterator[float]:
    group = root / path.strip("/")
    for folder in (group, *group.parents):
        try:
            limit, period = read(folder)
            if limit > 0 and period > 0:
                yield limit / period
        except (OSError, ValueError):
            pass  # no such group here, or "max"
        if folder == root:
            return


def _quota_v2(folder: Path) -> tuple[int, int]:
    limit, period = (folder / "cpu.max").read_text(encoding="ascii").split()
    return int(limit), int(period)


def _quota_v1(folder: Path) -> tuple[int, int]:
    limit = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii")
    period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii")
    return int(limit), int(period)
