#!/usr/bin/env python
"""The model store: list, compare, label, move and remove what was trained."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from utils.common import cli
from utils.common.errors import UserError
from utils.common.text_table import printable
from utils.store import Comparison, Entry, Store, Tag
from utils.store.datasets import changes
from utils.store.info import BY, TEST
from utils.store.tags import parse_labels

FORMS = ("table", "json")
SHOWN = (BY, f"{TEST}{BY}")
COUNTS = ("rows", "bytes")
OPTIONAL = ("names", "labels", "dataset")  # columns of the list that are left out if empty
SAME = {True: "the same", False: "NOT the same", None: "not known"}
NONE_FITS = "0 models: no model fits all filters"
EMPTY = "0 models. train.py fills the store: python train.py -m MODEL -d DATASET"
CHANGED = """changed: not trained on what the dataset holds now (a large dataset: on what the
newest run here was trained on); such figures do not compare."""
OF_ROWS = {"metrics": "of the test rows", "validation": "of the validation rows"}
LIST_EPILOG = """Examples:

\b
  python store.py list
  python store.py list --filter label=team=nlp --sort test.leaf_macro_f1
  python store.py list -o json | jq -r '.[].tag'
"""
EPILOG = """A tag is MODEL_DATASET:VERSION. The version is the time of a run (or how it begins),
its name, an alias, 'latest' or 'best' (highest leaf accuracy on the validation rows); if it is
left out, 'latest'.

Examples:

\b
  python store.py list --sort leaf_accuracy
  python store.py get db_bhcn_shop:best
  python store.py alias db_bhcn_shop:best production
  python store.py export db_bhcn_shop:production s3://bucket/models/
"""


def show_list(entries: list[Entry], sort: str | None, others: set[Tag]) -> None:
    """Print the entries as a table, with a mark at those that were trained on `others` rows."""
    shown = list(dict.fromkeys([*([sort] if sort else []), *SHOWN]))
    columns: dict[str, list[object]] = {
        "tag": [entry.tag for entry in entries],
        "names": [", ".join(filter(None, [e.info.name, *e.aliases])) for e in entries],
        **{_head(name): [_figure(e.info.figure(name)) for e in entries] for name in shown},
        "size": [cli.size(entry.bytes) for entry in entries],
        "labels": [_labels(entry) for entry in entries],
        "dataset": ["changed" if entry.tag in others else "" for entry in entries],
    }
    used = {head: cells for head, cells in columns.items() if head not in OPTIONAL or any(cells)}
    cli.say(cli.counted(len(entries), "model"))
    cli.lines(list(used), list(zip(*used.values(), strict=True)))
    if others:
        cli.say(CHANGED)


def _head(figure: str) -> str:
    """A figure's name over a column: whose rows it is of."""
    if figure == "seconds":
        return figure
    rows = "test" if figure.startswith(TEST) else "val"
    return f"{rows} {figure.removeprefix(TEST).replace('_', ' ')}"


def show_comparison(found: Comparison, tags: Sequence[str]) -> None:
    """Print what entries have in common and what they differ in."""
    cli.say(f"Dataset: {SAME[found.same_dataset]}")
    pair = len(tags) == 2
    heads = [tag.replace(":", ": ", 1) if pair else str(n) for n, tag in enumerate(tags, 1)]
    if not pair:
        for head, tag in zip(heads, tags, strict=True):
            cli.say(f"{head:>{len(heads[-1])}}  {tag}")
    rows = [
        [
            name,
            *(_figure(one, name) for one in values),
            *([_difference(values[0], values[-1], name)] * pair),
        ]
        for name, values in found.figures.items()
    ]
    title = "Figures (test.… of the test rows, else validation)"
    cli.table(title, ["", *heads, *(["more"] * pair)], rows)
    if found.settings:
        cli.table("Settings that differ", ["", *heads], _rows(found.settings))
    else:
        cli.say("Settings: the same")
    versions = {"run": tuple(entry.version for entry in found.entries)}
    cli.table("Where they come from", ["", *heads], _rows(versions | dict(found.origins)))


