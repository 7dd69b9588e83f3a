"""Scores texts with an ONNX graph: what serves encoder models, without torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from utils.decode import Floats
from utils.errors import UserError
from utils.tokenizer import TextTokenizer

MICRO_BATCH = 16
THREADS = "KTT_THREADS"
LOG_ERRORS = 3


def thread_count() -> int:
    """Threads per graph: what ``KTT_THREADS`` says, else the cores this process may use."""
    given = os.environ.get(THREADS, "")
    if given:
        if not given.isdecimal() or int(given) < 1:
            raise UserError(f"{THREADS}={given!r} is no number of threads. Give 1 or more.")
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """Open a graph on the CPU.

    Raises
    ------
    UserError
        The file is missing or no graph.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = thread_count()
    options.inter_op_num_threads = 1
    options.log_severity_level = LOG_ERRORS
    # Waiting threads sleep: several workers share the cores of a server.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's exceptions share no public base
        raise UserError(f"{path} cannot be opened: {str(error).splitlines()[0]}") from error


class OnnxScorer:
    """A graph (input_ids, attention_mask) → (scores, features) and its tokenizer."""

    def __init__(self, session: onnxruntime.InferenceSession, tokenizer: TextTokenizer) -> None:
        self._session = session
        self._tokenizer = tokenizer
        self._widths = [int(output.shape[1]) for output in session.get_outputs()]

    @classmethod
    def load(cls, folder: Path, entry: dict[str, Any]) -> OnnxScorer:
        """Open what `write_scorer` of an encoder model wrote.

        Parameters
        ----------
        entry
            The manifest's: `file`, `tokenizer`, `max_len`, `pad_id`.
        """
        definition = (folder / entry["tokenizer"]).read_text(encoding="utf-8")
        tokenizer = TextTokenizer(definition, int(entry["max_len"]), int(entry["pad_id"]))
        return cls(open_session(folder / entry["file"]), tokenizer)

    def score(self, texts: Sequence[str]) -> tuple[Floats, Floats]:
        """Score texts, in order: scores (rows, columns) and pooled features (rows, features)."""
        rows = self._tokenizer(texts)
        scores, features = (
            np.empty((len(texts), width), dtype=np.float32) for width in self._widths
        )
        for batch in rows.batches(MICRO_BATCH):
            ids, mask = rows.padded(batch)
            scores[batch], features[batch] = self._session.run(
                ["scores", "features"], {"input_ids": ids, "attention_mask": mask}
            )
        return scores, features
