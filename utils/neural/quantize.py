"""Graphs of encoders in int8, in two ways: the quickest, and one that is nearer to the model."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

BLOCK = 32
CONTRIB = "com.microsoft"
POOLED = "features"
"""What monitoring compares with figures of the model itself stays in float32."""
_INT8_PRODUCTS = 4  # accuracy_level of MatMulNBits: activations in int8 too


Written = tuple[list[onnx.NodeProto], list[onnx.TensorProto]]


def dynamic(source: Path, target: Path) -> None:
    """Weights of matrix products and embeddings in int8, activations with one scale per batch."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    nodes, logger = onnx.load(source).graph.node, logging.getLogger()
    level = logger.level
    # It recommends, through the root logger, a preprocessing that gained nothing here.
    logger.setLevel(logging.ERROR)
    try:
        quantize_dynamic(
            source,
            target,
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[node.name for node in nodes if POOLED in node.output],
        )
    finally:
        logger.setLevel(level)


def blockwise(source: Path, target: Path) -> None:
    """Weights and activations with a scale per 32 values: what is far out disturbs few others."""
    model = onnx.load(source)
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    made: dict[str, onnx.TensorProto] = {}
    for node in graph.node:
        tensor = weights.get(_weight_of(node))
        if tensor is None or len(tensor.dims) != 2 or tensor.data_type != TensorProto.FLOAT:
            nodes.append(node)
            continue
        write = _product if node.op_type == "MatMul" else _embedding
        replacements, tensors = write(node, tensor.name, numpy_helper.to_array(tensor))
        nodes += replacements
        made |= {tensor.name: tensor for tensor in tensors}
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*kept, *made.values()])
    model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
    onnx.save(model, target)


def _weight_of(node: onnx.NodeProto) -> str:
    """Name of what may be the weights of a matrix product or an embedding, else nothing."""
    if node.op_type == "MatMul" and POOLED not in node.output:
        return str(node.input[1])
    along = [attribute.i for attribute in node.attribute if attribute.name == "axis"]
    return str(node.input[0]) if node.op_type == "Gather" and along in ([], [0]) else ""


def _product(node: onnx.NodeProto, name: str, weights: NDArray[np.float32]) -> Written:
    rows, columns = weights.shape
    blocks = -(-rows // BLOCK)
    padded = np.zeros((blocks * BLOCK, columns), dtype=np.float32)
    padded[:rows] = weights
    cells = padded.reshape(blocks, BLOCK, columns)
    scales = _scales(np.abs(cells).max(axis=1))
    whole = np.rint(cells / scales[:, None]).astype(np.int16) + 128
    tensors = [
        _tensor(whole.transpose(2, 0, 1).astype(np.uint8), f"{name}_int8"),
        _tensor(scales.T.ravel(), f"{name}_scales"),
    ]
    inputs = [node.input[0], *(tensor.name for tensor in tensors)]
    product = helper.make_node(
        "MatMulNBits", inputs, list(node.output), name=node.name, domain=CONTRIB,
        K=rows, N=columns, bits=8, block_size=BLOCK, accuracy_level=_INT8_PRODUCTS,
    )  # fmt: skip
    return [product], tensors


def _embedding(node: onnx.NodeProto, name: str, table: NDArray[np.float32]) -> Written:
    """One scale per row."""
    scales = _scales(np.abs(table).max(axis=1, keepdims=True))
    whole = np.rint(table / scales).astype(np.int8)
    tensors = [_tensor(whole, f"{name}_int8"), _tensor(scales, f"{name}_scales")]
    out = node.output[0]
    nodes = [
        helper.make_node("Gather", [tensors[0].name, node.input[1]], [f"{out}_int8"], axis=0),
        helper.make_node("Gather", [tensors[1].name, node.input[1]], [f"{out}_scale"], axis=0),
        helper.make_node("Cast", [f"{out}_int8"], [f"{out}_whole"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{out}_whole", f"{out}_scale"], [out]),
    ]
    return nodes, tensors


def _scales(largest: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.where(largest > 0, largest / 127, 1).astype(np.float32)


def _tensor(array: NDArray[Any], name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(array), name)


def quantized(source: Path, target: Path) -> Iterator[dict[str, Any]]:
    """Write a graph in one way after the other, the quickest first.

    Yields
    ------
    dict
        What `target` now is, for the manifest.
    """
    for method in (dynamic, blockwise):
        method(source, target)
        yield {"type": "int8", "method": method.__name__}
