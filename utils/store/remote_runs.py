"""What a remote holds of one pair: an archive and a description of each run, and aliases."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from utils.common.checkpoints import Run, oldest_first
from utils.common.errors import UserError
from utils.common.files import write_json
from utils.common.paths import Layout
from utils.store import remotes
from utils.store.archive import ENDING
from utils.store.entries import Entry
from utils.store.info import FORMAT, Info
from utils.store.remotes import Place
from utils.store.tags import BEST, LATEST, is_time

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

        Only those are described that the version may mean: one where it is an alias, a time or
        the latest, else all.

        Returns
        -------
        tuple
            The runs, and the names of the other aliases.

        Raises
        ------
        UserError
            There are none, the remote cannot be read, or what is damaged may decide which run is
            meant.
        """
        names = remotes.names(self.folder)
        aliases = [name[len(_ALIAS) : -len(".json")] for name in names if _is_alias(name)]
        times = self._times(names)
        aliased = self._aliased(version, times) if version in aliases else None
        meant = _meant(version, times, aliased)
        infos = {time: self._info(time) for time in meant}
        problem = next((info.problem for info in infos.values() if info.problem), "")
        if problem and (version == BEST or len(meant) == 1):
            raise UserError(f"Which run {version!r} means cannot be told: {problem}")
        found = [
            Entry(
                model=self.model,
                dataset=self.dataset,
                run=Run(folder=layout.weight_dir(self.model, self.dataset), time=time),
                info=infos.get(time, Info()),
                aliases=(version,) if time == aliased else (),
                layout=layout,
            )
            for time in times
        ]
        return found, [name for name in aliases if name != version]

    def _times(self, names: list[str]) -> list[str]:
        """Times of the runs that are there whole, oldest first."""
        files = [name for name in names if name.endswith(ENDING)]
        times = [_time(name) for name in files if _file(_time(name), ".json") in names]
        if not times:
            raise UserError(f"{self.folder} holds no {self.model}_{self.dataset}: push one first.")
        return oldest_first(times)

    def _aliased(self, alias: str, times: list[str]) -> str:
        """The time of the run that an alias leads to."""
        place = self.folder / f"{_ALIAS}{alias}.json"
        time = _object(_content(place), place).get("version")
        if time not in times:
            raise UserError(f"{place} leads to no run that is there: push that alias again.")
        return str(time)

    def _info(self, time: str) -> Info:
        """What is known of a run, or why that is damaged."""
        place = self.folder / _file(time, ".json")
        content = _content(place)
        try:
            return Info.from_dict(_object(content, place), str(place))
        except UserError as error:
            return Info(problem=error.message)


def _is_alias(name: str) -> bool:
    return name.startswith(_ALIAS) and name.endswith(".json")


def _meant(version: str, times: list[str], aliased: str | None) -> list[str]:
    """The runs that a version may mean, by their times alone if these tell."""
    if aliased:
        return [aliased]
    if version == LATEST:
        return times[-1:]
    if is_time(version):
        begun = [time for time in times if time.startswith(version)]
        return begun if len(begun) == 1 else []
    return times


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


def _content(place: Place) -> bytes:
    """A small file of a remote."""
    with remotes.opened(place) as (stream, _):
        return stream.read(DESCRIPTION_BYTES)


def _object(content: bytes, place: Place) -> dict[str, Any]:
    """The JSON object that it is."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{place} is damaged: push that model, or that alias, again.")
    return found
