#!/usr/bin/env python
"""How fast predict.py answers short texts, beside two references measured in the same run.

    python benchmarks/inference.py ../shared/data/clinc150 --runs 3

DATA is a folder with data.parquet (text, classes) and split.parquet (split); without it texts are
generated. Each model is trained for an epoch on a few rows: its speed is that of any other.

The references: the forward pass as a plain loop has it (PyTorch in float32, texts tokenised one by
one, padded to max_len, batches of 16), and what ONNX Runtime alone does with the same graph when
all texts are already tokenised and lie in batches of the same size, sorted by length. The command
is measured from its start to its end, and once with a single row, to tell how much is start-up.

Rows per second: medians over the runs, which take turns. Memory: the peak of the command's process.
"""

from __future__ import annotations

import csv
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

DATASET = "short"
MAX_LEN = 64
REFERENCE_BATCH = 16


def prepare(data: Path | None, folder: Path) -> None:
    """Make the dataset."""
    from adapt import main as adapt
    from benchmarks.accuracy import with_split

    if data is None:
        adapt(["demo", DATASET, "--rows", "12000"], standalone_mode=False)
        return
    path = with_split(data, folder)
    adapt(
        ["flat", str(path), DATASET, "-t", "text", "-c", "classes", "--split-column", "split",
         "--keep-duplicates"],
        standalone_mode=False,
    )  # fmt: skip


def train(name: str, rows: int, epochs: int) -> Path:
    """Train on some rows and save the checkpoint as train.py would; return it."""
    import numpy as np

    from models import model_class
    from utils.common.config import load_config
    from utils.common.paths import Layout
    from utils.hierarchy.dataset import load_dataset

    layout = Layout()
    data, cls = load_dataset(layout, DATASET), model_class(name)
    neural = {"encoder": "minilm", "max_len": MAX_LEN, "epochs": epochs}
    overrides = neural if name.startswith("db_") else {}
    model = cls(data.hierarchy, load_config(cls.Config, layout.hyperparameters, name, overrides))
    few = data.train.take(np.random.default_rng(0).permutation(len(data.train))[:rows])
    for epoch in model.fit(few, data.val.take(slice(0, 500)), epochs=None, seed=0):
        model.info = {"epoch": epoch.number, "dataset": DATASET, "fingerprint": data.fingerprint}
    path = layout.weight_dir(name, DATASET) / "best_2026-01-01T00:00:00.pt"
    model.save(path)
    return path


def export(name: str, quantize: str | None) -> Any:
    """Export and open what was exported."""
    import export as exporting
    from models import model_class
    from utils.common.paths import Layout
    from utils.export import validation
    from utils.inference.sources import open_source

    # What a model of one epoch on a few rows loses in int8 says nothing of real ones.
    validation.EQUAL_DECISIONS, validation.ACCURACY_LOSS = 0.0, 1.0
    options = exporting.Options(onnx=True, quantize=quantize)
    exporting.export(Layout(), name, DATASET, options)
    return open_source(Layout(), name, DATASET, model_class, runtime="onnx")


def reference(model: Any, texts: Sequence[str]) -> list[int]:
    """The plain loop; the best class of the last level for each text."""
    import torch
    from tokenizers import Tokenizer

    spec = model.network.encoder.spec
    tokenizer = Tokenizer.from_str(spec.tokenizer)
    tokenizer.enable_truncation(MAX_LEN)
    tokenizer.enable_padding(length=MAX_LEN, pad_id=spec.pad_id)
    last = model.tree.level_slice(model.tree.depth - 1)
    rows = []
    for text in texts:
        found = tokenizer.encode(text)
        rows.append((torch.tensor(found.ids), torch.tensor(found.attention_mask)))
    answers: list[int] = []
    model.network.eval()
    with torch.no_grad():
        for start in range(0, len(rows), REFERENCE_BATCH):
            ids, mask = (
                torch.stack(part) for part in zip(*rows[start:][:REFERENCE_BATCH], strict=True)
            )
            scores, _ = model.network(ids, mask)
            answers += scores[:, last].argmax(dim=1).tolist()
    return answers


def pipeline(source: Any, path: Path, out: Path) -> list[str]:
    """What predict.py does with a CSV once its model is loaded; the answers."""
    from utils.inference.answers import AnswerOptions
    from utils.inference.pipeline import answer_rows
    from utils.inference.writing import open_writer
    from utils.tables.formats import open_output
    from utils.tables.stream import open_rows

    with open_rows(path, "csv") as rows, open_output(out) as stream:
        answer_rows(source, rows, open_writer(stream, "csv"), AnswerOptions())
    with out.open(encoding="utf-8", newline="") as file:
        return [row["prediction"] for row in csv.DictReader(file)]


def runtime_alone(scorer: Any, texts: Sequence[str]) -> Callable[[], None]:
    """ONNX Runtime on inputs that are ready: sorted by length, batches of the scorer's size."""
    rows = scorer.encode(texts)
    batches = [rows.inputs(batch) for batch in scorer.batches(rows)]
    (session,) = scorer._graphs

    def run() -> None:
        for inputs in batches:
            session.run(["scores", "features"], inputs)

    return run


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds, seconds of all threads on all cores, and the result."""
    started, used = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - started, time.process_time() - used, result


def command(name: str, path: Path, out: Path, runtime: str) -> tuple[float, float]:
    """Seconds and peak memory (MiB) of the command."""
    words = [ROOT / "predict.py", path, "-m", name, "-d", DATASET, "-o", out, "--runtime", runtime]
    started, peak = time.perf_counter(), 0
    with subprocess.Popen([sys.executable, *map(str, words)], stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, memory_of(process.pid))
            time.sleep(0.02)
    if process.returncode:
        raise RuntimeError("predict.py failed")
    return time.perf_counter() - started, peak / 1024


def memory_of(process: int) -> int:
    """Most memory that a process has had so far, in KiB; 0 if it is gone."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) if found else 0


