"""DB_AHMCN_F: a global and a local flow over features of a frozen encoder.

Wehrmann, Cerri & Barros, "Hierarchical Multi-Label Classification Networks", ICML 2018 (HMCN-F),
with LayerNorm for BatchNorm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.heads import NONLINEARITIES, TargetHead, log_sigmoid
from models.model_pytorch import EncoderConfig, PyTorchModel
from utils.common.config import key


@dataclass(frozen=True, kw_only=True)
class HMCNFConfig(EncoderConfig):
    """Hyperparameters of DB_AHMCN_F."""

    frozen: bool = key(True, note="keep the encoder as it is and train the head alone")
    classifier_lr: float = key(1e-3, above=0.0, note="peak learning rate of the head")
    dropout: float = key(0.25, low=0.0, high=0.99, note="of both flows")
    lambda_h: float = key(0.05, low=0.0, note="weight of children that outdo their parents")
    global_weight: float = key(0.5, low=0.0, high=1.0, note="share of the global flow in answers")
    global_hidden_dim: int = key(
        384, low=1, high=65_536, note="units of the global flow on each level"
    )
    local_hidden_dim: int = key(
        384, low=1, high=65_536, note="units of the local flow on each level"
    )
    hidden_nonlinear: str = key("relu", choices=tuple(NONLINEARITIES))


class Flows(NamedTuple):
    """Logits of the two flows, (batch, classes) each."""

    whole: Tensor
    local: Tensor


class HMCNF(TargetHead):
    r"""Hierarchical multi-label classification network, feed-forward.

    .. math::
        A_1 = φ(LN(W_1 x)), \quad A_h = φ(LN(W_h [A_{h-1} ; x])), \quad P_G = σ(W_G [A_H ; x])

        P_L^h = σ(V_h d(φ(LN(T_h A_h)))), \qquad P_F = β P_G + (1 - β) P_L

    with dropout behind every A_h.
    """

    Config: ClassVar[type[EncoderConfig]] = HMCNFConfig
    config: HMCNFConfig
    parents: Tensor
    level_shares: Tensor

    def build(self, features: int) -> None:
        """Make both flows' layers."""
        config, tree = self.config, self.tree
        wide, narrow = config.global_hidden_dim, config.local_hidden_dim
        inputs = [features, *[wide + features] * (tree.depth - 1)]
        self.flow = nn.ModuleList(self._layer(size, wide) for size in inputs)
        self.whole = nn.Linear(wide + features, tree.class_count)
        self.local = nn.ModuleList(
            nn.Sequential(self._layer(wide, narrow), nn.Linear(narrow, size))
            for size in tree.level_sizes
        )
        below = torch.from_numpy(tree.parents_global[tree.level_sizes[0] :]).long()
        self.register_buffer("parents", below, persistent=False)
        sizes = torch.tensor(tree.level_sizes)
        self.register_buffer("level_shares", (1 / sizes).repeat_interleave(sizes), persistent=False)

    def _layer(self, inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(inputs, outputs),
            nn.LayerNorm(outputs),
            NONLINEARITIES[self.config.hidden_nonlinear](),
            nn.Dropout(self.config.dropout),
        )

    def forward(self, features: Tensor) -> Flows:
        """Logits of both flows."""
        hidden = [self.flow[0](features)]
        for layer in self.flow[1:]:
            hidden.append(layer(torch.cat([hidden[-1], features], dim=1)))
        local = [part(above) for part, above in zip(self.local, hidden, strict=True)]
        whole = self.whole(torch.cat([hidden[-1], features], dim=1))
        return Flows(whole, torch.cat(local, dim=1))

    def loss_on_targets(self, outputs: Flows, targets: Tensor) -> Tensor:
        """BCE(P_G, Y) + Σ_h BCE(P_L^h, Y^h) + λ · violation; means over classes and over edges."""
        whole, local = (
            functional.binary_cross_entropy_with_logits(flow, targets, reduction="none")
            for flow in outputs
        )
        return (
            whole.mean(dim=1)
            + local @ self.level_shares
            + self.config.lambda_h * self.violation(outputs)
        )

    def violation(self, outputs: Flows) -> Tensor:
        """Mean over edges of max(0, P_F of the child - P_F of the parent)², per row."""
        beta = self.config.global_weight
        answer = beta * outputs.whole.sigmoid() + (1 - beta) * outputs.local.sigmoid()
        children = answer[:, self.tree.level_sizes[0] :]
        excess = functional.relu(children - answer.index_select(1, self.parents))
        return excess.square().sum(dim=1) / max(1, len(self.parents))

    def scores(self, outputs: Flows) -> Tensor:
        """Log of the answer P_F."""
        beta = self.config.global_weight
        whole, local = log_sigmoid(outputs.whole), log_sigmoid(outputs.local)
        top = torch.maximum(whole, local)
        share = beta * torch.exp(whole - top) + (1 - beta) * torch.exp(local - top)
        return top + share.clamp(min=1e-30).log()


class DB_AHMCN_F(PyTorchModel):
    """A frozen encoder with a hierarchical multi-label classification network."""

    head_class = HMCNF
