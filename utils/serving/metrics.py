"""What a service counts of its answers, for Prometheus. Requests are counted by its proxy."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

CONFIDENCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
MOST_TOPS = 50
OTHER = "other"
OUTCOMES = ("sent", "dropped", "refused")


def free_name(name: str, taken: Collection[str]) -> str:
    """A name that no class has: in brackets if need be, as the monitor has it."""
    while name in taken:
        name = f"({name})"
    return name


class Answered(Protocol):
    """What is counted of an answer."""

    @property
    def path(self) -> tuple[str, ...]:
        """Class names, root first."""

    @property
    def confidence(self) -> float:
        """Calibrated probability of the path."""


class ServiceMetrics:
    """The metrics of one process; Prometheus is shown the sums over all of them.

    All exist from the start: a counter that appears with its first event hides that event from
    ``rate()``. Nothing that a client chooses becomes a label.

    Parameters
    ----------
    tops
        Names of the top-level classes; the first 50 are counted one by one, the others as one.
    info
        What is served, by label.
    """

    def __init__(self, tops: Iterable[str], info: Mapping[str, str]) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        self._confidence = Histogram(
            "ktt_confidence", "Calibrated confidence of answers.", buckets=CONFIDENCES, **own
        )
        self._answers = Counter("ktt_answers", "Answers by top-level class.", ["top"], **own)
        self._early = Counter("ktt_stopped_early", "Answers that end at an inner class.", **own)
        self._sent = {
            kind: Counter(f"ktt_monitor_{kind}", f"What became of {kind}.", ["outcome"], **own)
            for kind in ("rows", "feedback")
        }
        self._queue = Gauge(
            "ktt_monitor_queue_rows", "Rows and feedback that wait to be sent.",
            multiprocess_mode="livesum", **own,
        )  # fmt: skip
        self._info = Gauge(
            "ktt_service_info", "What is served.", list(info), multiprocess_mode="livemax", **own
        )
        names = set(tops)
        self._tops, self._others = frozenset(sorted(names)[:MOST_TOPS]), free_name(OTHER, names)
        self._start(info)

    def _start(self, info: Mapping[str, str]) -> None:
        for top in (*self._tops, self._others):
            self._answers.labels(top)
        for outcome in OUTCOMES:
            for counter in self._sent.values():
                counter.labels(outcome)
        self._queue.set(0)
        self._info.labels(**info).set(1)

    def answered(self, answers: Iterable[Answered], stopped_early: int) -> None:
        """Count answers, and how many of them end at an inner class."""
        for answer in answers:
            self._confidence.observe(float(answer.confidence))
            top = answer.path[0]
            self._answers.labels(top if top in self._tops else self._others).inc()
        self._early.inc(stopped_early)

    def count(self, kind: str, outcome: str, number: int) -> None:
        """Count ``"rows"`` or ``"feedback"`` for the monitor by what became of them."""
        self._sent[kind].labels(outcome).inc(number)

    def waiting(self, number: int) -> None:
        """Say how much waits in the queue of this process."""
        self._queue.set(number)
