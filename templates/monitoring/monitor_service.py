"""The monitor: takes rows and feedback, and calculates in the background."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from monitor_drift import Detector, Rows
from monitor_log import place_of
from monitor_metrics import Metrics, Snapshot, summarize
from monitor_performance import metric_names, performance
from monitor_reference import Setup, load_service
from monitor_stored import Kept, Labelled
from monitor_window import NotKept, Window, span, utc
from monitor_wire import Refused, read_feedback, read_rows

log = logging.getLogger("monitoring")
T = TypeVar("T")


class Monitor:
    """All that the service does, without HTTP.

    Parameters
    ----------
    setup
        Settings, tree and reference set.
    data
        Folder of the window.
    labels
        ``model`` and ``dataset``, for `ktt_monitor_info`.
    """

    def __init__(self, setup: Setup, data: Path, labels: dict[str, str]) -> None:
        self.setup, self.settings = setup, setup.settings
        self.tree = setup.columns.tree
        self.window = Window(data, setup.columns, self.settings.window_size)
        self.detector = Detector(self.tree, setup.reference, self.settings)
        self.metrics = Metrics(
            labels,
            window_size=self.settings.window_size,
            period=self.settings.calculation_period_sec,
            reference_rows=len(setup.reference),
            reference=summarize(setup.reference, self.tree),
            accuracy=setup.accuracy,
            snapshot=self._first(),
        )
        self.failing = False
        self._stop = threading.Event()
        self._parsing = threading.Lock()  # large bodies are taken one at a time
        self._thread: threading.Thread | None = None
        with contextlib.suppress(NotKept):  # logged; tried again with every body
            self._keeping(self.window.open)

    def _first(self) -> Snapshot:
        return Snapshot(
            findings=tuple(self.detector.nothing()),
            performance=dict.fromkeys(metric_names(self.settings, self.tree), float("nan")),
            summary=summarize(_no_rows(self.setup.columns.features), self.tree),
        )

    # -- taking -------------------------------------------------------------------------------

    def iterate(self, body: bytes) -> int:
        """Take rows; the number of rows that were posted.

        Raises
        ------
        Refused
            The body is malformed: nothing of it is kept.
        NotKept
            The window cannot be written now.
        """
        with self._parsing:
            try:
                batch = read_rows(body, self.setup.columns)
            except Refused as error:
                self.metrics.refused.inc(error.rows)
                raise
        posted = len(batch.rows)
        new, matched = self._keeping(lambda: self.window.add(batch))
        self.metrics.received.inc(new)
        self.metrics.repeated.inc(posted - new)
        self.metrics.feedback.labels("matched").inc(matched)
        return posted

    def feedback(self, body: bytes) -> dict[str, int]:
        """Take true classes; how many were matched with their row, and how many wait for it.

        Those that find no room to wait are dropped, those that name no class are unknown.
        """
        with self._parsing:
            items = read_feedback(body, self.tree)
        known = [(name, node) for name, node in items if node is not None]
        matched, waiting, gone = self._keeping(lambda: self.window.label(known))
        unknown = len(items) - len(known)
        for outcome, count in (
            ("matched", matched),
            ("waiting", waiting),
            ("unknown", unknown + gone),
        ):
            self.metrics.feedback.labels(outcome).inc(count)
        answer = {"matched": matched, "waiting": waiting}
        others = {"dropped": len(known) - matched - waiting, "unknown": unknown}
        return answer | {name: count for name, count in others.items() if count}

    def _keeping(self, work: Callable[[], T]) -> T:
        """Write to the window, and remember whether that could be done."""
        try:
            done = work()
        except NotKept as error:
            if self.metrics.writable:
                log.error("%s Rows are refused with 503 until it can.", error)
            self.metrics.writable = False
            raise
        if not self.metrics.writable:
            log.warning("The window can be kept again.")
        self.metrics.writable = True
        return done

    # -- calculating --------------------------------------------------------------------------

    def start(self) -> None:
        """Calculate once now, then every `calculation_period_sec`, in a thread of its own."""
        self._thread = threading.Thread(target=self._run, name="calculation", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
        self.window.close()

    @property
    def alive(self) -> bool:
        """Whether calculations still happen."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def state(self) -> str:
        """What the figures are about, and how old they are."""
        now = self.metrics.snapshot
        if not now.number:
            return "ok: nothing is calculated yet"
        about = span(now.rows, now.since, now.until)
        return f"ok: {about}, calculated {utc(now.finished)}"

    def _run(self) -> None:
        while True:
            started = time.monotonic()
            self.attempt()
            spent = time.monotonic() - started
            if self._stop.wait(max(1.0, self.settings.calculation_period_sec - spent)):
                return

    def attempt(self) -> None:
        """Calculate; a failure is counted and logged by its place, the last figures stay."""
        try:
            self.calculate()
        except NotKept as error:
            self._failed(str(error))
        except Exception as error:
            self._failed(place_of(error))

    def _failed(self, why: str) -> None:
        self.metrics.failures.inc()
        self.failing = True
        log.error("Calculation failed: %s", why)

    def calculate(self) -> None:
        """Compare the window with the reference and put the figures in place."""
        started = time.monotonic()
        self.detector.learn()
        kept, labelled = self.window.kept(), self.window.labelled()
        self._forget(kept, labelled)
        rows = kept.rows
        self.metrics.snapshot = Snapshot(
            number=self.metrics.snapshot.number + 1,
            findings=tuple(self.detector.compare(rows)),
            performance=performance(labelled, self.settings, self.setup.columns),
            summary=summarize(rows, self.tree),
            rows=len(rows),
            since=kept.since,
            until=kept.until,
            labelled=len(labelled),
            seconds=time.monotonic() - started,
            finished=time.time(),
        )
        self.metrics.calculations.inc()
        self.failing = False

    def _forget(self, kept: Kept, labelled: Labelled) -> None:
        """Drop what is damaged in the window, so that it is counted once."""
        if count := len(kept.damaged) + len(labelled.damaged):
            self.window.forget(kept.damaged, labelled.damaged)
            self.metrics.damaged.inc(count)
            log.warning("%d damaged rows of the window are dropped", count)


def _no_rows(features: int) -> Rows:
    return Rows(
        classes=np.zeros(0, dtype=np.int64),
        features=np.zeros((0, features)),
        confidence=np.zeros(0),
        length=np.zeros(0),
    )


def labels_of(folder: Path) -> dict[str, str]:
    """Model and dataset, by service.json, else by the build folder's name."""
    values = load_service(folder)
    model = os.environ.get("KTT_MODEL") or values.get("model") or folder.resolve().parent.name
    dataset = os.environ.get("KTT_DATASET") or values.get("dataset") or ""
    return {"model": str(model), "dataset": str(dataset)}
