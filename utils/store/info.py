"""What the store knows about a run."""

from __future__ import annotations

import functools
import math
import platform
import re
import subprocess
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from utils.common.checkpoints import Run, checkpoint_meta
from utils.common.errors import UserError
from utils.common.files import is_plain, read_json
from utils.common.paths import PROJECT_ROOT
from utils.inference.manifest import versions

FORMAT = 1
BY = "leaf_accuracy"
"""The figure that `best` means: of the validation rows, which chose the checkpoint already. Test
figures stay a report: whoever chooses by them reports too much."""
TEST = "test."
"""Before the name of a test figure."""
LOWER = ("loss", "nll", "calibration_error", "calibration_error_raw", "seconds", "bytes")
"""Figures of which less is better."""
LIBRARIES = ("numpy", "numba", "torch", "transformers")
"""Those that a model's figures may depend on."""


@dataclass(frozen=True, kw_only=True)
class Info:
    """What is known of a run.

    Parameters
    ----------
    name
        Its own name, if it was given one.
    created
        When the training began.
    labels, metadata, signatures
        The user's words, JSON values and methods that a runner calls.
    metrics, validation
        Figures of the test and the validation rows, by name.
    hyperparameters
        The model's configuration.
    fingerprint, rows, text_columns
        Of the dataset: which rows it had, how many per split, from which columns.
    code, libraries, host, seed
        With what it was trained, and where.
    seconds
        How long the training took, validation included.
    problem
        Why nothing of this is known, or not what the user said, if so.
    """

    name: str | None = None
    created: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    signatures: dict[str, dict[str, Any]] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    validation: dict[str, float] = field(default_factory=dict)
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    rows: dict[str, int] = field(default_factory=dict)
    text_columns: list[str] = field(default_factory=list)
    code: dict[str, Any] = field(default_factory=dict)
    libraries: dict[str, str] = field(default_factory=dict)
    host: str = ""
    seed: int | None = None
    seconds: float | None = None
    problem: str = ""

    def figure(self, name: str) -> float | None:
        """A validation figure, ``test.…`` for one of the test, ``seconds``; None if unknown."""
        if name == "seconds":
            return self.seconds
        source = self.metrics if name.startswith(TEST) else self.validation
        found = source.get(name.removeprefix(TEST))
        return None if found is None or math.isnan(found) else found

    def figures(self) -> list[str]:
        """The names that `figure` knows."""
        return ["seconds", *self.validation, *(f"{TEST}{name}" for name in self.metrics)]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        values = {part.name: getattr(self, part.name) for part in fields(self)}
        if not self.problem:
            del values["problem"]
        return values

    @classmethod
    def from_dict(cls, values: Any, origin: str) -> Info:
        """Read what `to_dict` gave; fields that a newer version added are left out.

        Raises
        ------
        UserError
            It is something else.
        """
        if not isinstance(values, dict) or values.get("format", FORMAT) != FORMAT:
            raise UserError(f"{origin} is no entry of a store that this version of KTT reads.")
        known = {part.name for part in fields(cls)} - {"problem"}
        given = {key: value for key, value in values.items() if key in known}
        wrong = [key for key, value in given.items() if not (_fits(key, value) and is_plain(value))]
        if not wrong and not _are_signatures(given.get("signatures", {})):
            wrong = ["signatures"]
        if wrong:
            raise UserError(f"{origin} has no proper {wrong[0]!r}.")
        return cls(**given)


_KINDS: dict[str, Any] = {
    "name": str | None, "created": str, "fingerprint": str, "host": str,
    "seed": int | None, "seconds": int | float | None, "text_columns": list,
}  # fmt: skip
_VALUES: dict[str, Any] = {
    "labels": str, "signatures": dict, "metrics": int | float, "validation": int | float,
    "rows": int, "libraries": str,
}  # fmt: skip


def _fits(key: str, value: Any) -> bool:
    """Whether a field has a value of its kind; files come from anywhere."""
    if key in _KINDS:
        return isinstance(value, _KINDS[key])
    inner = _VALUES.get(key, object)
    return isinstance(value, dict) and all(isinstance(one, inner) for one in value.values())


