#!/usr/bin/env python
"""What calls of many callers cost when a runner answers them together, beside one by one.

    python benchmarks/runner.py ../shared/data/clinc150
    KTT_ROOT=/some/project python benchmarks/runner.py --trained shop

DATA is as for benchmarks/inference.py, which also trains; `--trained` takes pairs of a project that
are trained (and, for encoder models, exported) already.

The reference is the same model in the same process, asked for one text at a time without a
runner. Each kind answers the same texts; rates are medians over the runs, which take turns, and
ratios those of each run. All answers are compared with the reference's. Every caller asks for one
text after the other and waits for each answer.

A call's wait is the time until its batch begins. The runner promises no more than the latency
limit and one batch, as long as all that waits fits a batch. What was loaded is taken out of
Python's garbage collection (`gc.freeze`): a full one stops all threads.

Exit status 1 if calls of threads are not as many times as fast as wanted.
"""

from __future__ import annotations

import asyncio
import gc
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

Answers = list[tuple[str, ...]]
WANTED = {"db_bhcn": 2.0, "tfidf_hsgd": 4.0}
"""Times one by one, of the calls of threads."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one run of one kind gave."""

    seconds: float
    answers: Answers
    latencies: list[float]
    """Of each call, in seconds."""


def one_by_one(ask: Callable[[str], Any], texts: Sequence[str]) -> Outcome:
    """One caller."""
    started, latencies, answers = time.perf_counter(), [], []
    for text in texts:
        begun = time.perf_counter()
        answers.append(ask(text))
        latencies.append(time.perf_counter() - begun)
    seconds = time.perf_counter() - started
    return Outcome(seconds=seconds, answers=answers, latencies=latencies)


