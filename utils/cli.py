"""The one place that prints: tables, progress bars, plain lines when nobody watches."""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from utils.errors import UserError, unknown
from utils.streams import prepare_streams

if TYPE_CHECKING:
    from rich.console import Console

    from utils.paths import Layout

PLAIN_INTERVAL = 15.0  # seconds between progress lines where there is no terminal


dvc_option = click.option(
    "--dvc/--no-dvc",
    default=None,
    help="Track what is written with DVC and fetch what is missing.  [default: if the root is a "
    "DVC repository in use]",
)
fetch_option = click.option(
    "--dvc/--no-dvc", default=None, help="Fetch what is missing where DVC has it.  [default: do]"
)


class NameList(click.ParamType[list[str]]):
    """A comma-separated list of names, each once."""

    name = "NAME[,NAME…]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[str]:
        """Split at commas."""
        if isinstance(value, list):
            return value
        names = [name.strip() for name in value.split(",") if name.strip()]
        if not names:
            self.fail("give at least one name", param, ctx)
        return list(dict.fromkeys(names))


tag_option = click.option(
    "--tag", metavar="MODEL_DATASET:VERSION",
    help="What the store calls it (see store.py), instead of -m, -d and the time.",
)  # fmt: skip


def chosen(
    layout: Layout, tag: str | None, model: str | None, dataset: str | None, time: str | None
) -> tuple[str, str, str | None]:
    """The model, dataset and time of a run that options name in one of two ways.

    Raises
    ------
    UserError
        In both; or the tag leads nowhere.
    """
    if tag is None:
        if model is None or dataset is None:
            missing = "'-m' / '--model'" if model is None else "'-d' / '--dataset'"
            raise click.UsageError(f"Missing option {missing} (or '--tag').")
        return model, dataset, time
    if model or dataset or time:
        raise UserError(f"--tag {tag} says which run it is: leave out -m, -d and the time.")
    from utils.store import Store

    entry = Store(layout).get(tag)
    return entry.model, entry.dataset, entry.version


def opened(
    options: dict[str, Any], models: Iterable[str]
) -> tuple[Layout, tuple[str, str, str | None]]:
    """The project, and the model, dataset and time that a command's options name.

    They are taken out of the options, which stay otherwise as they are.

    Raises
    ------
    UserError
        They name no run, or files cannot be fetched as they say.
    """
    from utils import dvc
    from utils.paths import Layout

    layout = Layout(fetch=options["dvc"] is not False)
    dvc.check(layout.root, options["dvc"])
    given = [options.pop(name) for name in ("tag", "model", "dataset", "time")]
    model, dataset, time = chosen(layout, *given)
    if model not in models:
        raise unknown("model", model, models)
    return layout, (model, dataset, time)


def run(command: Callable[[], object]) -> None:
    """Run a command as a program, whatever its standard streams are."""
    prepare_streams()
    try:
        try:
            command()
        finally:
            sys.stdout.flush()
    except UserError as error:  # about standard output itself
        error.show()
        sys.exit(error.exit_code)


def console() -> Console:
    """A console on standard output, 120 columns wide where it is no terminal."""
    from rich.console import Console

    watched = sys.stdout.isatty()
    return Console(width=None if watched else 120, highlight=False, soft_wrap=not watched)


def say(message: str) -> None:
    """Print one line."""
    click.echo(message)


def note(message: str) -> None:
    """Print one line about the work to standard error, away from data."""
    click.echo(message, err=True)


