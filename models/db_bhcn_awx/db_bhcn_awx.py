"""DB_BHCN_AWX: DB_BHCN's trunk with an adjacency wrapping matrix layer for an answer.

Masera & Blanzieri, "AWX: An Integrated Approach to Hierarchical-Multilabel Classification",
ECML-PKDD 2018.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.heads import BranchedConfig, BranchedHead, TargetHead, TreePool, log_sigmoid
from models.model_pytorch import EncoderConfig, PyTorchModel
from utils.common.config import key
from utils.hierarchy.tree import Hierarchy

TINY = 1e-37  # about the least positive float32 with all its digits
STEEPEST = 10.0  # gradient that one class may send to all its leaves together
LEAK = 1e-3


@dataclass(frozen=True, kw_only=True)
class BHCNAWXConfig(BranchedConfig):
    """Hyperparameters of DB_BHCN_AWX."""

    awx_norm: int = key(5, note="n of AWX: above 1 the n-norm, 1 the sum, 0 or less the maximum")


class AWX(nn.Module):
    r"""Probabilities of all classes from those of the leaves, ℓ = σ(z).

    .. math::
        n > 1: clip(Σ ℓ^n, 10^{-6}, 1 - 10^{-6})^{1/n}; \quad
        n = 1: \min(1 - 10^{-4}, Σ ℓ); \quad n ≤ 0: \max ℓ

    over the leaves of each class. Computed as logarithms.

    Parameters
    ----------
    tree
        The full-depth tree.
    norm
        n.
    """

    def __init__(self, tree: Hierarchy, norm: int) -> None:
        super().__init__()
        self.pool = TreePool(tree)
        self.norm = norm
        self.low, self.high = -math.inf, -TINY
        if norm == 1:
            self.high = math.log1p(-1e-4)
        elif norm > 1:
            self.low, self.high = math.log(1e-6) / norm, math.log1p(-1e-6) / norm

    def forward(self, raw: Tensor) -> Tensor:
        """Logarithms before they are clipped; (batch, leaves) to (batch, classes)."""
        if self.norm <= 0:
            return log_sigmoid(self.pool.leaf_maximum(raw))
        powers = torch.exp(self.norm * log_sigmoid(raw))
        return self.pool.leaf_sum(powers).clamp(min=TINY).log() / self.norm

    def clip(self, logs: Tensor) -> Tensor:
        """Logarithms of AWX's outputs, from what `forward` gives."""
        return logs.clamp(self.low, self.high)

    @torch.no_grad()
    def slack(self, raw: Tensor, logs: Tensor) -> Tensor:
        """How much the leaves' logits move a class's logarithm, all together: Σ ∂ log / ∂ z."""
        if self.norm <= 0:
            return -torch.expm1(logs)
        powers = torch.exp(self.norm * log_sigmoid(raw))
        return self.pool.leaf_sum(powers * torch.sigmoid(-raw)) / torch.exp(self.norm * logs)

    def bce(self, raw: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy of the outputs, mean over classes, per row.

        The value is that of the clipped outputs. The gradient would be zero where they are
        clipped: a true class below the floor (0.063 with n = 5) could not rise, and a wrong one
        over many leaves (more than 32 at ℓ = ½) could not fall. Therefore a true class does not
        feel the floor, nor a wrong one the ceiling. Just below the ceiling the gradient of
        -log(1 - p) is unbounded; it is cut at `STEEPEST`.
        """
        logs = self(raw)
        clipped = self.clip(logs.detach())
        capped = logs.clamp(max=self.high)
        slope = 1 / torch.expm1(-capped.detach())
        slope = slope.minimum(STEEPEST / self.slack(raw, logs).clamp(min=TINY))
        true = clipped + (capped - capped.detach())
        wrong = torch.log(-torch.expm1(clipped)) - slope * (logs - logs.detach())
        return -(targets * true + (1 - targets) * wrong).mean(dim=1)

    def first_bias(self) -> float:
        """A bias at which the class with most leaves starts in the middle of the range."""
        ones = torch.ones(1, self.pool.sizes[-1])
        most = float(self.pool.leaf_sum(ones).max())
        leaf = (0.5 / most) ** (1 / self.norm) if self.norm > 0 else 0.5
        return math.log(leaf / (1 - leaf)) if leaf < 0.5 else 0.0


class BHCNAWX(BranchedHead, TargetHead):
    """The branched trunk; the raw output of its last level goes through AWX.

    The loss is BCE(AWX, Y) + λ_l Σ w_h NLL(P_h, y_h). The last bias starts low, so that classes
    over many leaves do not start at AWX's ceiling.
    """

    Config: ClassVar[type[EncoderConfig]] = BHCNAWXConfig
    config: BHCNAWXConfig

    def build(self, features: int) -> None:
        """Make the trunk and AWX."""
        super().build(features)
        self.awx = AWX(self.tree, self.config.awx_norm)
        last = self.levels[-1]
        assert isinstance(last, nn.Linear)
        nn.init.constant_(last.bias, self.awx.first_bias())

    def loss_on_targets(self, outputs: list[Tensor], targets: Tensor) -> Tensor:
        """BCE(AWX, Y) + λ_l Σ w_h NLL(P_h, Y_h); of several paths the mean."""
        own = []
        per_level = torch.split(targets, self.awx.pool.sizes, dim=1)
        for raw, true in zip(outputs, per_level, strict=True):
            hits = (functional.log_softmax(raw, dim=1) * true).sum(dim=1)
            own.append(-hits / true.sum(dim=1))
        levels = self.weights @ torch.stack(own)
        return self.awx.bce(outputs[-1], targets) + self.config.lambda_l * levels

    def scores(self, outputs: list[Tensor]) -> Tensor:
        """Log of AWX's outputs; a thousandth of what was clipped tells apart what would tie."""
        logs = self.awx(outputs[-1])
        clipped = self.awx.clip(logs)
        return clipped + LEAK * (logs - clipped)


class DB_BHCN_AWX(PyTorchModel):
    """An encoder with a branched classifier under AWX."""

    head_class = BHCNAWX
