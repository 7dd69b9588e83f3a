#!/usr/bin/env python
"""The model store: list, compare, label, move and remove what was trained."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from utils import cli
from utils.errors import UserError
from utils.store import Comparison, Entry, Store
from utils.store.info import BY, TEST
from utils.store.tags import parse_labels

FORMS = ("table", "json")
SHOWN = (BY, f"{TEST}{BY}")
LIST_EPILOG = """Examples:

\b
  python store.py list
  python store.py list --filter dataset=shop,label=team=nlp --sort test.leaf_macro_f1
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


def show_list(entries: list[Entry], sort: str | None) -> None:
    """Print the entries as a table."""
    shown = list(dict.fromkeys([*([sort] if sort else []), *SHOWN]))
    rows = [
        [
            entry.tag,
            _shown(", ".join([*([entry.info.name] if entry.info.name else []), *entry.aliases])),
            *(_figure(entry.info.figure(name)) for name in shown),
            cli.size(entry.bytes),
            _labels(entry),
        ]
        for entry in entries
    ]
    heads = [name.replace("_", " ").replace(".", " ") for name in shown]
    cli.say(f"{len(rows):,} models")
    cli.lines(["tag", "names", *heads, "size", "labels"], rows)
    for entry in entries:
        if entry.info.problem:
            cli.note(f"Warning: {entry.tag}: {entry.info.problem}")


def show_comparison(found: Comparison) -> None:
    """Print what two entries have in common and what they differ in."""
    tags = [str(entry.tag) for entry in found.entries]
    rows = [[name, *map(_figure, pair), _difference(*pair)] for name, pair in found.figures.items()]
    cli.table("Figures (test.… of the test rows, else validation)", ["", *tags, "more"], rows)
    for title, values in (("Settings", found.settings), ("Origin", found.origins)):
        lines = [
            [key, *("" if one is None else one for one in pair)] for key, pair in values.items()
        ]
        if lines:
            cli.table(f"{title} that differ", ["", *tags], lines)
        else:
            cli.say(f"{title}: the same")


def _figure(value: float | None) -> object:
    return "" if value is None else float(value)


def _labels(entry: Entry) -> str:
    return _shown(", ".join(f"{key}={value}" for key, value in entry.info.labels.items()))


def _shown(text: str) -> str:
    """A text that may have come from anywhere, without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _difference(one: float | None, other: float | None) -> object:
    return "" if one is None or other is None else f"{other - one:+.4f}"


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
    help="model=…, dataset=…, version=…, name=…, label=KEY or label=KEY=VALUE; all must hold.",
)  # fmt: skip
@click.option(
    "--sort", metavar="FIGURE",
    help="Best first: leaf_accuracy, test.leaf_macro_f1, nll, seconds, …  [default: by pair, time]",
)  # fmt: skip
@click.option("-o", "--output", type=click.Choice(FORMS), default="table", help="How to print it.")
def list_command(filters: tuple[list[str], ...], sort: str | None, output: str) -> None:
    """List the models."""
    found = Store().list([text for group in filters for text in group], sort)
    if output == "json":
        _say_json([entry.to_dict() for entry in found])
    else:
        show_list(found, sort)


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
        import yaml

        cli.say(yaml.safe_dump(entry.to_dict(), sort_keys=False, allow_unicode=True).rstrip())
    else:
        cli.say(str(getattr(entry, output)))


@main.command()
@click.argument("first")
@click.argument("second")
def compare(first: str, second: str) -> None:
    """Set two models side by side."""
    show_comparison(Store().compare(first, second))


@main.command()
@click.argument("tags", nargs=-1, required=True)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--with-aliases", is_flag=True, help="Also if aliases lead to it; they go too.")
def delete(tags: tuple[str, ...], yes: bool, with_aliases: bool) -> None:
    """Delete models with all that belongs to them."""
    store = Store()
    entries = [store.get(tag) for tag in tags]
    for tag, entry in zip(tags, entries, strict=True):
        if confirmed(entry, yes):
            exact = tag if tag.endswith(":best") else entry.tag
            gone = store.delete(exact, aliases=with_aliases)
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
        entry = Store().alias(tag, str(name))
        cli.say(f"{entry.model}_{entry.dataset}:{name} is {entry.tag} now")


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
    cli.say(f"{Store().pull(tag, remote).tag} is in the store")


def _say_json(values: Any) -> None:
    cli.say(json.dumps(values, ensure_ascii=False, indent=2))


if __name__ == "__main__":
    main()
