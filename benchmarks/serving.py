#!/usr/bin/env python
"""How fast a bundle answers, beside the same bundle with PyTorch behind it, in the same run.

    python benchmarks/serving.py -d data001

Takes a trained db_bhcn, exports it in 8-bit integers, and starts two servers as `bentoml
serve-gunicorn` does: that bundle, and the one of reference_service.py (PyTorch, float32, text by
text to `max_len`). They are loaded by turns, one at a time, from this process, on the same machine:
what the load generator takes, both lack. The texts are the dataset's test split.

With `--monitor-python` (of an environment made from templates/monitoring/requirements.txt) a third
one is the bundle as exported with `--monitoring`, and its monitoring service runs beside it. What
that costs is less than what two turns of the same server differ by: it is the median of `--pairs`
pairs of neighbouring turns, whose order alternates.

Exit status 1 if the answers are not equal enough, or at 32 connections the ratio is too small or
monitoring costs too much.

The runtime's own limit: the same graph on texts that are tokenised and lie in batches sorted by
length, in one process that has all cores.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

BENTOML = Path(sys.executable).with_name("bentoml")
MODEL = "db_bhcn"
WANTED_RATIO, WANTED_EQUAL, WANTED_COST = 5.0, 0.99, 0.05


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one turn gave: answers per second and latencies in milliseconds."""

    rate: float
    p50: float
    p99: float


def load(server: Any, texts: Sequence[str], connections: int, seconds: float) -> Measured:
    """Ask with so many connections for so long.

    Raises
    ------
    RuntimeError
        An answer was not 200.
    """
    from benchmarks.serving_load import load as send

    url = f"http://127.0.0.1:{server.port}/predict"
    options = argparse.Namespace(url=url, connections=connections, seconds=seconds, bad_share=0.0)
    results = asyncio.run(send(options, list(texts)))
    wrong = {outcome for outcome, _ in results if outcome != "good 200"}
    if wrong or not results:
        raise RuntimeError(f"not all were answered: {wrong or 'nothing came'}")
    times = sorted(1000 * duration for _, duration in results)
    p50, p99 = (times[int(share * (len(times) - 1))] for share in (0.5, 0.99))
    return Measured(rate=len(results) / seconds, p50=p50, p99=p99)


def middle(turns: Sequence[Measured]) -> Measured:
    """The medians."""
    return Measured(
        rate=statistics.median(turn.rate for turn in turns),
        p50=statistics.median(turn.p50 for turn in turns),
        p99=statistics.median(turn.p99 for turn in turns),
    )


# -- the two bundles ------------------------------------------------------------------------


def export(root: Path, dataset: str, *options: str) -> Path:
    """Export the trained model into a root of its own; the bundle's folder."""
    from utils.common.paths import Layout

    root.mkdir()
    known = Layout()
    for name in ("weights", "datasets"):
        (root / name).symlink_to(known.root / name)
    words = [str(ROOT / "export.py"), "-m", MODEL, "-d", dataset, *options]
    subprocess.run([sys.executable, *words], env=os.environ | {"KTT_ROOT": str(root)}, check=True)
    return Layout(root).bundle(MODEL, dataset) / "inference"


def reference_bundle(root: Path, checkpoint: Path) -> Path:
    """A bundle around the checkpoint."""
    from utils.export.bundle import write_bundle

    folder = root / "checkpoint"
    folder.mkdir()
    shutil.copyfile(checkpoint, folder / checkpoint.name)
    service = ROOT / "benchmarks" / "reference_service.py"
    return write_bundle(root / "reference", service_file=service, classifier=folder)


@contextlib.contextmanager
def running(bundle: Path, home: Path) -> Iterator[Any]:
    """A server of the bundle, warm."""
    from utils.serving.local_server import served

    with served(bundle, "serve-gunicorn", BENTOML, home) as server:
        yield server


@contextlib.contextmanager
def monitored(bundle: Path, home: Path, python: Path) -> Iterator[Any]:
    """A server of the bundle with its monitoring service beside it."""
    from utils.serving.local_server import free_port

    port = str(free_port())
    home.mkdir()
    os.environ["EVIDENTLY_PORT"] = port
    with (home / "monitor.log").open("wb") as log:
        process = subprocess.Popen(
            [python, "-m", "gunicorn", "-c", "gunicorn.conf.py", "monitoring:app"],
            cwd=bundle.parent / "monitoring", stdout=log, stderr=log,
            env=os.environ | {"KTT_MONITOR_PORT": port, "KTT_MONITOR_DATA": str(home / "data")},
        )  # fmt: skip
    try:
        with running(bundle, home) as server:
            yield server
            print(f"\nTo the monitor: {', '.join(rows_of(server))}")
    finally:
        process.terminate()
        process.wait(30)


def rows_of(server: Any) -> list[str]:
    """What its metrics say about rows for the monitor."""
    lines = server.get("/metrics").text.splitlines()
    return [line for line in lines if line.startswith("ktt_monitor_rows_total")]


# -- what is printed ------------------------------------------------------------------------


def equal_answers(servers: Sequence[Any], texts: Sequence[str]) -> float:
    """Share of texts that both answer alike."""

    def answer(one: tuple[Any, str]) -> str:
        server, text = one
        return str(server.ask("/predict", {"text": text}).json())

    with ThreadPoolExecutor(16) as pool:
        ours, theirs = (
            list(pool.map(answer, [(server, text) for text in texts])) for server in servers
        )
    return sum(one == other for one, other in zip(ours, theirs, strict=True)) / len(texts)


