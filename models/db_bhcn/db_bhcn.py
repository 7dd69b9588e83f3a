"""DB_BHCN: one softmax per level, each fed by the level above and by the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.model_pytorch import EncoderConfig, Head, PyTorchModel
from utils.config import key

NONLINEARITIES = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


@dataclass(frozen=True, kw_only=True)
class BHCNConfig(EncoderConfig):
    """Hyperparameters of DB_BHCN."""

    gamma_l: float = key(-0.1, low=-1.0, high=1.0, note="below 0: lower levels weigh more")
    lambda_l: float = key(1.0, low=0.0, note="weight of the levels' own losses")
    lambda_h: float = key(0.7, low=0.0, note="weight of the loss that ties levels together")
    hidden_nonlinear: str = key("relu", choices=tuple(NONLINEARITIES))


class BHCN(Head):
    r"""Branched hierarchical classifier.

    .. math::
        z_1 = W_1 d(x), \qquad z_h = W_h [d(LN(φ(z_{h-1}))) ; x], \qquad P_h = log softmax(z_h)
    """

    Config: ClassVar[type[EncoderConfig]] = BHCNConfig
    config: BHCNConfig
    weights: Tensor

    def build(self, features: int) -> None:
        """Make one linear layer per level."""
        sizes = self.tree.level_sizes
        above = (0, *sizes)
        layers = [nn.Linear(features + above[level], size) for level, size in enumerate(sizes)]
        for layer in layers:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.levels = nn.ModuleList(layers)
        self.norms = nn.ModuleList(
            nn.LayerNorm(size, elementwise_affine=False) for size in sizes[:-1]
        )
        self.nonlinear = NONLINEARITIES[self.config.hidden_nonlinear]()
        self.dropout = nn.Dropout(self.config.dropout)
        gamma = self.config.gamma_l
        self.register_buffer(
            "weights", 1 - torch.linspace(-gamma, gamma, len(sizes)), persistent=False
        )
        for level in range(1, len(sizes)):
            parents = torch.from_numpy(self.tree.parents[self.tree.level_slice(level)]).long()
            self.register_buffer(f"parents_{level}", parents, persistent=False)

    def forward(self, features: Tensor) -> list[Tensor]:
        """Log-probabilities per level, (batch, classes of the level) each."""
        raw = self.levels[0](self.dropout(features))
        found = [functional.log_softmax(raw, dim=1)]
        for layer, norm in zip(self.levels[1:], self.norms, strict=True):
            hidden = self.dropout(norm(self.nonlinear(raw)))
            raw = layer(torch.cat([hidden, features], dim=1))
            found.append(functional.log_softmax(raw, dim=1))
        return found

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
