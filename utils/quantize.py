"""Graphs of encoders in int8: weights once, activations while they are computed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

QUANTIZATIONS = ("int8",)


def quantize_graph(source: Path, target: Path) -> dict[str, Any]:
    """Write a graph with the weights of its matrix products and embeddings in int8.

    Returns
    -------
    dict
        How, for the manifest.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logger = logging.getLogger()
    level = logger.level
    # It recommends, through the root logger, a preprocessing that gained nothing here.
    logger.setLevel(logging.ERROR)
    try:
        quantize_dynamic(source, target, per_channel=True, weight_type=QuantType.QInt8)
    finally:
        logger.setLevel(level)
    return {"type": "int8", "method": "dynamic", "per_channel": True}
