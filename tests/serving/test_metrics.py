"""What a service counts of its answers."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.serving.test_monitor_client import Monitor
from utils.common.errors import UserError
from utils.inference.classifier import Observed
from utils.inference.manifest import ServiceInfo
from utils.serving.metrics import ServiceMetrics
from utils.serving.observation import Watch, info_of

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


@pytest.mark.parametrize("named", [("other",), ("other", "(other)"), ("zz",)])
def test_a_class_called_other_is_told_from_the_others(named: tuple[str, ...]) -> None:
    names = [*(f"class {i:03}" for i in range(48)), *named, *(f"rest {i:03}" for i in range(12))]
    metrics = ServiceMetrics(names, INFO)
    metrics.answered([answer(name) for name in names for _ in range(1 + (name in named))], 0)
    found = {
        sample.labels["top"]: sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "ktt_answers_total"
    }
    shown = sorted(names)[:50]
    assert {name: found[name] for name in shown} == {name: 1 + (name in named) for name in shown}
    (others,) = set(found) - set(names)
    assert found[others] == len(names) + len(named) - sum(found[name] for name in shown)
    assert others == ("other" if named == ("zz",) else f"({named[-1]})")


def test_what_became_of_rows_is_counted() -> None:
    metrics = ServiceMetrics([], INFO)
    metrics.count("rows", "dropped", 7)
    metrics.count("feedback", "sent", 1)
    metrics.waiting(3)
    assert value(metrics, "ktt_monitor_rows_total", outcome="dropped") == 7
    assert value(metrics, "ktt_monitor_rows_total", outcome="sent") == 0
    assert value(metrics, "ktt_monitor_queue_rows") == 3


class _Classifier:
    """A classifier that can be observed."""

    manifest = {"model": "m", "dataset": "d", "info": {"checkpoint": "c"}}  # noqa: RUF012
    labels = ("A", "B")

    def __init__(self, monitoring: bool = False) -> None:
        about = {"model": "m", "dataset": "d", "checkpoint": "c", "runtime": "onnx"}
        self.service = ServiceInfo(**about, monitoring=monitoring)

    def observe(self, texts: list[str]) -> tuple[list[Any], Observed]:
        rows = len(texts)
        observed = Observed(
            features=np.zeros((rows, 2), np.float32),
            top=np.tile(np.array([1, 0], np.int32), (rows, 1)),
            probs=np.full((rows, 2), 0.5, np.float32),
            lengths=np.array([len(text) for text in texts], np.int32),
            stopped_early=np.array([text == "early" for text in texts]),
        )
        return [answer("A") for _ in texts], observed


def test_what_was_observed_reaches_the_monitor_with_the_ids(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monitor = Monitor()
    monkeypatch.setenv("EVIDENTLY_HOST", "127.0.0.1")
    monkeypatch.setenv("EVIDENTLY_PORT", str(monitor.port))
    monkeypatch.setenv("KTT_MONITOR_TOKEN", "a-token")
    watch = Watch(_Classifier(monitoring=True))
    assert watch.reporter is not None
    try:
        assert len(watch.answer(["a", "early"], ["1", "2"])) == 2
        watch.reporter.offer_feedback("1", ["A"])
    finally:
        watch.reporter.close()
        monitor.stop()
    assert [(row[0], row[-3], row[-1]) for row in monitor.rows] == [("B", 1, "1"), ("B", 5, "2")]
    assert monitor.feedback == [{"request_id": "1", "path": ["A"]}]
    assert monitor.tokens == {"Bearer a-token"}
    assert value(watch.metrics, "ktt_monitor_rows_total", outcome="sent") == 2
    assert value(watch.metrics, "ktt_monitor_feedback_total", outcome="sent") == 1
    assert value(watch.metrics, "ktt_monitor_queue_rows") == 0
    assert value(watch.metrics, "ktt_stopped_early_total") == 1


def test_nothing_is_sent_unless_the_bundle_was_exported_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVIDENTLY_PORT", "x")
    watch = Watch(_Classifier())
    assert watch.reporter is None
    assert len(watch.answer(["a"], ["1"])) == 1
    with pytest.raises(UserError, match="EVIDENTLY_PORT='x' is no port"):
        Watch(_Classifier(monitoring=True))


def test_answers_are_given_even_if_they_cannot_be_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no")

    watch = Watch(_Classifier())
    monkeypatch.setattr(watch.metrics, "answered", fail)
    assert len(watch.answer(["a"], ["1"])) == 1


def test_what_is_served_is_told() -> None:
    assert info_of(_Classifier()) == {
        "model": "m",
        "dataset": "d",
        "checkpoint": "c",
        "runtime": "onnx",
        "quantization": "none",
    }
    assert info_of(object())["model"] == "unknown"
