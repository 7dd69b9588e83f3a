"""A service with a classifier of two lines, for tests of everything around a classifier.

It also stands for a model's `svc_lts.py`: it is exported as it is.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import bentoml

from utils.serving.service import FolderArtifact, TextClassifierService


@dataclass(frozen=True)
class ToyAnswer:
    path: tuple[str, ...]
    confidence: float
    levels: tuple[tuple[str, float], ...]
    alternatives: tuple[tuple[tuple[str, ...], float], ...]


class ToyClassifier:
    """Answers with the first and the last word of a text; fails on the word `crash`."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.batch_sizes: list[int] = []

    def answer(self, texts: Sequence[str]) -> list[ToyAnswer]:
        self.batch_sizes.append(len(texts))
        if any("crash" in text for text in texts):
            raise RuntimeError(f"cannot read {texts}")
        if any("slow" in text for text in texts):
            time.sleep(0.5)
        return [self._one(text.split()) for text in texts]

    def _one(self, words: list[str]) -> ToyAnswer:
        path = (self.root, words[0], words[-1])
        levels = tuple(zip(path, (1.0, 0.75, 0.5), strict=True))
        return ToyAnswer(path, 0.5, levels, ((path, 0.5), (path[:2], 0.25)))


class ToyArtifact(FolderArtifact):
    def open(self, folder: Path) -> ToyClassifier:
        return ToyClassifier((folder / "root.txt").read_text(encoding="utf-8"))


@bentoml.artifacts([ToyArtifact("classifier")])
class ToyService(TextClassifierService):
    """Toy."""
