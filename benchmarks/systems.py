#!/usr/bin/env python
"""Does an exported system answer as its model does, and does its dashboard show it?

    python export.py -m tfidf_hsgd -d shop --monitoring
    python benchmarks/systems.py -d shop -m tfidf_hsgd -m db_bhcn

Starts each exported system as docker-compose does (as processes where there is no container
engine), asks it texts of the test split, compares each answer with that of `Model.test`, and sends
every query of its dashboard to its Prometheus. Exit status 1 if an answer differs, a row did not
reach the monitor, a query has no data, or a system was not ready within a minute.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

READY_WITHIN = 60
CONNECTIONS = 8
COLUMNS = (
    "system", "run as", "ready after", "answers as Model.test", "requests/s",
    "rows at the monitor", "queries with data", "alerts",
)  # fmt: skip


def expected(model_name: str, dataset: str, requests: int) -> tuple[list[str], list[str]]:
    """Texts, and the answer to each."""
    from models import model_class
    from utils.common.checkpoints import find_checkpoint
    from utils.common.paths import Layout
    from utils.hierarchy.dataset import load_dataset

    layout = Layout()
    model = model_class(model_name).from_checkpoint(find_checkpoint(layout, model_name, dataset))
    rows = load_dataset(layout, dataset).test
    ends = model.hierarchy.end_classes(model.test(rows).codes)
    picks = np.arange(requests) % len(rows)
    paths = ["\n".join(model.hierarchy.path(int(ends[pick]))) for pick in picks]
    return list(rows.take(picks).texts), paths


def asked(system: Any, texts: list[str]) -> tuple[list[str | None], float]:
    """Its answers, None for a failure, and requests per second."""

    def ask(text: str) -> str | None:
        reply = system.ask("/predict", {"text": text}, timeout=30)
        return str(reply.json()) if reply.status == 200 else None

    started = time.monotonic()
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        answers = list(pool.map(ask, texts))
    return answers, len(texts) / (time.monotonic() - started)


def without_data(system: Any) -> tuple[int, list[str]]:
    """How many queries the dashboard has, and which of them find nothing."""
    from utils.export.dashboard import panel_queries

    file = system.folder / "grafana/provisioning/dashboards/dashboard.json"
    queries = panel_queries(json.loads(file.read_text()))
    return len(queries), [query.title for query in queries if not system.query(query.expr)]


def tried(model: str, dataset: str, requests: int) -> bool:
    """Try one system and print a line of the table."""
    from tests.support.deployed import deployed
    from utils.common.paths import Layout

    texts, paths = expected(model, dataset, requests)
    with deployed(Layout().bundle(model, dataset), period=5) as system:
        ready = system.wait_until_ready(300)
        answers, rate = asked(system, texts)
        equal = sum(one == other for one, other in zip(answers, paths, strict=True))
        received = "sum(ktt_rows_received_total)"
        system.wait_for(lambda: system.value(received) >= requests, 60)
        time.sleep(20)  # rates need two scrapes
        count, empty = without_data(system)
        rows = system.value(received)
        firing = ", ".join(system.firing())
        kind = "containers" if system.run.containers else "processes"
    print(
        f"| {model} · {dataset} | {kind} | {ready:.1f} s | {equal} of {requests} | {rate:,.0f} "
        f"| {rows:.0f} | {count - len(empty)} of {count} | {firing} |",
        flush=True,
    )
    return equal == requests == rows and not empty and ready <= READY_WITHIN


@click.command()
@click.option("-d", "--dataset", "datasets", multiple=True, required=True)
@click.option(
    "-m", "--model", "models", multiple=True, required=True, help="Each with --monitoring."
)
@click.option("--requests", default=2000, show_default=True)
def main(datasets: tuple[str, ...], models: tuple[str, ...], requests: int) -> None:
    """Try every exported system."""
    from tests.support.deployed import why_not

    if reason := why_not():
        raise click.ClickException(reason)
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    right = [tried(model, dataset, requests) for dataset in datasets for model in models]
    sys.exit(not all(right))


if __name__ == "__main__":
    main()
