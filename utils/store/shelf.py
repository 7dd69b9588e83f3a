"""What a remote holds of one pair: an archive and a description of each run, and aliases."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from utils.checkpoints import Run, oldest_first
from utils.errors import UserError
from utils.files import write_json
from utils.paths import Layout
from utils.store import remotes
from utils.store.archive import ENDING
from utils.store.entries import Entry
from utils.store.info import FORMAT, Info
from utils.store.remotes import Place

_ALIAS = "alias_"
DESCRIPTION_BYTES = 1 << 20


@dataclass(frozen=True)
class Shelf:
    """The folder of a pair on a remote."""

    remote: Place
    model: str
    dataset: str

    @property
    def folder(self) -> Place:
        """Where it is."""
        return self.remote / self.model / self.dataset

    def archive(self, version: str) -> Place:
        """Where the archive of a run is, or belongs."""
        return self.folder / _file(version, ENDING)

    def announce(self, entry: Entry, alias: str | None) -> None:
        """Describe a run whose archive is there by now, and let an alias lead to it."""
        facts = {key: value for key, value in entry.to_dict().items() if key != "path"}
        _send(self.folder / _file(entry.version, ".json"), {"format": FORMAT, **facts})
        if alias:
            _send(self.folder / f"{_ALIAS}{alias}.json", {"version": entry.version})

    def entries(self, layout: Layout, version: str) -> tuple[list[Entry], list[str]]:
        """The runs that are there, oldest first, with `version` as their alias if it is one.

        Returns
        -------
        tuple
            The runs, and the names of the other aliases.

        Raises
        ------
        UserError
            There are none, or the remote cannot be read.
        """
        names = remotes.names(self.folder)
        alias = f"{_ALIAS}{version}.json"
        aliased = _fetch(self.folder / alias).get("version") if alias in names else None
        files = [name for name in sorted(names) if name.endswith(ENDING)]
        times = [_time(name) for name in files if _file(_time(name), ".json") in names]
        if not times:
            raise UserError(f"{self.folder} holds no {self.model}_{self.dataset}: push one first.")
        found = [
            Entry(
                model=self.model,
                dataset=self.dataset,
                run=Run(folder=layout.weight_dir(self.model, self.dataset), time=time),
                info=self._info(time),
                aliases=(version,) if time == aliased else (),
                layout=layout,
            )
            for time in oldest_first(times)
        ]
        others = [name for name in names if name.startswith(_ALIAS) and name != alias]
        return found, [name[len(_ALIAS) :].removesuffix(".json") for name in others]

    def _info(self, time: str) -> Info:
        place = self.folder / _file(time, ".json")
        return Info.from_dict(_fetch(place), str(place))


def _file(version: str, ending: str) -> str:
    """A name without colons, which some systems do not take."""
    return version.replace(":", "") + ending


def _time(name: str) -> str:
    """The run's time from the name of a file."""
    day, sign, clock = name.partition(".")[0].partition("T")
    return f"{day}{sign}{clock[:2]}:{clock[2:4]}:{clock[4:6]}"


def _send(place: Place, values: Mapping[str, Any]) -> None:
    with remotes.written(place) as path:
        write_json(path, values)


def _fetch(place: Place) -> dict[str, Any]:
    """Read a small JSON object of a remote."""
    with remotes.opened(place) as (stream, _):
        content = stream.read(DESCRIPTION_BYTES)
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{place} is damaged: push that model, or that alias, again.")
    return found