def _are_signatures(values: Mapping[str, Mapping[str, Any]]) -> bool:
    if not values:
        return True
    from utils.runner.signatures import Signature

    try:
        return all(Signature.from_dict(one) for one in values.values())
    except UserError:
        return False


def is_better(metric: str, one: float, other: float) -> bool:
    """Whether `one` is the better figure."""
    return one < other if lower_is_better(metric) else one > other


def lower_is_better(metric: str) -> bool:
    """Whether less of a figure is better."""
    return metric.removeprefix(TEST) in LOWER


def entry_file(run: Run) -> str:
    """Name of the file that the store keeps beside a run's checkpoints."""
    return f"entry_{run.time}.json"


def read_info(run: Run) -> Info:
    """What is known of a run: the store's file, else what train.py wrote before there was one.

    Where the store's file is damaged, that has to do; it knows no name and no labels.
    """
    origin = run.folder / entry_file(run)
    try:
        if origin.exists():
            return Info.from_dict(read_json(origin), str(origin))
    except UserError as error:
        problem = (
            f"{error.message} Remove the file: what the checkpoint says counts then, without name "
            "and labels."
        )
        return replace(_measured(run), problem=problem)
    return _measured(run)


def _measured(run: Run) -> Info:
    """What train.py wrote about a run."""
    try:
        if run.metrics.exists():
            return info_of(read_json(run.metrics))
        checkpoint = run.last if run.last.exists() and not run.best.exists() else run.best
        if not checkpoint.exists():
            return Info(problem=f"{checkpoint.name} is not here; DVC fetches it when it is used")
        return info_of(checkpoint_meta(checkpoint))
    except (UserError, ArithmeticError, AttributeError, TypeError, ValueError) as error:
        return Info(problem=str(error))


def info_of(facts: Mapping[str, Any]) -> Info:
    """Make an entry of what stands in a checkpoint or in the figures beside it."""
    info = facts.get("info", {})
    history = info.get("history", [])
    seconds = [epoch["seconds"] for epoch in history if "seconds" in epoch]
    return Info.from_dict(
        {
            "created": info.get("started", ""),
            "metrics": facts.get("test", {}),
            "validation": info.get("val", {}),
            "hyperparameters": _in_force(facts.get("config", {}), info),
            "fingerprint": info.get("fingerprint", ""),
            "rows": info.get("rows", {}),
            "text_columns": info.get("text_columns", []),
            "code": info.get("code", {}),
            "libraries": info.get("versions", {}),
            "host": info.get("host", ""),
            "seed": info.get("seed"),
            "seconds": math.fsum(seconds) if seconds else None,
        },
        "The checkpoint",
    )


def _in_force(config: Any, info: Mapping[str, Any]) -> Any:
    """The configuration with the number of epochs that the command line asked for."""
    if isinstance(config, Mapping) and "epochs" in config and "epochs" in info:
        return {**config, "epochs": info["epochs"]}
    return config


def surroundings() -> dict[str, Any]:
    """Where a model is trained, and with which versions of the toolkit and of libraries."""
    return {"host": platform.node(), "code": dict(_code()), "versions": versions(LIBRARIES)}


@functools.cache
def _code() -> dict[str, Any]:
    """Version of the toolkit, and its commit where it lies in a git repository."""
    project = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found: dict[str, Any] = {"version": project["project"]["version"]}
    commit = _git("rev-parse", "--verify", "HEAD")
    if commit and re.fullmatch(r"[0-9a-f]{40,64}", commit):
        changed = _git("status", "--porcelain", "--untracked-files=no")
        found |= {"commit": commit, "changed": bool(changed)}
    return found


def _git(*arguments: str) -> str | None:
    """What git says about the toolkit's own folder, None if nothing."""
    if not (PROJECT_ROOT / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(PROJECT_ROOT), *arguments],
            capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout.strip()
