"""evidently.yaml: how the monitor is set."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from monitor_tree import SetupError

DATA_DRIFT = "data_drift"
TARGET_DRIFT = "cat_target_drift"
REGRESSION = "regression_performance"
CLASSIFICATION = "classification_performance"
PROBABILITIES = "prob_classification_performance"
MONITORS = (DATA_DRIFT, TARGET_DRIFT, REGRESSION, CLASSIFICATION, PROBABILITIES)
MAX_WINDOW = 100_000


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What ``service:`` holds."""

    reference_path: str = "./references.parquet"
    min_reference_size: int = 100
    use_reference: bool = True
    moving_reference: bool = False
    window_size: int = 500
    calculation_period_sec: float = 60
    false_alarm_rate: float = 0.02
    monitors: tuple[str, ...] = MONITORS

    def sizes(self) -> list[int]:
        """Numbers of rows that windows are compared at, ascending; the last is the window's."""
        grid = [self.min_reference_size]
        while grid[-1] * 2 < self.window_size:
            grid.append(grid[-1] * 2)
        return sorted({*grid, self.window_size})


def listen_address(environ: Mapping[str, str] = os.environ) -> str:
    """Where KTT_MONITOR_ADDRESS and KTT_MONITOR_PORT let it listen, as gunicorn has it.

    Raises
    ------
    SetupError
        The port is none.
    """
    host = environ.get("KTT_MONITOR_ADDRESS", "").strip() or "127.0.0.1"
    port = environ.get("KTT_MONITOR_PORT", "").strip() or "5001"
    if not (port.isascii() and port.isdecimal() and len(port) < 6 and 0 < int(port) < 65_536):
        raise SetupError(f"KTT_MONITOR_PORT={port!r} is no port. Give a number from 1 to 65535.")
    if ":" in host and not host.startswith("["):  # of version 6
        host = f"[{host}]"
    return f"{host}:{port}"


def load_settings(path: Path) -> tuple[Settings, list[str] | None]:
    """Read evidently.yaml: the settings, and the score columns if they are named."""
    import yaml

    try:
        # The same as safe_load, and fast enough for thousands of score columns where it is built.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise SetupError(f"{path.name} cannot be read: {error}") from error
    service = values.get("service") if isinstance(values, dict) else None
    if not isinstance(service, dict):
        raise SetupError(f"{path.name} needs a section 'service:' with the monitor's settings.")
    prediction = values.get("prediction")
    if prediction is not None and not _texts(prediction):
        raise SetupError(f"{path.name}: 'prediction' is a list of score columns, or left out.")
    return read_settings(service, path.name), prediction


def read_settings(service: dict[Any, Any], source: str = "evidently.yaml") -> Settings:
    """Check and take the values of ``service:``."""
    known = {field.name for field in fields(Settings)}
    for name in service:
        if name not in known:
            raise SetupError(f"{source}: unknown key {name!r}. Known: {', '.join(sorted(known))}.")
    settings = Settings(**{**service, "monitors": _monitors(service, source)})
    _check(settings, source)
    return settings


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _monitors(service: dict[Any, Any], source: str) -> tuple[str, ...]:
    chosen = service.get("monitors", list(MONITORS))
    if not _texts(chosen):
        raise SetupError(f"{source}: 'monitors' is a list out of: {', '.join(MONITORS)}.")
    for name in chosen:
        if name not in MONITORS:
            raise SetupError(f"{source}: unknown monitor {name!r}. Known: {', '.join(MONITORS)}.")
    return tuple(name for name in MONITORS if name in chosen)


def _check(settings: Settings, source: str) -> None:
    _check_numbers(settings, source)
    if settings.window_size < settings.min_reference_size:
        raise SetupError(
            f"{source}: window_size ({settings.window_size}) is below min_reference_size "
            f"({settings.min_reference_size}): no window would ever be compared. Raise window_size."
        )
    if settings.moving_reference is not False:
        raise SetupError(
            f"{source}: moving_reference must be false: drift is measured against the fixed "
            "reference set."
        )
    if settings.use_reference is not True:
        raise SetupError(f"{source}: use_reference must be true: there is nothing else to compare.")
    if not isinstance(settings.reference_path, str) or not settings.reference_path:
        raise SetupError(f"{source}: reference_path must be the path of a .parquet file.")


def _check_numbers(settings: Settings, source: str) -> None:
    for name, low, high in (
        ("min_reference_size", 20, MAX_WINDOW),
        ("window_size", 20, MAX_WINDOW),
        ("calculation_period_sec", 1, 86_400),
        ("false_alarm_rate", 0.001, 0.5),
    ):
        value = getattr(settings, name)
        whole = low >= 20  # numbers of rows
        kind = int if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
            what = "a whole number" if whole else "a number"
            raise SetupError(f"{source}: {name} is {value!r}; it must be {what} in {low}–{high}.")
