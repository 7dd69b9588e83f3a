"""Loads a running bundle and prints what came back: `python benchmarks/serving_load.py --help`.

    bentoml serve-gunicorn build/db_bhcn_data001/inference --port 5000
    python benchmarks/serving_load.py http://localhost:5000/predict --connections 32 --seconds 60

Each connection sends its next request when the last one is answered. With `--bad-share .1` every
tenth request is one that deserves a 4xx. Exit status 1 if any answer is not what it should be.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

import aiohttp

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.traffic import BAD_BODIES, generated_texts  # noqa: E402


async def connection(
    session: aiohttp.ClientSession,
    options: argparse.Namespace,
    texts: list[str],
    rng: random.Random,
    results: list[tuple[str, float]],
) -> None:
    """Send requests until the time is over; note each outcome with its seconds."""
    while time.perf_counter() < options.until:
        bad = rng.random() < options.bad_share
        body = rng.choice(BAD_BODIES) if bad else json.dumps({"text": rng.choice(texts)}).encode()
        start = time.perf_counter()
        try:
            async with session.post(options.url, data=body) as response:
                await response.read()
                right = 400 <= response.status < 500 if bad else response.status == 200
                outcome = f"{'bad' if bad else 'good'} {response.status}{'' if right else ' !'}"
        except (aiohttp.ClientError, TimeoutError) as error:
            outcome = f"{type(error).__name__} !"
        results.append((outcome, time.perf_counter() - start))


async def load(options: argparse.Namespace, texts: list[str]) -> list[tuple[str, float]]:
    """Run all connections."""
    results: list[tuple[str, float]] = []
    connector = aiohttp.TCPConnector(limit=options.connections)
    options.until = time.perf_counter() + options.seconds
    async with aiohttp.ClientSession(connector=connector) as session:
        await asyncio.gather(
            *(
                connection(session, options, texts, random.Random(seed), results)
                for seed in range(options.connections)
            )
        )
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description="Load a running bundle.")
    parser.add_argument("url", help="for example http://localhost:5000/predict")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--bad-share", type=float, default=0.0, help="of requests, 0 to 1")
    parser.add_argument("--texts", type=Path, help="a file with one text a line")
    options = parser.parse_args()
    lines = options.texts.read_text(encoding="utf-8").splitlines() if options.texts else []
    texts = [line for line in lines if line.strip()] or generated_texts(1000, random.Random(0))
    results = asyncio.run(load(options, texts))
    seconds = sorted(duration for _, duration in results)
    counts = Counter(outcome for outcome, _ in results)
    rate = len(results) / options.seconds
    p50, p99 = (seconds[int(share * (len(seconds) - 1))] * 1000 for share in (0.5, 0.99))
    print(f"{len(results)} requests, {rate:.0f}/s, median {p50:.1f} ms, 99 % {p99:.1f} ms")
    for outcome, count in sorted(counts.items()):
        print(f"  {outcome}: {count}")
    return int(any(outcome.endswith("!") for outcome in counts))


if __name__ == "__main__":
    sys.exit(main())
