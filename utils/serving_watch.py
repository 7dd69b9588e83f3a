"""What is kept of the answers that a server gives: metrics, and rows for the monitor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

from utils.serving_log import log_failure
from utils.serving_metrics import ServiceMetrics

Path: TypeAlias = tuple[str, ...]
UNKNOWN = "unknown"


class Reporter(Protocol):
    """Takes what is meant for the monitor; it neither waits nor raises."""

    def offer(self, observed: Any, ids: Sequence[str]) -> None:
        """Take the rows of a batch; `ids` are those of its requests."""

    def offer_feedback(self, request_id: str, path: Sequence[str]) -> None:
        """Take the true path of an earlier request."""


class Watch:
    """Watches a classifier in a server.

    A classifier needs `answer(texts)`, no more. One with `observe(texts)`, `hierarchy` and
    `manifest` is watched more closely.
    """

    def __init__(self, classifier: Any) -> None:
        self._classifier = classifier
        self.paths = paths_of(classifier)
        self.metrics = ServiceMetrics({path[0] for path in self.paths}, info_of(classifier))
        self.reporter: Reporter | None = getattr(classifier, "reporter", None)

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
