"""Where things lie: the one place that knows the project's folders."""

from __future__ import annotations

import os
import re
from pathlib import Path

from utils.common.errors import UserError
from utils.common.outputs import METRICS, PLOTS, REPORT, TENSORBOARD

PROJECT_ROOT = Path(__file__).resolve().parents[2]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def is_name(name: str) -> bool:
    """Whether it can safely be a folder's name."""
    return bool(_NAME.fullmatch(name))


def checked_name(kind: str, name: str) -> str:
    """Return `name` if it can safely be a folder's name, else raise `UserError`."""
    if not is_name(name):
        raise UserError(
            f"{kind} name {name!r} cannot be used: take up to 128 letters, digits, '.', '_' and "
            "'-', beginning with a letter or digit."
        )
    return name


def given_path(text: str | Path) -> Path:
    """A path as a person gives it, with the home folder for ``~``.

    Raises
    ------
    UserError
        No file can have it: it is too long, or the home of nobody.
    """
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).rstrip(".")
        raise UserError(f"Cannot read {text}: {reason}.") from error
    return path


class Layout:
    """The folders of one project.

    Parameters
    ----------
    root
        The project's root; without it the environment's ``KTT_ROOT``, else the folder of this
        toolkit, whatever the current folder is.
    fetch
        Whether what is missing is fetched where DVC has it.

    Raises
    ------
    UserError
        There can be no such root.
    """

    def __init__(self, root: Path | str | None = None, *, fetch: bool = True) -> None:
        self.fetch = fetch
        self.root = given_path(root or os.environ.get("KTT_ROOT") or PROJECT_ROOT).resolve()
        self.datasets = self.root / "datasets"
        self.weights = self.root / "weights"
        self.outputs = self.root / "outputs"
        self.build = self.root / "build"

    @property
    def hyperparameters(self) -> Path:
        """The root's own hyperparameters.json, else the one shipped with the toolkit."""
        own = self.root / "hyperparameters.json"
        return own if own.exists() else PROJECT_ROOT / "hyperparameters.json"

    def dataset(self, name: str) -> Path:
        """Folder of an intermediate dataset."""
        return self.datasets / checked_name("Dataset", name)

    def weight_dir(self, model: str, dataset: str) -> Path:
        """Folder of the checkpoints of one (model, dataset) pair."""
        return self.weights / checked_name("Model", model) / checked_name("Dataset", dataset)

    def output(self, model: str, dataset: str) -> Path:
        """Folder of the ONNX export of one pair, and of what tells how its training went."""
        return self.outputs / f"{checked_name('Model', model)}_{checked_name('Dataset', dataset)}"

    def report(self, model: str, dataset: str) -> Path:
        """The page about the newest training of one pair."""
        return self.output(model, dataset) / REPORT

    def metrics(self, model: str, dataset: str) -> Path:
        """Headline figures of the newest training of one pair, for other programs."""
        return self.output(model, dataset) / METRICS

    def plots(self, model: str, dataset: str) -> Path:
        """Folder of tables to plot of the newest training of one pair."""
        return self.output(model, dataset) / PLOTS

    def tensorboard(self, model: str, dataset: str, time: str) -> Path:
        """Folder of the event files of one run."""
        return self.output(model, dataset) / TENSORBOARD / time

    def bundle(self, model: str, dataset: str) -> Path:
        """Folder of the service bundle of one pair."""
        return self.build / f"{checked_name('Model', model)}_{checked_name('Dataset', dataset)}"

    def dataset_names(self) -> list[str]:
        """Names of the datasets that are there."""
        return sorted({path.parent.name for path in self.datasets.glob("[!.]*/hierarchy.json*")})
