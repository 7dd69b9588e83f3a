"""Scores texts with a model's TorchScript: what serves encoder models on a GPU.

The archive is read by PyTorch's own reader of TorchScript, which runs no Python code of the file.
What TorchScript itself can do to files is refused before.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.common.errors import UserError
from utils.common.ragged import Rows, batches_of_cells
from utils.hierarchy.decode import Floats
from utils.inference.scorers import FrontEnd, front_end, thread_count

_FILES = re.compile(rb"\b(save|from_file)\b")
BATCHES = {"cpu": (64, 768), "cuda": (256, 16_384)}
"""Rows and tokens of a batch, padded, at most."""


def best_device() -> str:
    """The GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


class TorchScorer:
    """A front end and a script → (scores, features).

    Parameters
    ----------
    front
        Texts to rows.
    script
        Of a whole model, on the device.
    widths
        Columns of scores and of features.
    device
        ``"cuda"`` or ``"cpu"``.
    half
        Whether to compute in 16 bits.
    """

    def __init__(
        self, front: FrontEnd, script: Any, widths: Sequence[int], device: str, half: bool = False
    ) -> None:
        self._front, self._script, self._widths = front, script, widths
        self._device, self._half = device, half

    @classmethod
    def load(cls, folder: Path, entry: dict[str, Any], *, half: bool | None = None) -> TorchScorer:
        """Open an exported folder; `entry` is its manifest's `scorer`.

        Parameters
        ----------
        half
            Whether to compute in 16 bits; None: on a GPU, if the export found that no harm.
        """
        device = best_device()
        if device == "cpu":
            torch.set_num_threads(thread_count())
        wanted = device == "cuda" and bool(entry.get("half")) if half is None else half
        script = _open(folder / entry["file"], device)
        front = front_end(folder, entry)
        scorer = cls(front, script, entry["widths"], device, wanted)
        scorer.run(front.edge_rows())
        return scorer

    def encode(self, texts: Sequence[str]) -> Rows:
        """Turn texts into rows: all that happens before the script, and free of it."""
        return self._front(texts)

    def run(self, rows: Rows) -> tuple[Floats, Floats]:
        """Score rows, in order: scores (rows, columns) and pooled features (rows, features)."""
        scores, features = (np.empty((len(rows), w), dtype=np.float32) for w in self._widths)
        most, cells = BATCHES[self._device]
        for batch in batches_of_cells(rows.lengths, cells, most):
            scores[batch], features[batch] = self._run_batch(rows.inputs(batch))
        return scores, features

    def _run_batch(self, inputs: dict[str, Any]) -> list[Floats]:
        ids, mask = (
            torch.from_numpy(inputs[name]).to(self._device)
            for name in ("input_ids", "attention_mask")
        )
        with (
            torch.inference_mode(),
            # shapes change with every batch: what is compiled for one does not pay
            torch.jit.optimized_execution(False),  # type: ignore[attr-defined]
            torch.autocast(self._device, torch.float16, enabled=self._half),
        ):
            return [found.float().cpu().numpy() for found in self._script(ids, mask)]

    def score(self, texts: Sequence[str]) -> tuple[Floats, Floats]:
        """Score texts, in order: scores (rows, columns) and pooled features (rows, features)."""
        return self.run(self.encode(texts))


def _open(path: Path, device: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript as a whole
        try:
            _check_code(str(path))
            script: Any = torch.jit.load(str(path), map_location=device)  # type: ignore[no-untyped-call]
            return script.eval()
        except (RuntimeError, ValueError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise UserError(f"{path} cannot be opened: {reason}") from error


def _check_code(path: str) -> None:
    """Refuse TorchScript that writes or reads files; as its own reader finds it in the archive."""
    reader = torch._C.PyTorchFileReader(path)
    for name in reader.get_all_records():
        if name.startswith("code/") and _FILES.search(reader.get_record(name)):
            raise ValueError("its code would write or read files")
