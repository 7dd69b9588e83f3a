"""Blocks that two or more heads use: targets, pooling over the tree, the branched trunk."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.model_pytorch import EncoderConfig, Head
from utils.common.config import key
from utils.hierarchy.tree import Hierarchy, Ints

NONLINEARITIES: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


def log_sigmoid(logits: Tensor) -> Tensor:
    """Log of the sigmoid; finite for large negative logits in an exported graph too."""
    return -functional.softplus(-logits)


def target_matrix(codes: Tensor, offsets: Tensor, classes: int) -> Tensor:
    """Mark every class on a row's path.

    Parameters
    ----------
    codes
        Full-depth codes; shape (batch, depth).
    offsets
        First class of each level; shape (depth,).
    classes
        Number of classes over all levels.

    Returns
    -------
    Tensor
        1 on the path, 0 elsewhere; shape (batch, classes).
    """
    targets = torch.zeros(len(codes), classes, device=codes.device)
    return targets.scatter_(1, codes + offsets, 1.0)


class TargetHead(Head):
    """A head whose loss is defined on the target matrix, so on any number of paths per row."""

    offsets: Tensor

    def __init__(self, features: int, tree: Hierarchy, config: Any) -> None:
        super().__init__(features, tree, config)
        offsets = torch.from_numpy(tree.level_offsets[:-1])
        self.register_buffer("offsets", offsets, persistent=False)

    def loss(self, outputs: Any, codes: Tensor) -> Tensor:
        """Loss of each row, whose path is `codes`."""
        targets = target_matrix(codes, self.offsets, self.tree.class_count)
        return self.loss_on_targets(outputs, targets)

    @abstractmethod
    def loss_on_targets(self, outputs: Any, targets: Tensor) -> Tensor:
        """Loss of each row, (batch,); `targets` (batch, classes) are 1 on the row's paths."""


class Family(nn.Module):
    """Maximum and sum over the children of each class of one level.

    Parents are grouped by their number of children, rounded up to a power of two, so that each
    group is one rectangle and all of them have at most twice as many cells as there are children.

    Parameters
    ----------
    parents
        Code of each child's parent; shape (children,).
    count
        Number of parents, each of which has a child.
    """

    back: Tensor

    def __init__(self, parents: Ints, count: int) -> None:
        super().__init__()
        sizes = np.bincount(parents, minlength=count)
        ordered = np.append(np.argsort(parents, kind="stable"), len(parents))
        starts = np.cumsum(sizes) - sizes
        widths = 2 ** np.ceil(np.log2(sizes)).astype(np.int64)
        groups = [np.flatnonzero(widths == width) for width in np.unique(widths)]
        self.shapes = [(len(group), int(widths[group[0]])) for group in groups]
        for number, group in enumerate(groups):
            place = np.arange(widths[group[0]])
            inside = place < sizes[group, None]
            cells = ordered[np.where(inside, starts[group, None] + place, len(parents))]
            self._keep(f"cells_{number}", cells.ravel())
        self._keep("back", np.argsort(np.concatenate(groups)))

    def _keep(self, name: str, index: np.ndarray[Any, Any]) -> None:
        self.register_buffer(name, torch.from_numpy(index), persistent=False)

    def _rectangles(self, values: Tensor, pad: float) -> list[Tensor]:
        padded = functional.pad(values, (0, 0, 0, 1), value=pad)
        return [
            padded.index_select(0, getattr(self, f"cells_{number}")).reshape(*shape, -1)
            for number, shape in enumerate(self.shapes)
        ]

    def maximum(self, values: Tensor) -> Tensor:
        """(children, batch) to (parents, batch)."""
        parts = [part.amax(1) for part in self._rectangles(values, -math.inf)]
        return torch.cat(parts).index_select(0, self.back)

    def sum(self, values: Tensor) -> Tensor:
        """(children, batch) to (parents, batch)."""
        parts = [part.sum(1) for part in self._rectangles(values, 0.0)]
        return torch.cat(parts).index_select(0, self.back)


class TreePool(nn.Module):
    """Maximum and sum over the descendants of every class, level by level from below.

    Linear in classes, in time and in memory.
    """

    def __init__(self, tree: Hierarchy) -> None:
        super().__init__()
        self.sizes = list(tree.level_sizes)
        self.families = nn.ModuleList(
            Family(tree.parents[tree.level_slice(level)], tree.level_sizes[level - 1])
            for level in range(1, tree.depth)
        )

    def maximum(self, values: Tensor) -> Tensor:
        """max over D(i), class i itself included; (batch, classes) to (batch, classes)."""
        *upper, below = torch.split(values.t(), self.sizes)
        found = [below]
        for level in range(len(upper) - 1, -1, -1):
            family: Any = self.families[level]
            found.append(torch.maximum(upper[level], family.maximum(found[-1])))
        return torch.cat(found[::-1]).t()

    def leaf_maximum(self, values: Tensor) -> Tensor:
        """Maximum over the leaves of each class; (batch, leaves) to (batch, classes)."""
        found = [values.t()]
        for family in reversed(self.families):
            found.append(family.maximum(found[-1]))  # type: ignore[operator]
        return torch.cat(found[::-1]).t()

    def leaf_sum(self, values: Tensor) -> Tensor:
        """Sum over the leaves of each class; (batch, leaves) to (batch, classes)."""
        found = [values.t()]
        for family in reversed(self.families):
            found.append(family.sum(found[-1]))  # type: ignore[operator]
        return torch.cat(found[::-1]).t()


@dataclass(frozen=True, kw_only=True)
class BranchedConfig(EncoderConfig):
    """Hyperparameters of the branched trunk."""

    gamma_l: float = key(-0.1, low=-1.0, high=1.0, note="below 0: lower levels weigh more")
    lambda_l: float = key(1.0, low=0.0, note="weight of the levels' own losses")
    hidden_nonlinear: str = key("relu", choices=tuple(NONLINEARITIES))


class BranchedHead(Head):
    r"""One linear layer per level, fed by the level above and by the text.

    .. math::
        z_1 = W_1 d(x), \qquad z_h = W_h [d(LN(φ(z_{h-1}))) ; x]
    """

    Config: ClassVar[type[EncoderConfig]] = BranchedConfig
    config: BranchedConfig
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

    def forward(self, features: Tensor) -> list[Tensor]:
        """Raw outputs per level, (batch, classes of the level) each."""
        found = [self.levels[0](self.dropout(features))]
        for layer, norm in zip(self.levels[1:], self.norms, strict=True):
            hidden = self.dropout(norm(self.nonlinear(found[-1])))
            found.append(layer(torch.cat([hidden, features], dim=1)))
        return found
