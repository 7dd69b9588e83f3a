"""How fast is ``adapt.py flat`` on a million rows?

``python benchmarks/adapt.py [TAXONOMY.txt] [--rows N]`` writes a dirty CSV over the leaves and
inner nodes of a product taxonomy (one path ``A > B > C`` per line; without a file a tree of
about the same shape is made up), adapts it with ``adapt.py flat`` in a process of its own, and
with a reference that does the same cleaning, splitting and writing row by row (csv module,
dicts), and prints seconds, peak memory and their ratio.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SECONDS, MEMORY, SPEEDUP = 10.0, 2.0, 5.0
DELIMITER = " > "
WORDS = (  # noqa: SIM905
    "new classic large small black white red steel cotton wooden set pack pro mini ultra light "
    "heavy duty premium basic travel home office outdoor kids men women vintage modern portable "
    "wireless digital organic natural soft strong water proof folding adjustable"
).split()


def taxonomy(path: Path | None, seed: int) -> list[str]:
    """Paths of a taxonomy file, or of a made-up tree of 5,595 nodes."""
    if path is not None:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    generator = random.Random(seed)
    paths = [f"Category {i}" for i in range(21)]
    while len(paths) < 5595:
        parent = paths[int(generator.random() ** 0.7 * len(paths))]
        if parent.count(DELIMITER) < 6:
            paths.append(f"{parent}{DELIMITER}Kind {len(paths) % 997}")
    return list(dict.fromkeys(paths))


def write_csv(file: Path, paths: list[str], rows: int, seed: int) -> None:
    """Write `rows` rows, a few of them dirty in every way that is cleaned."""
    import numpy as np
    import pandas as pd

    generator = np.random.default_rng(seed)
    weights = generator.pareto(1.2, len(paths)) + 0.05
    labels = np.array(paths, dtype=object)[
        generator.choice(len(paths), rows, p=weights / weights.sum())
    ]
    names = np.array([path.rsplit(DELIMITER, 1)[-1] for path in paths], dtype=object)
    words = np.array(WORDS, dtype=object)
    texts = names[generator.integers(len(names), size=rows)]
    for _ in range(6):
        texts = texts + " " + words[generator.integers(len(words), size=rows)]
    texts = texts + np.char.mod(' "%d" cm, no. ', generator.integers(9, 900, rows)).astype(object)
    texts = texts + generator.integers(10**6, size=rows).astype(str).astype(object)
    texts[generator.random(rows) < 0.01] = "  "
    texts[generator.random(rows) < 0.005] = "same text twice"
    labels[generator.random(rows) < 0.005] = ""
    dirty = generator.random(rows) < 0.002
    texts[dirty] = texts[dirty] + "\x07 bell"
    spaced = generator.random(rows) < 0.1
    labels[spaced] = " " + labels[spaced] + "  "
    frame = pd.DataFrame(
        {"id": np.arange(rows), "text": texts, "price": generator.random(rows).round(2),
         "category": labels, "shop": words[generator.integers(len(words), size=rows)]}
    )  # fmt: skip
    frame.to_csv(file, index=False)
    with file.open("a", encoding="utf-8") as stream:
        stream.write("1,too few fields\n1,a,2,b,c,too many\n" * 50)


def reference(file: Path, out: Path, seed: int = 0) -> dict[str, int]:
    """Do the same row by row: what adapting costs without columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    counts: dict[str, int] = defaultdict(int)
    seen: set[tuple[str, tuple[str, ...]]] = set()
    kept: list[tuple[str, tuple[str, ...]]] = []
    with file.open(encoding="utf-8", newline="") as stream:
        reader = csv.reader(stream)
        header = next(reader)
        text_at, class_at = header.index("text"), header.index("category")
        for row in reader:
            counts["read"] += 1
            if len(row) != len(header):
                counts["broken_row"] += 1
                continue
            text = "".join(c if c >= " " or c in "\t\n\r" else " " for c in row[text_at]).strip()
            path = [" ".join(name.split()) for name in row[class_at].split(DELIMITER)]
            while path and not path[-1]:
                path.pop()
            if not text:
                counts["empty_text"] += 1
            elif not path:
                counts["empty_path"] += 1
            elif not all(path):
                counts["broken_path"] += 1
            elif (text, tuple(path)) in seen:
                counts["duplicate"] += 1
            else:
                seen.add((text, tuple(path)))
                kept.append((text, tuple(path)))
    counts["kept"] = len(kept)
    codes = _reference_tree(kept)
    sides = _reference_split(kept, seed)
    out.mkdir(parents=True)
    for side in ("train", "val", "test"):
        rows = [row for row in range(len(kept)) if sides[kept[row][0]] == side]
        counts[side] = len(rows)
        table = pa.table(
            {"name": [kept[row][0] for row in rows],
             "codes": pa.array([codes[kept[row][1]] for row in rows], pa.list_(pa.int32()))}
        )  # fmt: skip
        pq.write_table(table, out / f"{side}.parquet", compression="zstd")
    return dict(counts)