def write_texts(path: Path, texts: Sequence[str]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        writer.writerows(enumerate(texts))
    return path


Work = tuple[Callable[[], Any], int]
"""What is timed, and how many texts it answers."""


def measure(name: str, rows: int, epochs: int, runs: int, texts: list[str], folder: Path) -> None:
    """Print the figures of one model."""
    from models import model_class
    from utils.inference.sources import from_checkpoint

    checkpoint = train(name, rows, epochs)
    few, most = texts[: max(64, len(texts) // 24)], texts[: max(64, len(texts) // 4)]
    all_rows, some_rows, one_row = (
        write_texts(folder / f"{len(part)}.csv", part) for part in (texts, most, texts[:1])
    )
    out = folder / "out.csv"
    cls = model_class(name)
    model, source = cls.from_checkpoint(checkpoint), from_checkpoint(checkpoint, cls)
    kinds: dict[str, Work] = {
        "reference loop": (lambda: reference(model, few), len(few)),
        "predict.py, torch": (lambda: pipeline(source, some_rows, out), len(most)),
    }
    commands = {"torch": [command(name, path, out, "torch") for path in (one_row, some_rows)]}
    for kind, quantize in (("fp32", None), ("int8", "int8")):
        path, given = (all_rows, texts) if quantize else (some_rows, most)
        kinds |= exported(name, kind, quantize, given, path, out)
        runtime = [command(name, file, out, "onnx") for file in (one_row, path)]
        commands[f"onnx {kind}"] = runtime
    speeds: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    results: dict[str, Any] = {}
    for _ in range(runs):
        for kind, (work, count) in kinds.items():
            seconds, used, results[kind] = timed(work)
            speeds[kind].append((count / seconds, 1000 * used / count))
    show(name, speeds, results, commands)


def exported(
    name: str, kind: str, quantize: str | None, texts: list[str], path: Path, out: Path
) -> dict[str, Work]:
    """What is timed of an export."""
    source = export(name, quantize)
    scorer = source.encode.__self__
    return {
        f"ONNX Runtime alone, {kind}": (runtime_alone(scorer, texts), len(texts)),
        f"predict.py, onnx {kind}": (lambda: pipeline(source, path, out), len(texts)),
    }


def show(
    name: str,
    speeds: dict[str, list[tuple[float, float]]],
    results: dict[str, Any],
    commands: dict[str, list[tuple[float, float]]],
) -> None:
    """Print a table of speeds, and what the command takes."""
    middle = {
        kind: [statistics.median(column) for column in zip(*found, strict=True)]
        for kind, found in speeds.items()
    }
    print(f"\n{name}\n")
    print("| what | rows/s | lowest to highest | CPU ms/row | × reference | answers as torch |")
    print("|---|---|---|---|---|---|")
    for kind, found in speeds.items():
        speed, used = middle[kind]
        spread = f"{min(found)[0]:,.0f} to {max(found)[0]:,.0f}"
        times = speed / middle["reference loop"][0]
        same = agreement(results[kind], results["predict.py, torch"])
        print(f"| {kind} | {speed:,.0f} | {spread} | {used:.2f} | {times:.1f} | {same} |")
    print()
    for kind in ("fp32", "int8"):
        ours, alone = speeds[f"predict.py, onnx {kind}"], speeds[f"ONNX Runtime alone, {kind}"]
        pairs = list(zip(ours, alone, strict=True))
        speed = statistics.median(one[0] / other[0] for one, other in pairs)
        used = statistics.median(other[1] / one[1] for one, other in pairs)
        print(f"predict.py, onnx {kind}: {speed:.0%} of ONNX Runtime alone; by CPU time {used:.0%}")
    for kind, ((start, _), (seconds, peak)) in commands.items():
        print(
            f"the command, {kind}: {seconds:.1f} s, of which start-up and one row {start:.1f} s; "
            f"peak memory {peak:,.0f} MiB"
        )


def agreement(found: Any, truth: list[str]) -> str:
    """Share of answers that are the same, where there are answers to compare."""
    if not found or not isinstance(found[0], str):
        return ""
    pairs = list(zip(found, truth, strict=False))
    return f"{sum(one == other for one, other in pairs) / len(pairs):.2%}"


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True), required=False)
@click.option("-m", "--models", default="db_bhcn", show_default=True)
@click.option("--texts", default=12_288, show_default=True, help="How many texts are answered.")
@click.option("--rows", default=3000, show_default=True, help="How many rows are learned from.")
@click.option("--epochs", default=1, show_default=True)
@click.option("--runs", default=3, show_default=True)
def main(data: Path | None, models: str, texts: int, rows: int, epochs: int, runs: int) -> None:
    """Print the figures of each of MODELS."""
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["KTT_ROOT"] = temporary
        from utils.common.paths import Layout
        from utils.hierarchy.dataset import load_dataset

        prepare(data, Path(temporary))
        dataset = load_dataset(Layout(), DATASET)
        pool = [*dataset.test.texts, *dataset.val.texts, *dataset.train.texts]
        chosen = [pool[i % len(pool)] for i in range(texts)]
        length = sum(len(text.split()) for text in chosen) / len(chosen)
        print(f"{texts:,} texts of {length:.1f} words on average, {os.cpu_count()} cores")
        for name in models.split(","):
            measure(name, rows, epochs, runs, chosen, Path(temporary))


if __name__ == "__main__":
    main()
