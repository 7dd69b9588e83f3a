"""Several processes that train one model together, through Hugging Face Accelerate.

``accelerate launch train.py …`` starts the processes, on one machine or several, each with one
device. The first one prints, validates and writes; the others only compute.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor, nn

Value = TypeVar("Value")

PATIENCE = timedelta(hours=12)  # the others wait while the first process tests a model


class Team:
    """The processes of this run: usually this one alone.

    Attributes
    ----------
    rank
        This process, from 0.
    size
        Number of processes.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size

    @property
    def leads(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    @cached_property
    def _accelerator(self) -> Accelerator:
        import torch
        from accelerate import Accelerator, InitProcessGroupKwargs

        patience = InitProcessGroupKwargs(timeout=PATIENCE)
        return Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[patience])

    def join(self) -> None:
        """Find the other processes and take a device; more calls do nothing."""
        if self.size > 1:
            assert self._accelerator.num_processes == self.size

    def together(self, module: nn.Module) -> nn.Module:
        """The module with gradients that are averaged over all processes."""
        prepared: nn.Module = self._accelerator.prepare(module) if self.size > 1 else module
        return prepared

    @contextmanager
    def apart(self, module: nn.Module, *, when: bool) -> Iterator[None]:
        """Inside, gradients pile up in each process on its own: others will follow."""
        if self.size > 1 and when:
            with self._accelerator.no_sync(module):
                yield
        else:
            yield

    def total(self, value: Tensor) -> Tensor:
        """Sum over all processes."""
        if self.size > 1:
            value = self._accelerator.reduce(value, reduction="sum")
        return value

    def told(self, value: Value) -> Value:
        """What the first process has as `value`; all must ask."""
        if self.size > 1:
            self.join()
            from accelerate.utils import broadcast_object_list

            value = broadcast_object_list([value])[0]
        return value


@lru_cache(maxsize=1)
def team() -> Team:
    """The team that the launcher set up, by the variables that every launcher sets."""
    return Team(rank=_number("RANK", 0), size=_number("WORLD_SIZE", 1))


def _number(variable: str, default: int) -> int:
    text: Any = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else default
