"""Runs an exported system for some time under mixed traffic: does anything fail, grow or fill up?

    python export.py -m tfidf_hsgd -d shop --monitoring
    python benchmarks/soak.py build/tfidf_hsgd_shop --minutes 15

The system runs in a copy of the folder, as containers or else as processes (see
tests/support/deployed.py).
Most requests are good, some deserve a 4xx, and some are feedback about earlier answers. Exit status
1 if a request got a status that it should not have, the memory of a service moved by more than 5 %
after the first two minutes, or the monitor's window or the queue before it passed its bound.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.traffic import BAD_BODIES, generated_texts  # noqa: E402
from tests.support.deployed import Deployed, deployed, why_not  # noqa: E402
from tests.support.steady import Outcome, Request, Steady, quantile  # noqa: E402
from utils.serving.monitor_client import Settings  # noqa: E402

WATCHED = ("inference", "monitoring")
SAMPLE_SECONDS = 10
MOST_DRIFT = 0.05
GOOD, BAD, FEEDBACK, BAD_FEEDBACK = "good", "bad", "feedback", "bad feedback"
RIGHT = {GOOD: {200}, BAD: {400}, FEEDBACK: {202}, BAD_FEEDBACK: {400}}
BAD_FEEDBACKS = (b"", b"[]", b'{"request_id": 3}', b'{"request_id": "x", "path": ["y"]}')


class Mixed:
    """Good and bad requests, and feedback that says that an answer was right."""

    def __init__(self, texts: list[str], bad_share: float, feedback_share: float) -> None:
        self.texts, self.bad, self.feedback = texts, bad_share, feedback_share
        self.answers: deque[bytes] = deque(maxlen=1000)

    def draw(self, rng: random.Random) -> Request:
        """The next request."""
        path, chance = rng.choice(["/predict", "/classify"]), rng.random()
        if chance < self.bad:
            if rng.random() < 0.2:
                return Request(kind=BAD_FEEDBACK, path="/feedback", body=rng.choice(BAD_FEEDBACKS))
            return Request(kind=BAD, path=path, body=rng.choice(BAD_BODIES))
        if chance < self.bad + self.feedback and self.answers:
            return Request(kind=FEEDBACK, path="/feedback", body=self.answers.popleft())
        body = json.dumps({"text": rng.choice(self.texts)}).encode()
        return Request(kind=GOOD, path=path, body=body)

    def answered(self, request: Request, status: int, body: bytes) -> None:
        """Remember what feedback can be about."""
        if (request.kind, request.path, status) == (GOOD, "/classify", 200):
            answer = json.loads(body)
            known = {"request_id": answer["request_id"], "path": answer["path"]}
            self.answers.append(json.dumps(known).encode())


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The system at some moment; `seconds` since the start."""

    seconds: float
    memory: dict[str, int]
    window: int
    queue: int
    lost: int


def sample(system: Deployed, seconds: float) -> Sample:
    """Look at the system now."""
    lost = (
        system.metric("inference", "ktt_monitor_rows_total", outcome=outcome)
        for outcome in ("dropped", "refused")
    )
    return Sample(
        seconds=seconds,
        memory={service: system.run.memory(service) for service in WATCHED},
        window=int(system.metric("monitoring", "ktt_window_rows")),
        queue=int(system.metric("inference", "ktt_monitor_queue_rows")),
        lost=int(sum(lost)),
    )


def wrong(outcomes: list[Outcome]) -> Counter[str]:
    """What should not have come back, counted."""
    return Counter(
        f"{outcome.kind}: {outcome.status or 'no answer'}"
        for outcome in outcomes
        if outcome.status not in RIGHT[outcome.kind]
    )