def runtime_alone(bundle: Path, texts: Sequence[str], runs: int) -> float:
    """Rows per second of ONNX Runtime on inputs that are ready; the median."""
    from benchmarks.inference import runtime_alone as alone
    from utils.inference.classifier import Classifier

    (folder,) = bundle.glob("*/artifacts/classifier")
    work = alone(Classifier.load(folder).scorer, texts)
    speeds = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        work()
        speeds.append(len(texts) / (time.perf_counter() - started))
    return statistics.median(speeds[1:])


def by_turns(
    servers: dict[str, Any], texts: Sequence[str], connections: int, seconds: float, rounds: int
) -> dict[str, Measured]:
    """Load each server in turn; medians over the rounds, the first of which does not count."""
    turns: dict[str, list[Measured]] = {name: [] for name in servers}
    for _ in range(rounds + 1):
        for name, server in servers.items():
            turns[name].append(load(server, texts, connections, seconds))
    return {name: middle(found[1:]) for name, found in turns.items()}


def cost_of_monitoring(
    plain: Any, watched: Any, texts: Sequence[str], seconds: float, pairs: int
) -> list[float]:
    """Share of the throughput at 32 connections that monitoring takes, by pair of turns."""
    costs = []
    for number in range(pairs + 1):
        order = (plain, watched) if number % 2 else (watched, plain)
        rates = {id(server): load(server, texts, 32, seconds).rate for server in order}
        costs.append(1 - rates[id(watched)] / rates[id(plain)])
    return costs[1:]


def show(connections: int, found: dict[str, Measured]) -> None:
    for name, one in found.items():
        print(f"| {connections} | {name} | {one.rate:,.0f} | {one.p50:.1f} | {one.p99:.1f} |")


@click.command()
@click.option("-d", "--dataset", required=True, help="That it was trained on.")
@click.option("--quantize", type=click.Choice(["int8", "none"]), default="int8", show_default=True)
@click.option("--seconds", default=8.0, show_default=True, help="Of a turn.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--connections", default="1,8,32,128", show_default=True)
@click.option("--monitor-python", type=click.Path(path_type=Path, exists=True))
@click.option("--pairs", default=12, show_default=True, help="Of turns with and without monitor.")
def main(
    dataset: str,
    quantize: str,
    seconds: float,
    rounds: int,
    connections: str,
    monitor_python: Path | None,
    pairs: int,
) -> None:
    """Load both servers and print the figures."""
    from utils.common.checkpoints import find_checkpoint
    from utils.common.paths import Layout
    from utils.hierarchy.dataset import load_dataset

    texts = list(load_dataset(Layout(), dataset).test.texts)
    checkpoint = find_checkpoint(Layout(), MODEL, dataset)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        root = Path(name)
        bits = ("--quantize", quantize) if quantize != "none" else ()
        bundle = export(root / "plain", dataset, "--bento", *bits)
        reference = reference_bundle(root, checkpoint)
        servers = {
            "ktt": stack.enter_context(running(bundle, root / "home-ktt")),
            "reference": stack.enter_context(running(reference, root / "home-reference")),
        }
        if monitor_python:
            watched = export(root / "watched", dataset, "--monitoring", *bits)
            place = root / "home-watched"
            server = stack.enter_context(monitored(watched, place, monitor_python.absolute()))
            servers["ktt, monitored"] = server
        equal = equal_answers([servers["ktt"], servers["reference"]], texts[:1000])
        length = sum(map(len, texts)) / len(texts)
        print(f"\n{MODEL} · {dataset}: texts of {length:.0f} characters, {os.cpu_count()} cores\n")
        print("| connections | service | requests/s | p50 ms | p99 ms |\n|---|---|---|---|---|")
        at_32: dict[str, Measured] = {}
        for count in map(int, connections.split(",")):
            both = by_turns(servers, texts, count, seconds, rounds)
            show(count, both)
            if count == 32:
                at_32 = both
        costs = []
        if monitor_python:
            pair = servers["ktt"], servers["ktt, monitored"]
            costs = cost_of_monitoring(*pair, texts, seconds, pairs)
        limit = runtime_alone(bundle, texts, rounds)
        print(f"\nAnswers equal: {equal:.2%} (wanted: {WANTED_EQUAL:.0%})")
        kept = [equal >= WANTED_EQUAL]
        if at_32:
            kept.append(fast_enough(at_32, limit))
        if costs:
            kept.append(cheap_enough(costs))
    sys.exit(not all(kept))


def fast_enough(found: dict[str, Measured], limit: float) -> bool:
    """Print the ratios at 32 connections."""
    rate = found["ktt"].rate
    ratio = rate / found["reference"].rate
    print(f"At 32 connections {ratio:.1f} × the reference (wanted: {WANTED_RATIO:.0f} ×)")
    print(f"ONNX Runtime alone: {limit:,.0f} rows/s; the service has {rate / limit:.0%} of it")
    return ratio >= WANTED_RATIO


def cheap_enough(costs: Sequence[float]) -> bool:
    """Print what monitoring costs."""
    low, cost, high = np.percentile(costs, (25, 50, 75))
    print(
        f"Monitoring costs {cost:.1%} of the throughput (wanted: at most {WANTED_COST:.0%}): "
        f"median of {len(costs)} pairs of turns, half of them within {low:.1%} and {high:.1%}"
    )
    return bool(cost <= WANTED_COST)


if __name__ == "__main__":
    main()
