"""What is kept of the answers that a server gives: metrics, and rows for the monitor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from utils.serving.connection import monitor_address, monitor_token
from utils.serving.log import log_failure
from utils.serving.metrics import ServiceMetrics
from utils.serving.monitor_client import Reporter

Path: TypeAlias = tuple[str, ...]
UNKNOWN = "unknown"


class Watch:
    """Watches a classifier in a server.

    A classifier needs `answer(texts)`, no more. One with `observe(texts)`, `hierarchy`, `manifest`
    and `service` is watched more closely, and its rows are sent if its service is monitored.

    Raises
    ------
    UserError
        The monitor's address or token cannot be one.
    """

    def __init__(self, classifier: Any) -> None:
        self._classifier = classifier
        self.paths = paths_of(classifier)
        self.metrics = ServiceMetrics({path[0] for path in self.paths}, info_of(classifier))
        self.reporter = _reporter(classifier, self.metrics)

    def answer(self, texts: Sequence[str], names: Sequence[str]) -> list[Any]:
        """Answer a batch, whose requests have these ids, and note it."""
        observe = getattr(self._classifier, "observe", None)
        if observe is None:
            answers, observed = self._classifier.answer(texts), None
        else:
            answers, observed = observe(texts)
        try:
            self._note(answers, observed, names)
        except Exception as error:  # the answers are there
            log_failure("Monitoring", error)
        return answers

    def _note(self, answers: list[Any], observed: Any, names: Sequence[str]) -> None:
        early = 0 if observed is None else int(observed.stopped_early.sum())
        self.metrics.answered(answers, early)
        if self.reporter is not None and observed is not None:
            self.reporter.offer(observed, names)


def _reporter(classifier: Any, metrics: ServiceMetrics) -> Reporter | None:
    """What sends rows to the monitor, if service.json says that there is one."""
    if not getattr(getattr(classifier, "service", None), "monitoring", False):
        return None
    return Reporter(monitor_address(), classifier.labels, metrics, token=monitor_token())


def paths_of(classifier: Any) -> frozenset[Path]:
    """All paths of a classifier's tree, if it has one."""
    tree = getattr(classifier, "hierarchy", None)
    return frozenset(tree.path(node) for node in range(tree.class_count)) if tree else frozenset()


def info_of(classifier: Any) -> dict[str, str]:
    """What is served, as labels."""
    manifest = getattr(classifier, "manifest", None) or {}
    service = getattr(classifier, "service", None)
    said = {
        "model": manifest.get("model"),
        "dataset": manifest.get("dataset"),
        "checkpoint": manifest.get("info", {}).get("checkpoint"),
        "runtime": "onnx",
        "quantization": (manifest.get("quantization") or {}).get("type", "none"),
    }
    return {key: str(getattr(service, key, value) or UNKNOWN) for key, value in said.items()}


def title_of(classifier: Any) -> str | None:
    """What is served, for people."""
    info = info_of(classifier)
    return (
        None
        if UNKNOWN in (info["model"], info["dataset"])
        else "{model} on {dataset}".format(**info)
    )
