"""The service that benchmarks/serving.py compares with: PyTorch, float32, padded to `max_len`.

It has the form of a bundle (and is written by `write_bundle`), so that both sides differ in
nothing but how they compute. Its classifier is a checkpoint of
db_bhcn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bentoml

from utils.serving.service import FolderArtifact, TextClassifierService


class Padded:
    """Tokenises text by text, pads each to `max_len`, answers a micro-batch in one forward pass."""

    def __init__(self, model: Any) -> None:
        from tokenizers import Tokenizer

        spec = model.network.encoder.spec
        self._network = model.network.eval()
        self._tokenizer = Tokenizer.from_str(spec.tokenizer)
        self._tokenizer.enable_truncation(model.config.max_len)
        self._tokenizer.enable_padding(length=model.config.max_len, pad_id=spec.pad_id)

    def score(self, texts: Sequence[str]) -> tuple[Any, Any]:
        """Scores and pooled features."""
        import torch

        found = [self._tokenizer.encode(text) for text in texts]
        ids = torch.tensor([row.ids for row in found])
        mask = torch.tensor([row.attention_mask for row in found])
        with torch.no_grad():
            scores, pooled = self._network(ids, mask)
        return scores.numpy(), pooled.numpy()


class CheckpointArtifact(FolderArtifact):
    """A folder with one checkpoint."""

    def open(self, folder: Path) -> Any:
        """Rebuild the model."""
        from models.db_bhcn.db_bhcn import DB_BHCN
        from utils.inference.classifier import Classifier
        from utils.inference.manifest import ServiceInfo

        (path,) = folder.glob("*.pt")
        model = DB_BHCN.from_checkpoint(path)
        about = ServiceInfo(model=DB_BHCN.name, dataset="", checkpoint=path.name, runtime="torch")
        return Classifier(Padded(model), model.hierarchy, model.calibration, {}, about)


@bentoml.artifacts([CheckpointArtifact("classifier")])
class Reference(TextClassifierService):
    """Answers as the toolkit that this one mirrors would, were its bundles right."""
