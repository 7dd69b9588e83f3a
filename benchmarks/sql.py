"""How fast is ``adapt.py sql`` on a million rows of a database?

``python benchmarks/sql.py [--rows N]`` starts a PostgreSQL of its own (Debian's, by an
unprivileged user) and writes a SQLite file, both with the same items over a ragged tree of 5,000
classes, adapts each, and adapts the same rows with ``adapt.py flat`` from Parquet and from CSV.
It prints seconds and peak memory of every command beside those of flat, and fails if the files
of the datasets differ or a target is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.adapt import DELIMITER, measured  # noqa: E402
from tests.support import databases  # noqa: E402

SECONDS, MEMORY = 25.0, 2.0
FILES = ("train.parquet", "val.parquet", "test.parquet", "hierarchy.json")
ITEMS = "SELECT * FROM items ORDER BY id"
CLASSES = "SELECT id, parent_id, name FROM classes"


def prepare(folder: Path, rows: int, port: int) -> None:
    """Write the rows to both databases, to Parquet and to CSV; in a process of its own."""
    import pyarrow.csv
    import pyarrow.parquet as pq

    items = databases.catalogue(rows)
    databases.fill_sqlite(folder / "shop.db", items)
    if port:
        databases.PostgreSQL(port=port).fill(items)
    flat = databases.flat_table(items)
    pq.write_table(flat, folder / "flat.parquet")
    paths = [DELIMITER.join(path or ()) for path in flat["path"].to_pylist()]
    flat = flat.set_column(1, "path", pyarrow.array(paths))
    pyarrow.csv.write_csv(flat, folder / "flat.csv")


def commands(folder: Path, port: int) -> dict[str, list[str]]:
    """The arguments of each command, by the name of its dataset."""
    places = {"sqlite": {"kind": "sqlite", "database": "shop.db"}}
    if port:
        places["postgresql"] = databases.PostgreSQL(port=port).settings()
    found = {
        "parquet": ["flat", str(folder / "flat.parquet"), "parquet", "-t", "name", "-c", "path"],
        "csv": ["flat", str(folder / "flat.csv"), "csv", "-t", "name", "-c", "path",
                "--delimiter", DELIMITER],
    }  # fmt: skip
    for kind, connection in places.items():
        config = folder / f"{kind}.json"
        config.write_text(
            json.dumps({"connection": connection, "items": ITEMS, "classes": CLASSES})
        )
        found[kind] = ["sql", kind, "--config", str(config)]
    return found


def run(folder: Path, rows: int, port: int) -> dict[str, Any]:
    """Prepare, adapt with every command, compare the datasets; returns the figures."""
    this = [sys.executable, __file__, "--rows", str(rows)]
    measured([*this, "--prepare", str(folder), str(port)], {})
    figures: dict[str, Any] = {}
    for name, arguments in commands(folder, port).items():
        command = [sys.executable, str(ROOT / "adapt.py"), *arguments, "--no-dvc"]
        seconds, processor, memory, _ = measured(command, {"KTT_ROOT": str(folder)})
        made = folder / "datasets" / name
        report = json.loads((made / "report.json").read_text(encoding="utf-8"))
        figures[name] = {
            "seconds": round(seconds, 2), "processor_seconds": round(processor, 2),
            "peak_gib": round(memory, 3), "rows": report["rows"], "classes": report["classes"],
        }  # fmt: skip
        for file in FILES:
            first = folder / "datasets" / "parquet" / file
            if (made / file).read_bytes() != first.read_bytes():
                raise SystemExit(f"{name}: {file} is not the one that flat makes")
    return figures


def main() -> None:
    """Parse the arguments, run, print, and fail if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--prepare", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.prepare:
        prepare(Path(options.prepare[0]), options.rows, int(options.prepare[1]))
        return
    binaries = databases.postgresql_binaries()
    with tempfile.TemporaryDirectory() as name:
        if binaries is None:
            print("no PostgreSQL here (apt-get install postgresql): SQLite only")
            figures = run(Path(name), options.rows, 0)
        else:
            with databases.postgresql(binaries) as server:
                figures = run(Path(name), options.rows, server.port)
    print(json.dumps(figures, indent=2))
    for name in figures.keys() - {"parquet", "csv"}:
        one, flat = figures[name], figures["parquet"]
        print(
            f"{name}: {one['seconds']:.1f} s, {one['peak_gib']:.2f} GiB; flat from Parquet "
            f"{flat['seconds']:.1f} s, {flat['peak_gib']:.2f} GiB: "
            f"{one['seconds'] / flat['seconds']:.2f} times as long; the files are equal"
        )
        if one["seconds"] >= SECONDS or one["peak_gib"] >= MEMORY:
            raise SystemExit(f"target missed: {SECONDS:.0f} s, {MEMORY:.0f} GiB")


if __name__ == "__main__":
    main()
