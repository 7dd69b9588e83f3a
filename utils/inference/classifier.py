"""A trained classifier without its training framework: what bundles and batch jobs run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from utils.hierarchy.confidence import Calibration
from utils.hierarchy.decode import Floats, Predictions, Scorer, decode
from utils.hierarchy.tree import Bools, Hierarchy, Ints
from utils.inference.manifest import (
    ServiceInfo,
    check_files,
    read_manifest,
    read_service,
    understood,
)
from utils.inference.scorers import files_of


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer.

    Parameters
    ----------
    path
        Class names, root first.
    confidence
        Calibrated probability of the path.
    levels
        Per class of the path its name and probability.
    alternatives
        The most probable paths with their probabilities, this one first.
    """

    path: tuple[str, ...]
    confidence: float
    levels: tuple[tuple[str, float], ...]
    alternatives: tuple[tuple[tuple[str, ...], float], ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Observed:
    """What monitoring may know of a batch: arrays with an entry per text, and no text.

    Parameters
    ----------
    features
        Pooled features; shape (rows, features).
    top
        Most probable terminal classes, the answer first, as places among `Classifier.labels`;
        shape (rows, up to 5).
    probs
        Their calibrated probabilities; same shape.
    lengths
        Characters of each text; shape (rows,).
    stopped_early
        Whether the answer ends at a class that has children; shape (rows,).
    """

    features: Floats
    top: Ints
    probs: Floats
    lengths: Ints
    stopped_early: Bools

    def __len__(self) -> int:
        return len(self.top)

    @property
    def confidence(self) -> Floats:
        """Calibrated probability of each answer; shape (rows,)."""
        return self.probs[:, 0]


class Classifier:
    """A scorer, its tree and its calibration.

    Parameters
    ----------
    scorer, hierarchy, calibration
        What makes answers.
    manifest
        Of the folder that they come from.
    service
        What is said there about running it.
    """

    def __init__(
        self,
        scorer: Scorer,
        hierarchy: Hierarchy,
        calibration: Calibration,
        manifest: dict[str, Any],
        service: ServiceInfo,
    ) -> None:
        self.scorer = scorer
        self.hierarchy = hierarchy
        self.tree = hierarchy.full_depth()
        self.calibration = calibration
        self.manifest = manifest
        self.service = service

    @classmethod
    def load(cls, folder: Path, kind: str | None = None) -> Classifier:
        """Read a folder that `Model.export_classifier` wrote.

        Parameters
        ----------
        kind
            The only kind of scorer that it may have; None for any.

        Raises
        ------
        UserError
            A file is missing or is not what was exported.
        """
        manifest = read_manifest(folder)
        with understood(folder):
            entry = manifest["scorer"]
            if kind and entry["kind"] != kind:
                raise ValueError(f"a scorer of kind {entry['kind']!r}, not {kind!r}")
            check_files(folder, manifest, ["hierarchy.json", *files_of(entry)])
            hierarchy = Hierarchy.load(folder / "hierarchy.json")
            scorer = _load_scorer(folder, entry)
            calibration = Calibration.from_values(
                manifest["temperature"], manifest.get("calibration"), hierarchy.depth
            )
            service = read_service(folder, manifest)
            found = cls(scorer, hierarchy, calibration, manifest, service)
            found.answer([""])  # graph, tokenizer and tree belong together
        return found

    def predict(self, texts: Sequence[str]) -> tuple[Predictions, Floats, Floats]:
        """Answer a batch: predictions, scores and pooled features."""
        scores, features = self.scorer.score(texts)
        found = decode(scores, self.hierarchy, self.tree, self.calibration)
        return found, scores, features

    def answer(self, texts: Sequence[str]) -> list[Answer]:
        """Answer a batch of texts."""
        return self.observe(texts)[0] if texts else []

    def observe(self, texts: Sequence[str]) -> tuple[list[Answer], Observed]:
        """Answer a batch of texts, and say of it what monitoring may know; one pass for both."""
        found, _, features = self.predict(texts)
        probs = found.top_probs
        rows = zip(found.top.tolist(), found.level_probs.tolist(), probs.tolist(), strict=True)
        observed = Observed(
            features=features,
            top=found.top,
            probs=probs,
            lengths=np.fromiter(map(len, texts), np.int32, len(texts)),
            stopped_early=self.hierarchy.child_counts[found.ends] > 0,
        )
        return [self._answer(*row) for row in rows], observed

    @cached_property
    def labels(self) -> list[str]:
        """Labels of the terminal classes, in the order of a reference set's score columns."""
        return [self.hierarchy.label(node) for node in self.tree.ending]

    @cached_property
    def _paths(self) -> list[tuple[str, ...]]:
        return [self.hierarchy.path(node) for node in self.tree.ending]

    def _answer(self, codes: list[int], levels: list[float], probs: list[float]) -> Answer:
        paths = [self._paths[code] for code in codes]
        return Answer(
            path=paths[0],
            confidence=probs[0],
            levels=tuple(zip(paths[0], levels, strict=False)),
            alternatives=tuple(zip(paths, probs, strict=True)),
        )


def _load_scorer(folder: Path, entry: dict[str, Any]) -> Scorer:
    """Open the scorer of a runtime; a bundle has the module of its own runtime only."""
    if entry["kind"] == "torch":
        from utils.inference.torch_scorer import TorchScorer

        return TorchScorer.load(folder, entry)
    from utils.inference.onnx_scorer import OnnxScorer

    return OnnxScorer.load(folder, entry)
