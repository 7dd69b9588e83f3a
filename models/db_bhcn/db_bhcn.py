"""DB_BHCN: one softmax per level, each fed by the level above and by the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from models.heads import BranchedConfig, BranchedHead
from models.model_pytorch import EncoderConfig, PyTorchModel
from utils.common.config import key


@dataclass(frozen=True, kw_only=True)
class BHCNConfig(BranchedConfig):
    """Hyperparameters of DB_BHCN."""

    lambda_h: float = key(0.7, low=0.0, note="weight of the loss that ties levels together")


class BHCN(BranchedHead):
    """Branched hierarchical classifier: P_h = log softmax(z_h) of the branched trunk."""

    Config: ClassVar[type[EncoderConfig]] = BHCNConfig
    config: BHCNConfig

    def build(self, features: int) -> None:
        """Make the trunk."""
        super().build(features)
        for level in range(1, self.tree.depth):
            parents = torch.from_numpy(self.tree.parents[self.tree.level_slice(level)]).long()
            self.register_buffer(f"parents_{level}", parents, persistent=False)

    def forward(self, features: Tensor) -> list[Tensor]:
        """Log-probabilities per level, (batch, classes of the level) each."""
        return [functional.log_softmax(raw, dim=1) for raw in super().forward(features)]

    def loss(self, outputs: list[Tensor], codes: Tensor) -> Tensor:
        """λ_l Σ w_h NLL(P_h, y_h) + λ_h Σ NLL(P_h, parent(argmax P_{h+1})) f, per row."""
        own = torch.stack(
            [
                functional.nll_loss(level, codes[:, h], reduction="none")
                for h, level in enumerate(outputs)
            ]
        )
        loss = self.config.lambda_l * (self.weights @ own)
        for h in range(len(outputs) - 1):
            below = outputs[h + 1].detach()
            parents: Tensor = getattr(self, f"parents_{h + 1}")
            implied = parents[below.argmax(dim=1)]
            gap = functional.nll_loss(outputs[h], implied, reduction="none")
            loss = loss + self.config.lambda_h * gap * nearness(below, codes[:, h + 1])
        return loss

    def scores(self, outputs: list[Tensor]) -> Tensor:
        """Log-probabilities of all levels side by side."""
        return torch.cat(outputs, dim=1)


def nearness(log_probs: Tensor, codes: Tensor) -> Tensor:
    """How high the true class stands: 1 where it is ranked first, 0 where last, 1 on a tie of all.

    Parameters
    ----------
    log_probs
        Of one level; shape (batch, classes).
    codes
        True classes; shape (batch,).
    """
    lowest, highest = log_probs.aminmax(dim=1)
    true = log_probs.gather(1, codes[:, None]).squeeze(1)
    span = highest - lowest
    tied = span <= 0
    return torch.where(tied, 1.0, 1 - (highest - true) / torch.where(tied, 1.0, span))


class DB_BHCN(PyTorchModel):
    """An encoder with a branched hierarchical classifier."""

    head_class = BHCN
