"""Scores texts with exported ONNX graphs: what serves every model, without its framework."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime

from utils.common.errors import UserError
from utils.common.ragged import Rows, batches_of_cells
from utils.hierarchy.decode import Floats
from utils.inference.scorers import FrontEnd, front_end, thread_count

MICRO_BATCH = 64
BATCH_CELLS = 768
"""Texts are scored in batches of at most so many rows and cells: tokens, or TF-IDF features. Short
texts gain from neighbours, long ones from fitting the caches."""
LOG_NOTHING = 4
"""But what ends the process: everything else is an exception too."""

Session: TypeAlias = onnxruntime.InferenceSession


def open_session(path: Path) -> Session:
    """Open a graph on the CPU.

    Raises
    ------
    UserError
        The file is missing or no graph.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = thread_count()
    options.inter_op_num_threads = 1
    options.log_severity_level = LOG_NOTHING
    # Waiting threads sleep: several workers share the cores of a server.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return Session(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's exceptions share no public base
        raise UserError(f"{path} cannot be opened: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


class OnnxScorer:
    """A front end and a graph → (scores, features).

    Parameters
    ----------
    front
        Texts to rows.
    graphs
        Usually one; of several, each takes what the one before gives, by name.
    """

    def __init__(self, front: FrontEnd, *graphs: Session) -> None:
        self._front = front
        self._graphs = graphs
        self._widths = [int(output.shape[1]) for output in graphs[-1].get_outputs()]

    @classmethod
    def load(cls, folder: Path, entry: dict[str, Any]) -> OnnxScorer:
        """Open an exported folder; `entry` is its manifest's `scorer`."""
        front = front_end(folder, entry)
        scorer = cls(front, open_session(folder / entry["file"]))
        scorer.run(front.edge_rows())
        return scorer

    def encode(self, texts: Sequence[str]) -> Rows:
        """Turn texts into rows: all that happens before the graph, and free of it.

        May run in a thread of its own, ahead of `run`.
        """
        return self._front(texts)

    def run(self, rows: Rows) -> tuple[Floats, Floats]:
        """Score rows, in order: scores (rows, columns) and pooled features (rows, features)."""
        scores, features = (
            np.empty((len(rows), width), dtype=np.float32) for width in self._widths
        )
        for batch in self.batches(rows):
            scores[batch], features[batch] = self._run_graphs(rows.inputs(batch))
        return scores, features

    def batches(self, rows: Rows) -> Iterator[np.ndarray[Any, np.dtype[np.int64]]]:
        """Rows in batches of similar length."""
        return batches_of_cells(rows.lengths, BATCH_CELLS, MICRO_BATCH)

    def _run_graphs(self, inputs: dict[str, Any]) -> list[Any]:
        for graph in self._graphs:
            names = [output.name for output in graph.get_outputs()]
            try:
                outputs = graph.run(names, inputs)
            except Exception as error:  # the runtime's exceptions share no public base
                raise UserError(
                    f"The graph does not take what stands before it: {_first_line(error)}"
                ) from error
            inputs = dict(zip(names, outputs, strict=True))
        return [inputs["scores"], inputs["features"]]

    def score(self, texts: Sequence[str]) -> tuple[Floats, Floats]:
        """Score texts, in order: scores (rows, columns) and pooled features (rows, features)."""
        return self.run(self.encode(texts))
