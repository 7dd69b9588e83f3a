"""ONNX graphs of encoder models."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

from utils.common.errors import UserError

FUSED_ATTENTION_OPSET = 14
TOKEN_AXES = {0: "batch", 1: "sequence"}


def export_whole(network: nn.Module, path: Path, opset: int) -> None:
    """Write (input_ids, attention_mask) → (scores, features) as one graph.

    Parameters
    ----------
    network
        Has an `encoder` with a `transformer`; on the CPU, in eval mode.
    """
    inputs = dict.fromkeys(("input_ids", "attention_mask"), TOKEN_AXES)
    _export(network, sample(network), path, inputs, ("scores", "features"), opset)


def export_parts(
    encoder: nn.Module, scoring: nn.Module, encoder_path: Path, scoring_path: Path, opset: int
) -> None:
    """Write the encoder, (input_ids, attention_mask) → encoded, and the classifier over it."""
    inputs = dict.fromkeys(("input_ids", "attention_mask"), TOKEN_AXES)
    _export(encoder, sample(encoder), encoder_path, inputs, ("encoded",), opset)
    with torch.inference_mode():
        encoded = encoder(*sample(encoder)).clone()
    _export(
        scoring, (encoded,), scoring_path, {"encoded": {0: "batch"}}, ("scores", "features"), opset
    )


def sample(module: nn.Module, batch: int = 7, tokens: int = 16) -> tuple[Tensor, Tensor]:
    """Token ids at random with masks of unequal length, to trace with."""
    encoder: Any = getattr(module, "encoder", module)
    vocabulary = encoder.transformer.config.vocab_size
    draw = np.random.default_rng([batch, tokens])
    ids = draw.integers(0, vocabulary, (batch, tokens))
    lengths = draw.integers(1, tokens + 1, batch)
    lengths[0] = tokens
    mask = np.arange(tokens) < lengths[:, None]
    return torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))


def _export(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    path: Path,
    input_axes: dict[str, dict[int, str]],
    outputs: Sequence[str],
    opset: int,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with _quiet(path, opset), _attention(module, opset), torch.no_grad():
        torch.onnx.export(
            module,
            inputs,
            path,
            input_names=list(input_axes),
            output_names=list(outputs),
            dynamic_axes={**input_axes, **{name: {0: "batch"} for name in outputs}},
            opset_version=opset,
            dynamo=False,  # the other exporter needs another package and opset 18
        )


@contextmanager
def _quiet(path: Path, opset: int) -> Iterator[None]:
    """Neither warnings nor pages of graph: what fails becomes the user's error, in one line."""
    with warnings.catch_warnings():
        # The exporter is deprecated but complete, and warns of every shape it meets.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", TracerWarning)
        warnings.filterwarnings("ignore", module="torch.onnx")
        try:
            yield
        except Exception as error:  # the exporter's errors share no base
            reason = (str(error).splitlines() or [""])[0]
            raise UserError(
                f"{path.name} cannot be written with --opset {opset}: "
                f"{type(error).__name__}: {reason}"
            ) from error


@contextmanager
def _attention(module: nn.Module, opset: int) -> Iterator[None]:
    """Older operator sets have no way to say fused attention."""
    transformer: Any = getattr(getattr(module, "encoder", module), "transformer", None)
    if transformer is None or opset >= FUSED_ATTENTION_OPSET:
        yield
        return
    before = transformer.config._attn_implementation
    transformer.set_attn_implementation("eager")
    try:
        yield
    finally:
        transformer.set_attn_implementation(before)
