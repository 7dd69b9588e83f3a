"""DB_AC_HMCNN: a sigmoid per class, made coherent by the tree within the network.

Giunchiglia & Lukasiewicz, "Coherent Hierarchical Multi-Label Classification Networks",
NeurIPS 2020.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.heads import NONLINEARITIES, TargetHead, TreePool, log_sigmoid
from models.model_pytorch import EncoderConfig, PyTorchModel
from utils.common.config import key


@dataclass(frozen=True, kw_only=True)
class CHMCNNConfig(EncoderConfig):
    """Hyperparameters of DB_AC_HMCNN."""

    dropout: float = key(0.7, low=0.0, high=0.99, note="between the head's layers")
    h_hidden_dim: int = key(512, low=1, high=65_536, note="units of each hidden layer")
    h_layer_count: int = key(3, low=1, high=100, note="linear layers, the last one included")
    h_nonlinear: str = key("relu", choices=tuple(NONLINEARITIES))


class CHMCNN(TargetHead):
    r"""Coherent hierarchical multi-label classifier.

    .. math::
        f = σ(linear layers), \qquad MCM_i = \max_{j ∈ D(i)} f_j

    where D(i) are the descendants of class i and i itself. The answer is MCM(f): no class is less
    probable than one below it. All of it is computed on logits, since σ is monotone.
    """

    Config: ClassVar[type[EncoderConfig]] = CHMCNNConfig
    config: CHMCNNConfig

    def build(self, features: int) -> None:
        """Make the layers."""
        hidden = [self.config.h_hidden_dim] * (self.config.h_layer_count - 1)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise([features, *hidden]):
            nonlinear = NONLINEARITIES[self.config.h_nonlinear]()
            layers += [nn.Linear(inputs, outputs), nonlinear, nn.Dropout(self.config.dropout)]
        last = nn.Linear([features, *hidden][-1], self.tree.class_count)
        # Start at about as many true classes as there are, one per level: from one half for each
        # of thousands, most of the first epoch would go into learning that.
        sizes = torch.tensor(self.tree.level_sizes)
        with torch.no_grad():
            last.bias.copy_(-sizes.log().repeat_interleave(sizes))
        self.layers = nn.Sequential(*layers, last)
        self.pool = TreePool(self.tree)

    def forward(self, features: Tensor) -> Tensor:
        """Logits of f; shape (batch, classes)."""
        logits: Tensor = self.layers(features)
        return logits

    def loss_on_targets(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """MCLoss: BCE((1 - y) MCM(f) + y MCM(y f), y), mean over classes.

        A true class is judged by its true descendants alone, so that a wrong one below it is never
        rewarded. Each class takes one of the two terms, so one logarithm is enough.
        """
        true = outputs.masked_fill(targets == 0, -math.inf)
        answer, true_answer = self.pool.maximum(torch.cat([outputs, true])).chunk(2)
        wrong = torch.where(targets > 0, -true_answer, answer)
        return functional.softplus(wrong).mean(dim=1)

    def scores(self, outputs: Tensor) -> Tensor:
        """Log of the answer MCM(f)."""
        return log_sigmoid(self.pool.maximum(outputs))


class DB_AC_HMCNN(PyTorchModel):
    """An encoder with a coherent hierarchical multi-label classifier."""

    head_class = CHMCNN
