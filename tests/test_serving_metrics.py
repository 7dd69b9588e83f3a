"""What a service counts of its answers."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from utils.serving_metrics import ServiceMetrics
from utils.serving_watch import Watch, info_of

INFO = {"model": "m", "dataset": "d"}


def answer(*path: str, confidence: float = 0.5) -> Any:
    return SimpleNamespace(path=path, confidence=confidence)


def value(metrics: ServiceMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_everything_exists_from_the_start() -> None:
    metrics = ServiceMetrics(["A", "B"], INFO)
    for top in ("A", "B", "other"):
        assert value(metrics, "ktt_answers_total", top=top) == 0
    for outcome in ("sent", "dropped", "refused"):
        assert value(metrics, "ktt_monitor_rows_total", outcome=outcome) == 0
    assert value(metrics, "ktt_confidence_count") == 0
    assert value(metrics, "ktt_stopped_early_total") == 0
    assert value(metrics, "ktt_monitor_queue_rows") == 0
    assert value(metrics, "ktt_service_info", **INFO) == 1


def test_answers_are_counted() -> None:
    metrics = ServiceMetrics(["A", "B"], INFO)
    answers = [answer("A", "x", confidence=0.97), answer("A", confidence=0.12), answer("Z")]
    metrics.answered(answers, 1)
    assert value(metrics, "ktt_answers_total", top="A") == 2
    assert value(metrics, "ktt_answers_total", top="other") == 1
    assert value(metrics, "ktt_stopped_early_total") == 1
    assert value(metrics, "ktt_confidence_bucket", le="0.95") == 2
    assert value(metrics, "ktt_confidence_bucket", le="0.99") == 3
    assert value(metrics, "ktt_confidence_bucket", le="0.1") == 0


def test_many_top_level_classes_do_not_make_many_labels() -> None:
    names = [f"class {i:03}" for i in range(500)]
    metrics = ServiceMetrics(reversed(names), INFO)
    metrics.answered([answer(name) for name in names], 0)
    assert value(metrics, "ktt_answers_total", top="class 049") == 1
    assert value(metrics, "ktt_answers_total", top="class 050") is None
    assert value(metrics, "ktt_answers_total", top="other") == 450


def test_what_became_of_rows_is_counted() -> None:
    metrics = ServiceMetrics([], INFO)
    metrics.count("rows", "dropped", 7)
    metrics.count("feedback", "sent", 1)
    metrics.waiting(3)
    assert value(metrics, "ktt_monitor_rows_total", outcome="dropped") == 7
    assert value(metrics, "ktt_monitor_rows_total", outcome="sent") == 0
    assert value(metrics, "ktt_monitor_queue_rows") == 3


class _Observed:
    """A classifier that can be observed, with somebody to report to."""

    manifest = {"model": "m", "dataset": "d", "info": {"checkpoint": "c"}}  # noqa: RUF012

    def __init__(self, fails: bool = False) -> None:
        self.offered: list[Any] = []
        self.fails = fails
        self.reporter = SimpleNamespace(offer=self.offer)

    def observe(self, texts: list[str]) -> tuple[list[Any], Any]:
        early = np.array([text == "early" for text in texts])
        return [answer("A") for _ in texts], SimpleNamespace(stopped_early=early)

    def offer(self, observed: Any, names: list[str]) -> None:
        if self.fails:
            raise RuntimeError("no")
        self.offered.append((observed, names))


def test_what_was_observed_is_offered_with_the_ids() -> None:
    classifier = _Observed()
    watch = Watch(classifier)
    assert len(watch.answer(["a", "early"], ["1", "2"])) == 2
    ((observed, names),) = classifier.offered
    assert (len(observed.stopped_early), names) == (2, ["1", "2"])
    assert value(watch.metrics, "ktt_stopped_early_total") == 1


def test_answers_are_given_even_if_they_cannot_be_noted() -> None:
    assert len(Watch(_Observed(fails=True)).answer(["a"], ["1"])) == 1


def test_what_is_served_is_told() -> None:
    assert info_of(_Observed()) == {
        "model": "m",
        "dataset": "d",
        "checkpoint": "c",
        "runtime": "onnx",
        "quantization": "none",
    }
    assert info_of(object())["model"] == "unknown"