def _reference_tree(kept: list[tuple[str, tuple[str, ...]]]) -> dict[tuple[str, ...], list[int]]:
    """Codes of every path; classes are numbered within their level, sorted by path."""
    levels: dict[int, set[tuple[str, ...]]] = defaultdict(set)
    for _, path in kept:
        for end in range(1, len(path) + 1):
            levels[end].add(path[:end])
    code = {node: i for nodes in levels.values() for i, node in enumerate(sorted(nodes))}
    return {path: [code[path[:end]] for end in range(1, len(path) + 1)] for path in code}


def _reference_split(kept: list[tuple[str, tuple[str, ...]]], seed: int) -> dict[str, str]:
    """Side of every text: stratified 8:1:1, every path in train."""
    generator = random.Random(seed)
    members: dict[tuple[str, ...], list[str]] = defaultdict(list)
    first: dict[str, tuple[str, ...]] = {}
    for text, path in kept:
        if text not in first:
            first[text] = path
            members[path].append(text)
    sides: dict[str, str] = {}
    carry = 0.0
    for texts in members.values():
        generator.shuffle(texts)
        for place, text in enumerate(texts):
            carry += 0.2 if place else 0.0
            if carry >= 1:
                carry -= 1
                sides[text] = "val" if len(sides) % 2 else "test"
            else:
                sides[text] = "train"
    trained = {path for text, path in kept if sides[text] == "train"}
    for text, path in kept:
        if path not in trained:
            sides[text] = "train"
            trained.add(path)
    return sides


def measured(command: list[str], environment: dict[str, str]) -> tuple[float, float, float, str]:
    """Run a command: seconds, processor seconds, peak GiB of it alone, what it printed."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{printed}")
    processor = usage.ru_utime + usage.ru_stime
    return time.perf_counter() - start, processor, usage.ru_maxrss / 2**20, printed


def compare(folder: Path, source: Path) -> dict[str, Any]:
    """Adapt with the toolkit and with the reference; return the figures."""
    adapt = [sys.executable, str(ROOT / "adapt.py"), "flat", str(source), "million",
             "-t", "text", "-c", "category", "--delimiter", DELIMITER, "--no-dvc"]  # fmt: skip
    seconds, processor, memory, _ = measured(adapt, {"KTT_ROOT": str(folder)})
    report = json.loads((folder / "datasets/million/report.json").read_text(encoding="utf-8"))
    slow = [sys.executable, __file__, "--reference", str(source), str(folder / "reference")]
    slow_seconds, slow_processor, slow_memory, printed = measured(slow, {})
    counts = json.loads(printed)
    ours = {
        "read": report["rows"]["read"],
        "kept": report["rows"]["kept"],
        **report["rows"]["dropped"],
    }
    different = {
        key: (ours.get(key), counts.get(key)) for key in ours if ours[key] != counts.get(key)
    }
    if different:
        raise SystemExit(f"the reference counts otherwise: {different}")
    return {
        "rows": ours, "splits": report["splits"], "classes": report["classes"],
        "seconds": seconds, "processor_seconds": processor, "peak_gib": memory,
        "reference_seconds": slow_seconds,
        "reference_processor_seconds": slow_processor,
        "reference_peak_gib": slow_memory, "speedup": slow_seconds / seconds,
    }  # fmt: skip


def main() -> None:
    """Parse the arguments, run, print, and fail if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("taxonomy", nargs="?", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reference", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.reference:
        print(json.dumps(reference(*options.reference)))
        return
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "million.csv"
        write_csv(source, taxonomy(options.taxonomy, options.seed), options.rows, options.seed)
        size = source.stat().st_size / 2**20
        print(f"{options.rows:,} rows, {size:,.0f} MiB")
        figures = compare(Path(name), source)
    print(json.dumps(figures, indent=2))
    print(
        f"adapt.py {figures['seconds']:.1f} s, {figures['peak_gib']:.2f} GiB; row by row "
        f"{figures['reference_seconds']:.1f} s: {figures['speedup']:.1f} times as fast"
    )
    met = (
        figures["seconds"] < SECONDS and figures["peak_gib"] < MEMORY
        and figures["speedup"] >= SPEEDUP
    )  # fmt: skip
    if options.rows == 1_000_000 and not met:
        raise SystemExit(f"target missed: {SECONDS:.0f} s, {MEMORY:.0f} GiB, {SPEEDUP:.0f} times")


if __name__ == "__main__":
    main()
