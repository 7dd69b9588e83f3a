"""A trained classifier without its training framework: what bundles and batch jobs run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.decode import Floats, Predictions, Scorer, decode
from utils.hierarchy import Hierarchy
from utils.manifest import check_files, read_manifest, understood
from utils.onnx_scorer import OnnxScorer, files_of


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


class Classifier:
    """A scorer, its tree and its calibration."""

    def __init__(
        self, scorer: Scorer, hierarchy: Hierarchy, temperature: float, manifest: dict[str, Any]
    ) -> None:
        self.scorer = scorer
        self.hierarchy = hierarchy
        self.tree = hierarchy.full_depth()
        self.temperature = temperature
        self.manifest = manifest

    @classmethod
    def load(cls, folder: Path) -> Classifier:
        """Read a folder that `Model.export_classifier` wrote.

        Raises
        ------
        UserError
            A file is missing or is not what was exported.
        """
        manifest = read_manifest(folder)
        with understood(folder):
            entry = manifest["scorer"]
            check_files(folder, manifest, ["hierarchy.json", *files_of(entry)])
            hierarchy = Hierarchy.load(folder / "hierarchy.json")
            scorer = OnnxScorer.load(folder, entry)
            found = cls(scorer, hierarchy, float(manifest["temperature"]), manifest)
            if not 0 < found.temperature < math.inf:
                raise ValueError(f"temperature {found.temperature}")
            found.answer([""])  # graph, tokenizer and tree belong together
        return found

    def predict(self, texts: Sequence[str]) -> tuple[Predictions, Floats, Floats]:
        """Answer a batch: predictions, scores and pooled features."""
        scores, features = self.scorer.score(texts)
        found = decode(scores, self.hierarchy, self.tree, self.temperature)
        return found, scores, features

    def answer(self, texts: Sequence[str]) -> list[Answer]:
        """Answer a batch of texts."""
        if not texts:
            return []
        found, _, _ = self.predict(texts)
        probs = found.top_probs.tolist()
        return [
            self._answer(codes, found.level_probs[row].tolist(), probs[row])
            for row, codes in enumerate(found.top.tolist())
        ]

    def _answer(self, codes: list[int], levels: list[float], probs: list[float]) -> Answer:
        paths = [self.hierarchy.path(int(self.tree.ending[code])) for code in codes]
        return Answer(
            path=paths[0],
            confidence=probs[0],
            levels=tuple(zip(paths[0], levels, strict=False)),
            alternatives=tuple(zip(paths, probs, strict=True)),
        )