def show_error(error: Exception) -> None:
    """Print a user's mistake as a line, and a bug as a traceback, without ending the command."""
    if isinstance(error, click.ClickException):
        error.show()
    else:
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; the first column is aligned left, the others right."""
    from rich import box
    from rich.table import Table

    grid = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for place, column in enumerate(columns):
        if place:
            grid.add_column(column, justify="right", overflow="fold")
        else:
            grid.add_column(column, no_wrap=True)
    for row in rows:
        grid.add_row(*[_cell(value) for value in row])
    console().print(grid)


def lines(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table of any length quickly, one line a row whatever its width."""
    cells = [[str(column) for column in columns], *([_plain(x) for x in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [any(isinstance(row[place], float) for row in rows) for place in range(len(columns))]
    shown = []
    for row in cells:
        padded = zip(row, widths, right, strict=True)
        parts = [f"{cell:>{width}}" if end else f"{cell:<{width}}" for cell, width, end in padded]
        shown.append("  ".join(parts).rstrip())
    click.echo("\n".join(shown))


def _plain(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _cell(value: object) -> str:
    from rich.markup import escape

    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return escape(str(value))


def counted(number: int, one: str) -> str:
    """A number of things: ``1 model``, ``1,000 models``."""
    return f"{number:,} {one}{'' if number == 1 else 's'}"


def size(count: int | None) -> str:
    """A number of bytes as people read it, ``?`` if it is not known."""
    if count is None:
        return "?"
    number, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while number >= 1000 and len(units) > 1:
        number /= 1000
        del units[0]
    return f"{number:.{0 if units[0] == 'B' else 1}f} {units[0]}"


@contextmanager
def progress(description: str) -> Iterator[Callable[[int, int], None]]:
    """Show how far something is: a bar on a terminal, now and then a line elsewhere.

    Yields
    ------
    callable
        To be called with (done, total).
    """
    if not sys.stdout.isatty():
        yield _plain_progress(description)
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), console=console(), transient=True,
    )  # fmt: skip
    with bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _plain_progress(description: str) -> Callable[[int, int], None]:
    last = time.monotonic()

    def update(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= PLAIN_INTERVAL:
            last = time.monotonic()
            click.echo(f"{description}: {done:,} of {total:,}", err=True)

    return update


@contextmanager
def row_progress(description: str) -> Iterator[Callable[[int, float | None], None]]:
    """Show on standard error how many rows are done, however many there are.

    Yields
    ------
    callable
        To be called with the rows done and the share of the work that they are, if known.
    """
    if not sys.stderr.isatty():
        yield _plain_row_progress(description)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(),
        TextColumn("{task.fields[rows]:,} rows"), TimeElapsedColumn(), TimeRemainingColumn(),
        console=Console(stderr=True), transient=True,
    )  # fmt: skip
    with bar:
        task = bar.add_task(description, total=None, rows=0)

        def update(rows: int, part: float | None) -> None:
            total = None if part is None else 1.0
            bar.update(task, rows=rows, completed=part or 0.0, total=total)

        yield update


def _plain_row_progress(description: str) -> Callable[[int, float | None], None]:
    last = time.monotonic()

    def update(rows: int, part: float | None) -> None:
        nonlocal last
        if time.monotonic() - last >= PLAIN_INTERVAL:
            last = time.monotonic()
            share = "" if part is None else f" ({part:.0%})"
            note(f"{description}: {rows:,} rows{share}")

    return update


class EpochTable:
    """A table that grows by a line per epoch."""

    def __init__(self) -> None:
        self.columns: list[str] = []

    def add(
        self, number: int, total: int, seconds: float, figures: dict[str, float], best: bool
    ) -> None:
        """Print one epoch, and the head before the first."""
        if not self.columns:
            self.columns = list(figures)
            heads = ["epoch", *self.columns, "seconds", ""]
            click.echo("  ".join(f"{head:>{self._width(head)}}" for head in heads))
        cells = [
            f"{number}/{total}",
            *(f"{figures.get(name, float('nan')):.4f}" for name in self.columns),
        ]
        cells += [f"{seconds:.1f}", "best" if best else ""]
        heads = ["epoch", *self.columns, "seconds", ""]
        line = "  ".join(
            f"{cell:>{self._width(head)}}" for head, cell in zip(heads, cells, strict=True)
        )
        click.echo(line.rstrip())

    @staticmethod
    def _width(head: str) -> int:
        return max(len(head), 7)


def be_silent() -> None:
    """Print nothing from here on but errors: another process of the same run prints."""
    sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115


def start_logging(verbose: bool) -> None:
    """Send the toolkit's log to standard error: warnings, or everything if `verbose`."""
    logging.basicConfig(
        level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    for room in ("utils", "models"):
        logging.getLogger(room).setLevel(logging.INFO if verbose else logging.WARNING)
