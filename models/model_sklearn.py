"""The base of the TF-IDF models: a subclass says only how its weights are fitted."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import scipy.sparse as sp

from models.model import Epoch, Model, Progress
from utils.common.checkpoints import Arrays
from utils.common.config import ModelConfig
from utils.common.errors import UserError
from utils.common.files import link
from utils.hierarchy.dataset import Split
from utils.hierarchy.decode import Floats
from utils.hierarchy.tree import Ints
from utils.linear.scorer import Paths, TfidfScorer, pool
from utils.linear.sgd import SgdSettings
from utils.linear.tfidf import TfidfFeatures, TfidfSettings

VOCABULARY = "encoder/tfidf.safetensors"
CHUNK = 1_000  # texts between two reports of progress
CLASSIFIER = "classifier/classifier.onnx"

Settings = TypeVar("Settings", TfidfSettings, SgdSettings)


@dataclass(frozen=True, kw_only=True)
class SklearnConfig(TfidfSettings, SgdSettings, ModelConfig):
    """Features and learning of a TF-IDF model."""

    def tfidf(self) -> TfidfSettings:
        """The part that says what counts as a feature."""
        return _part(TfidfSettings, self)

    def sgd(self) -> SgdSettings:
        """The part that says how each classifier learns."""
        return _part(SgdSettings, self)


def counted(texts: Sequence[str], progress: Progress | None) -> Iterator[str]:
    """Yield texts and report how many there were."""
    for start in range(0, len(texts), CHUNK):
        yield from texts[start : start + CHUNK]
        if progress:
            progress(min(start + CHUNK, len(texts)), len(texts))


def _part(kind: type[Settings], config: SklearnConfig) -> Settings:
    return kind(**{field.name: getattr(config, field.name) for field in fields(kind)})


class SklearnModel(Model):
    """TF-IDF features and a matrix of linear weights."""

    Config: ClassVar[type[ModelConfig]] = SklearnConfig
    default_temperature: ClassVar[float] = 0.3
    config: SklearnConfig
    _scorer: TfidfScorer | None = None

    @abstractmethod
    def fit_weights(
        self, matrix: sp.csr_matrix, codes: Ints, *, seed: int, progress: Progress | None
    ) -> tuple[sp.csr_matrix, Floats]:
        """Fit the linear classifiers.

        Parameters
        ----------
        matrix
            Features of the training rows; shape (rows, features).
        codes
            Their codes in the full-depth tree; shape (rows, depth).

        Returns
        -------
        weights
            Shape (classifiers, features).
        intercepts
            Shape (classifiers,).
        """

    def paths(self) -> Paths | None:
        """How local classifiers make up the last-level classes; None if they are those."""
        return None

    @property
    def scorer(self) -> TfidfScorer:
        """The trained scorer."""
        if self._scorer is None:
            raise RuntimeError(f"{self.name} is not trained")
        return self._scorer

    def fit(
        self,
        train: Split,
        val: Split,
        *,
        epochs: int | None,
        seed: int,
        progress: Progress | None = None,
    ) -> Iterator[Epoch]:
        """Train in one go: a single epoch, whatever `epochs` says."""
        start = time.perf_counter()
        if not len(train):
            raise UserError("There is nothing to train on: the train split is empty.")
        features, matrix = TfidfFeatures.learn(counted(train.texts, progress), self.config.tfidf())
        if not features.feature_count:
            raise UserError(
                "No word stands in as many training texts as min_df "
                f"({self.config.min_df}) asks for. Lower it."
            )
        codes = self.tree.extend_codes(train.codes, self.hierarchy)
        weights, intercepts = self.fit_weights(matrix, codes, seed=seed, progress=progress)
        self._scorer = TfidfScorer(features, weights, intercepts, self.paths())
        metrics = self.validate(val)
        seconds = time.perf_counter() - start
        yield Epoch(number=1, total=1, metrics=metrics, is_best=True, seconds=seconds)

    def score_batches(self, texts: Sequence[str]) -> Iterator[tuple[Floats, Floats]]:
        """Score texts in order, in batches of bounded memory."""
        return self.scorer.score_batches(texts)

    def encode(self, texts: Sequence[str]) -> sp.csr_matrix:
        """Features of texts."""
        return self.scorer.features.transform(texts)

    def run(self, rows: sp.csr_matrix) -> tuple[Floats, Floats]:
        """Score features."""
        return self.scorer.scores(rows), pool(rows, self.scorer.feature_count)

    def state(self, *, resumable: bool) -> tuple[Arrays, dict[str, Any]]:
        """Return the scorer's arrays; there is nothing to resume."""
        return self.scorer.state()

    def set_state(self, arrays: Arrays, values: dict[str, Any]) -> None:
        """Take what `state` gave."""
        self._scorer = TfidfScorer.from_state(arrays, values)

    def write_graph(self, folder: Path, opset: int) -> dict[str, Any]:
        """Write model.onnx and the vocabulary."""
        from utils.linear.onnx_graph import write_graph

        write_graph(self.scorer, folder / "model.onnx", opset)
        return {
            "kind": "onnx",
            "file": "model.onnx",
            "vocabulary": VOCABULARY,
            "tfidf": self.scorer.features.save(folder / VOCABULARY),
            "feature_count": self.scorer.features.feature_count,
            "stages": {
                "outside": "texts → words → stems → TF-IDF rows: feature_ids, feature_values",
                "inside": "feature_ids, feature_values → scores, features",
            },
        }

    def write_parts(self, folder: Path, opset: int) -> tuple[str, ...]:
        """Link the classifier, which is all that is a graph."""
        link(folder / "model.onnx", folder / CLASSIFIER)
        return (CLASSIFIER,)

    def quantized(self, source: Path, target: Path) -> Iterator[dict[str, Any]]:
        """Write model.onnx with weights in int8."""
        from utils.linear.onnx_graph import opset_of, write_graph

        write_graph(self.scorer, target, opset_of(source), int8=True)
        yield {"type": "int8", "method": "weights only"}

    def words(self) -> list[str]:
        """The stems of its vocabulary."""
        return self.scorer.features.words.words
