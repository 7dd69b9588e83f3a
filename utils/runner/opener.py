"""What a runner loads: a trained pair, here or in a worker process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from utils.common.paths import Layout
    from utils.inference.pipeline import Source


@dataclass(frozen=True, kw_only=True)
class Opener:
    """Opens a trained pair; plain values, so that it can be sent to another process.

    Parameters
    ----------
    root
        The project's root.
    model, dataset
        The pair.
    time
        Of the run; None for the newest.
    runtime
        ``"onnx"``, ``"torch"``, or None for the quicker: see `utils.inference.sources`.
    fetch
        Whether what is missing is fetched where DVC has it.
    """

    root: Path
    model: str
    dataset: str
    time: str | None = None
    runtime: str | None = None
    fetch: bool = True

    def __call__(self) -> Source:
        """Open it.

        Raises
        ------
        UserError
            There is no such thing.
        """
        from utils.common.paths import Layout
        from utils.common.registry import model_class
        from utils.inference.sources import open_source

        return open_source(
            Layout(self.root, fetch=self.fetch), self.model, self.dataset, model_class,
            time=self.time, runtime=self.runtime,
        )  # fmt: skip


def opener(
    layout: Layout, model: str, dataset: str, time: str | None = None, runtime: str | None = None
) -> Opener:
    """Say what a runner shall open."""
    return Opener(
        root=layout.root, model=model, dataset=dataset, time=time, runtime=runtime,
        fetch=layout.fetch,
    )  # fmt: skip