def _rows(values: Mapping[str, tuple[Any, ...]]) -> list[list[object]]:
    return [[name, *map(_value, row)] for name, row in values.items()]


def _value(value: Any) -> object:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "" if value is None else value


def _figure(value: float | None, name: str = "") -> object:
    if value is None:
        return ""
    return int(value) if _is_count(name) else float(value)


def _is_count(name: str) -> bool:
    return name.removeprefix(TEST) in COUNTS


def _labels(entry: Entry) -> str:
    return printable(", ".join(f"{key}={value}" for key, value in entry.info.labels.items()))


def _warn(problem: str) -> None:
    cli.note(f"Warning: {printable(problem)}")


def _difference(one: float | None, other: float | None, name: str) -> object:
    if one is None or other is None:
        return ""
    return f"{other - one:+,.0f}" if _is_count(name) else f"{other - one:+.4f}"


def confirmed(entry: Entry, yes: bool) -> bool:
    """Whether to delete: told so, or asked.

    Raises
    ------
    UserError
        Nobody is there to ask.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        raise UserError(f"Nobody is there to ask whether to delete {entry.tag}: add -y.")
    return click.confirm(f"Delete {entry.tag} ({cli.size(entry.bytes)})?")


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-v", "--verbose", is_flag=True, help="Log what happens.")
def main(verbose: bool) -> None:
    """The store of trained models."""
    cli.start_logging(verbose)


@main.command("list", epilog=LIST_EPILOG)
@click.option(
    "--filter", "filters", type=cli.NameList(), multiple=True,
    metavar="KIND=…", help="What all must have: model=…, dataset=…, version=…, name=…, label=KEY "
    "or label=KEY=VALUE; several, comma-separated.",
)  # fmt: skip
@click.option(
    "--sort", metavar="FIGURE",
    help="Best first: leaf_accuracy, test.leaf_macro_f1, nll, seconds, …  [default: by pair, time]",
)  # fmt: skip
@click.option("-o", "--output", type=click.Choice(FORMS), default="table", help="How to print it.")
def list_command(filters: tuple[list[str], ...], sort: str | None, output: str) -> None:
    """List the models."""
    store = Store()
    wanted = [text for group in filters for text in group]
    found = store.list(wanted, sort, tell=_warn)
    marks = changes(store.layout, found)
    if output == "json":
        _say_json([entry.to_dict() | {"dataset_changed": marks[entry.tag]} for entry in found])
    elif found:
        show_list(found, sort, {tag for tag, changed in marks.items() if changed})
    else:
        cli.say(NONE_FITS if filters else EMPTY)


@main.command()
@click.argument("tag")
@click.option("--by", default=BY, show_default=True, help="The figure that 'best' means.")
@click.option(
    "-o", "--output", type=click.Choice(["yaml", "json", "tag", "path"]), default="yaml",
    show_default=True, help="What to print, and how.",
)  # fmt: skip
def get(tag: str, by: str, output: str) -> None:
    """Show all that is known of a model."""
    entry = Store().get(tag, by=by)
    if output == "json":
        _say_json(entry.to_dict())
    elif output == "yaml":
        cli.say(_yaml(entry.to_dict()))
    else:
        cli.say(str(getattr(entry, output)))


def _yaml(values: dict[str, Any]) -> str:
    """As YAML, with a word on which rows figures are of."""
    import yaml

    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True).rstrip()
    for name, words in OF_ROWS.items():
        text = re.sub(rf"^({name}:.*)$", rf"\1  # {words}", text, count=1, flags=re.MULTILINE)
    return text


@main.command()
@click.argument("tags", nargs=-1, required=True)
def compare(tags: tuple[str, ...]) -> None:
    """Set two models or more side by side."""
    if len(tags) < 2:
        raise click.UsageError("Give at least two tags to compare.")
    show_comparison(Store().compare(*tags), tags)


@main.command()
@click.argument("tags", nargs=-1, required=True)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--with-aliases", is_flag=True, help="Also if aliases lead to it; they go too.")
def delete(tags: tuple[str, ...], yes: bool, with_aliases: bool) -> None:
    """Delete models with all that belongs to them."""
    store = Store()
    for entry in [store.exact(tag) for tag in tags]:
        if confirmed(entry, yes):
            gone = store.delete(entry.tag, aliases=with_aliases)
            cli.say(f"Deleted {gone.tag}")
            if gone.aliases:
                cli.say(f"Gone with it: {', '.join(gone.aliases)}")


@main.command()
@click.argument("tag")
@click.argument("labels", nargs=-1, metavar="[KEY=VALUE]…")
@click.option("--remove", multiple=True, metavar="KEY", help="Remove this label.")
def label(tag: str, labels: tuple[str, ...], remove: tuple[str, ...]) -> None:
    """Set labels of a model, such as team=nlp, or remove them."""
    if not labels and not remove:
        raise click.UsageError("Give a label to set (KEY=VALUE) or --remove KEY.")
    entry = Store().label(tag, parse_labels(labels), remove)
    cli.say(f"{entry.tag}: {_labels(entry) or 'no labels'}")


@main.command()
@click.argument("tag")
@click.argument("name", required=False)
@click.option("--remove", is_flag=True, help="Remove the alias that TAG ends with.")
def alias(tag: str, name: str | None, remove: bool) -> None:
    """Let NAME lead to a model: db_bhcn_shop:best production. It can be moved later."""
    if bool(name) == remove:
        raise click.UsageError("Give TAG NAME to set an alias, or --remove MODEL_DATASET:NAME.")
    if remove:
        cli.say(f"Removed {tag}, which led to {Store().remove_alias(tag).tag}")
    else:
        store = Store()
        entry = store.get(tag)
        before = store.aliases(entry.model, entry.dataset).get(str(name), entry.version)
        entry = store.alias(tag, str(name))
        moved = f" (it was {before})" if before != entry.version else ""
        cli.say(f"{entry.model}_{entry.dataset}:{name} is {entry.tag} now{moved}")


@main.command("export")
@click.argument("tag")
@click.argument("target", default=".", metavar="[PATH-OR-URL]")
def export_command(tag: str, target: str) -> None:
    """Write a model as one file: into a folder (the default is this one), a file or a URL.

    URLs: file://, s3://, and with their packages what fsspec knows (gs://, sftp://, …).
    """
    cli.say(f"Exported {tag} to {Store().export_model(tag, target)}")


@main.command("import")
@click.argument("source", metavar="PATH-OR-URL")
@click.option("--skip-existing", is_flag=True, help="It is fine if it is here already.")
@click.option("--name", help="A name of your choice instead of the one that it had.")
def import_command(source: str, skip_existing: bool, name: str | None) -> None:
    """Put an exported model into the store, once all of it has been verified."""
    entry = Store().import_model(source, skip_existing=skip_existing, name=name)
    if entry.was_here:
        cli.say(f"{entry.tag} was here already; the archive is sound and nothing was copied")
    else:
        cli.say(f"{entry.tag} is in the store")


@main.command()
@click.argument("tag")
@click.option("--remote", help="Its name in store.json.  [default: its default, else DVC's]")
def push(tag: str, remote: str | None) -> None:
    """Copy a model to a remote; with an alias in TAG, that leads to it there from now on."""
    cli.say(f"Pushed {tag} to {Store().push(tag, remote)}")


@main.command()
@click.argument("tag")
@click.option("--remote", help="Its name in store.json.  [default: its default, else DVC's]")
def pull(tag: str, remote: str | None) -> None:
    """Copy a model from a remote, unless it is here already."""
    entry = Store().pull(tag, remote, tell=_warn)
    if entry.was_here:
        cli.say(f"{entry.tag} was here already; the remote's copy was not read")
    else:
        cli.say(f"{entry.tag} is in the store")


def _say_json(values: Any) -> None:
    cli.say(json.dumps(values, ensure_ascii=False, indent=2))


if __name__ == "__main__":
    cli.run(main)