def drift(samples: list[Sample], service: str, warm_up: float) -> float:
    """By how much memory moved between the first and the last quarter after the warm-up.

    Each quarter is taken by its median: a moment's garbage is no growth.
    """
    sizes = [one.memory[service] for one in samples if one.seconds >= warm_up]
    quarter = max(1, len(sizes) // 4)
    first, last = (sorted(part)[len(part) // 2] for part in (sizes[:quarter], sizes[-quarter:]))
    return last / first - 1


def row(now: Sample, outcomes: list[Outcome], since: float) -> str:
    """A line of the table."""
    recent = [outcome for outcome in outcomes if outcome.at >= since]
    sizes = " ".join(f"{now.memory[service] / 1e6:>12.1f}" for service in WATCHED)
    return (
        f"{now.seconds / 60:>6.1f} {len(recent):>9} {len(wrong(recent)):>6} "
        f"{quantile(recent, 0.5) * 1000:>8.1f} {quantile(recent, 0.99) * 1000:>8.1f} "
        f"{sizes} {now.window:>7} {now.queue:>6} {now.lost:>5}"
    )


HEADER = "minute  requests  wrong   p50 ms   p99 ms inference MB monitoring MB window  queue  lost"


def soak(system: Deployed, options: argparse.Namespace) -> tuple[list[Sample], list[Outcome]]:
    """Load the system and watch it."""
    traffic = Mixed(options.texts, options.bad_share, options.feedback_share)
    address = f"http://127.0.0.1:{system.ports['inference']}"
    samples: list[Sample] = []
    print(HEADER, flush=True)
    with Steady(
        address,
        traffic,
        rate=options.rate,
        connections=options.connections,
        headers=system.headers,
    ) as load:
        start = shown = time.monotonic()
        while (spent := time.monotonic() - start) < options.minutes * 60:
            time.sleep(min(SAMPLE_SECONDS, options.minutes * 60 - spent))
            samples.append(sample(system, time.monotonic() - start))
            if time.monotonic() - shown >= 60 - SAMPLE_SECONDS / 2:
                print(row(samples[-1], load.outcomes, shown), flush=True)
                shown = time.monotonic()
    return samples, load.outcomes


def verdict(
    samples: list[Sample], outcomes: list[Outcome], window: int, queue: int, warm_up: float
) -> list[str]:
    """Print what was found; the bounds that are broken."""
    failures = sum(outcome.status >= 500 or not outcome.status for outcome in outcomes)
    moved = {service: drift(samples, service, warm_up) for service in WATCHED}
    most = {name: max(getattr(one, name) for one in samples) for name in ("window", "queue")}
    counts = Counter(f"{outcome.kind} {outcome.status}" for outcome in outcomes)
    print(
        f"\n{len(outcomes)} requests: " + ", ".join(f"{k}: {n}" for k, n in sorted(counts.items()))
    )
    print(f"5xx or no answer: {failures}")
    for service, share in moved.items():
        print(f"memory of {service} after the first {warm_up / 60:g} minutes: {share:+.1%}")
    print(f"largest window: {most['window']} of {window}; queue: {most['queue']} of {queue}")
    broken = [f"wrong: {what} ({count})" for what, count in wrong(outcomes).items()]
    for service, share in moved.items():
        if abs(share) > MOST_DRIFT:
            broken.append(f"memory of {service}: {share:+.1%}")
    for name, limit in (("window", window), ("queue", queue)):
        if most[name] > limit:
            broken.append(f"the {name} has had {most[name]} rows")
    return broken


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run an exported system under mixed traffic.")
    parser.add_argument("folder", type=Path, help="what export.py --monitoring wrote")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--rate", type=float, default=40, help="requests per second")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--bad-share", type=float, default=0.15, help="of requests, 0 to 1")
    parser.add_argument("--feedback-share", type=float, default=0.1, help="of requests, 0 to 1")
    parser.add_argument("--texts", type=Path, help="a file with one text a line")
    parser.add_argument("--period", type=int, default=10, help="seconds between calculations")
    parser.add_argument("--warm-up", type=float, default=2, help="minutes before memory counts")
    options = parser.parse_args()
    if options.minutes <= options.warm_up:
        parser.error("--minutes must be more than --warm-up")
    lines = options.texts.read_text(encoding="utf-8").splitlines() if options.texts else []
    texts = [line for line in lines if line.strip()]
    options.texts = texts or generated_texts(1000, random.Random(0))
    return options


def main() -> int:
    options = arguments()
    if reason := why_not():
        print(f"Error: {reason}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "soak"
        shutil.copytree(options.folder, folder)
        with deployed(folder, period=options.period) as system:
            print(f"ready after {system.wait_until_ready(300):.0f} s", flush=True)
            window = int(system.metric("monitoring", "ktt_window_size"))
            samples, outcomes = soak(system, options)
    queue = Settings().limit  # of one worker, though there may be several
    broken = verdict(samples, outcomes, window, queue, options.warm_up * 60)
    print("\n".join(f"BROKEN {line}" for line in broken) or "all bounds kept")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
