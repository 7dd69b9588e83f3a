"""How long the store takes: listing 500 entries, moving a checkpoint of 90 MB, two at once.

    python benchmarks/store.py [--entries 500] [--megabytes 90] [--soak SECONDS]

Each figure stands beside what a plain program takes for the same bytes in the same run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.support.stores import FakeModel  # noqa: E402
from utils.common.paths import Layout  # noqa: E402
from utils.store import Store  # noqa: E402

REPEATS = 5


def seconds(call: Callable[[], object]) -> float:
    """The shortest of a few."""
    best = float("inf")
    for _ in range(REPEATS):
        started = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - started)
    return best


def run(root: Path, *arguments: str) -> Callable[[], object]:
    """A Python process with these arguments."""
    environment = os.environ | {"KTT_ROOT": str(root)}
    return lambda: subprocess.run(
        [sys.executable, *arguments], env=environment, stdout=subprocess.DEVNULL, check=True
    )


def listing(root: Path, entries: int) -> None:
    """The whole command, from its start to its end."""
    store = Store(Layout(root))
    first = store.save_model(FakeModel(), metrics={"leaf_accuracy": 0.5}, labels={"team": "nlp"})
    checkpoint = first.path.read_bytes()
    described = json.loads((first.run.folder / f"entry_{first.version}.json").read_text())
    described["validation"] = {f"level_{number}_accuracy": number / 40 for number in range(40)}
    for number in range(1, entries):
        minute, second = divmod(number, 60)
        moment = f"2026-01-01T{minute // 60:02}:{minute % 60:02}:{second:02}"
        (first.run.folder / f"best_{moment}.pt").write_bytes(checkpoint)
        text = json.dumps(described, indent=2)
        (first.run.folder / f"entry_{moment}.json").write_text(text)
    empty = seconds(run(root, "-c", "pass"))
    print(f"python -c pass                        {empty:6.2f} s")
    for form in ("table", "json"):
        took = seconds(run(root, str(ROOT / "store.py"), "list", "-o", form))
        print(f"store.py list -o {form:5} ({entries} entries)  {took:6.2f} s")


def moving(root: Path, megabytes: int) -> None:
    """Export and import, beside a copy and a sum of the same file, synchronised to the disk."""
    store, other = Store(Layout(root / "here")), Store(Layout(root / "there"))
    entry = store.save_model(FakeModel(size=megabytes * 1_000_000))
    target = root / "copy"

    def copy() -> None:
        shutil.copyfile(entry.path, target)
        with target.open("rb") as file:
            os.fsync(file.fileno())

    def fetch() -> None:
        other.delete(other.import_model(path).tag)

    def summed() -> None:
        with entry.path.open("rb") as file:
            hashlib.file_digest(file, "sha256")

    print(f"copy of {megabytes} MB                         {seconds(copy):6.2f} s")
    print(f"sha256 of {megabytes} MB                       {seconds(summed):6.2f} s")
    path = store.export_model(entry.tag, root)
    print(f"export                                {seconds(lambda: store.export_model(entry.tag, root)):6.2f} s")  # fmt: skip  # noqa: E501
    print(f"import (and delete)                   {seconds(fetch):6.2f} s")


def soak(length: float) -> None:
    """The test with two processes, for longer."""
    environment = os.environ | {"KTT_STORE_SECONDS": str(length)}
    test = "tests/e2e/test_store_processes.py"
    command = [sys.executable, "-m", "pytest", test, "-k", "two_processes"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=500)
    parser.add_argument("--megabytes", type=int, default=90)
    parser.add_argument("--soak", type=float, default=0.0, metavar="SECONDS")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ktt-store-") as folder:
        listing(Path(folder) / "many", options.entries)
        moving(Path(folder), options.megabytes)
    if options.soak:
        soak(options.soak)


if __name__ == "__main__":
    main()
