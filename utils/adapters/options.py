"""The options that the commands of adapt.py share, and how ``--help`` groups them."""

from __future__ import annotations

from typing import Any

import click

from utils.common import cli

GROUPS = {
    "text": "What to take", "classes": "What to take", "depth": "What to take",
    "delimiter": "What to take", "drop_names": "What to take", "parents": "What to take",
    "lookups": "What to take",
    "rename": "What to take", "fold": "What to take", "missing": "What to take",
    "gaps": "What to take", "several_paths": "What to take",
    "sep": "How the files are written", "encoding": "How the files are written",
    "quote": "How the files are written", "header": "How the files are written",
    "lines": "How the files are written", "records": "How the files are written",
    "sheet": "How the files are written", "header_row": "How the files are written",
    "config": "What to take",
    "min_class_size": "Which rows", "proportion": "Which rows", "keep_duplicates": "Which rows",
    "train_ratio": "How to split", "val_ratio": "How to split", "split_column": "How to split",
    "seed": "How to split",
}  # fmt: skip
OTHER = "Where it goes"


class GroupedCommand(click.Command):
    """A command whose options are listed by what they are for."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section per group."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            record = option.get_help_record(ctx)
            if record is not None and isinstance(option, click.Option):
                sections.setdefault(GROUPS.get(option.name or "", OTHER), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def _stacked(*decorators: Any) -> Any:
    def decorate(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


label_options = _stacked(
    click.option("-d", "--depth", type=int, help="Cut paths to this many levels.  [default: all]"),
    click.option(
        "--drop-names",
        metavar="REGEX",
        help=r"Take names that match out of their paths, such as '\.\.\.$' for truncated ones.",
    ),
    click.option(
        "--missing",
        metavar="NAMES",
        default="",
        help="Names that say that there is none, comma-separated, such as 'N/A,-'.",
    ),
    click.option(
        "--gaps",
        type=click.Choice(("drop", "close", "stop")),
        default="drop",
        show_default=True,
        help="Where a name is missing before another one: drop the row, close the gap, or let "
        "the path stop before it.",
    ),
    click.option(
        "--fold",
        metavar="KINDS",
        default="",
        help="Make names one that differ only in case, space, entities (&amp;), punctuation "
        "(typographic quotes, dashes), width (full-width forms) or letters (Cyrillic and Greek "
        "ones that look Latin); comma-separated. The most frequent spelling stays.",
    ),
    click.option(
        "--rename",
        metavar="FILE",
        help="A table of two columns: names or paths (with --delimiter, else ' > '), and what they "
        "become. An empty new name takes the label away.",
    ),
)
several_option = click.option(
    "--several-paths",
    type=click.Choice(("refuse", "first", "repeat", "drop", "join")),
    default="refuse",
    show_default=True,
    help="Labels that hold several paths or a set of names: take the first, repeat the row for "
    "each, drop the row, or join all into one path.",
)
row_options = _stacked(
    click.option(
        "--min-class-size",
        default=1,
        show_default=True,
        metavar="ROWS",
        help="Leave out paths with fewer rows.",
    ),
    click.option(
        "--proportion",
        default=1.0,
        show_default=True,
        metavar="SHARE",
        help="Use a share of the rows, taken evenly from all paths.",
    ),
    click.option(
        "--keep-duplicates", is_flag=True, help="Keep rows that repeat a text and its path."
    ),
)
split_options = _stacked(
    click.option(
        "--train-ratio",
        type=float,
        metavar="SHARE",
        help="Share of train.  [default: 0.8, or what twice --val-ratio leaves]",
    ),
    click.option(
        "--val-ratio",
        type=float,
        metavar="SHARE",
        help="Share of val; test gets the rest.  [default: half of what train leaves]",
    ),
    click.option("--seed", default=0, show_default=True, help="Decides the random split."),
)
target_options = _stacked(
    click.option("--force", is_flag=True, help="Replace a dataset that another command made."),
    cli.dvc_option,
)
