"""What Prometheus reads: counters as things happen, everything else from the last calculation."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from prometheus_client import (
    CollectorRegistry,
    Counter,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from monitor_drift import Finding, Rows
from monitor_performance import Figures
from monitor_tree import Tree, free_name

disable_created_metrics()  # type: ignore[no-untyped-call]  # series that nobody reads

TOPS = 50
WINDOW, REFERENCE = "window", "reference"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What the window or the reference looks like; NaN without rows."""

    confidence: float
    stopped_early: float
    length: float
    tops: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What one calculation has found.

    Parameters
    ----------
    since, until
        When the first and the last of the rows came; times are in seconds since 1970.
    finished
        When the calculation ended; 0 if there was none yet.
    """

    number: int = 0
    findings: tuple[Finding, ...] = ()
    performance: Figures = field(default_factory=dict)
    summary: Summary
    rows: int = 0
    since: float = math.nan
    until: float = math.nan
    labelled: int = 0
    seconds: float = 0.0
    finished: float = 0.0


def summarize(rows: Rows, tree: Tree) -> Summary:
    """Means of rows, and the share of each class of the first level."""
    return Summary(
        confidence=_mean(rows.confidence),
        stopped_early=_mean(tree.inner[rows.classes].astype(float)),
        length=_mean(rows.length[np.isfinite(rows.length)]),
        tops=top_shares(rows, tree),
    )


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def top_shares(rows: Rows, tree: Tree) -> dict[str, float]:
    """Share of the answers per class of the first level: 50 by name, and the others as one."""
    names = sorted(tree.paths[node][0] for node in tree.tops)
    shown, others = names[:TOPS], free_name("other", names)
    counts = dict.fromkeys([*shown, others] if len(names) > TOPS else shown, 0)
    for node, count in enumerate(np.bincount(tree.ancestors[rows.classes, 0]).tolist()):
        if count:
            name = tree.paths[node][0]
            counts[name if name in counts else others] += count
    return {name: count / max(1, len(rows)) for name, count in counts.items()}


def text(value: str) -> str:
    """A label's value that can be written as UTF-8, whatever a class is called."""
    return value.encode("utf-8", "replace").decode("utf-8")


