"""Turn tables of texts and labels into intermediate datasets: ``python adapt.py --help``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from utils.adapters.options import (
    GroupedCommand,
    label_options,
    row_options,
    several_option,
    split_options,
    target_options,
)  # fmt: skip
from utils.common import cli
from utils.common.errors import UserError
from utils.common.paths import Layout, given_path

if TYPE_CHECKING:
    from utils.adapters.labels import LabelOptions

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(context_settings=CONTEXT)
def main() -> None:
    """Turn a table of texts and labels into an intermediate dataset, datasets/NAME/.

    \b
    Try it without data:
      python adapt.py demo data001
    A CSV with a text column and a column of paths like "Home > Kitchen > Pans":
      python adapt.py flat items.csv shop -t title -c category --delimiter " > "
    Two queries of a database:
      python adapt.py sql shop --config adapter_sql.json
    """


@main.command(cls=GroupedCommand, context_settings=CONTEXT)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.argument("name")
@click.option(
    "-t",
    "--text",
    required=True,
    metavar="COLUMNS",
    help="Text column; several, comma-separated, are joined by newlines.",
)
@click.option(
    "-c",
    "--classes",
    required=True,
    metavar="COLUMNS",
    help="Class column: a list, one name, or with --delimiter a path. Several columns, "
    "comma-separated, are the levels, root first.",
)
@label_options
@several_option
@click.option("--delimiter", help='What separates the names in a path, such as " > ".')
@click.option(
    "--parents",
    metavar="FILE",
    help="Puts flat labels into a tree: JSON {parent: [children]} or {child: parent}, or a "
    "table of paths.",
)
@click.option(
    "--lookup",
    "lookups",
    multiple=True,
    metavar="COLUMN=FILE:KEY:NAME",
    help="The column holds keys of another table: put what stands in its column NAME in their "
    "place. May be given several times.",
)
@click.option("--sep", help="Column separator of a text table.  [default: detected]")
@click.option("--encoding", help="Encoding of text files.  [default: detected]")
@click.option("--quote", default='"', help="Quote character; '' for none.  [default: \"]")
@click.option(
    "--no-header",
    "header",
    flag_value=False,
    default=True,
    type=bool,
    help="The first line is a row; columns are called 0, 1, 2, …",
)
@click.option(
    "--header-row",
    type=int,
    metavar="N",
    help="Line of the header in a text table or a sheet, from 1; what is above is left out.  "
    "[default: the first that is not empty]",
)
@click.option(
    "--lines",
    metavar="REGEX",
    help="The file is no table: each line is a row, each named group (?P<name>…) a column.",
)
@click.option(
    "--records",
    default="",
    metavar="KEYS",
    help="Keys of a JSON object under which the rows lie, comma-separated. Which key a row "
    "came from is its column 'records'.",
)
@click.option("--sheet", help="Sheet of a workbook.  [default: the first]")
@row_options
@split_options
@click.option(
    "--split-column",
    metavar="COLUMN",
    help="Take the split from a column that says train, val or test ('file': the file's name).",
)
@target_options
def flat(paths: tuple[str, ...], name: str, **values: Any) -> None:
    """Adapt files with one row per text: CSV and its kin, JSON of any pandas orient, JSON lines,
    Parquet, Feather/Arrow, xlsx; text files also packed (.gz, .bz2, .xz, .zip).

    PATH is a file, several of one kind, a folder of them, or a quoted glob; NAME becomes
    datasets/NAME/.

    \b
    One column per level:
      adapt.py flat reviews.csv.zip clothing -t "Title,Review Text" \\
        -c "Division Name,Department Name,Class Name"
    Paths in one column, also as a JSON list in a cell:
      adapt.py flat items.csv shop -t name,description -c tree --delimiter " >> "
    Nested JSON {"train": [[text, intent], …], …} with its own split:
      adapt.py flat intents.json intents -t 0 -c 1 --records train,val,test \\
        --split-column records --parents domains.json
    Lines like "NUM:date When was …?":
      adapt.py flat "*.label" trec -t text -c coarse,fine \\
        --lines "(?P<coarse>[A-Z]+):(?P<fine>[a-z]+) (?P<text>.+)"
    A folder whose folders' names hold the class (data/label=Toys/part-0.parquet):
      adapt.py flat data shop -t title -c label
    Classes by number, with their names in another table:
      adapt.py flat items.csv shop -t title -c category \\
        --lookup category=names.csv:id:name

    Unusable rows are counted by reason, never dropped in silence. Running the same command again
    replaces its dataset; another command must say --force.
    """
    from utils.adapters.flat import FlatOptions, adapt_flat
    from utils.adapters.lookup import Lookup
    from utils.adapters.pipeline import AdaptOptions
    from utils.adapters.splitting import Ratios
    from utils.tables.batches import ReadOptions

    with suppress(OSError):  # no file can have such a name, and no dataset: which is said later
        if Path(name).is_file():
            raise UserError(
                f"{name} is a file: NAME, which comes after the files, is missing or in its place."
            )
    _keep_freed_memory()
    records = tuple(key.strip() for key in values["records"].split(",") if key.strip())
    options = FlatOptions(
        paths=paths,
        text=values["text"],
        classes=values["classes"],
        split_column=values["split_column"],
        parents=values["parents"],
        lookups=tuple(map(Lookup.parsed, values["lookups"])),
        rename=values["rename"],
        read=ReadOptions(
            records=records, **_picked(values, "encoding sep quote header header_row lines sheet")
        ),
        adapt=AdaptOptions(
            labels=_label_options(values),
            ratios=Ratios.checked(values["train_ratio"], values["val_ratio"]),
            **_picked(values, "seed proportion min_class_size keep_duplicates dvc force"),
        ),
    )
    _show(adapt_flat(options, name, Layout(fetch=values["dvc"] is not False)))


@main.command(cls=GroupedCommand, context_settings=CONTEXT)
@click.argument("name")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    default="adapter_sql.json",
    show_default=True,
    metavar="FILE",
    help="Where the database is and what to ask it.",
)
@label_options
@row_options
@split_options
@click.option(
    "--split-column",
    metavar="COLUMN",
    help="Take the split from a column of the items that says train, val or test.",
)
@target_options
def sql(name: str, config: Path, split_column: str | None, **values: Any) -> None:
    """Adapt two queries of a database: PostgreSQL, MySQL and MariaDB, SQLite, SQL Server, DuckDB.

    \b
    The configuration (a longer one to copy: docs/adapter_sql.json):
      {"connection": {"kind": "postgresql", "host": "db.example.com",
                      "database": "shop", "user": "reader",
                      "password_env": "SHOP_PASSWORD"},
       "items":   "SELECT name, class_id FROM products ORDER BY id",
       "classes": "SELECT id, parent_id, name FROM categories"}
      SHOP_PASSWORD=… adapt.py sql shop --config adapter_sql.json
    A SQLite file needs no more than {"kind": "sqlite", "database": "shop.db"}.

    The items are the texts, each with the id of its class; the classes make a tree of any depth
    through the id of their parent, which a root does not have. "columns" in the configuration
    says which columns these are where they are called otherwise. NAME becomes datasets/NAME/,
    just as adapt.py flat would make it. Nothing is ever written to the database, and the password
    is never shown. More: docs/sql.md.
    """
    from utils.adapters.pipeline import AdaptOptions
    from utils.adapters.splitting import Ratios
    from utils.adapters.sql import SqlOptions, adapt_sql

    _keep_freed_memory()
    options = SqlOptions(
        config=given_path(config),
        split_column=split_column,
        rename=values["rename"],
        adapt=AdaptOptions(
            labels=_label_options(values),
            ratios=Ratios.checked(values["train_ratio"], values["val_ratio"]),
            **_picked(values, "seed proportion min_class_size keep_duplicates dvc force"),
        ),
    )
    with cli.row_progress(f"reading {name}") as progress:
        layout = Layout(fetch=values["dvc"] is not False)
        report = adapt_sql(options, name, layout, lambda rows: progress(rows, None))
    _show(report)


@main.command(cls=GroupedCommand, context_settings=CONTEXT)
@click.argument("name")
@click.option("--rows", default=3000, show_default=True, help="How many products to invent.")
@split_options
@target_options
def demo(name: str, rows: int, **values: Any) -> None:
    """Invent a product catalogue: three levels, ragged, imbalanced, with typos.

    The same --rows and --seed give the same catalogue. NAME becomes datasets/NAME/.

    \b
      adapt.py demo data001
      adapt.py demo big --rows 100000 --seed 7
    """
    from utils.adapters.demo import adapt_demo
    from utils.adapters.pipeline import AdaptOptions
    from utils.adapters.splitting import Ratios

    options = AdaptOptions(
        ratios=Ratios.checked(values["train_ratio"], values["val_ratio"]),
        **_picked(values, "seed dvc force"),
    )
    _show(adapt_demo(rows, name, options, Layout(fetch=values["dvc"] is not False)))


def _keep_freed_memory() -> None:
    """Let Arrow keep freed memory for a while: columns come and go by the hundred megabytes, and
    fetching them anew from the system takes longer than the work done in them."""
    import pyarrow as pa

    try:
        pa.set_memory_pool(pa.jemalloc_memory_pool())
        pa.jemalloc_set_decay_ms(10_000)
    except NotImplementedError:
        return  # not built for this system: slower, no worse


def _label_options(values: dict[str, Any]) -> LabelOptions:
    from utils.adapters.labels import LabelOptions
    from utils.adapters.lookalikes import fold_kinds

    optional = {key: values[key] for key in ("delimiter", "several_paths") if key in values}
    return LabelOptions(
        **_picked(values, "depth drop_names gaps"),
        **optional,
        fold=fold_kinds(values["fold"]),
        missing=tuple(filter(None, map(str.strip, values["missing"].split(",")))),
    )


def _picked(values: dict[str, Any], names: str) -> dict[str, Any]:
    return {name: values[name] for name in names.split()}


def _show(report: dict[str, Any]) -> None:
    """Print the summary of what was adapted."""
    from utils.adapters.report import closing_lines, drop_rows, level_rows

    heads: Sequence[str] = (
        "level", "classes", "rows", "smallest", "median", "largest", "largest class",
    )  # fmt: skip
    cli.table(f"Dataset {report['name']}", ("", "rows"), drop_rows(report))
    cli.table("Classes", heads, level_rows(report))
    for line in closing_lines(report):
        cli.text(line)
    if report["replaced"]:
        cli.text(report["replaced"])
    cli.say(f"written to {report['folder']}")


if __name__ == "__main__":
    cli.run(main)
