#!/usr/bin/env python
"""Answer the rows of a table with a trained model."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from models import MODELS
from utils.common import cli
from utils.common.errors import UserError
from utils.common.paths import Layout, given_path
from utils.inference.manifest import RUNTIMES
from utils.tables.dialect import separator
from utils.tables.formats import FORMATS, GZIP, format_of, open_output

if TYPE_CHECKING:
    from utils.inference.pipeline import Count

STANDARD = Path("-")
BATCH_ROWS = 512  # for a worker at once


def input_format(file: Path, given: str | None) -> str:
    """What the option says, else the file's ending, else JSON lines."""
    if given or file == STANDARD:
        return given or "jsonl"
    return format_of(file, "--input-format")


def destination(
    file: Path, output: Path | None, given: str | None, kind: str
) -> tuple[Path | None, str]:
    """Where to write (None for standard output), and in which format.

    Parameters
    ----------
    given
        The format asked for.
    kind
        The input's.
    """
    if STANDARD in (output, output or file):
        return None, given or "jsonl"
    if output:
        return output, given or format_of(output, "--format")
    name = Path(file.name.removesuffix(GZIP))
    ending = f".{given}" if given else name.suffix
    return file.with_name(f"{name.stem}.predictions{ending}"), given or kind


def predict(layout: Layout, model: str, dataset: str, file: Path, options: dict[str, Any]) -> None:
    """Answer a file and write the result."""
    from utils.inference.answers import AnswerOptions
    from utils.inference.pipeline import answer_rows
    from utils.inference.sources import text_columns
    from utils.inference.writing import open_writer
    from utils.runner import DEFAULT_SIGNATURES, Runner, opener
    from utils.tables.batches import ReadOptions
    from utils.tables.stream import open_rows

    read = input_format(file, options["input_format"])
    target, kind = destination(file, options["output"], options["format"], read)
    if target:
        target = given_path(target)
    wanted = AnswerOptions(
        column=options["column"], min_confidence=options["min_confidence"], top=options["top"]
    )
    written = ReadOptions(
        sep=options["sep"],
        encoding=options["encoding"],
        quote=options["quote"],
        header_row=options["header_row"],
    )
    path, text = None if file == STANDARD else given_path(file), options["text"] or ()
    trained = text_columns(layout, model, dataset, options["time"])
    runner = Runner(
        f"{model}_{dataset}",
        opener(layout, model, dataset, options["time"], options["runtime"]),
        signatures=DEFAULT_SIGNATURES,
        max_batch_size=BATCH_ROWS,
        workers=options["workers"],
    )
    with (
        open_rows(path, read, text=text, trained=trained, options=written) as rows,
        runner,
    ):
        source = runner.source
        cli.note(f"Answering {rows.name} ({', '.join(rows.text)}) with {source.description}")
        started = time.monotonic()
        output = open_output(target, named=options["output"] is not None)
        with output as stream, cli.row_progress("Predicting") as progress:
            count = answer_rows(source, rows, open_writer(stream, kind), wanted, progress)
    report(count, time.monotonic() - started, target)


def report(count: Count, seconds: float, target: Path | None) -> None:
    """Say what was done."""
    if count.without_text:
        cli.note(f"Warning: {count.without_text:,} of {count.rows:,} rows have no text: no answer")
    speed, place = count.rows / max(seconds, 1e-9), target or "standard output"
    cli.note(f"{cli.counted(count.rows, 'row')} in {seconds:.1f} s ({speed:,.0f}/s): {place}")


EPILOG = """Examples:

\b
  python predict.py -m tfidf_hsgd -d shop products.csv
  python predict.py -m db_bhcn -d shop products.csv -t name -o out.parquet
  python predict.py -m db_bhcn -d shop rows.jsonl.gz --min-confidence .8
  python predict.py --tag db_bhcn_shop:production products.csv
  cat rows.jsonl | python predict.py -m db_bhcn -d shop - > answers.jsonl
"""


@click.command(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-m", "--model", help=f"Model: {', '.join(MODELS)}.")
@click.option("-d", "--dataset", help="Dataset that it was trained on.")
@cli.tag_option
@click.option(
    "-o", "--output", type=click.Path(path_type=Path),
    help="Where to write, - for standard output.  [default: FILE with .predictions in its name]",
)  # fmt: skip
@click.option(
    "-t", "--text", type=cli.NameList(),
    help="Text column; several, comma-separated, are joined as adapt.py does.  [default: those "
    "that the dataset was made from, else text, else name, else the only one]",
)  # fmt: skip
@click.option("--format", type=click.Choice(FORMATS), help="Of the output.  [default: its ending]")
@click.option(
    "--input-format", type=click.Choice(FORMATS),
    help="Of the input.  [default: its ending; jsonl for standard input]",
)  # fmt: skip
@click.option("--sep", help="Column separator of a CSV input, such as ';'.")
@click.option(
    "--quote", default='"', help="Quote character of a CSV input; '' for none.  [default: \"]"
)
@click.option(
    "--encoding",
    help="Of a text input, such as cp1252.  [default: UTF-8, or UTF-16 and UTF-32 by their marks]",
)
@click.option(
    "--header-row", type=int, metavar="N",
    help="Line of a CSV input's header, from 1; what is above is left out.  [default: the first]",
)  # fmt: skip
@click.option(
    "--column", default="prediction", show_default=True,
    help="Name of the column of answers, with which the names of the others begin.",
)  # fmt: skip
@click.option(
    "--min-confidence", type=cli.Share(0, 1),
    help="Let an answer end at the deepest class that is this sure.",
)  # fmt: skip
@click.option(
    "--top", type=click.IntRange(0, 5), default=0,
    help="List so many of the most probable paths, the answer first.",
)  # fmt: skip
@click.option(
    "--runtime", type=click.Choice(RUNTIMES),
    help="The ONNX export, or the checkpoint.  [default: an encoder's export if it is of this "
    "checkpoint, else the checkpoint]",
)  # fmt: skip
@click.option(
    "--workers", type=click.IntRange(0, 64), default=0, show_default=True,
    help="Processes that each load the model and share the cores; 0: this one does.",
)  # fmt: skip
@click.option("--time", help="Take the run of this time: YYYY-MM-DDTHH:MM:SS.  [default: newest]")
@cli.fetch_option
@click.option("-c", "--cpu", is_flag=True, help="Use the CPU even where there is a GPU.")
@click.option("-v", "--verbose", is_flag=True, help="Log what happens.")
def main(file: Path, verbose: bool, cpu: bool, **values: Any) -> None:
    """Answer every row of FILE (- for standard input).

    FILE is CSV, TSV, JSON lines or Parquet. Its rows come out in the same order with columns of
    answers added, however many they are; nothing is held in memory but a few thousand rows.
    """
    from utils.store import run_options

    cli.start_logging(verbose)
    if cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # read when torch is imported: not before here
    if values["sep"]:
        values["sep"] = separator(values["sep"])
        if len(values["sep"].encode()) != 1:
            raise UserError(f"--sep {values['sep']!r} is not one ASCII character.")
    if any("\ud800" <= letter <= "\udfff" for letter in values["column"]):
        raise UserError(f"--column {values['column']!r} has characters that cannot be encoded.")
    layout, (model, dataset, values["time"]) = run_options.opened(values, MODELS)
    predict(layout, model, dataset, file, values)


if __name__ == "__main__":
    cli.run(main)
