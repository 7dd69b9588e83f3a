"""DB_Linear: one softmax over the terminal classes; the tree comes in when answers are decoded."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from models.model_pytorch import Head, PyTorchModel


class Linear(Head):
    r"""A flat classifier.

    .. math::
        P = softmax(W d(x) + b)

    over the classes of the last level, each of which stands for one class where rows may end. An
    inner class has the sum of its leaves.
    """

    def build(self, features: int) -> None:
        """Make the layer."""
        self.dropout = nn.Dropout(self.config.dropout)
        self.linear = nn.Linear(features, self.tree.level_sizes[-1])

    def forward(self, features: Tensor) -> Tensor:
        """Logits of the last level; shape (batch, last-level classes)."""
        logits: Tensor = self.linear(self.dropout(features))
        return logits

    def loss(self, outputs: Tensor, codes: Tensor) -> Tensor:
        """Cross-entropy of each row."""
        return functional.cross_entropy(outputs, codes[:, -1], reduction="none")

    def scores(self, outputs: Tensor) -> Tensor:
        """Flat scores: the logits."""
        return outputs


class DB_Linear(PyTorchModel):
    """An encoder with a flat classifier."""

    head_class = Linear
