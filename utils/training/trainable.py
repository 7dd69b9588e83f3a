"""What a training run needs of a model; every class of `models` has it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

if TYPE_CHECKING:
    import pyarrow as pa

    from utils.common.config import ModelConfig
    from utils.hierarchy.confidence import Calibration
    from utils.hierarchy.dataset import Split
    from utils.hierarchy.decode import Predictions
    from utils.hierarchy.tree import Hierarchy

Progress = Callable[[int, int], None]


class TrainedEpoch(Protocol):
    """What one epoch of `Trainable.fit` has led to."""

    @property
    def number(self) -> int:
        """Of the epoch, from 1."""

    @property
    def total(self) -> int:
        """Number of the last epoch."""

    @property
    def metrics(self) -> dict[str, float]:
        """Loss and validation metrics by name."""

    @property
    def is_best(self) -> bool:
        """Whether the model is better than after every epoch before."""

    @property
    def seconds(self) -> float:
        """Duration of the epoch with its validation."""


class Trainable(Protocol):
    """A model that can be trained, tested and saved."""

    name: ClassVar[str]
    resumable: ClassVar[bool]
    config: ModelConfig
    calibration: Calibration
    info: dict[str, Any]

    def __init__(self, hierarchy: Hierarchy, config: ModelConfig) -> None: ...

    def fit(
        self,
        train: Split,
        val: Split,
        *,
        epochs: int | None,
        seed: int,
        progress: Progress | None = None,
    ) -> Iterator[TrainedEpoch]:
        """Train, epoch by epoch."""

    def test(self, split: Split, progress: Progress | None = None) -> Predictions:
        """Answer the rows of a split."""

    def gen_reference_set(self, split: Split, progress: Progress | None = None) -> pa.Table:
        """Make the rows that monitoring compares with."""

    def save(self, path: Path, *, resumable: bool = True) -> None:
        """Write a checkpoint."""

    @classmethod
    def from_checkpoint(cls, path: Path, *, resumable: bool = False) -> Self:
        """Read a checkpoint."""
