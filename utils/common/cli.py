"""The one place that prints: tables, progress bars, plain lines when nobody watches."""

from __future__ import annotations

import logging
import math
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from utils.common.errors import UserError
from utils.common.streams import prepare_streams
from utils.common.text_table import TextTable, cell_width, lay_out, wrapped

PLAIN_WIDTH = 120  # columns of a table where there is no terminal
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


class Share(click.FloatRange):
    """A number in a range; "nan" is in none."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Read the number."""
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value} is no number", param, ctx)
        return number


tag_option = click.option(
    "--tag", metavar="MODEL_DATASET:VERSION",
    help="What the store calls it (see store.py), instead of -m, -d and the time.",
)  # fmt: skip


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


def width(unwatched: int | None) -> int | None:
    """Columns to print in: COLUMNS, the terminal's, or `unwatched` where there is none."""
    if os.environ.get("COLUMNS", "").isdecimal() or sys.stdout.isatty():
        return shutil.get_terminal_size().columns
    return unwatched


def say(message: str) -> None:
    """Print one line."""
    click.echo(message)


def text(message: str) -> None:
    """Print a sentence, in as many lines as a terminal needs for whole words."""
    room = width(None)
    click.echo(message if room is None else "\n  ".join(wrapped(message, room - 2)))


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
    """Print a table under its title; numbers are aligned right."""
    shown = _laid_out(columns, rows, PLAIN_WIDTH)
    lines = [*shown.heads, *shown.lines]
    rule = ["─" * max(map(cell_width, lines), default=0)] if shown.heads else []
    for line in wrapped(title, width(PLAIN_WIDTH) or PLAIN_WIDTH):
        click.secho(line, bold=True)
    click.echo("\n".join([*shown.heads, *rule, *shown.lines, ""]))


def lines(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table of any length; where there is no terminal, one line a row."""
    shown = _laid_out(columns, rows, None)
    click.echo("\n".join([*shown.heads, *shown.lines]))


def _laid_out(
    columns: Sequence[str], rows: Sequence[Sequence[object]], unwatched: int | None
) -> TextTable:
    return lay_out(columns, [[_cell(value) for value in row] for row in rows], width(unwatched))


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number of things: ``1 model``, ``1,000 models``, or `many` where an *s* is not enough."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


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
    """Show how many rows are done: a bar on a terminal, now and then a line elsewhere.

    Yields
    ------
    callable
        To be called with (rows done, rows in all).
    """
    if not sys.stdout.isatty():
        yield _plain_progress(description)
        return
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rows]}"),
        TimeElapsedColumn(), TimeRemainingColumn(), transient=True,
    )  # fmt: skip
    with bar:
        task = bar.add_task(description, total=None, rows="")

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, rows=f"{done:,}/{total:,} rows")

        yield update


def _plain_progress(description: str) -> Callable[[int, int], None]:
    last = time.monotonic()

    def update(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= PLAIN_INTERVAL:
            last = time.monotonic()
            click.echo(f"{description}: {done:,} of {total:,} rows", err=True)

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
    """A table that grows by a line per epoch.

    Figures for which a line has no room are left out; the report has them all.
    """

    def __init__(self) -> None:
        self.widths: dict[str, int] = {}

    def add(
        self, number: int, total: int, seconds: float, figures: dict[str, float], best: bool
    ) -> None:
        """Print one epoch, and the head before the first."""
        if not self.widths:
            self._begin(total, list(figures))
        cells = {"epoch": f"{number}/{total}", "seconds": f"{seconds:.1f}"}
        cells |= {name: _short(value) for name, value in figures.items()}
        self._print({**cells, "": "best" if best else ""})

    def _begin(self, total: int, figures: list[str]) -> None:
        self.widths = _epoch_widths(total, figures)
        heads = {name: wrapped(name.replace("_", " "), size) for name, size in self.widths.items()}
        for place in range(max(map(len, heads.values()))):
            self._print({name: "".join(parts[place : place + 1]) for name, parts in heads.items()})

    def _print(self, cells: Mapping[str, str]) -> None:
        parts = [f"{cells.get(name, ''):>{size}}" for name, size in self.widths.items()]
        click.echo("  ".join(parts).rstrip())


def _epoch_widths(total: int, figures: list[str]) -> dict[str, int]:
    """Widths of the columns: heads in one line, else word by word, else with fewer figures."""
    room = width(PLAIN_WIDTH) or PLAIN_WIDTH
    whole = {name: max(len(name), 7) for name in figures}
    words = {name: max([6, *map(len, name.split("_"))]) for name in figures}
    fewer = [dict(list(words.items())[:count]) for count in range(len(words), -1, -1)]
    for sizes in (whole, *fewer):
        widths = {"epoch": max(5, 2 * len(str(total)) + 1), **sizes, "seconds": 7, "": len("best")}
        if sum(widths.values()) + 2 * (len(widths) - 1) <= room:
            break
    return widths


def _short(value: float) -> str:
    """A figure in six characters."""
    return f"{round(value, 4) + 0.0:.4f}" if not value >= 10 else f"{value:#.5g}"


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
