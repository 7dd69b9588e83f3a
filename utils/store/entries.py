"""One entry of the store: a run with what is known about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.common import dvc
from utils.common.checkpoints import Run
from utils.common.paths import Layout
from utils.common.registry import model_class
from utils.store.info import Info
from utils.store.objects import Objects
from utils.store.tags import Tag

if TYPE_CHECKING:
    from utils.runner import Runner, Signature

FIELDS = ("model", "dataset", "version", "name", "label")
"""What entries can be filtered by."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A run in the store.

    Parameters
    ----------
    model, dataset
        The pair.
    run
        Its files.
    info
        What is known about it.
    aliases, aliases_problem
        Names that lead here until they are moved; or why they are not known.
    layout
        The project's folders.
    was_here
        Whether it was here before it was imported or pulled.
    """

    model: str
    dataset: str
    run: Run
    info: Info
    aliases: tuple[str, ...] = ()
    aliases_problem: str = ""
    layout: Layout = field(compare=False)
    was_here: bool = field(default=False, compare=False)

    def __repr__(self) -> str:
        name = f", name={self.info.name!r}" if self.info.name else ""
        return f"{type(self).__name__}({str(self.tag)!r}{name})"

    @property
    def version(self) -> str:
        """The run's time, which no other run of the pair has."""
        return self.run.time

    @property
    def tag(self) -> Tag:
        """The tag that leads here for good."""
        return Tag(model=self.model, dataset=self.dataset, version=self.version)

    @property
    def problems(self) -> tuple[str, ...]:
        """What could not be read of it, and what to do about that."""
        own = f"{self.tag}: {self.info.problem}" if self.info.problem else ""
        return tuple(filter(None, (own, self.aliases_problem)))

    @property
    def path(self) -> Path:
        """The checkpoint."""
        only_last = self.run.last.exists() and not self.run.best.exists()
        return self.run.last if only_last else self.run.best

    @property
    def bytes(self) -> int | None:
        """Size of the checkpoint; None where DVC has yet to fetch it, or it cannot be reached."""
        try:
            return self.path.stat().st_size
        except OSError:
            return None

    @property
    def custom_objects(self) -> Objects:
        """What was kept beside the model, by name."""
        return Objects(self.run.folder / f"objects_{self.run.time}")

    @property
    def signatures(self) -> dict[str, Signature]:
        """The methods that a runner calls."""
        from utils.runner import DEFAULT_SIGNATURES, Signature

        own = {name: Signature.from_dict(values) for name, values in self.info.signatures.items()}
        return own or dict(DEFAULT_SIGNATURES)

    def load(self) -> Any:
        """The model, ready to answer.

        Raises
        ------
        UserError
            Its checkpoint is missing or damaged, or there is no such model any more.
        """
        dvc.ensure(self.layout, self.path)
        return model_class(self.model).from_checkpoint(self.path)

    def to_runner(self, *, runtime: str | None = None, **limits: Any) -> Runner:
        """A runner of this run.

        Parameters
        ----------
        runtime
            ``"onnx"``, ``"torch"``, or None for the quicker.
        limits
            ``max_batch_size``, ``max_latency_ms`` and ``workers`` of `utils.runner.Runner`.
        """
        from utils.runner import Runner, opener

        source = opener(self.layout, self.model, self.dataset, self.version, runtime)
        return Runner(str(self.tag), source, signatures=self.signatures, **limits)

    def matches(self, key: str, value: str) -> bool:
        """Whether one of `FIELDS` has a value; for a label ``key`` or ``key=value``."""
        if key == "label":
            name, sign, wanted = value.partition("=")
            found = self.info.labels.get(name)
            return found is not None and (not sign or found == wanted)
        if key == "name":
            return value == self.info.name or value in self.aliases
        return bool(getattr(self, key) == value)

    def to_dict(self) -> dict[str, Any]:
        """All that is known, as JSON values."""
        return {
            "tag": str(self.tag),
            "model": self.model,
            "dataset": self.dataset,
            "version": self.version,
            "aliases": list(self.aliases),
            "path": str(self.path),
            "bytes": self.bytes,
            **self.info.to_dict(),
            **({"problem": " ".join(self.problems)} if self.problems else {}),
            "signatures": {name: one.to_dict() for name, one in self.signatures.items()},
            "custom_objects": list(self.custom_objects),
        }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Entries side by side: values by name, one per entry."""

    entries: tuple[Entry, ...]
    figures: Mapping[str, tuple[float | None, ...]]
    settings: Mapping[str, tuple[Any, ...]]
    origins: Mapping[str, tuple[Any, ...]]

    @property
    def same_dataset(self) -> bool | None:
        """Whether all were trained on the same rows; None if that is not known."""
        prints = {entry.info.fingerprint for entry in self.entries}
        if len(prints - {""}) > 1:
            return False
        return None if "" in prints else True


def compare(entries: Sequence[Entry]) -> Comparison:
    """Set entries side by side; of settings and origins only what differs."""
    names = dict.fromkeys(name for entry in entries for name in entry.info.figures())
    return Comparison(
        entries=tuple(entries),
        figures={name: tuple(entry.info.figure(name) for entry in entries) for name in names},
        settings=_differing([_settings(entry) for entry in entries]),
        origins=_differing([_origin(entry) for entry in entries]),
    )


def _settings(entry: Entry) -> dict[str, Any]:
    found = _flat(entry.info.hyperparameters)
    found.pop("display_name", None)  # what reports call it
    return found


def _origin(entry: Entry) -> dict[str, Any]:
    info = entry.info
    found = {
        "model": entry.model, "dataset": entry.dataset, "dataset fingerprint": info.fingerprint,
        "text columns": info.text_columns, "rows": info.rows, "code": info.code,
        "seed": info.seed, "host": info.host, "bytes": entry.bytes,
        "library": info.libraries, "label": info.labels,
    }  # fmt: skip
    return _flat(found)


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Values within values under one name: ``rows train``."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, Mapping)
        found |= _flat(value, f"{before}{key} ") if inner else {f"{before}{key}": value}
    return found


def _differing(values: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    keys = dict.fromkeys(key for one in values for key in one)
    found = {key: tuple(one.get(key) for one in values) for key in keys}
    return {key: row for key, row in found.items() if any(cell != row[0] for cell in row)}
