"""TorchScript of encoder models, for services on a GPU."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.jit._trace import TracerWarning

from utils.neural.onnx_graph import sample


def export_script(network: nn.Module, path: Path) -> None:
    """Write (ids, mask) → (scores, features) as one TorchScript, for any device.

    Parameters
    ----------
    network
        Has an `encoder` with a `transformer`; on the CPU, in eval mode.
    """
    with _quiet(), torch.no_grad():
        script: Any = torch.jit.trace(  # type: ignore[no-untyped-call]
            network, sample(network), check_trace=False
        )
        _follow_inputs(script)
        torch.jit.save(script, str(path))


@contextmanager
def _quiet() -> Iterator[None]:
    """TorchScript is deprecated but complete, warns of every shape and looks at all attributes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)  # transformers has attributes that warn
        warnings.simplefilter("ignore", TracerWarning)
        yield


def _follow_inputs(script: Any) -> None:
    """Where the trace made tensors on the CPU, make them on the device of the inputs.

    A trace keeps devices as constants, which `map_location` does not change.
    """
    graph = script.graph
    torch._C._jit_pass_inline(graph)
    device = graph.create("prim::device", [list(graph.inputs())[1]], 1)
    device.output().setType(torch._C.DeviceObjType.get())
    graph.prependNode(device)
    for node in graph.findAllNodes("prim::Constant"):
        if node.output().type().kind() == "DeviceObjType":
            node.output().replaceAllUsesWith(device.output())
    torch._C._jit_pass_dce(graph)
