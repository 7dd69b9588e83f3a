"""The methods of a trained text classifier, as a runner calls them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from utils.hierarchy.confidence import Calibration
from utils.hierarchy.decode import Floats
from utils.hierarchy.tree import Hierarchy
from utils.inference.classifier import Answer, Classifier
from utils.inference.manifest import ServiceInfo
from utils.inference.pipeline import Source


class TextModel:
    """What answers texts: a source with the methods that signatures name.

    Parameters
    ----------
    source
        An export or a checkpoint.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        nobody = ServiceInfo(model="", dataset="", checkpoint=source.checkpoint)
        self._classifier = Classifier(
            _Scorer(source), source.hierarchy, source.calibration, {}, nobody
        )

    def predict(self, texts: Sequence[str]) -> list[tuple[str, ...]]:
        """Answer with paths: names, root first."""
        if not texts:
            return []
        found, _, _ = self._classifier.predict(texts)
        path = self.source.hierarchy.path
        return [path(end) for end in found.ends.tolist()]

    def classify(self, texts: Sequence[str]) -> list[Answer]:
        """Answer with paths, their confidence and other paths."""
        return self._classifier.answer(texts)

    def __call__(self, texts: Sequence[str]) -> Floats:
        """Score texts, as the model does; shape (rows, classes)."""
        return self._classifier.scorer.score(texts)[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class About:
    """What is known of a source in a process that has not loaded it; see `Source`."""

    hierarchy: Hierarchy
    calibration: Calibration
    checkpoint: str
    description: str
    form: str

    @classmethod
    def of(cls, source: Source) -> About:
        """Of a source."""
        return cls(**{field.name: getattr(source, field.name) for field in fields(cls)})

    def source(self, scores: Callable[[list[str]], Floats]) -> Source:
        """A source whose scores come from elsewhere. It has no features.

        What it encodes to are the scores: asking for those of the next rows while answering the
        last ones keeps all busy.
        """
        return Source(
            **{field.name: getattr(self, field.name) for field in fields(self)},
            tree=self.hierarchy.full_depth(),
            encode=scores,
            run=lambda found: (found, found[:, :0]),
        )


class _Scorer:
    """A source as a scorer."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def score(self, texts: Sequence[str]) -> tuple[Floats, Floats]:
        """Score texts; none of them too."""
        rows = self._source.encode(list(texts) or [""])
        scores, features = self._source.run(rows)
        return scores[: len(texts)], features[: len(texts)]
