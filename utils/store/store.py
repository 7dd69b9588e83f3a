"""The store: every command of store.py is a method here."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from utils.common import dvc
from utils.common.checkpoints import Run, checkpoint_meta, held, new_run, runs, trained_pairs
from utils.common.errors import UserError, unknown
from utils.common.files import read_json, scratch, staging, write_json
from utils.common.paths import Layout
from utils.store import archive, remotes
from utils.store.aliases import known_aliases, read_aliases, write_aliases
from utils.store.changes import locked, publish, remove
from utils.store.entries import Comparison, Entry, compare
from utils.store.info import (
    BY,
    FORMAT,
    Info,
    entry_file,
    info_of,
    read_info,
    surroundings,
)
from utils.store.objects import write_objects
from utils.store.remote_runs import Shelf
from utils.store.remotes import Place
from utils.store.selection import Entries, parse_filter, resolved, sorted_by
from utils.store.tags import (
    BEST,
    Tag,
    checked_label,
    checked_version,
    parse_tag,
)
from utils.store.transfer import archived, verified
from utils.store.user_info import check_mappings, check_methods, check_model, merged, said


class Store:
    """The trained models of a project.

    Parameters
    ----------
    layout
        The project's folders; without them those of `Layout()`.
    """

    def __init__(self, layout: Layout | None = None) -> None:
        self.layout = layout or Layout()

    # -- looking ------------------------------------------------------------------------------

    def list(
        self,
        filters: Iterable[str] = (),
        sort: str | None = None,
        *,
        tell: Callable[[str], None] = lambda problem: None,
    ) -> Entries:
        """All entries, pair by pair and oldest first.

        Parameters
        ----------
        filters
            ``key=value`` for model, dataset, version or name, ``label=key`` or
            ``label=key=value``; all of them must hold.
        sort
            A figure, such as ``leaf_accuracy`` (of the validation rows) or
            ``test.leaf_macro_f1``: best first, those without it last.
        tell
            Is told each file that cannot be read: what stands in it fits no filter.
        """
        wanted = [parse_filter(text) for text in filters]
        pairs = [
            (model, dataset)
            for model, dataset in trained_pairs(self.layout)
            if all({"model": model, "dataset": dataset}.get(k, v) == v for k, v in wanted)
        ]
        found = [entry for pair in pairs for entry in self._entries(*pair)]
        for problem in dict.fromkeys(text for entry in found for text in entry.problems):
            tell(problem)
        found = [entry for entry in found if all(entry.matches(*one) for one in wanted)]
        return found if sort is None else sorted_by(found, sort)

    def get(self, tag: str | Tag, *, by: str = BY) -> Entry:
        """The entry that a tag leads to.

        Parameters
        ----------
        by
            The figure that ``best`` means: by default leaf accuracy on the validation rows.

        Raises
        ------
        UserError
            It leads nowhere.
        """
        wanted = self._parsed(tag)
        entries = self._entries(wanted.model, wanted.dataset)
        if not entries:
            raise self._untrained(wanted)
        return resolved(entries, wanted, by)

    def _untrained(self, wanted: Tag) -> UserError:
        pairs = [f"{model}_{dataset}" for model, dataset in trained_pairs(self.layout)]
        close = difflib.get_close_matches(f"{wanted.model}_{wanted.dataset}", pairs, n=1)
        hint = f"Did you mean {close[0]!r}? Else train" if close else "Train"
        return UserError(
            f"There are no weights of {wanted.model} for {wanted.dataset!r} in the store. {hint} "
            f"them: python train.py -m {wanted.model} -d {wanted.dataset}"
        )

    def load_model(self, tag: str | Tag) -> Any:
        """The model that a tag leads to, ready to answer."""
        return self.get(tag).load()

    def compare(self, *tags: str | Tag) -> Comparison:
        """Two entries or more side by side."""
        return compare([self.get(tag) for tag in tags])

    def _parsed(self, tag: str | Tag) -> Tag:
        return tag if isinstance(tag, Tag) else parse_tag(tag, self.layout)

    def _entries(self, model: str, dataset: str) -> Entries:
        """Entries of a pair, oldest first; one that goes meanwhile is left out."""
        aliases, problem = known_aliases(self.layout.weight_dir(model, dataset))
        found = [
            Entry(
                model=model, dataset=dataset, run=run, info=read_info(run), layout=self.layout,
                aliases=tuple(sorted(name for name, time in aliases.items() if time == run.time)),
                aliases_problem=problem,
            )
            for run in runs(self.layout, model, dataset)
        ]  # fmt: skip
        if not any(entry.info.problem for entry in found):
            return found
        still = {run.time for run in runs(self.layout, model, dataset)}
        return [entry for entry in found if not entry.info.problem or entry.version in still]

    # -- saving -------------------------------------------------------------------------------

    def save_model(
        self,
        model: Any,
        dataset: str | None = None,
        *,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        signatures: Mapping[str, Any] | None = None,
        custom_objects: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> Entry:
        """Put a trained model into the store; it appears whole or not at all.

        Parameters
        ----------
        model
            A `models.model.Model`.
        dataset
            What it was trained on; without it what its `info` says.
        name
            Of your own choice; tags with it lead here.
        labels, metadata
            Words to find it by, and JSON values to keep with it.
        signatures
            Methods that a runner calls, as `utils.runner.Signature` or their JSON values.
        custom_objects
            Text, bytes, arrays and JSON values to keep beside it, by name.
        metrics
            Figures of the test rows.
        """
        check_model(model)
        dataset = dataset or model.info.get("dataset")
        if not dataset:
            raise UserError("Say which dataset the model was trained on: save_model(model, NAME).")
        self.check_name(model.name, dataset, name)
        made = said(name, labels, metadata, signatures)
        check_methods(made.signatures)
        check_mappings(custom_objects=custom_objects, metrics=metrics)
        with (
            staging(self.layout.weight_dir(model.name, dataset)) as staged,
            new_run(self.layout, model.name, dataset) as run,
        ):
            place = Run(folder=staged, time=run.time)
            model.info = surroundings() | model.info | {"dataset": dataset}
            model.save(place.best)
            known = info_of(checkpoint_meta(place.best) | {"test": dict(metrics or {})})
            _write(place, merged(known, made))
            if custom_objects:
                write_objects(staged / f"objects_{run.time}", custom_objects)
            self._publish(run, staged, model.name, dataset, name)
        return self.get(Tag(model=model.name, dataset=dataset, version=run.time))

    def register(
        self,
        model: str,
        dataset: str,
        time: str,
        *,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Entry:
        """Write down what is known of a run that train.py has just finished.

        What a user said about it before, as it was begun or resumed, stays where nothing new is
        said.
        """
        run = Run(folder=self.layout.weight_dir(model, dataset), time=time)
        with locked(self.layout):
            self._check_free(model, dataset, name, besides=time)
            facts = read_json(run.metrics) if run.metrics.exists() else checkpoint_meta(run.best)
            old = read_info(run) if (run.folder / entry_file(run)).exists() else Info()
            given = said(name or old.name, old.labels | dict(labels or {}), old.metadata,
                               old.signatures)  # fmt: skip
            _write(run, merged(info_of(facts), given))
        return self.get(Tag(model=model, dataset=dataset, version=time))

    def check_name(self, model: str, dataset: str, name: str | None) -> None:
        """Refuse a name that cannot be, or that another run or an alias of the pair has."""
        self._check_free(model, dataset, name)

    def _check_free(
        self, model: str, dataset: str, name: str | None, besides: str | None = None
    ) -> None:
        if name is None:
            return
        checked_version("Run", name)
        self.aliases(model, dataset)  # if they cannot be read, nobody knows whether it is free
        for entry in self._entries(model, dataset):
            if entry.info.problem and (entry.run.folder / entry_file(entry.run)).exists():
                self._check_known(entry)  # its name may be this one
            if entry.version != besides and name in (entry.info.name, *entry.aliases):
                raise UserError(
                    f"{name!r} is {entry.tag} already. Choose another name, or an alias, which "
                    "can be moved: python store.py alias TAG NAME"
                )

    def _publish(self, run: Run, staged: Path, model: str, dataset: str, name: str | None) -> None:
        with locked(self.layout):
            self._check_free(model, dataset, name)
            publish(run, staged)

    # -- changing -----------------------------------------------------------------------------

    def delete(self, tag: str | Tag, *, aliases: bool = False) -> Entry:
        """Remove a run with all that belongs to it.

        Parameters
        ----------
        aliases
            Whether to remove the aliases that lead to it too; without this it is refused where
            there are any, as what uses them would find nothing or, worse, something else.

        Returns
        -------
        Entry
            What was there.

        Raises
        ------
        UserError
            Aliases lead to it, or it is being trained.
        """
        with locked(self.layout):
            entry = self.exact(tag)
            if entry.aliases and not aliases:
                raise UserError(
                    f"{entry.tag} is {' and '.join(map(repr, entry.aliases))}: move the alias "
                    "first (python store.py alias TAG NAME), or add --with-aliases."
                )
            kept = self.aliases(entry.model, entry.dataset)
            with held(entry.run):
                if entry.aliases:
                    left = {key: time for key, time in kept.items() if time != entry.version}
                    write_aliases(entry.run.folder, left)
                remove(entry.run)
        return entry

    def exact(self, tag: str | Tag) -> Entry:
        """An entry to be removed: not by a rule that may mean another one tomorrow, nor unsaid.

        Raises
        ------
        UserError
            The tag does not name it.
        """
        wanted = self._parsed(tag)
        if isinstance(tag, str) and not tag.partition(":")[2]:
            raise UserError(
                f"{tag!r} names no run: say which to delete, such as {self.get(wanted).tag}"
            )
        if wanted.version == BEST:
            raise UserError(
                f"{wanted} may be another one tomorrow: name what to delete, such as "
                f"{self.get(wanted).tag}"
            )
        return self.get(wanted)

    def label(self, tag: str | Tag, labels: Mapping[str, str], remove: Sequence[str] = ()) -> Entry:
        """Set labels of an entry, and remove others by their keys."""
        checked = dict(checked_label(*one) for one in labels.items())
        with locked(self.layout):
            entry = self.get(tag)
            for key in remove:
                if key not in entry.info.labels:
                    raise unknown("label", key, entry.info.labels)
            kept = {key: val for key, val in entry.info.labels.items() if key not in remove}
            self._check_known(entry)
            _write(entry.run, replace(entry.info, labels=kept | checked))
        return self.get(entry.tag)

    def _check_known(self, entry: Entry) -> None:
        if entry.info.problem:
            raise UserError(f"{entry.tag} has to be read for that: {entry.info.problem}")

    def alias(self, tag: str | Tag, name: str) -> Entry:
        """Let a name of the pair lead to an entry from now on, wherever it led before."""
        checked_version("Alias", name)
        with locked(self.layout):
            entry = self.get(tag)
            for other in self._entries(entry.model, entry.dataset):
                if other.info.name == name:
                    raise UserError(f"{name!r} is the name of {other.tag}: choose another alias.")
            self._set_alias(entry, name)
        return self.get(entry.tag)

    def _set_alias(self, entry: Entry, name: str) -> None:
        known = self.aliases(entry.model, entry.dataset)
        write_aliases(entry.run.folder, known | {name: entry.version})

    def remove_alias(self, tag: str | Tag) -> Entry:
        """Remove the alias that a tag ends with.

        Returns
        -------
        Entry
            What it led to.
        """
        wanted = self._parsed(tag)
        with locked(self.layout):
            known = self.aliases(wanted.model, wanted.dataset)
            if wanted.version not in known:
                raise unknown("alias", wanted.version, known)
            entry = self.get(wanted)
            del known[wanted.version]
            write_aliases(entry.run.folder, known)
        return entry

    def aliases(self, model: str, dataset: str) -> dict[str, str]:
        """Time of the run that each alias of a pair leads to."""
        return read_aliases(self.layout.weight_dir(model, dataset))

    # -- archives -----------------------------------------------------------------------------

    def export_model(self, tag: str | Tag, target: str | Path = ".") -> str:
        """Write an entry as one file.

        Parameters
        ----------
        target
            A file, a folder, or a URL of either; one that ends with ``/`` is a folder.

        Returns
        -------
        str
            Where it is.
        """
        if not str(target):
            raise UserError("Say where to export to: a file, a folder or a URL.")
        entry, place = self._complete(tag), Place(url=str(target))
        if _is_folder(place):
            name = archive.archive_name(entry.model, entry.dataset, entry.version)
            place = place / name
        self._write_archive(entry, place)
        return str(place)

    def _complete(self, tag: str | Tag) -> Entry:
        """An entry with all that travels, also what DVC has yet to fetch."""
        entry = self.get(tag)
        run = entry.run
        dvc.ensure(self.layout, run.best, run.metrics, run.reference(run.best))
        entry = self.get(entry.tag)
        self._check_known(entry)
        return entry

    def _write_archive(self, entry: Entry, place: Place) -> None:
        files = archived(entry)
        with scratch() as folder:
            described = Run(folder=folder, time=entry.version)
            _write(described, entry.info)  # also of a run that was trained before there was a store
            files.append(described.folder / entry_file(described))
            with remotes.written(place) as path, path.open("wb") as to:
                archive.write_archive(entry.model, entry.dataset, entry.version, files, to)

    def import_model(
        self, source: str | Path, *, skip_existing: bool = False, name: str | None = None
    ) -> Entry:
        """Put an archive into the store once all of it has been verified.

        Parameters
        ----------
        source
            A file or a URL.
        skip_existing
            Whether it is fine if that very model is here already; the archive is verified all the
            same.
        name
            Instead of the one that it had; not for a model that is here.

        Raises
        ------
        UserError
            It was damaged or tampered with, it is here, or another run has its time or name.
        """
        place = Place(url=str(source))
        with remotes.opened(place) as (stream, size):
            return self._import(archive.Archive(stream, str(place), size), skip_existing, name)

    def _import(self, found: archive.Archive, skip_existing: bool, name: str | None) -> Entry:
        head = found.head
        run = Run(folder=self.layout.weight_dir(head.model, head.dataset), time=head.time)
        if self._is_here(head):
            if skip_existing:
                found.verify()
            return self._existing(head, skip_existing, name)
        with staging(run.folder) as staged:
            found.extract(staged)
            info = verified(staged, head)
            if name:
                info = replace(info, name=checked_version("Run", name))
            _write(Run(folder=staged, time=head.time), info)
            self._publish(run, staged, head.model, head.dataset, info.name)
        return self.get(head.tag)

    def _is_here(self, head: archive.Head) -> bool:
        return head.time in {run.time for run in runs(self.layout, head.model, head.dataset)}

    def _existing(self, head: archive.Head, skip: bool, name: str | None = None) -> Entry:
        """The entry that is here already, if it is the same."""
        entry, tag = self.get(head.tag), head.tag
        with entry.path.open("rb") as file:
            same = hashlib.file_digest(file, "sha256").hexdigest()
        if same != head.files[head.checkpoint].sha256:
            raise UserError(f"{tag} is here already, with other weights. Delete one of them first.")
        if not skip:
            raise UserError(f"{tag} is here already. Add --skip-existing if that is fine.")
        if name and name != entry.info.name:
            raise UserError(
                f"{tag} is here already, and only a new one is given a name: leave out --name, or "
                f"set an alias: python store.py alias {tag} {name}"
            )
        return replace(entry, was_here=True)

    # -- remotes ------------------------------------------------------------------------------

    def push(self, tag: str | Tag, remote: str | None = None) -> str:
        """Copy an entry to a remote; an alias in the tag leads to it there from now on.

        Parameters
        ----------
        remote
            Its name in store.json; None for the default, or for DVC's.

        Returns
        -------
        str
            Where it is.
        """
        wanted = self._parsed(tag)
        entry = self._complete(wanted)
        shelf = Shelf(remotes.remote(self.layout, remote), entry.model, entry.dataset)
        place = shelf.archive(entry.version)
        self._write_archive(entry, place)
        shelf.announce(entry, wanted.version if wanted.version in entry.aliases else None)
        return str(place)

    def pull(
        self,
        tag: str | Tag,
        remote: str | None = None,
        *,
        tell: Callable[[str], None] = lambda problem: None,
    ) -> Entry:
        """Copy an entry from a remote; what is here already is left as it is.

        The version may be a time, a name, ``latest``, ``best``, or an alias that was pushed, which
        then leads to it here too.

        Parameters
        ----------
        remote
            Its name in store.json; None for the default, or for DVC's.
        tell
            Is told what is damaged there and does not decide which entry is meant.
        """
        wanted = self._parsed(tag)
        shelf = Shelf(remotes.remote(self.layout, remote), wanted.model, wanted.dataset)
        entries, others = shelf.entries(self.layout, wanted.version)
        entry = resolved(entries, wanted, BY, others)
        for problem in (text for other in entries for text in other.problems):
            tell(problem)
        place = shelf.archive(entry.version)
        if entry.aliases:
            self.aliases(entry.model, entry.dataset)  # can be set only if they can be read
        with remotes.opened(place) as (stream, size):
            held = archive.Archive(stream, str(place), size)
            if held.head.tag != entry.tag:
                raise UserError(f"{place} is {held.head.tag}, not {entry.tag}: push it again.")
            if self._is_here(held.head):
                found = self._existing(held.head, True)  # without reading on
            else:
                found = self._import(held, True, None)
        if not entry.aliases:
            return found
        return replace(self.alias(found.tag, wanted.version), was_here=found.was_here)


def _write(run: Run, info: Info) -> None:
    write_json(run.folder / entry_file(run), {"format": FORMAT, **info.to_dict()})


def _is_folder(place: Place) -> bool:
    with suppress(OSError):  # a name that is too long: writing it says so
        return place.url.endswith("/") or bool(place.path and place.path.is_dir())
    return False
