"""Evidently's report of the window against the reference, made by a process of its own.

Evidently is large and slow to import: the service itself never does. `python monitor_report.py
FOLDER DATA OUT` makes one report.
"""

from __future__ import annotations

import contextlib
import html
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from monitor_log import place_of
from monitor_reference import load_setup
from monitor_tree import SetupError, free_name
from monitor_window import NotKept, Window, span, utc

if TYPE_CHECKING:
    import pandas as pd

    from monitor_drift import Rows
    from monitor_tree import Tree

TIMEOUT = 600
FRESH = 120  # seconds for which a report is shown
CLASSES = 30  # most frequent ones of a level that the report shows
FEATURES = 24
ROWS = 5_000
EMPTY_PAGE = "<!doctype html><meta charset=utf-8><title>Report</title><body>"

log = logging.getLogger("monitoring")


class Reports:
    """Makes at most one report at a time, and one in two minutes.

    Parameters
    ----------
    folder
        The monitoring folder.
    data
        The window's folder.
    """

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.data = folder, data
        self._lock = threading.Lock()
        self._page: bytes | None = None
        self._made_at = 0.0
        self._making: threading.Thread | None = None

    def page(self) -> bytes | None:
        """The report; None while it is being made."""
        with self._lock:
            if self._page is not None and time.monotonic() - self._made_at < FRESH:
                return self._page
            if self._making is None or not self._making.is_alive():
                self._making = threading.Thread(target=self._make, daemon=True)
                self._making.start()
        return None

    def _make(self) -> None:
        try:
            with tempfile.TemporaryDirectory() as folder:
                page = self._made(Path(folder) / "report.html")
        except OSError as error:  # no room on the disk, or for another process
            page = self._failed(place_of(error))
        with self._lock:
            self._page, self._made_at = page, time.monotonic()

    def _made(self, out: Path) -> bytes:
        command = [sys.executable, Path(__file__).name, self.folder, self.data, out]
        environment = {**os.environ, "DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1"}
        try:
            done = subprocess.run(
                [str(part) for part in command],
                cwd=Path(__file__).parent,
                env=environment,
                capture_output=True,
                timeout=TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return self._failed("it took too long")
        if done.returncode or not out.is_file():
            said = done.stderr.decode("utf-8", "replace").splitlines()
            status = f"its process ended with status {done.returncode}"
            return self._failed(said[-1].rstrip(".") if said and done.returncode == 1 else status)
        return out.read_bytes()

    def _failed(self, why: str) -> bytes:
        log.error("The report failed: %s", why)
        return (
            f"<!doctype html><meta charset=utf-8><p>The report failed: {html.escape(why)}.".encode()
        )


# -- the process ----------------------------------------------------------------------------


def frame(rows: Rows, tree: Tree, frequent: list[list[str]]) -> pd.DataFrame:
    """What the report shows of rows; seldom classes of a level are one."""
    import pandas as pd

    columns: dict[str, object] = {}
    labels = [_plain(label) for label in tree.labels]
    above, others = free_name("(ends above)", labels), free_name("(others)", labels)
    for level, shown in enumerate(frequent):
        nodes = tree.ancestors[rows.classes, level]
        names = [labels[node] if node >= 0 else above for node in nodes]
        known = {*shown, above}
        columns[f"level {level + 1}"] = [name if name in known else others for name in names]
    columns["confidence"], columns["length"] = rows.confidence, rows.length
    for index in range(min(FEATURES, rows.features.shape[1])):
        columns[f"feature {index}"] = rows.features[:, index]
    return pd.DataFrame(columns)


def _plain(label: str) -> str:
    """A label that is text in HTML and in scripts."""
    return label.replace("<", "‹").replace("&", "＆").encode("utf-8", "replace").decode()[:200]


def frequent_classes(rows: Rows, tree: Tree) -> list[list[str]]:
    """Per level, the labels that a report shows, by their number of rows."""
    import numpy as np

    shown = []
    for level in range(tree.depth):
        nodes = tree.ancestors[rows.classes, level]
        found, counts = np.unique(nodes[nodes >= 0], return_counts=True)
        best = found[np.argsort(-counts, kind="stable")][:CLASSES]
        shown.append([_plain(tree.labels[node]) for node in best])
    return shown


def make(folder: Path, data: Path, out: Path) -> None:
    """Write the report."""
    import numpy as np

    setup = load_setup(folder)
    kept = Window(data, setup.columns, setup.settings.window_size).seen()
    reference = setup.reference
    if len(reference) > ROWS:
        picks = np.random.default_rng(0).choice(len(reference), ROWS, replace=False)
        reference = reference.take(picks)
    about = (
        f"{span(len(kept.rows), kept.since, kept.until)}, compared with {len(reference):,} of the "
        f"{len(setup.reference):,} rows of the reference set. Calculated {utc(time.time())}."
    )
    page = _compared(kept.rows, reference, setup.columns.tree) if len(kept.rows) else EMPTY_PAGE
    out.write_text(with_line(page, about), "utf-8")


def with_line(page: str, text: str) -> str:
    """A page with a line of text above all that it shows."""
    head, body, rest = page.partition("<body>")
    return f'{head}{body}<p style="font-family: sans-serif">{html.escape(text)}</p>{rest}'


def _compared(current: Rows, reference: Rows, tree: Tree) -> str:
    """Evidently's page."""
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    shown = frequent_classes(reference, tree)
    old, new = frame(reference, tree, shown), frame(current, tree, shown)
    for column in ("length",):
        if old[column].isna().all() or new[column].isna().all():
            old, new = old.drop(columns=column), new.drop(columns=column)
    levels = [name for name in old if name.startswith("level ")]
    definition = DataDefinition(
        numerical_columns=[name for name in old if name not in levels], categorical_columns=levels
    )
    report = Report([DataDriftPreset()])
    result = report.run(
        Dataset.from_pandas(new, data_definition=definition),
        Dataset.from_pandas(old, data_definition=definition),
    )
    page: str = result.get_html_str(as_iframe=False)
    return page


if __name__ == "__main__":
    with contextlib.suppress(OSError):
        os.nice(10)
    try:
        make(*(Path(argument) for argument in sys.argv[1:4]))
    except (NotKept, SetupError) as problem:
        sys.exit(str(problem))
    except Exception as problem:  # its message may hold data
        sys.exit(place_of(problem))