class Metrics(Collector):
    """All metrics of the monitor.

    Parameters
    ----------
    labels
        ``model`` and ``dataset``.
    period
        Seconds between calculations.
    snapshot
        What there is before the first calculation.
    """

    def __init__(
        self,
        labels: dict[str, str],
        window_size: int,
        period: float,
        reference_rows: int,
        reference: Summary,
        accuracy: float,
        snapshot: Snapshot,
    ) -> None:
        self.labels = labels
        self.window_size, self.reference_rows = window_size, reference_rows
        self.period = period
        self.reference, self.accuracy = reference, accuracy
        self.snapshot = snapshot
        self.writable = True
        self.registry = CollectorRegistry()
        self.received = self._counter("ktt_rows_received", "Rows taken into the window.")
        self.refused = self._counter("ktt_rows_refused", "Rows of malformed bodies.")
        self.repeated = self._counter("ktt_rows_repeated", "Rows that had come before, by id.")
        self.damaged = self._counter("ktt_rows_damaged", "Damaged rows dropped from the window.")
        self.feedback = self._counter("ktt_feedback", "True classes that came.", ("outcome",))
        self.calculations = self._counter("ktt_calculations", "Calculations that succeeded.")
        self.failures = self._counter("ktt_calculation_failures", "Calculations that failed.")
        for outcome in ("matched", "waiting", "unknown"):
            self.feedback.labels(outcome)
        self.registry.register(self)
        ProcessCollector(registry=self.registry)  # memory, and since when it runs
        self._lock = threading.Lock()
        self._page, self._begun = b"", -math.inf

    def _counter(self, name: str, what: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(name, what, labels, registry=self.registry)

    def page(self, since: float = math.inf) -> bytes:
        """The page of metrics, in Prometheus's text format.

        Parameters
        ----------
        since
            By `time.monotonic`: a page that was begun later will do, so that however many ask at
            once get the same one.
        """
        with self._lock:
            if self._begun < since:
                self._begun = time.monotonic()
                self._page = generate_latest(self.registry)
            return self._page

    def collect(self) -> Iterator[Metric]:
        """Give all gauges, from one calculation."""
        now = self.snapshot
        yield _gauge("ktt_monitor_info", "What is monitored.", [(self.labels, 1)])
        for name, what, value in (
            ("ktt_window_rows", "Rows in the window.", now.rows),
            ("ktt_window_size", "Rows that the window has when it is full.", self.window_size),
            ("ktt_window_oldest_row_timestamp_seconds", "When the first of them came.", now.since),
            ("ktt_window_newest_row_timestamp_seconds", "When the last of them came.", now.until),
            ("ktt_window_labelled_rows", "Answers with a known true class.", now.labelled),
            ("ktt_window_writable", "Whether rows can be kept (0: disk full).", self.writable),
            ("ktt_reference_rows", "Rows of the reference set.", self.reference_rows),
            ("ktt_reference_accuracy", "Right answers in the reference set.", self.accuracy),
            ("ktt_calculation_period_seconds", "Time between calculations.", self.period),
            ("ktt_calculation_seconds", "Time that the last calculation took.", now.seconds),
            (
                "ktt_last_calculation_timestamp_seconds",
                "When the last calculation succeeded (0: not yet).",
                now.finished,
            ),
        ):
            yield _gauge(name, what, [({}, value)])
        yield from self._drift(now)
        yield from self._summaries(now)
        yield _gauge(
            "ktt_performance",
            "How right the answers are (NaN until 30 true classes are known).",
            [({"monitor": m, "metric": name}, v) for (m, name), v in now.performance.items()],
        )

    def _drift(self, now: Snapshot) -> Iterator[Metric]:
        for name, what in (
            ("distance", "Distance of the window from the reference."),
            ("threshold", "Distance that counts as drift."),
            ("ratio", "Distance by threshold: above 1 is drift."),
        ):
            yield _gauge(
                f"ktt_drift_{name}",
                what,
                [
                    (
                        {"monitor": f.monitor, "family": f.family, "signal": f.signal},
                        float(getattr(f, name)),
                    )
                    for f in now.findings
                ],
            )
        families: dict[tuple[str, str], list[bool]] = {}
        for f in now.findings:
            families.setdefault((f.monitor, f.family), []).append(f.ratio > 1)
        pairs = [({"monitor": m, "family": f}, beyond) for (m, f), beyond in families.items()]
        yield _gauge(
            "ktt_drift_detected",
            "Whether any signal of the family has drifted.",
            [(labels, any(beyond)) for labels, beyond in pairs],
        )
        yield _gauge(
            "ktt_drift_share",
            "Share of the family's signals that have drifted.",
            [(labels, sum(beyond) / len(beyond)) for labels, beyond in pairs],
        )

    def _summaries(self, now: Snapshot) -> Iterator[Metric]:
        sources = ((WINDOW, now.summary), (REFERENCE, self.reference))
        for name, what, kind in (
            ("ktt_estimated_accuracy", "Accuracy as the confidence promises it.", "confidence"),
            ("ktt_confidence_mean", "Mean confidence.", "confidence"),
            ("ktt_stopped_early_share", "Answers that end at an inner node.", "stopped_early"),
            ("ktt_text_length_mean", "Mean length of the texts in characters.", "length"),
        ):
            values = [({"source": source}, getattr(held, kind)) for source, held in sources]
            yield _gauge(name, what, values)
        yield _gauge(
            "ktt_prediction_share",
            "Share of the answers per class of the first level.",
            [
                ({"source": source, "top": top}, share)
                for source, held in sources
                for top, share in held.tops.items()
            ],
        )


def _gauge(
    name: str, what: str, samples: Iterable[tuple[dict[str, str], float]]
) -> GaugeMetricFamily:
    held = list(samples)
    family = GaugeMetricFamily(name, what, labels=list(held[0][0]) if held else [])
    for labels, value in held:
        family.add_metric([text(label) for label in labels.values()], float(value))
    return family
