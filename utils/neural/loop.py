"""Parts of a training loop that no model should write again."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from utils.common.checkpoints import TRAINING, Arrays
from utils.neural.distributed import Team

log = logging.getLogger(__name__)

WINDOW = 32  # batches that are sorted by length together
LOWER_IS_BETTER = ("nll", "loss")


@dataclass(kw_only=True)
class Run:
    """How far a training run has come; everything that decides what happens next.

    Parameters
    ----------
    seed
        Random numbers of an epoch depend on it and on the epoch's number alone.
    total
        Epochs in all.
    epoch
        Epochs done.
    best
        Figures of the best epoch so far, both to be maximised: the metric, and what breaks ties.
    stale
        Epochs since then.
    """

    seed: int
    total: int
    epoch: int = 0
    best: tuple[float, float] | None = None
    stale: int = 0

    def judge(self, metrics: dict[str, float], metric: str) -> bool:
        """Count an epoch and tell whether it is the best; equal ones are told apart by nll.

        Without validation figures the latest epoch counts as the best.
        """
        self.epoch += 1
        sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
        figures = (sign * metrics.get(metric, math.nan), -metrics.get("nll", math.nan))
        known = None if math.isnan(figures[0]) else figures
        if known is None or self.best is None or known > self.best:
            self.best, self.stale = known, 0
            return True
        self.stale += 1
        return False

    def ended(self, patience: int) -> bool:
        """Whether all epochs are done, or `patience` (0: endless) has run out."""
        return self.epoch >= self.total or (patience > 0 and self.stale >= patience)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Run:
        """Read what `dataclasses.asdict` gave, through JSON.

        Raises
        ------
        ValueError
            It says what no run can.
        """
        best = values["best"]
        run = cls(**{**values, "best": None if best is None else (float(best[0]), float(best[1]))})
        counts = (run.seed, run.total, run.epoch, run.stale)
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError(f"{run} is none")
        return run


def training_batches(
    lengths: NDArray[np.int64], size: int, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Every row once, shuffled, in batches of similar length so that little is padded."""
    order = rng.permutation(len(lengths))
    batches = []
    for start in range(0, len(order), WINDOW * size):
        window = order[start : start + WINDOW * size]
        window = window[np.argsort(lengths[window], kind="stable")]
        batches += [window[i : i + size] for i in range(0, len(window), size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def share_of(
    batch: NDArray[np.int64], size: int, team: Team
) -> tuple[list[NDArray[np.int64]], float]:
    """This process's rows of a batch, in parts of at most `size`.

    Returns
    -------
    parts
        At least one, never empty: all processes must take part in every step.
    weight
        0 where the rows are only there for that, else 1.
    """
    own = batch[team.rank :: team.size]
    if not len(own):
        return [batch[:1]], 0.0
    return [own[start : start + size] for start in range(0, len(own), size)], 1.0


def class_weights(codes: NDArray[np.integer[Any]], power: float) -> NDArray[np.float32]:
    """Weight of each row, (N / (C · N_c)) ** `power` for its class c; their mean is 1.

    Parameters
    ----------
    codes
        Last-level code of each row; shape (rows,).
    """
    _, inverse, counts = np.unique(codes, return_inverse=True, return_counts=True)
    weights = (len(codes) / (len(counts) * counts[inverse])) ** power
    return (weights / weights.mean()).astype(np.float32)


def learning_rate_factor(step: int, total: int, warmup: float) -> float:
    """Linear rise over the first share `warmup` of all steps, then linear fall to zero."""
    rise = max(1, round(total * warmup))
    if step < rise:
        return (step + 1) / rise
    return max(0.0, (total - step) / max(1, total - rise))


def make_optimizer(groups: list[tuple[nn.Module, float]], weight_decay: float) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of modules, each with its learning rate.

    Biases, normalisation weights and embedding tables are not decayed.
    """
    spared = nn.LayerNorm | nn.Embedding
    settings = []
    for module, rate in groups:
        decayed: list[nn.Parameter] = []
        kept: list[nn.Parameter] = []
        for part in module.modules():
            for name, parameter in part.named_parameters(recurse=False):
                if parameter.requires_grad:
                    keep = isinstance(part, spared) or name.endswith("bias")
                    (kept if keep else decayed).append(parameter)
        settings.append({"params": decayed, "peak": rate, "weight_decay": weight_decay})
        settings.append({"params": kept, "peak": rate, "weight_decay": 0.0})
    return torch.optim.AdamW([group for group in settings if group["params"]], fused=True)


def optimizer_arrays(optimizer: torch.optim.Optimizer) -> Arrays:
    """The optimiser's memory as named arrays."""
    return {
        f"{TRAINING}{index}/{key}": value.detach().cpu().numpy()
        for index, memory in optimizer.state_dict()["state"].items()
        for key, value in memory.items()
    }


def fill_optimizer(optimizer: torch.optim.Optimizer, arrays: Arrays) -> None:
    """Give an optimiser the memory that `optimizer_arrays` took.

    Raises
    ------
    ValueError
        It is not of its parameters.
    """
    memory: dict[int, dict[str, Tensor]] = {}
    for name, array in arrays.items():
        index, _, key = name.removeprefix(TRAINING).partition("/")
        value = torch.tensor(array)
        memory.setdefault(int(index), {})[key] = value.reshape(()) if key == "step" else value
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    for place, values in memory.items():
        wanted = parameters[place]
        moments = [values.get(key, values["step"]) for key in ("exp_avg", "exp_avg_sq")]
        if any((one.shape, one.dtype) != (wanted.shape, wanted.dtype) for one in moments):
            raise ValueError(f"what its optimiser knows of weight {place} does not fit")
    state = optimizer.state_dict()
    optimizer.load_state_dict({**state, "state": memory})


def best_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def bf16_is_fast(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 natively; elsewhere it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@contextmanager
def seeded(seed: int, *more: int) -> Iterator[None]:
    """Draw torch's random numbers from a seed inside the block; leave no trace after it."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(int(np.random.SeedSequence([seed, *more]).generate_state(1)[0]))
        yield