def from_threads(ask: Callable[[str], Any], texts: Sequence[str], callers: int) -> Outcome:
    """Callers in threads; each has every so manieth text."""
    parts: list[Outcome] = [None] * callers  # type: ignore[list-item]
    gate = threading.Barrier(callers + 1)

    def call(number: int) -> None:
        gate.wait()
        parts[number] = one_by_one(ask, texts[number::callers])

    threads = [threading.Thread(target=call, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    gate.wait()
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    return together(parts, time.perf_counter() - started, len(texts))


def from_tasks(ask: Callable[[str], Any], texts: Sequence[str], callers: int) -> Outcome:
    """Callers in tasks of one event loop."""

    async def call(own: Sequence[str]) -> Outcome:
        started, latencies, answers = time.perf_counter(), [], []
        for text in own:
            begun = time.perf_counter()
            answers.append(await ask(text))
            latencies.append(time.perf_counter() - begun)
        seconds = time.perf_counter() - started
        return Outcome(seconds=seconds, answers=answers, latencies=latencies)

    async def all_calls() -> list[Outcome]:
        return await asyncio.gather(*(call(texts[number::callers]) for number in range(callers)))

    started = time.perf_counter()
    parts = asyncio.run(all_calls())
    return together(parts, time.perf_counter() - started, len(texts))


def together(parts: Sequence[Outcome], seconds: float, count: int) -> Outcome:
    """The outcomes of callers as one, in the order of the texts."""
    answers: Answers = [()] * count
    for number, part in enumerate(parts):
        answers[number :: len(parts)] = part.answers
    latencies = [latency for part in parts for latency in part.latencies]
    return Outcome(seconds=seconds, answers=answers, latencies=latencies)


def measure(name: str, opener: Any, texts: list[str], options: dict[str, Any]) -> bool:
    """Print the figures of one model; return whether it is as fast as wanted."""
    from utils.runner import DEFAULT_SIGNATURES, Runner
    from utils.runner.text_model import TextModel

    callers, workers, limit = options["callers"], options["workers"], options["max_latency"]
    new = partial(
        Runner, name, opener, signatures=DEFAULT_SIGNATURES,
        max_batch_size=options["max_batch"], max_latency_ms=limit,
    )  # fmt: skip
    with new() as lone, new() as threads, new() as tasks, new(workers=workers) as team:
        print(f"\n{name}: {lone.source.description}")
        model = TextModel(lone.source)
        kinds: dict[str, tuple[Any, Callable[[], Outcome]]] = {
            "one by one, no runner": (
                None, lambda: one_by_one(lambda text: model.predict([text])[0], texts),
            ),
            "one caller": (lone, lambda: one_by_one(lone.predict.run, texts)),
            f"{callers} threads": (
                threads, lambda: from_threads(threads.predict.run, texts, callers),
            ),
            f"{callers} tasks": (
                tasks, lambda: from_tasks(tasks.predict.async_run, texts, callers),
            ),
            f"{callers} threads, {workers} workers": (
                team, lambda: from_threads(team.predict.run, texts, callers),
            ),
        }  # fmt: skip
        gc.collect()
        gc.freeze()  # a full collection of all that was loaded stops every thread for 50 ms
        found: dict[str, list[Outcome]] = {kind: [] for kind in kinds}
        for run in range(options["runs"] + 1):
            for kind, (_, work) in kinds.items():
                outcome = work()
                if run:  # the first one warms up
                    found[kind].append(outcome)
        show(found)
        show_limits({kind: runner for kind, (runner, _) in kinds.items() if runner}, limit)
        return fast_enough(name, ratios(found)[f"{callers} threads"])


def fast_enough(name: str, found: Sequence[float]) -> bool:
    """Print how many times as fast threads are, and what is wanted of that model."""
    wanted, ratio = WANTED.get(name), statistics.median(found)
    if wanted is None:
        return True
    print(
        f"\n{name}: threads {ratio:.1f} × one by one, {min(found):.1f} to {max(found):.1f} "
        f"(wanted: {wanted:.0f} ×)"
    )
    return ratio >= wanted


def ratios(found: dict[str, list[Outcome]]) -> dict[str, list[float]]:
    """How many times as fast as the first kind each one was, run by run."""
    reference = next(iter(found.values()))
    return {
        kind: [base.seconds / one.seconds for one, base in zip(outcomes, reference, strict=True)]
        for kind, outcomes in found.items()
    }


def show_limits(runners: dict[str, Any], limit: float) -> None:
    """Print what of the two limits was used."""
    print(
        "| calls | texts a batch | largest batch | longest wait | latency limit + longest batch |"
    )
    print("|---|---|---|---|---|")
    for kind, runner in runners.items():
        counts = runner.counts
        print(
            f"| {kind} | {counts.rows / counts.batches:.1f} | {counts.largest_batch} of "
            f"{runner.max_batch_size} | {1000 * counts.longest_wait:.1f} ms "
            f"| {limit + 1000 * counts.longest_batch:.1f} ms |"
        )


def show(found: dict[str, list[Outcome]]) -> None:
    """Print a table."""
    reference, times = next(iter(found.values())), ratios(found)
    print(
        "\n| calls | per s | lowest to highest | × one by one | lowest to highest | median ms "
        "| 99 % ms | answers |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for kind, outcomes in found.items():
        rates = [len(one.answers) / one.seconds for one in outcomes]
        latencies = sorted(1000 * value for one in outcomes for value in one.latencies)
        same = statistics.mean(
            one == other
            for outcome in outcomes
            for one, other in zip(outcome.answers, reference[0].answers, strict=True)
        )
        print(
            f"| {kind} | {statistics.median(rates):,.0f} | {min(rates):,.0f} to {max(rates):,.0f} "
            f"| {statistics.median(times[kind]):.1f} "
            f"| {min(times[kind]):.1f} to {max(times[kind]):.1f} "
            f"| {statistics.median(latencies):.2f} "
            f"| {latencies[round(0.99 * (len(latencies) - 1))]:.2f} | {same:.2%} |"
        )
    print()


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True), required=False)
@click.option("-m", "--models", default="db_bhcn,tfidf_hsgd", show_default=True)
@click.option("--trained", help="A dataset that the models are trained on, in KTT_ROOT.")
@click.option("--texts", default=2048, show_default=True, help="How many texts are answered.")
@click.option("--callers", default=64, show_default=True)
@click.option("--workers", default=2, show_default=True)
@click.option("--max-batch", default=256, show_default=True)
@click.option("--max-latency", default=10.0, show_default=True, help="Milliseconds.")
@click.option("--rows", default=3000, show_default=True, help="How many rows are learned from.")
@click.option("--runs", default=5, show_default=True)
def main(data: Path | None, models: str, trained: str | None, rows: int, **options: Any) -> None:
    """Print the figures of each of MODELS; exit with 1 if one is not as fast as wanted."""
    kept = []
    with tempfile.TemporaryDirectory() as temporary:
        if not trained:
            os.environ["KTT_ROOT"] = temporary
        from benchmarks import inference
        from utils.common.paths import Layout
        from utils.hierarchy.dataset import load_dataset
        from utils.runner import opener

        if not trained:
            inference.prepare(data, Path(temporary))
        name = trained or inference.DATASET
        split = load_dataset(Layout(), name).test.texts
        texts = [split[i % len(split)] for i in range(options["texts"])]
        print(f"{len(texts):,} texts, {os.cpu_count()} cores")
        for model in models.split(","):
            if not trained:
                inference.train(model, rows, 1)
                if model.startswith("db_"):
                    inference.export(model, "int8")
            kept.append(measure(model, opener(Layout(), model, name), texts, options))
    sys.exit(not all(kept))


if __name__ == "__main__":
    main()
