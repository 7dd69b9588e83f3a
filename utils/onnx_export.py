"""ONNX graphs of encoder models, each compared with the model before it counts."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

from utils.errors import UserError

log = logging.getLogger(__name__)

OPSET = 17
OPSETS = range(11, 21)
FUSED_ATTENTION_OPSET = 14
TOLERANCE = 1e-4
SAMPLES = ((1, 5), (2, 16), (7, 5), (7, 16))
"""(batch, tokens) of the inputs that graphs are compared on."""


def check_opset(opset: int) -> None:
    """Refuse operator sets that torch cannot export to."""
    if opset not in OPSETS:
        raise UserError(
            f"--opset {opset} is not supported: take one from {OPSETS[0]} to {OPSETS[-1]}."
        )


def export_whole(network: nn.Module, path: Path, opset: int) -> None:
    """Write (input_ids, attention_mask) → (scores, features) as one graph, and check it.

    Parameters
    ----------
    network
        Has an `encoder` with a `transformer`; on the CPU, in eval mode.
    """
    token_axes = {0: "batch", 1: "sequence"}
    _export(
        network,
        _sample(network, *SAMPLES[-1]),
        path,
        {"input_ids": token_axes, "attention_mask": token_axes},
        ("scores", "features"),
        opset,
    )
    for batch, tokens in SAMPLES:
        inputs = _sample(network, batch, tokens)
        _compare(path, network, ("input_ids", "attention_mask"), inputs)


def export_parts(
    encoder: nn.Module, scoring: nn.Module, encoder_path: Path, scoring_path: Path, opset: int
) -> None:
    """Write the encoder, (input_ids, attention_mask) → features, and the classifier over it."""
    token_axes = {0: "batch", 1: "sequence"}
    names = ("input_ids", "attention_mask")
    _export(
        encoder,
        _sample(encoder, *SAMPLES[-1]),
        encoder_path,
        dict.fromkeys(names, token_axes),
        ("encoded",),
        opset,
    )
    with torch.inference_mode():
        encoded = encoder(*_sample(encoder, *SAMPLES[-1])).clone()
    _export(
        scoring, (encoded,), scoring_path, {"encoded": {0: "batch"}}, ("scores", "features"), opset
    )
    for batch, tokens in SAMPLES:
        inputs = _sample(encoder, batch, tokens)
        _compare(encoder_path, encoder, names, inputs)
        with torch.inference_mode():
            encoded = encoder(*inputs)
        _compare(scoring_path, scoring, ("encoded",), (encoded,))


def _sample(module: nn.Module, batch: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Token ids at random with masks of unequal length."""
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
    with _quiet(), _attention(module, opset), torch.no_grad():
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
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # The exporter is deprecated but complete, and warns of every shape it meets.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", TracerWarning)
        warnings.filterwarnings("ignore", module="torch.onnx")
        yield


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


def _compare(
    path: Path, module: nn.Module, names: Sequence[str], inputs: tuple[Tensor, ...]
) -> None:
    """Compare a graph's values and decisions with the module's.

    Raises
    ------
    RuntimeError
        They differ.
    """
    from utils.onnx_scorer import open_session

    with torch.inference_mode():
        found = module(*inputs)
    expected = [part.numpy() for part in (found if isinstance(found, tuple) else (found,))]
    session = open_session(path)
    given = session.run(
        None, {name: part.numpy() for name, part in zip(names, inputs, strict=True)}
    )
    for want, have in zip(expected, given, strict=True):
        gap = float(np.abs(want - have).max()) if want.shape == have.shape else np.inf
        if not gap <= TOLERANCE * max(1.0, float(np.abs(want).max())):
            raise RuntimeError(
                f"{path.name} differs from the model by {gap:.2g} on inputs of shape "
                f"{tuple(inputs[0].shape)}. It was not written."
            )
    log.info("%s agrees with the model on inputs of shape %s", path.name, inputs[0].shape)
