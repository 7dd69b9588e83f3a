"""Does a prediction notice that the monitor is away? Phases by turns, in one run.

    python export.py -m tfidf_hsgd -d shop --monitoring
    python benchmarks/outages.py build/tfidf_hsgd_shop --rounds 5

Under a steady load the monitor of an exported system (a copy of it) is stopped, frozen, or replaced
by one that answers 500, and back again each time. Prints a Markdown table; exit status 1 if a
prediction failed, a row is not accounted for, or the 99 % quantile while the monitor was away is
more than 1.2 times that of the healthy phases.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from itertools import chain
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.traffic import generated_texts  # noqa: E402
from tests.support.deployed import OUTAGES, Deployed, deployed, outage, why_not  # noqa: E402
from tests.support.steady import Outcome, Steady, Texts, quantile  # noqa: E402

HEALTHY = "healthy"
WANTED = 1.2
OUTCOMES = ("sent", "dropped", "refused")


def phase(load: Steady, seconds: float) -> list[Outcome]:
    """What was asked during some seconds from now on."""
    start = time.monotonic()
    time.sleep(seconds)
    end = time.monotonic()
    time.sleep(1)  # for the last ones' answers
    return load.between(start, end)


def counted(system: Deployed) -> dict[str, int]:
    """Where the rows of all answers are."""
    own = {
        outcome: int(system.metric("inference", "ktt_monitor_rows_total", outcome=outcome))
        for outcome in OUTCOMES
    }
    return {**own, "queued": int(system.metric("inference", "ktt_monitor_queue_rows"))}


def recovery(system: Deployed) -> float:
    """Wait until rows flow again; how long it took."""
    start, sent = time.monotonic(), counted(system)["sent"]
    system.wait_for(lambda: counted(system)["sent"] > sent, 60)
    return time.monotonic() - start


def turns(
    system: Deployed, load: Steady, options: argparse.Namespace
) -> tuple[dict[str, list[list[Outcome]]], dict[str, list[float]]]:
    """Outcomes of all phases, and seconds until rows flowed again, by kind of phase."""
    phases: dict[str, list[list[Outcome]]] = defaultdict(list)
    back: dict[str, list[float]] = defaultdict(list)
    for _ in range(options.rounds):
        for how in OUTAGES:
            phases[HEALTHY].append(phase(load, options.seconds))
            with outage(system, "monitoring", how):
                phases[how].append(phase(load, options.seconds))
            start = time.monotonic()
            back[how].append(recovery(system))
            phases[f"after {how}"].append(phase(load, options.seconds))
            print(f"  {how}: {time.monotonic() - start:.0f} s, {counted(system)}", flush=True)
    return phases, back


def slowed(phases: dict[str, list[list[Outcome]]]) -> list[str]:
    """The kinds of outage that a prediction notices."""
    p99 = {name: quantile(list(chain(*parts)), 0.99) for name, parts in phases.items()}
    return [how for how in OUTAGES if p99[how] > WANTED * p99[HEALTHY]]


def table(phases: dict[str, list[list[Outcome]]], back: dict[str, list[float]]) -> str:
    """Figures by kind of phase; ratios are to the healthy phases, all together and by turns."""
    everything = {name: list(chain.from_iterable(parts)) for name, parts in phases.items()}
    base = quantile(everything[HEALTHY], 0.99)
    turn = median(quantile(part, 0.99) for part in phases[HEALTHY])
    lines = [
        "| monitor | requests | failed | p50 ms | p99 ms | ratio | its phases | rows flow again |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, outcomes in everything.items():
        p50, p99 = (quantile(outcomes, share) for share in (0.5, 0.99))
        own = median(quantile(part, 0.99) for part in phases[name])
        flow = f"{max(back[name]):.1f} s" if name in back else ""
        failed = sum(outcome.status != 200 for outcome in outcomes)
        lines.append(
            f"| {name} | {len(outcomes)} | {failed} | {p50 * 1000:.1f} | {p99 * 1000:.1f} "
            f"| {p99 / base:.2f} | {own / turn:.2f} | {flow} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Take the monitor away under load.")
    parser.add_argument("folder", type=Path, help="what export.py --monitoring wrote")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=15, help="of a phase")
    parser.add_argument("--rate", type=float, default=40, help="requests per second")
    parser.add_argument("--connections", type=int, default=8)
    options = parser.parse_args()
    if reason := why_not():
        print(f"Error: {reason}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "outages"
        shutil.copytree(options.folder, folder)
        with deployed(folder) as system:
            system.wait_until_ready(300)
            traffic = Texts(generated_texts(1000, random.Random(0)))
            address = f"http://127.0.0.1:{system.ports['inference']}"
            with Steady(
                address,
                traffic,
                rate=options.rate,
                connections=options.connections,
                headers=system.headers,
            ) as load:
                phase(load, 5)
                phases, back = turns(system, load, options)
            time.sleep(3)
            held = counted(system)
            answers = int(system.metric("inference", "ktt_answers_total"))
    print(table(phases, back))
    failed = sum(outcome.status != 200 for outcome in load.outcomes)
    print(f"\n{len(load.outcomes)} requests, {failed} failed; {answers} answers, of which {held}")
    late = slowed(phases)
    print(f"Slower than {WANTED} x healthy: {', '.join(late) or 'in no outage'}")
    return int(bool(failed or late) or sum(held.values()) != answers)


if __name__ == "__main__":
    sys.exit(main())
